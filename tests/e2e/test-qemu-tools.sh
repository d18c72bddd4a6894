#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# QEMU's tools write, convert and compare through the bridge; qemu-io checks patterns, flush, discard and zeroes.
. "$(dirname "$0")/functions.sh"
requires qemu-img qemu-io

truncate -s 4G "$work/disk.img"
start_server --export "disk=$work/disk.img"
start_bridge "disk=$uri/disk"
target=$(nbd_uri disk)

qemu_io() { qemu-io -f raw "$@" "$target" | tee -a "$work/qemu-io.log" | grep -iE 'failed|error|mismatch' && fail "qemu-io $*"; true; }
qemu_io -c 'write -P 0xab 0 1M' -c 'write -P 0xcd 3G 64k' -c 'read -P 0xab 0 1M' -c 'read -P 0xcd 3G 64k'
qemu_io -c 'write -f -P 0x11 512 512' -c 'flush' -c 'read -P 0x11 512 512' -c 'read -P 0xab 0 512' -c 'read -P 0xab 1024 512'
qemu_io -c 'write -z -u 0 64k' -c 'read -P 0 0 64k' -c 'write -z 64k 64k' -c 'read -P 0 64k 64k'
qemu_io -c 'discard 3G 64k' -c 'aio_write -P 0x42 1G 256k' -c 'aio_write -P 0x43 2G 256k' -c 'aio_flush' \
  -c 'read -P 0x42 1G 256k' -c 'read -P 0x43 2G 256k'

qemu-img create -q -f qcow2 "$work/source.qcow2" 4G
qemu-io -c 'write -P 0x5a 10M 3M' -c 'write -P 0x77 4095M 1M' "$work/source.qcow2" >/dev/null || fail "prepare"
qemu-img convert -n -f qcow2 -O raw "$work/source.qcow2" "$target" || fail "convert in"
qemu-img compare -f qcow2 -F raw "$work/source.qcow2" "$target" || fail "compare through the bridge"
qemu-img convert -f raw -O qcow2 "$target" "$work/back.qcow2" || fail "convert out"
qemu-img compare -f qcow2 -F qcow2 "$work/source.qcow2" "$work/back.qcow2" || fail "compare what came back"
stop "$bridge_pid"
stop "$server_pid"
qemu-img compare -f qcow2 -F raw "$work/source.qcow2" "$work/disk.img" || fail "compare what the server stored"
