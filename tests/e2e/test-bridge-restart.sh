#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A bridge that is killed under load is started again at once and gets its volume, although the server may
# still be finishing what the old one asked for; what was acknowledged is there.
. "$(dirname "$0")/functions.sh"
requires fio nbdinfo qemu-io

truncate -s 64M "$work/vol.img"
start_server --export "vol=$work/vol.img"

restart_under_load() { # restart_under_load NAME bridge-args...
  local name=$1 round fio_pid
  shift
  for round in 1 2 3 4 5; do
    start_bridge "$@" "$uri/vol"
    qemu-io -f raw -c "write -P $round 0 1M" -c flush "$(nbd_uri)" >"$work/write.log" 2>&1 ||
      fail "$name $round: a write fails: $(cat "$work/write.log")"
    start_fio "load-$name-$round" --ioengine=nbd --uri="$(nbd_uri)" --rw=randwrite --bs=64k --iodepth=64 \
      --offset=1M --size=60M --time_based --runtime=60
    fio_pid=$pid
    # Load is there when the image has data behind the first MiB.
    wait_for 20 under_load || fail "$name $round: no load"
    # Every other time the server is busy with something else meanwhile, so that it hears of the death of the
    # old one and of the new one at once.
    [ $((round % 2)) -eq 1 ] && kill -STOP "$server_pid"
    kill -KILL "$bridge_pid"
    wait "$bridge_pid" 2>/dev/null
    (sleep 0.2; kill -CONT "$server_pid") &
    start_bridge "$@" "$uri/vol"  # Fails here if it does not get its volume.
    qemu-io -r -f raw -c "read -P $round 0 1M" "$(nbd_uri)" >"$work/read.log" 2>&1 ||
      fail "$name $round: cannot read: $(cat "$work/read.log")"
    grep -q 'verification failed' "$work/read.log" && fail "$name $round: what was acknowledged is not there"
    stop "$bridge_pid"
    kill -KILL "$fio_pid" 2>/dev/null
    wait "$fio_pid" 2>/dev/null
    fallocate --punch-hole --offset 1M --length 63M "$work/vol.img"
  done
}
under_load() { [ "$(du -k "$work/vol.img" | cut -f1)" -gt 4096 ]; }

restart_under_load any
# Under a name of its own the new one is the old one to the server.
restart_under_load named --session-name vm7
stop "$server_pid"
