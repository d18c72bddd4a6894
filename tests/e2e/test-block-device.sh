#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A real block device, of 512 and of 4096 byte sectors: its sizes are told as they are, data and discards reach it, and one
# that is in use on the machine is not exported.
. "$(dirname "$0")/functions.sh"
requires losetup nbdsh nbdcopy nbdinfo mke2fs
[ "$(id -u)" -eq 0 ] || skip "loop devices need root"

attach_loop() { # attach_loop FILE SECTOR: sets $loop.
  loop=$(losetup -f --show -b "$2" "$1" 2>"$work/losetup.log") || skip "no loop device: $(cat "$work/losetup.log")"
  cleanup_fn "losetup -d '$loop'"
}
head -c 40M /dev/urandom >"$work/data"
for sector in 512 4096; do
  truncate -s 64M "$work/disk$sector.img"
  attach_loop "$work/disk$sector.img" "$sector"
  start_server --export "disk=$loop"
  start_bridge "$uri/disk"
  [ "$(nbdinfo --size "$(nbd_uri)")" -eq $((64 << 20)) ] || fail "size"
  nbdinfo --json "$(nbd_uri)" | grep -q "\"block_size_minimum\": $sector" || fail "the smallest block is not $sector"
  # A device that is served is claimed.  (Asked once: a server waits 5 s for the lock.)
  [ "$sector" -eq 4096 ] || expect_fail "$loop.*(in use|busy|lock)" ibnbd-server --listen tcp://127.0.0.1:0 --export "again=$loop"
  nbdcopy --flush "$work/data" "$(nbd_uri)" || fail "copy in"
  nbdcopy "$(nbd_uri)" "$work/back" && cmp -n "$(stat -c %s "$work/data")" "$work/back" "$work/data" || fail "what comes back differs"
  nbdsh -u "$(nbd_uri)" -c '
h.trim(1 << 20, 0)
h.zero(1 << 20, 1 << 20)
h.zero(1 << 20, 2 << 20, nbd.CMD_FLAG_NO_HOLE)
h.flush()
assert h.pread(2 << 20, 1 << 20) == bytes(2 << 20)' || fail "discard and zeroes"
  stop "$bridge_pid"
  stop "$server_pid"
  cmp -n $((37 << 20)) -i $((3 << 20)) "$work/data" "$loop" || fail "what the device holds differs"
done

mkdir "$work/mnt"
if ! mke2fs -q -t ext4 "$loop" || ! mount "$loop" "$work/mnt" 2>/dev/null; then
  echo "note: nothing can be mounted here; a mounted device was not tried"
  exit 0
fi
cleanup_fn "umount '$work/mnt'"
expect_fail "$loop.*(in use|busy)" ibnbd-server --listen tcp://127.0.0.1:0 --export "mounted=$loop"
