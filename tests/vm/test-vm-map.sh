#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ibnbd-client map: a volume over RDMA as /dev/ublkbN and as /dev/nbdN.  What sysfs says is what the export has; file
# systems and fio find what they wrote; names stay; a volume that grows is seen to; many volumes share one session.
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
[ -x "$IBNBD_BIN/verbs_conformance_test" ] || skip "this build has no verbs fabric"
requires mkfs.ext4 mkfs.xfs fio udevadm
rxe_up || fail "no Soft-RoCE"
modprobe -a nbd ublk_drv ext4 xfs || fail "a module is missing"
export IBNBD_E2E_LISTEN=rdma://10.77.0.1
mkdir -p /run/udev/rules.d
cp "$here/../../packaging/60-ibnbd.rules" /run/udev/rules.d/
/lib/systemd/systemd-udevd --daemon || fail "no udev"

truncate -s 1G "$work/vol.img"
exports=()
for i in 1 2 3 4 5 6 7 8; do
  truncate -s 64M "$work/many$i.img"
  exports+=(--export "many$i=$work/many$i.img")
done
memory_disk 0 64 4096 || fail "no disk of 4 KiB blocks"
# Chunks and buffers on huge pages, and on ordinary ones once those are used up.
echo 32 >/proc/sys/vm/nr_hugepages
huge_pages() { awk '$1 == "HugePages_Free:" { print $2 }' /proc/meminfo; }
huge_pages=$(huge_pages)
[ "$huge_pages" -ge 10 ] || fail "no huge pages can be set aside"
start_server --memory huge --export "vol=$work/vol.img" --export "block4k=/dev/nullb0" --export "ro=$work/many1.img,ro" "${exports[@]}"
start_daemon --memory huge

file_systems_of() { # Each on each takes longer than it tells.
  if [ "${IBNBD_LONG:-}" = 1 ]; then echo ext4 xfs; elif [ "$1" = ublk ]; then echo xfs; else echo ext4; fi
}
for kind in ublk nbd; do
  map "$uri/vol" --as "$kind"
  [ "$(huge_pages)" -lt $((huge_pages - 8)) ] || fail "$(huge_pages) of $huge_pages huge pages are free"
  [ "$(blockdev --getsize64 "$node")" -eq $((1 << 30)) ] || fail "size: $(blockdev --getsize64 "$node")"
  expect_attribute "$node" logical_block_size 512
  expect_attribute "$node" write_cache "write back"
  expect_attribute "$node" fua 1
  [ "$(queue_attribute "$node" discard_max_bytes)" -gt 0 ] || fail "$node: no discard"
  [ "$(queue_attribute "$node" write_zeroes_max_bytes)" -gt 0 ] || fail "$node: no write-zeroes"
  udevadm settle --timeout=20
  link=$(ibnbd-client show "$node" --json | sed -n 's/.*"link": "\(.*\)",/\1/p')
  [ "$link" = "/dev/ibnbd/10.77.0.1:$port/vol" ] || fail "the stable name is $link"
  wait_for 20 test "$link" -ef "$node" || fail "$link is not $node: $(ls -lR /dev/ibnbd 2>&1)"

  for fs in $(file_systems_of $kind); do check_filesystem "$node" "$fs"; done
  fio_verify "verify-$kind" "$node"
  blkdiscard -f -o 512M -l 256M "$node" || fail "$node: discard"
  blkdiscard -f -z -o 512M -l 16M "$node" || fail "$node: zeroes"
  cmp -n $((16 << 20)) -i $((512 << 20)):0 "$node" /dev/zero || fail "$node: zeroes are not zero"

  # In use: refused, and nothing happens to it.
  exec 9<"$node"
  expect_fail "unmap: $node is open in .*--force" ibnbd-client unmap "$node"
  exec 9<&-
  unmap "$link"
  [ "$kind" = nbd ] || [ ! -e "$node" ] || fail "$node is still there"
  udevadm settle --timeout=20
  wait_for 20 test ! -e "$link" || fail "$link is still there"
done

# Read-only, by the export and by wish.
for options in "$uri/ro --ro" "$uri/vol --ro"; do
  # shellcheck disable=SC2086
  map $options
  [ "$(blockdev --getro "$node")" -eq 1 ] || fail "$options: $node can be written"
  unmap "$node"
done

# 4 KiB blocks.
for kind in ublk nbd; do
  map "$uri/block4k" --as $kind
  expect_attribute "$node" logical_block_size 4096
  expect_fail "." dd if=/dev/zero of="$node" bs=512 count=1 oflag=direct
  check_filesystem "$node" ext4
  unmap "$node"
done

# A volume that grows: ublk sees it by itself if the kernel can; else, and nbd, when it is mapped again.
for kind in ublk nbd; do
  [ $kind = ublk ] && grows=many2 || grows=many3 # The server does not forget that one has grown.
  map "$uri/$grows" --as $kind
  [ "$(blockdev --getsize64 "$node")" -eq $((64 << 20)) ] || fail "$node is large already: $(blockdev --getsize64 "$node")"
  truncate -s 96M "$work/$grows.img"
  if ibnbd-client resize "$node" >"$work/resize.log" 2>&1; then
    [ $kind = ublk ] || fail "nbd was told another size"
    [ "$(blockdev --getsize64 "$node")" -eq $((96 << 20)) ] || fail "$node did not grow"
  else
    grep -q "cannot.*remap" "$work/resize.log" || fail "resize: $(cat "$work/resize.log")"
    [ "$(blockdev --getsize64 "$node")" -eq $((64 << 20)) ] || fail "$node has another size"
    shown() { ibnbd-client list --json | grep -q '"state_reason": "resize .*cannot.*remap'; }
    wait_for 20 shown || fail "nobody is told: $(ibnbd-client list --json)"
    ibnbd-client remap "$node" >"$work/remap.log" 2>&1 || fail "remap: $(cat "$work/remap.log")"
    [ "$(blockdev --getsize64 "$node")" -eq $((96 << 20)) ] || fail "$node is not larger after remap"
  fi
  unmap "$node"
done

# Eight volumes at once over one session, both kinds mixed; each gets its own data back.
nodes=()
for i in 1 2 3 4 5 6 7 8; do
  [ $((i % 2)) = 0 ] && kind=nbd || kind=ublk
  map "$uri/many$i" --as $kind
  nodes+=("$node")
done
# One whose size the daemon asks the server for just now is shown as waiting.
eight_open() { [ "$(ibnbd-client list --json | grep -c '"state": "open"')" = 8 ]; }
wait_for 10 eight_open || fail "not eight devices: $(ibnbd-client list)"
one_session='import json, sys; exit(len({d["session"]["address"] for d in json.load(sys.stdin)["devices"]}) != 1)'
ibnbd-client list --json | python3 -c "$one_session" || fail "not one session"
fio_pids=()
for node in "${nodes[@]}"; do
  start_fio "many-${node##*/}" --filename="$node" --ioengine=io_uring --direct=1 --rw=randwrite --bsrange=512-128k \
    --bs_unaligned=0 --iodepth=8 --size=16M --io_size=16M --verify=crc32c --do_verify=1 --randseed=$RANDOM
  fio_pids+=("$pid")
done
for pid in "${fio_pids[@]}"; do wait "$pid" || fail "fio on one of eight volumes"; done
ibnbd-client unmap --all || fail "unmap --all"
[ "$(ibnbd-client list | wc -l)" = 1 ] || fail "something is left: $(ibnbd-client list)"

! stuck_tasks || fail "tasks are stuck"
stop "$daemon_pid"
stop "$server_pid"
