#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ibnbd-server is upgraded $UPGRADES times under fio: each new process takes the listening socket over from the one that
# runs, which finishes and ends with exit code 0.  No IO fails, every byte is right, and no connect is ever refused.
# (RDMA has no listening sockets to hand over: there the next process listens when the one before has ended.)
. "$(dirname "$0")/functions.sh"
requires fio python3

truncate -s 64M "$work/vol.img"
door="$work/handover.sock"
start_server --handover "$door" --export "vol=$work/vol.img"
port_wanted=$port
start_bridge "$uri/vol"
knock_pid=""
case $IBNBD_E2E_LISTEN in tcp:*)
  start knock python3 "$here/knock.py" "$port" "$work/enough"
  knock_pid=$pid
  wait_for 20 grep -q knocking "$work/knock.log" || fail "nobody knocks"
  ;;
esac
rewrite_through_bridge 4k-64k &
fio_pid=$!
for ((i = 1; i <= ${UPGRADES:-10}; i++)); do
  wait_for 60 has_changed "$work/vol.img" "$(stat -c %y "$work/vol.img")" || fail "before upgrade $i: no IO"
  before=$server_pid
  start_server --handover "$door" --export "vol=$work/vol.img"
  [ "$port" = "$port_wanted" ] || fail "upgrade $i: the port is $port"
  rc=0
  wait "$before" || rc=$?
  [ $rc -eq 0 ] || fail "upgrade $i: the server before ended with $rc"
  wait_for 60 grep -q "opened from" "$server_log" || fail "upgrade $i: the client did not come back"
  alive "$fio_pid" || fail "upgrade $i: fio has ended: $(tail -n 5 "$work/verify.log")"
  [ -z "$knock_pid" ] || alive "$knock_pid" || fail "upgrade $i: a connect was refused: $(cat "$work/knock.log")"
done
wait_for 60 has_changed "$work/vol.img" "$(stat -c %y "$work/vol.img")" || fail "no IO after the last upgrade"
: >"$work/enough"
[ -z "$knock_pid" ] || wait "$knock_pid" || fail "a connect was refused: $(cat "$work/knock.log")"
wait "$fio_pid" || fail "fio: $(tail -n 20 "$work/verify.log")"
[ -z "$knock_pid" ] || tail -n 1 "$work/knock.log"

# One that cannot start does not disturb the one that runs.
expect_fail "no-such-file|empty|such" ibnbd-server --handover "$door" --config "$work/no-such-file"
alive "$server_pid" || fail "the server has ended"
# Nobody else may take over, and what is not ours is not taken for it.
printf x >"$work/file"
expect_fail "take over at .*/file" ibnbd-server --listen tcp://127.0.0.1:0 --handover "$work/file" --export m=mem:1M
[ "$(cat "$work/file")" = x ] || fail "the file was replaced"
stop "$bridge_pid"
stop "$server_pid"
