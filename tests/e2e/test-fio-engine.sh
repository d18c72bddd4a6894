#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The library under fio --verify, with the engine made from nothing but the public API: all sizes from 512 bytes to 1 MiB,
# flushes, FUA, and discards whose blocks must read as zeroes.
. "$(dirname "$0")/functions.sh"
require_fio_engine

truncate -s 192M "$work/vol.img"
start_server --export "vol=$work/vol.img" --export mem=mem:192M
volume=(--ioengine="external:$engine" --thread --verify=crc32c)
for name in vol mem; do
  run_fio "mixed-$name" "${volume[@]}" --uri="$uri/$name" --rw=randwrite --blockalign=512 --iodepth=32 --size=192M --io_size=192M \
    --bssplit=512/10:4k/40:12k/10:64k/20:128k/10:132k/5:1m/5 --fsync=64 --verify_backlog=128 ||
    fail "mixed sizes on $name"
done
run_fio fua "${volume[@]}" --uri="$uri/vol" --rw=write --bs=16k --size=16M --sync=1 --iodepth=4 || fail "FUA"
run_fio trim "${volume[@]}" --uri="$uri/vol" --rw=randwrite --bs=64k --size=64M --iodepth=16 --verify_backlog=64 \
  --trim_percentage=30 --trim_verify_zero=1 --trim_backlog=64 --fsync=100 || fail "discards"
grep -Eq 'err= *0' "$work/trim.log" || fail "fio said nothing of success: $(cat "$work/trim.log")"
stop "$server_pid"
