#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# An ext4 image of a real directory tree goes through the bridge and back: fsck is clean, every file equal.
. "$(dirname "$0")/functions.sh"
requires mke2fs e2fsck debugfs nbdcopy

mkdir "$work/tree"
cp -a /usr/include/linux "$work/tree/linux" 2>/dev/null || cp -a /etc/ssl "$work/tree/ssl"
cp -a /usr/share/doc/coreutils "$work/tree/doc" 2>/dev/null
ln -s linux/fs.h "$work/tree/a-link"
mke2fs -q -t ext4 -d "$work/tree" "$work/source.img" 512M || fail "mke2fs"
truncate -s 512M "$work/volume.img"
start_server --export "vol=$work/volume.img"
start_bridge "$uri/vol"
nbdcopy --flush "$work/source.img" "$(nbd_uri)" || fail "copy in"
nbdcopy "$(nbd_uri)" "$work/back.img" || fail "copy out"
stop "$bridge_pid"
stop "$server_pid"
for image in back volume; do
  e2fsck -fn "$work/$image.img" >"$work/fsck.log" 2>&1 || fail "$image: fsck found: $(cat "$work/fsck.log")"
  mkdir "$work/$image"
  debugfs -R "rdump / $work/$image" "$work/$image.img" >/dev/null 2>&1 || fail "$image: rdump"
  rm -rf "$work/$image/lost+found"
  diff -r --no-dereference "$work/tree" "$work/$image" || fail "$image: the tree differs"
done
