#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the fio engine against the source of the fio that is installed.
#   usage: build.sh BUILD_DIR [OUTPUT]      (default: BUILD_DIR/ibnbd_fio.so)
# BUILD_DIR is a build directory of ibnbd that has lib/libibnbd.so.  The source of fio is fetched once, into
# BUILD_DIR/fio-source, as Debian's source package of the installed version, with an apt configuration of our
# own: nothing under /etc or /var is changed.  FIO_SOURCE=DIR uses an unpacked source instead.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: $0 BUILD_DIR [OUTPUT]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
build=$(cd "$1" && pwd)
output=${2:-$build/ibnbd_fio.so}
fail() { echo "build fio engine: $*" >&2; exit 1; }

command -v fio >/dev/null || fail "fio is not installed"
[ -e "$build/lib/libibnbd.so" ] || fail "$build/lib/libibnbd.so: not built yet: build the target ibnbd"
version=$(fio --version) # fio-3.33
version=${version#fio-}

fetch() {
  local work=$build/fio-source package_version
  source=$work/fio-$version
  [ -e "$source/fio.h" ] && return
  command -v dpkg-query >/dev/null || fail "not a Debian system: set FIO_SOURCE to the source of fio $version"
  package_version=$(dpkg-query -W -f '${source:Version}' fio) || fail "fio is not from a package: set FIO_SOURCE"
  mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
  # The machine's own Debian sources, as source packages.
  : >"$work/apt/src.list"
  if [ -e /etc/apt/sources.list.d/debian.sources ]; then
    sed 's/^Types:.*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$work/apt/src.sources"
  elif [ -e /etc/apt/sources.list ]; then
    sed -n 's/^deb \(.*\)/deb-src \1/p' /etc/apt/sources.list >"$work/apt/src.list"
  else
    fail "no apt sources found: set FIO_SOURCE to the source of fio $version"
  fi
  local list=$work/apt/src.list
  [ -e "$work/apt/src.sources" ] && list=$work/apt/src.sources
  local apt=(apt-get -q -o "Dir::Etc::sourcelist=$list" -o Dir::Etc::sourceparts=/dev/null
             -o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User=)
  (cd "$work" && "${apt[@]}" update && "${apt[@]}" source --download-only "fio=$package_version") \
    >"$work/apt.log" 2>&1 || { tail -5 "$work/apt.log" >&2; fail "the source of fio $package_version cannot be fetched"; }
  rm -rf "$source.tmp" && mkdir "$source.tmp"
  tar -C "$source.tmp" --strip-components=1 -xf "$work"/fio_"$version".orig.tar.*[!c]
  mv "$source.tmp" "$source"
}

if [ -n "${FIO_SOURCE:-}" ]; then
  source=$FIO_SOURCE
  [ -e "$source/fio.h" ] || fail "FIO_SOURCE=$source: not the source of fio"
else
  fetch
fi
# What depends on the configuration (config-host.h) does not reach the structures that an engine shares
# with fio on Linux, except through POSIX AIO, which glibc always has.
if [ ! -e "$source/config-host.h" ]; then
  (cd "$source" && ./configure --disable-native --disable-rdma --disable-rados --disable-rbd --disable-http \
     --disable-gfapi --disable-pmem --disable-xnvme --disable-libnfs --disable-tcmalloc) \
    >"$source/configure.log" 2>&1 || { tail -5 "$source/configure.log" >&2; fail "fio's configure failed"; }
fi
grep -q CONFIG_POSIXAIO "$source/config-host.h" || fail "fio was configured without POSIX AIO: its layout differs"

${CC:-cc} -std=gnu99 -O2 -g -Wall -Wno-unused-function -fPIC -shared -o "$output.tmp" \
  -D_GNU_SOURCE -D_LARGEFILE_SOURCE -D_FILE_OFFSET_BITS=64 -DFIO_INTERNAL \
  -include "$source/config-host.h" -I"$source" -I"$root/libibnbd/include" \
  "$here/ibnbd_fio_engine.c" -L"$build/lib" -libnbd -Wl,-rpath,"$build/lib"
mv "$output.tmp" "$output"
fio --enghelp="$output" >/dev/null || fail "$output: fio does not load it"
echo "$output: for fio $version"
