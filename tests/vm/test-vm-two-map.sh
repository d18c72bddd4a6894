#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A volume of one machine as a block device of another, over RDMA: file systems and fio verify; the cable is pulled for 20
# seconds under load, and nothing is lost, nor does anybody see an error.
export IBNBD_VM_RUN=run-two
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
[ -x "$IBNBD_BIN/verbs_conformance_test" ] || skip "this build has no verbs fabric"
requires fio mkfs.ext4 mkfs.xfs
rxe_eth || fail "no Soft-RoCE between the guests"
if [ "$ROLE" = server ]; then
  export IBNBD_E2E_LISTEN=rdma://10.78.0.1
  truncate -s 512M "$work/ext4.img" "$work/xfs.img"
  port_wanted=1234 start_server --export "ext4=$work/ext4.img" --export "xfs=$work/xfs.img"
  tell serving
  await 400 done || fail "the client has ended"
  stop "$server_pid"
  # What the client unmounted is on the server's disk.
  e2fsck -fn "$work/ext4.img" >"$work/fsck.log" 2>&1 || fail "e2fsck of the image: $(tail -n 5 "$work/fsck.log")"
  xfs_repair -n "$work/xfs.img" >"$work/fsck.log" 2>&1 || fail "xfs_repair of the image: $(tail -n 5 "$work/fsck.log")"
  exit 0
fi

modprobe -a nbd ublk_drv || fail "a module is missing"
await 60 serving || fail "no server"
start_daemon
map rdma://10.78.0.1/ext4 --as ublk
ublk=$node
map rdma://10.78.0.1/xfs --as nbd
nbd=$node
check_filesystem "$ublk" ext4
check_filesystem "$nbd" xfs

# Both mounted and written to while the cable is out: a verifying writer on each.
mkdir -p "$work/ublk" "$work/nbd"
mount "$ublk" "$work/ublk" || fail "mount $ublk"
mount "$nbd" "$work/nbd" || fail "mount $nbd"
writers=()
for kind in ublk nbd; do
  start_fio "cut-$kind" --filename="$work/$kind/data" --ioengine=io_uring --direct=1 --rw=randrw --bsrange=4k-64k --iodepth=8 \
    --fsync=32 --size=64M --time_based --runtime=35 --verify=crc32c --verify_backlog=256
  writers+=("$pid")
done
written() { [ "$(awk '{ print $7 }' "/sys/block/${1##*/}/stat")" -gt "$2" ]; }
until_true 30 written "$ublk" 20000 && until_true 30 written "$nbd" 20000 || fail "the writers do not write"
wire down || fail "the cable cannot be pulled"
sleep 20 # The outage itself.
grep -q "rxe0: port 1 is down" "$work/daemon.log" || fail "the daemon does not say that the port is down"
[ "$(jobs -rp | grep -cFx -f <(printf '%s\n' "${writers[@]}"))" -eq 2 ] || fail "a writer has ended while the cable was out"
wire up || fail "the cable cannot be plugged"
for writer in "${writers[@]}"; do
  wait "$writer" || fail "a writer saw an error, or other data: $(tail -n 3 "$work"/cut-*.log)"
done
until_true 10 grep -q "rxe0: port 1 is up" "$work/daemon.log" || fail "the daemon does not say that the port is up"
for device in "$ublk" "$nbd"; do
  ! dmesg | grep -E "I/O error.*${device##*/}|Remounting filesystem read-only|log I/O error" || fail "the kernel saw errors of $device"
done
for kind in ublk nbd; do
  diff -r "$tree" "$work/$kind/tree" || fail "$kind: the tree differs after the outage"
  umount "$work/$kind" || fail "umount $kind"
done
unmap "$ublk"
unmap "$nbd"
stop "$daemon_pid"
tell done
