#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The server's disk hangs and the server lives: IOs wait for its answer for as long as that takes, whatever the loss
# policy says, the session stays, and when the disk is well again they have succeeded.  A volume that has a session of its
# own does not notice, not even that the one that hangs is taken away.
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
truncate -s 16M "$work/well.img"
start_server --export vol=/dev/mapper/hung --export well="$work/well.img"
start_daemon
map "$uri/well" --as nbd --session apart
well=$node
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

# One with a session of its own goes on, even when the one that hangs is taken away, which ends that one's session.
dmsetup --noudevsync --noflush --nolockfs suspend hung || fail "suspend again"
write 2 2>"$work/dd2.log" &
writer=$!
waits() { ibnbd-client show --ios "$node" | grep -q 'write.*answer'; }
wait_for 30 waits || fail "the write does not wait: $(ibnbd-client show --ios "$node")"
unmap "$node" --force --timeout 2
wait "$writer" && fail "a write to a device that was taken away succeeded"
dd if=/dev/zero of="$well" bs=4k count=1 oflag=direct conv=notrunc 2>"$work/dd3.log" || fail "the other: $(cat "$work/dd3.log")"
ibnbd-client show --json "$well" | grep -q '"reconnects": 0' || fail "its session ended as well: $(ibnbd-client show "$well")"
dmsetup --noudevsync resume hung || fail "resume again"
unmap "$well"
stop "$daemon_pid"
stop "$server_pid"
