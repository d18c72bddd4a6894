#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Whose name a device has, and who asked for it: a stable name never leads to a device that is not the volume's, whatever
# was killed or taken away behind our back; a volume that is mapped already, or whose asker has left.
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
requires udevadm qemu-nbd nbd-client
modprobe -a nbd ublk_drv || fail "a module is missing"
mkdir -p /run/udev/rules.d
cp "$here/../../packaging/60-ibnbd.rules" /run/udev/rules.d/
/lib/systemd/systemd-udevd --daemon || fail "no udev"

truncate -s 64M "$work/vol.img" "$work/other.img" "$work/foreign.img"
start_server --export "vol=$work/vol.img" --export "other=$work/other.img"
# What udev says of every event; it is there when it has seen one.
stdbuf -oL udevadm monitor --udev --property --subsystem-match=block >"$work/events" 2>&1 &
seen() { echo change >/sys/block/nbd15/uevent && grep -q DEVNAME=/dev/nbd15 "$work/events"; }
wait_for 20 seen || fail "udevadm monitor shows nothing"
link() { echo "/dev/ibnbd/127.0.0.1:$port/$1"; }
expect_link() { # expect_link NAME NODE
  wait_for 20 test "$(link "$1")" -ef "$2" || fail "$(link "$1") is not $2: $(ls -lR /dev/ibnbd /run/ibnbd/devices 2>&1)"
}
expect_no_link() {
  udevadm settle --timeout=20
  wait_for 20 test ! -e "$(link "$1")" || fail "there is $(link "$1"): $(ls -lR /dev/ibnbd /run/ibnbd/devices 2>&1)"
}
foreground() { # foreground URI ARGS...: sets $node, $pid
  start foreground ibnbd-client map --foreground "$@"
  wait_for 20 grep -q '^/dev/' "$work/foreground.log" || fail "map --foreground $*: $(cat "$work/foreground.log")"
  node=$(grep '^/dev/' "$work/foreground.log")
}
killed() {
  kill -KILL "$1"
  wait "$1" || true
}

# Made by a process that was killed; what is attached there afterwards is somebody else's, or another volume.
foreground "$uri/vol" --as nbd
expect_link vol "$node"
killed "$pid"
nbd-client -d "$node" >"$work/detach.log" 2>&1 || fail "detach $node: $(cat "$work/detach.log")"
start foreign qemu-nbd --format=raw --persistent --socket="$work/foreign.sock" "$work/foreign.img"
attach_foreign() { nbd-client -unix "$work/foreign.sock" "$node" >"$work/attach.log" 2>&1; }
wait_for 20 attach_foreign || fail "attach $node: $(cat "$work/attach.log")"
expect_no_link vol
nbd-client -d "$node" >"$work/detach.log" 2>&1 || fail "detach $node: $(cat "$work/detach.log")"
udevadm settle --timeout=20
: >"$work/events"
foreground "$uri/other" --as nbd --index "${node##*nbd}"
expect_link other "$node"
udevadm settle --timeout=20
! grep 'LINK=ibnbd.*/vol' "$work/events" || fail "$node of another volume had the name of the one before"
kill -TERM "$pid"
wait "$pid" || fail "map --foreground ended with $?"
expect_no_link other
[ -z "$(ls /run/ibnbd/devices)" ] || fail "left: $(ls /run/ibnbd/devices)"

# Taken away while the daemon is away: the next one finds that, and there is no name left.
foreground "$uri/other"
other=$pid
start_daemon
map "$uri/vol" --as nbd
expect_link vol "$node"
killed "$daemon_pid"
nbd-client -d "$node" >"$work/detach.log" 2>&1 || fail "detach $node: $(cat "$work/detach.log")"
start_daemon
is_gone() { [ "$(ibnbd-client list | wc -l)" = 1 ]; }
wait_for 20 is_gone || fail "still there: $(ibnbd-client list)"
[ ! -e "/run/ibnbd/devices/${node##*/}" ] || fail "the name of $node is left"
expect_no_link vol
expect_link other "$(grep '^/dev/' "$work/foreground.log")" # Whose process lives.
killed "$other"

# Mapped already: an error, unless that is all that is needed; then it must be what is asked for.
map "$uri/vol" --as nbd
expect_fail "mapped already, as $node" ibnbd-client map "$uri/vol" --as nbd
again() { ibnbd-client map --if-needed "$uri/vol" --timeout 5 "$@" 2>"$work/again.log"; }
[ "$(again --as nbd)" = "$node" ] || fail "map --if-needed: $(cat "$work/again.log")"
[ ! -s "$work/again.log" ] || fail "map --if-needed says $(cat "$work/again.log")"
[ "$(again --as nbd --on-loss fail-after=5s)" = "$node" ] || fail "map --if-needed --on-loss: $(cat "$work/again.log")"
grep -q "$node is mapped already, with another --on-loss" "$work/again.log" || fail "not said: $(cat "$work/again.log")"
expect_fail "mapped already, as $node .nbd, read-write., not ublk, read-write" ibnbd-client map --if-needed "$uri/vol"
expect_fail "mapped already, as $node .nbd, read-write., not nbd, read-only" ibnbd-client map --if-needed "$uri/vol" --as nbd --ro
# Also of a daemon that has just come, while the server is silent: the device is there.
kill -STOP "$server_pid"
killed "$daemon_pid"
start_daemon
[ "$(again --as nbd)" = "$node" ] || fail "map --if-needed after a restart: $(cat "$work/again.log")"
kill -CONT "$server_pid"

# Who asked has left before there was an answer: the device does not stay.
connections() { ss -Htn state established "dport = :$port" | wc -l; }
more_connections() { [ "$(connections)" -gt "$before" ]; }
for kind in nbd ublk; do
  before=$(connections)
  kill -STOP "$server_pid"
  start asker ibnbd-client map "$uri/other" --as $kind --session "for-$kind"
  wait_for 20 more_connections || fail "$kind: the daemon does not ask the server"
  killed "$pid"
  kill -CONT "$server_pid"
  wait_for 30 grep -q "map $uri/other: who asked has left; /dev/$kind.* is unmapped" "$work/daemon.log" ||
    fail "$kind: the daemon did not see that who asked has left"
  expect_no_link other
  [ "$(ibnbd-client list | wc -l)" = 2 ] || fail "$kind: not only $node: $(ibnbd-client list)"
done
unmap "$node"
! stuck_tasks || fail "tasks are stuck"
stop "$daemon_pid"
stop "$server_pid"
