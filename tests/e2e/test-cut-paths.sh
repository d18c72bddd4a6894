#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nbdcopy, qemu-io and fio, none of them ours, while the server's fabric cuts connections every few hundred milliseconds:
# every byte is right and nobody sees an error.
. "$(dirname "$0")/functions.sh"
requires nbdcopy fio qemu-io

head -c 96M /dev/urandom >"$work/data"
truncate -s 128M "$work/data" "$work/vol.img"
start_server --export "vol=$work/vol.img" --fault "cut-every=300ms,seed=7"
start_bridge "$uri/vol"
nbdcopy --flush "$work/data" "$(nbd_uri)" || fail "copy in"
nbdcopy "$(nbd_uri)" "$work/back" || fail "copy out"
cmp "$work/data" "$work/back" || fail "data"
run_fio cut --ioengine=nbd --uri="$(nbd_uri)" --rw=randwrite --bsrange=4k-64k --iodepth=16 --size=128M --io_size=512M --rate=100m \
  --verify=crc32c --verify_backlog=256 || fail "fio"
qemu-io -f raw -c 'write -P 0x33 1M 4M' -c flush -c 'read -P 0x33 1M 4M' "$(nbd_uri)" | grep -iE 'failed|mismatch' && fail "qemu-io"
stop "$bridge_pid"
stop "$server_pid"
