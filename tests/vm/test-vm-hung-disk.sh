#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The server's disk hangs and the server lives: IOs wait for its answer for as long as that takes, whatever the loss
# policy says, the session stays, and when the disk is well again they have succeeded.
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
requires dmsetup python3
modprobe -a nbd loop dm-mod || fail "a module is missing"
mkdir -p /run/ibnbd
truncate -s 16M "$work/disk"
loop=$(losetup --show -f "$work/disk") || fail "no loop device"
cleanup_fn 'losetup -d "$loop"'
dmsetup --noudevsync create hung --table "0 32768 linear $loop 0" || fail "no device mapper"
cleanup_fn 'dmsetup --noudevsync remove -f hung'
dmsetup mknodes
start_server --export vol=/dev/mapper/hung
start_daemon
map "$uri/vol" --as nbd --on-loss fail-after=1s
write() { dd if=/dev/zero of="$node" bs=4k count=1 seek="$1" oflag=direct conv=notrunc; }
write 0 2>"$work/dd0.log" || fail "write: $(cat "$work/dd0.log")"

dmsetup --noudevsync --noflush --nolockfs suspend hung || fail "suspend"
write 1 2>"$work/dd1.log" &
writer=$!
# For longer than the loss policy would wait, several times.
waits_long() {
  ibnbd-client show --ios --json "$node" | python3 -c '
import json, sys
ios = [io for io in json.load(sys.stdin)["ios"] if io["op"] == "write"]
sys.exit(not (len(ios) == 1 and ios[0]["waits_for"] == "answer" and ios[0]["waited_ms"] > 4000))'
}
wait_for 30 waits_long || fail "the write does not wait for its answer: $(ibnbd-client show --ios "$node")"
alive "$writer" || fail "the write ended: $(cat "$work/dd1.log")"
ibnbd-client show --json "$node" | python3 -c '
import json, sys
device = json.load(sys.stdin)
assert device["state"] == "open" and device["session"]["reconnects"] == 0, device' || fail "$(ibnbd-client show "$node")"

dmsetup --noudevsync resume hung || fail "resume"
wait "$writer" || fail "the write: $(cat "$work/dd1.log")"
unmap "$node"
stop "$daemon_pid"
stop "$server_pid"
