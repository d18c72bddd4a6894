#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nbd-bridge is upgraded $UPGRADES times below a mounted ext4 on the kernel's own NBD client (nbd-client without -persist,
# which gives up with its connection): the kernel notices nothing, and every byte is right.
. "$(dirname "$0")/functions.sh"
requires nbd-client mkfs.ext4 e2fsck
modprobe -a nbd ext4 || fail "a module is missing"
truncate -s 64M "$work/vol.img"
start_server --export "vol=$work/vol.img"
socket="$work/bridge.sock"
serve() { # NUMBER
  start "bridge$1" nbd-bridge --socket "$socket" --handover "$work/door" "$uri/vol"
  bridge_pid=$pid
  wait_for 30 grep -q '^listening on ' "$work/bridge$1.log" || fail "the bridge did not start: $(cat "$work/bridge$1.log")"
}
serve 0
nbd-client -unix "$socket" -N vol -b 512 /dev/nbd0 >"$work/nbd-client.log" 2>&1 || fail "nbd-client: $(cat "$work/nbd-client.log")"
mkdir "$work/mnt"
mkfs.ext4 -q -F /dev/nbd0 && mount /dev/nbd0 "$work/mnt" || fail "ext4 on /dev/nbd0"
tree=/usr/include/linux
rewrite_until_told() {
  until [ -e "$work/enough" ]; do
    cp -r "$tree" "$work/mnt/tree" && sync -f "$work/mnt" && diff -r "$tree" "$work/mnt/tree" && rm -r "$work/mnt/tree" || return 1
  done
}
rewrite_until_told &
writer=$!
writes() { awk '{ print $5 }' /sys/block/nbd0/stat; }
has_written() { [ "$(writes)" -ge "$1" ]; }
for ((i = 1; i <= ${UPGRADES:-5}; i++)); do
  wait_for 60 has_written $(($(writes) + 20)) || fail "before upgrade $i: no IO"
  before=$bridge_pid
  serve "$i"
  wait "$before" || fail "upgrade $i: the bridge before ended with $?"
  alive "$writer" || fail "upgrade $i: the writer has ended"
done
wait_for 60 has_written $(($(writes) + 20)) || fail "no IO after the last upgrade"
: >"$work/enough"
wait "$writer" || fail "the writer"
umount "$work/mnt" || fail "umount"
e2fsck -fn /dev/nbd0 >"$work/fsck.log" 2>&1 || fail "e2fsck: $(tail -n 5 "$work/fsck.log")"
! dmesg | grep -iE "nbd0.*(I/O error|receive control|shutting down)" || fail "the kernel noticed something"
nbd-client -d /dev/nbd0 >"$work/nbd-client.log" 2>&1 || fail "nbd-client -d"
stop "$bridge_pid"
stop "$server_pid"
! stuck_tasks || fail "tasks are stuck"
