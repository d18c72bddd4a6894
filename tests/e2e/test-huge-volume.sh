#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A sparse volume of 5 TiB under the tools that would read all of it if they were let: qemu-img, nbdcopy and fio work on a
# window that straddles 4 TiB, qemu-io at both ends.  Offsets are whole, and what was not written stays a hole.
. "$(dirname "$0")/functions.sh"
requires qemu-img qemu-io fio nbdcopy

truncate -s 5T "$work/huge.img" 2>/dev/null || skip "the file system of $work has no files of 5 TiB"
start_server --export "huge=$work/huge.img"
start_bridge "huge=$uri/huge"
start_at=$(((4 << 40) - (32 << 20))) window=$((64 << 20))

qemu_io() { qemu-io -f raw "$@" "$(nbd_uri huge)" >"$work/qemu-io.log" 2>&1 || fail "qemu-io $*"; grep -iE 'failed|error|mismatch' "$work/qemu-io.log" && fail "qemu-io $*"; true; }
qemu_io -c 'write -P 1 0 64k' -c 'write -P 2 5119G 64k' -c 'write -f -P 3 4095G 4k' -c flush -c 'read -P 1 0 64k' \
  -c 'read -P 2 5119G 64k' -c 'read -P 3 4095G 4k' -c 'read -P 0 3T 64k' -c 'write -z 5119G 64k' -c 'read -P 0 5119G 64k'

# QEMU's own raw driver cuts the window out.
head -c 16M /dev/urandom >"$work/source.raw"
truncate -s $window "$work/source.raw"
head -c 1M /dev/urandom | dd of="$work/source.raw" bs=1M seek=32 conv=notrunc status=none  # Right behind 4 TiB.
nbd="file.driver=nbd,file.server.type=unix,file.server.path=$socket,file.export=huge"
image="driver=raw,offset=$start_at,size=$window,$nbd"
qemu-img convert -n --image-opts --target-image-opts "driver=raw,file.filename=$work/source.raw" "$image" || fail "convert in"
qemu-img compare --image-opts "driver=raw,file.filename=$work/source.raw" "$image" || fail "compare"
cmp -i 0:$start_at -n $window "$work/source.raw" "$work/huge.img" || fail "what the server stored is elsewhere"

if nbdkit --version >/dev/null 2>&1 && nbdkit nbd --dump-plugin >/dev/null 2>&1; then
  part=(nbdkit --exit-with-parent --filter=offset nbd "socket=$socket" export=huge "offset=$start_at" "range=$window")
  nbdcopy -- [ "${part[@]}" ] "$work/back.raw" || fail "nbdcopy out"
  cmp "$work/back.raw" "$work/source.raw" || fail "nbdcopy brought something else"
  head -c $window /dev/urandom >"$work/other.raw"
  nbdcopy --flush -- "$work/other.raw" [ "${part[@]}" ] || fail "nbdcopy in"
  cmp -i 0:$start_at -n $window "$work/other.raw" "$work/huge.img" || fail "what nbdcopy wrote is elsewhere"
else
  echo "note: nbdkit and its nbd plugin are not installed: nbdcopy beyond 4 TiB was not tried"
fi
run_fio huge --ioengine=nbd --uri="$(nbd_uri huge)" --rw=randwrite --bsrange=4k-256k --iodepth=16 --offset=$start_at --size=$window \
  --verify=crc32c || fail "fio"
used=$(du -k "$work/huge.img" | cut -f1)
[ "$used" -lt $((80 << 10)) ] || fail "the huge image takes $used KiB"
stop "$bridge_pid"
stop "$server_pid"
