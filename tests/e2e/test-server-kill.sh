#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kill -9 of the server under fio verify, restarted after 3 s, twice: IO is held and completes, verify passes.
. "$(dirname "$0")/functions.sh"
requires fio

truncate -s 256M "$work/vol.img"
start_server --export "vol=$work/vol.img"
start_bridge "$uri/vol"
start_fio held --ioengine=nbd --uri="$(nbd_uri)" --rw=randwrite --bsrange=4k-128k --iodepth=16 --size=256M \
  --io_size=3G --rate=150m --verify=crc32c --verify_backlog=512 --do_verify=1 --time_based=0
fio_pid=$pid
port_wanted=$port
for round in 1 2; do
  wait_for 30 test -s "$work/vol.img" && wait_for 20 alive "$fio_pid"
  before=$(stat -c %Y%b "$work/vol.img")
  wait_for 20 bash -c "[ \"\$(stat -c %Y%b '$work/vol.img')\" != '$before' ]" || fail "round $round: no IO reaches the server"
  kill -KILL "$server_pid" || fail "the server was not there"
  wait "$server_pid" 2>/dev/null
  sleep 3
  alive "$fio_pid" || fail "round $round: fio ended while the server was away: $(cat "$work/held.log")"
  start_server --export "vol=$work/vol.img"
done
wait "$fio_pid" || fail "fio: $(tail -n 20 "$work/held.log")"
grep -qiE 'verify.*(bad|fail)|err= *[1-9]' "$work/held.log" && fail "fio found: $(cat "$work/held.log")"
grep -qiE 'unexpected|twice|protocol' "$work"/bridge*.log && fail "the bridge complains: $(cat "$work"/bridge*.log)"
stop "$bridge_pid"
stop "$server_pid"
