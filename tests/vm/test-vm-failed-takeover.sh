#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A ublk device whose take-over fails when its queues have begun already: only another process can take it over.  The
# daemon ends for that, not before its other devices had some service; the next one serves all.
. "$(dirname "$0")/fixed-ublk.sh"
. "$(dirname "$0")/map-functions.sh"
! grep -q __asan_init "$IBNBD_BIN/ibnbd-client" || skip "AddressSanitizer does not let a library be preloaded"
load_ublk || fail "a module is missing"
for volume in bad good; do
  truncate -s 16M "$work/$volume.img"
  exports+=(--export "$volume=$work/$volume.img")
done
start_server "${exports[@]}"
start_daemon
map "$uri/bad"
bad=$node
map "$uri/good"
good=$node
kill -KILL "$daemon_pid" && wait "$daemon_pid" 2>/dev/null
write() { dd if=/dev/urandom of="$1" bs=64k count=1 oflag=direct status=none; }
write "$bad" & # It waits.
writer=$!
export IBNBD_FAULTY_UBLK=$work/fault
touch "$IBNBD_FAULTY_UBLK"
export NOTIFY_SOCKET=$work/nobody # As if a service manager had started it, who starts the next one.
# The fault is the first device's that gets there: the good one waits its turn.
LD_PRELOAD=$IBNBD_LIB/libibnbd-faulty-ublk.so start_daemon
wait_for 20 eval '[ ! -e "$IBNBD_FAULTY_UBLK" ]' || fail "nothing was taken over"
failed() { ibnbd-client list --json | grep -c 'only another process' | grep -qx 1; }
wait_for 20 failed || fail "a failed take-over is not said: $(ibnbd-client list --json)"
served() { ibnbd-client list | grep -c ' open ' | grep -qx "$1"; }
wait_for 20 served 1 || fail "the other device is not served: $(ibnbd-client list)"
wait_for 60 eval '! kill -0 $daemon_pid 2>/dev/null' || fail "the daemon goes on with a device that it cannot serve"
wait "$daemon_pid" || fail "the daemon ended with $?"
start_daemon
wait_for 20 served 2 || fail "the next daemon does not serve all: $(ibnbd-client list)"
wait "$writer" || fail "what waited for the next daemon has failed"
write "$good" || fail "write $good"
unmap "$bad"
unmap "$good"
stop "$daemon_pid"
stop "$server_pid"
