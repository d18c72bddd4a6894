#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Several NBD connections to one export see one volume: what one wrote and any other flushed is there for all.
. "$(dirname "$0")/functions.sh"
requires nbdcopy nbdsh fio

truncate -s 1G "$work/vol.img"
start_server --export "vol=$work/vol.img"
start_bridge --threads 2 "$uri/vol"
export uri_nbd; uri_nbd=$(nbd_uri)
nbdsh -c - <<'PY' || fail "several connections"
import os
handles = []
for _ in range(8):
    handle = nbd.NBD()
    handle.connect_uri(os.environ["uri_nbd"])
    assert handle.can_multi_conn()
    handles.append(handle)
for i, handle in enumerate(handles):
    handle.pwrite(bytes([i + 1]) * 65536, i << 20)
handles[-1].flush()
for handle in handles:
    for i in range(8):
        assert handle.pread(65536, i << 20) == bytes([i + 1]) * 65536
PY
head -c 512M /dev/urandom >"$work/data"
truncate -s 1G "$work/data"
nbdcopy --connections=8 --requests=64 "$work/data" "$uri_nbd" || fail "copy in over 8 connections"
nbdcopy --connections=8 --requests=64 "$uri_nbd" "$work/back" || fail "copy out over 8 connections"
cmp "$work/data" "$work/back" || fail "data"
run_fio verify --ioengine=nbd --uri="$uri_nbd" --rw=randwrite --bsrange=512-256k --bs_unaligned=0 --iodepth=32 --size=128M \
  --offset_increment=128M --numjobs=4 --thread --verify=crc32c --do_verify=1 || fail "fio"
stop "$bridge_pid"
stop "$server_pid"
