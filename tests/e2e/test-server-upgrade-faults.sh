#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A successor that cannot serve all that it is asked for does not disturb the server that runs; what turns out to be missing once
# that one has ended does not keep the rest from being served, and is served as soon as it is there.
. "$(dirname "$0")/functions.sh"
requires flock nbdsh

truncate -s 1M "$work/vol.img" "$work/second.img"
: >"$work/empty.img"
door="$work/handover.sock"
start_server --handover "$door" --export "vol=$work/vol.img"
port_wanted=$port
start_bridge "$uri/vol"
write_block() { nbdsh -u "$(nbd_uri)" -c "h.pwrite(b'$1' * 4096, 0)" || fail "write $1"; }
read_block() { [ "$(nbdsh -u "$(nbd_uri)" -c "print(h.pread(4096, 0)[:1].decode())")" = "$1" ] || fail "what was read is not $1"; }
write_block a

# Nobody is told before it is known that the next one can serve.
successor() { timeout 60 ibnbd-server --handover "$door" --listen "$IBNBD_E2E_LISTEN:$port" --export "vol=$work/vol.img" "$@"; }
expect_fail "export b: attach $work/no-such.img: open: No such file" successor --export "b=$work/no-such.img"
expect_fail "export b: attach $work: is a directory" successor --export "b=$work"
expect_fail "export b: attach $work/empty.img: is empty" successor --export "b=$work/empty.img"
expect_fail "export b: mem:x" successor --export b=mem:x
expect_fail "listen on tcp://192.0.2.1:1: bind: Cannot assign" successor --listen tcp://192.0.2.1:1
expect_fail "listen on tcp://no-such-host.invalid:1: " successor --listen tcp://no-such-host.invalid:1
alive "$server_pid" || fail "the server has ended"
! grep -q "takes over" "$server_log" || fail "a successor that could not serve took over"
read_block a

# An image that somebody else has can be told only by opening it.
start holder flock "$work/second.img" sh -c 'echo locked; while [ ! -e "$0" ]; do sleep 0.05; done' "$work/enough"
holder_pid=$pid
wait_for 20 grep -q locked "$work/holder.log" || fail "no lock"
before=$server_pid
start_server --handover "$door" --export "second=$work/second.img" --export "vol=$work/vol.img"
wait "$before" || fail "the server before ended with $?"
grep -q "export second: attach .*in use by another server.*tried again" "$server_log" || fail "nothing is said about the missing export"
read_block a
write_block b
: >"$work/enough"
wait "$holder_pid" || fail "the holder of the lock failed"
wait_for 20 grep -q "export second: file $work/second.img" "$server_log" || fail "the export is not served when it is there"
start_bridge "$uri/second"
nbdsh -u "$(nbd_uri)" -c "h.pread(4096, 0)" || fail "the export that was missing cannot be read"
stop "$bridge_pid"

# One that has less patience than the server before it needs time: it waits, for it is the only one.
before=$server_pid
kill -STOP "$before"
start successor ibnbd-server --handover "$door" --listen "$IBNBD_E2E_LISTEN:$port" --export "vol=$work/vol.img" --stop-timeout 1
server_pid=$pid server_log="$work/successor.log"
wait_for 60 grep -q "has not ended after" "$server_log" || fail "the successor does not wait: $(cat "$server_log")"
kill -CONT "$before"
wait "$before" || fail "the server before ended with $?"
wait_for 20 grep -q '^listening on ' "$server_log" || fail "the successor did not start: $(cat "$server_log")"
stop "$server_pid"
