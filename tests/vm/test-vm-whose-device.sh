#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Numbers of block devices are given again.  A device that is taken away from under a file system is gone for its daemon,
# whoever still has it open; its number, when it comes back, is that of another volume's device, and nobody takes the one
# for the other: not a daemon that is started again, not one with two records of the same number, not one that finds
# somebody else's device there.  And a device is not gone because nobody can be asked about it.
. "$(dirname "$0")/fixed-ublk.sh"
. "$(dirname "$0")/map-functions.sh"
requires python3
load_ublk || fail "a module is missing"
mkdir -p "$work/mnt"
for volume in a b; do
  truncate -s 16M "$work/$volume.img"
  exports+=(--export "$volume=$work/$volume.img")
done
start_server "${exports[@]}"
start_daemon
state=/run/ibnbd/devices.json
kill_daemon() { kill -KILL "$daemon_pid" && wait "$daemon_pid" 2>/dev/null; }
mapped_count() { echo $(($(ibnbd-client list "$@" | wc -l) - 1)); }
# is VOLUME NODE: what the node shows is what the server has.
is() {
  blockdev --flushbufs "$2"
  cmp "$work/$1.img" <(dd if="$2" bs=1M status=none)
}
mount_node() { mkfs.ext4 -q -F "$node" && mount -t ext4 "$node" "$work/mnt" || fail "mount $node"; }

map "$uri/a"
first=$node
mount_node
start_s=$SECONDS
unmap "$first" --force --timeout 2
[ $((SECONDS - start_s)) -le 15 ] || fail "unmap of a mounted device took $((SECONDS - start_s)) s"
[ "$(mapped_count)" = 0 ] || fail "it is unmapped, and there: $(ibnbd-client list)"
map "$uri/b"
[ "$node" != "$first" ] || fail "$node is two volumes"
umount "$work/mnt"
unmap "$node"
# A device that is made again while somebody has the old one gets another number.
map "$uri/a"
[ "$node" = "$first" ] || fail "$first is not free: $node"
mount_node
node=$(ibnbd-client remap "$node" --force --timeout 2 2>"$work/remap.log") || fail "remap: $(cat "$work/remap.log")"
umount "$work/mnt"
is a "$node" || fail "a is not what it was, as $node"
unmap "$node"

# The number is another volume's now.
map "$uri/b"
[ "$node" = "$first" ] || fail "$first is not free: $node"
dd if=/dev/urandom of="$node" bs=1M count=16 oflag=direct status=none || fail "write b"
kill_daemon
python3 - "$state" "$uri/a" <<'PYTHON' || fail "no second record"
import copy, json, sys
state = json.load(open(sys.argv[1]))
other = copy.deepcopy(state["devices"][0])
other["uri"], other["volume_id"] = sys.argv[2], "0123456789abcdef"
state["devices"].insert(0, other)
json.dump(state, open(sys.argv[1], "w"))
PYTHON
start_daemon
served() { [ "$(mapped_count)" = 1 ] && ibnbd-client list | grep -q "$uri/b .*open\|open.*$uri/b"; }
wait_for 20 served || fail "one record of $node was wrong, and there is: $(ibnbd-client list)"
is b "$node" || fail "$node is not b"
# As long as both may be right, nobody touches it; and that somebody uses it does not keep the wrong one.
exec 9<"$node"
kill_daemon
python3 - "$state" "$uri/a" <<'PYTHON' || fail "no second record"
import copy, json, sys
state = json.load(open(sys.argv[1]))
other = copy.deepcopy(state["devices"][0])
other["uri"] = sys.argv[2]
state["devices"].insert(0, other)
json.dump(state, open(sys.argv[1], "w"))
PYTHON
start_daemon
both_wait() { [ "$(ibnbd-client list --json | grep -c 'another record')" = 2 ]; }
wait_for 20 both_wait || fail "two records of $node, and not both wait: $(ibnbd-client list --json)"
expect_fail "name one by its URI" ibnbd-client unmap "$node" --force
expect_fail "unmap the wrong one" ibnbd-client remap "$uri/b" --force
both_wait || fail "one of them was touched: $(ibnbd-client list --json)"
unmap "$uri/a"
wait_for 20 served || fail "the wrong record of $node is unmapped, and the right one is not served: $(ibnbd-client list)"
is b "$node" || fail "$node is not b after its namesake was unmapped"
exec 9<&-

# Nobody can be asked.
kill_daemon
mv /dev/ublk-control /dev/ublk-control.away
start_daemon
unasked() { ibnbd-client list --json | grep -q 'ublk-control'; }
wait_for 20 unasked || fail "a device that cannot be asked for: $(ibnbd-client list --json)"
grep -q "$uri/b" "$state" || fail "what cannot be asked for is forgotten: $(cat "$state")"
mv /dev/ublk-control.away /dev/ublk-control
wait_for 30 served || fail "the device is not taken over: $(ibnbd-client list)"
is b "$node" || fail "$node is not b after nobody could be asked"

# Somebody else's device, and a record that cannot be read.
cp "$state" "$work/state"
unmap "$node"
kill_daemon
sed 's/"access": "[^"]*"/"access": "nonsense"/' "$work/state" >"$state"
cmp -s "$work/state" "$state" && fail "the record can be read"
other="--socket /run/ibnbd-other.sock"
mkdir -p /run/ibnbd-other
# shellcheck disable=SC2086  # Words.
{
  ibnbd-client daemon $other --runtime-directory /run/ibnbd-other >>"$work/daemon.log" 2>&1 </dev/null &
  others=$!
  wait_for 20 ibnbd-client list $other || fail "no other daemon"
  map "$uri/a" $other
}
[ "$node" = "$first" ] || fail "$first is not the other daemon's: $node"
start_daemon
[ "$(mapped_count)" = 1 ] || fail "the record is not there: $(ibnbd-client list)"
unmap "$node"
is a "$node" || fail "unmap took another daemon's device away"
# shellcheck disable=SC2086  # Words.
unmap "$node" $other
kill -TERM $others
stop "$daemon_pid"
stop "$server_pid"
