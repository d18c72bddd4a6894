#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A volume over RDMA as a block device of this kernel: nbd-bridge and the kernel's NBD client.  File systems are made,
# filled with a real tree, unmounted, mounted again, compared and checked; what was asked of the device is its
# export's.  The server is killed and started again under a mounted file system.
. "$(dirname "$0")/functions.sh"
[ -x "$IBNBD_BIN/verbs_conformance_test" ] || skip "this build has no verbs fabric"
requires nbd-client mkfs.ext4 mkfs.xfs fio
rxe_up || fail "no Soft-RoCE"
modprobe -a nbd ext4 xfs || fail "a module is missing"
export IBNBD_E2E_LISTEN=rdma://10.77.0.1

truncate -s 1G "$work/vol.img"
start_server --export "vol=$work/vol.img"
port_wanted=$port
start_bridge "$uri/vol"
nbd-client -unix "$socket" /dev/nbd0 -N vol -C 2 >"$work/nbd-client.log" 2>&1 || fail "attach: $(cat "$work/nbd-client.log")"
cleanup_fn 'nbd-client -d /dev/nbd0 >/dev/null 2>&1'
[ "$(blockdev --getsize64 /dev/nbd0)" -eq $((1 << 30)) ] || fail "size: $(blockdev --getsize64 /dev/nbd0)"
[ "$(cat /sys/block/nbd0/queue/write_cache)" = "write back" ] || fail "no write cache in sysfs"
[ "$(cat /sys/block/nbd0/queue/fua)" = 1 ] || fail "no FUA in sysfs"
[ "$(cat /sys/block/nbd0/queue/discard_max_bytes)" -gt 0 ] || fail "no discard in sysfs"

mkdir "$work/mnt"
tree=/usr/include/linux
for fs in ext4 xfs; do
  case $fs in ext4) force=-F check="e2fsck -fn" ;; xfs) force=-f check="xfs_repair -n" ;; esac
  "mkfs.$fs" -q $force /dev/nbd0 || fail "mkfs.$fs"
  mount -t "$fs" /dev/nbd0 "$work/mnt" || fail "mount $fs"
  cp -r "$tree" "$work/mnt/tree" || fail "copy to $fs"
  if [ "$fs" = ext4 ]; then
    # Under the mounted file system: what was written is there, and IO goes on.
    kill -KILL "$server_pid"
    (cp -r "$tree" "$work/mnt/tree2" && sync -f "$work/mnt") &
    copier=$!
    start_server --export "vol=$work/vol.img"
    wait "$copier" || fail "IO failed while the server was away"
    diff -r "$tree" "$work/mnt/tree2" || fail "what was written around the restart differs"
  fi
  umount "$work/mnt" || fail "umount $fs"
  echo 3 >/proc/sys/vm/drop_caches
  $check /dev/nbd0 >"$work/fsck.log" 2>&1 || fail "$check: $(tail -n 5 "$work/fsck.log")"
  mount -t "$fs" /dev/nbd0 "$work/mnt" || fail "mount $fs again"
  diff -r "$tree" "$work/mnt/tree" || fail "$fs: the tree differs after a remount"
  umount "$work/mnt" || fail "umount $fs again"
done

run_fio verify --filename=/dev/nbd0 --ioengine=io_uring --direct=1 --rw=randwrite --bsrange=512-1M --bs_unaligned=0 --iodepth=16 \
  --size=256M --io_size=96M --verify=crc32c --do_verify=1 || fail "fio verify"
blkdiscard -f -o 512M -l 256M /dev/nbd0 || fail "discard"
nbd-client -d /dev/nbd0 >/dev/null || fail "detach"
! stuck_tasks || fail "tasks are stuck"
stop "$bridge_pid"
stop "$server_pid"
