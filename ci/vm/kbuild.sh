# SPDX-License-Identifier: Apache-2.0
# For ci/vm/build-*: modules of the lab's kernel, built out of tree from Debian's source and headers packages.  Sets
# kernel, version, sources, build (to be filled and removed).  Nothing of it becomes part of ibnbd.  Exit code 77 and
# "SKIP why" where that cannot be done.
# shellcheck shell=bash
here=$(cd "$(dirname "$0")" && pwd)
skip() { echo "SKIP $*"; exit 77; }
for program in gcc-12 make bc xz depmod; do
  command -v "$program" >/dev/null || skip "$program is not installed (packages: gcc-12 make bc xz-utils kmod)"
done
kernel=$("$here/fetch" --source) || skip "no kernel source: bookworm-backports cannot be reached"
exec 9>"$kernel/kbuild.lock"
flock -w 600 9 || { echo "${0##*/}: another one has been at work in $kernel for ten minutes" >&2; exit 1; }
version=$(cat "$kernel/version") base=${version%-amd64}
sources=$kernel/source/usr/src build=$kernel/kbuild

# extract_source DIRECTORY...: of the kernel's source, each to $build under its own last name.
extract_source() {
  local archive tree directory paths=()
  archive=$(ls "$sources"/linux-source-*.tar.xz)
  tree=$(basename "$archive" .tar.xz)
  rm -rf "$build"
  mkdir -p "$build"
  for directory; do paths+=("$tree/$directory"); done
  tar -C "$build" -xJf "$archive" "${paths[@]}"
  for directory; do mv "$build/$tree/$directory" "$build/"; done
  # The headers' makefile names the place where the package would be installed.
  echo "include $sources/linux-headers-$base-common/Makefile" >"$sources/linux-headers-$version/Makefile"
}
# kbuild DIRECTORY SETTING...: what kbuild says goes to a log that is shown only when it fails.
kbuild() {
  local directory=$1
  shift
  # The headers hold a vmlinux, which makes kbuild ask for pahole; nothing here needs BTF.
  make -j "$(nproc)" -C "$sources/linux-headers-$version" M="$build/$directory" CC=gcc-12 CONFIG_DEBUG_INFO_BTF_MODULES= \
    "$@" modules >"$build/$directory.log" 2>&1 || { tail -n 40 "$build/$directory.log" >&2; exit 1; }
}
# install_modules DIRECTORY FILE...
install_modules() {
  local directory=$1
  shift
  rm -rf "$directory" "$directory.new"
  mkdir -p "$directory.new"
  cp "$@" "$directory.new"
  strip --strip-debug "$directory.new"/*.ko
  mv "$directory.new" "$directory"
  rm -rf "$build"
}
