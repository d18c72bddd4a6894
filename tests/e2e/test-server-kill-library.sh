#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kill -9 of the server under fio verify through the library itself, no bridge between: IO is held while the server is away,
# completes when it is back, and verifies.  With a loss policy the same fio ends with an error instead.
. "$(dirname "$0")/functions.sh"
require_fio_engine

truncate -s 256M "$work/vol.img"
start_server --export "vol=$work/vol.img"
job=(--ioengine="external:$engine" --thread --uri="$uri/vol" --rw=randwrite --bsrange=4k-128k --iodepth=16 --size=256M
     --io_size=1G --rate=100m --verify=crc32c --verify_backlog=512 --fsync=128)
start_fio held "${job[@]}"
fio_pid=$pid
port_wanted=$port
written() { stat -c %y "$work/vol.img"; }
moved() { [ "$(written)" != "$before" ]; }
kill_server() {
  before=$(written)
  wait_for 30 moved || fail "$1: no IO reaches the server"
  kill -KILL "$server_pid"
  wait "$server_pid" 2>/dev/null
}
for round in 1 2 3; do
  kill_server "round $round"
  [ "$round" -eq 1 ] && sleep 3
  alive "$fio_pid" || fail "round $round: fio ended while the server was away"
  start_server --export "vol=$work/vol.img"
done
wait "$fio_pid" || fail "fio: $(tail -n 20 "$work/held.log")"
grep -Eq 'err= *0' "$work/held.log" || fail "fio: $(cat "$work/held.log")"

start_fio lost "${job[@]}" --fail_after=2
fio_pid=$pid
kill_server "loss policy"
ended() { ! alive "$fio_pid"; }
wait_for 60 ended || fail "the loss policy did not end the wait"
wait "$fio_pid" && fail "fio without a server was content"
grep -q 'error=Connection timed out' "$work/lost.log" || fail "not ETIMEDOUT: $(tail -n 5 "$work/lost.log")"
exit 0
