#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SIGTERM under load: the server finishes what is executing and exits 0; its clients hold, and go on with a new one.
. "$(dirname "$0")/functions.sh"
requires fio

truncate -s 128M "$work/vol.img"
start_server --export "vol=$work/vol.img"
start_bridge "$uri/vol"
start_fio drain --ioengine=nbd --uri="$(nbd_uri)" --rw=randwrite --bs=16k --iodepth=16 --size=128M --io_size=1G \
  --rate=100m --verify=crc32c --verify_backlog=256
fio_pid=$pid
port_wanted=$port
for _ in 1 2 3; do
  before=$(stat -c %y "$work/vol.img")
  wait_for 20 bash -c "[ \"\$(stat -c %y '$work/vol.img')\" != '$before' ]" || fail "no IO reaches the server"
  stop "$server_pid"
  start_server --export "vol=$work/vol.img"
done
wait "$fio_pid" || fail "fio: $(tail -n 20 "$work/drain.log")"
stop "$bridge_pid"
stop "$server_pid"
