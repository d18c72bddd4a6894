#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs into a fresh prefix and builds a stranger's programs against what is there, in C and C++, with
# find_package and with pkg-config.
#   usage: test-install.sh BUILD_DIR CMAKE
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$1
cmake=${2:-cmake}
command -v pkg-config >/dev/null || { echo "SKIP pkg-config is not installed"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/tmp}/ibnbd-install.XXXXXX")
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix
fail() { echo "FAIL: $*" >&2; exit 1; }

# Only what a developer needs: the programs may not be built yet.
for component in library development; do
  "$cmake" --install "$build" --prefix "$prefix" --component "$component" >"$work/install.log" 2>&1 ||
    { cat "$work/install.log"; fail "install $component"; }
done
library=$(find "$prefix" -name 'libibnbd.so.0')
[ -n "$library" ] || fail "libibnbd.so.0 was not installed"
libdir=$(dirname "$library")
[ "$(find "$prefix/include" -type f)" = "$prefix/include/ibnbd/ibnbd.h" ] || fail "headers: $(find "$prefix/include" -type f)"
[ -e "$prefix/share/man/man3/ibnbd.3" ] || fail "ibnbd.3 was not installed"

"$cmake" -S "$here/consumer" -B "$work/build" -DCMAKE_PREFIX_PATH="$prefix" >"$work/log" 2>&1 || { cat "$work/log"; fail "find_package"; }
"$cmake" --build "$work/build" >"$work/log" 2>&1 || { cat "$work/log"; fail "build with find_package"; }
run() { LD_LIBRARY_PATH=$libdir "$@" | tee "$work/out" && grep -q 'libibnbd 0\.1\.0 says: ibnbd_session_open: .*nonsense' "$work/out"; }
run "$work/build/consumer-c" || fail "consumer-c of find_package"
run "$work/build/consumer-cxx" || fail "consumer-cxx of find_package"

export PKG_CONFIG_PATH=$libdir/pkgconfig
[ "$(pkg-config --modversion ibnbd)" = 0.1.0 ] || fail "pkg-config --modversion"
# The installed file names the configured prefix; a package is relocated the same way.
flags=$(pkg-config --define-variable=prefix="$prefix" --cflags --libs ibnbd)
# shellcheck disable=SC2086
${CC:-cc} -std=c99 -pedantic -Wall -Wextra -Werror -o "$work/c" "$here/consumer/consumer.c" $flags || fail "C with pkg-config"
# shellcheck disable=SC2086
${CXX:-c++} -std=c++11 -pedantic -Wall -Wextra -Werror -o "$work/cxx" "$here/consumer/consumer.cc" $flags || fail "C++ with pkg-config"
run "$work/c" || fail "C program of pkg-config"
run "$work/cxx" || fail "C++ program of pkg-config"
echo "installed, found by CMake and pkg-config, built and run in C and C++"
