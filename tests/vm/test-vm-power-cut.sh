#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The server's machine loses power under a mounted file system: what its disk may then hold (all that flushes covered,
# FUA writes, and any part of the rest) is a file system that recovers, with every file that fsync() had promised.
# dm-log-writes below the exported volume records what the disk was told; replay_log.py makes disks of it.
# IBNBD_CUTS: how many cuts per file system (default 3); IBNBD_SEED: which ones.
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
[ -x "$IBNBD_BIN/verbs_conformance_test" ] || skip "this build has no verbs fabric"
requires fio mkfs.ext4 mkfs.xfs dmsetup python3
cuts=${IBNBD_CUTS:-3}
RANDOM=${IBNBD_SEED:-$$}
rxe_up || fail "no Soft-RoCE"
modprobe -a nbd ublk_drv ext4 xfs loop dm_mod dm_log_writes || fail "a module is missing"
export IBNBD_E2E_LISTEN=rdma://10.77.0.1
replay="python3 $here/../vm/replay_log.py"
size_mib=320

# load DIRECTORY: writes files that are flushed, until $work/stop appears; every file that was synced is named by a mark in the log.
load() {
  local dir=$1 i=0
  while [ ! -e "$work/stop" ]; do
    i=$((i + 1))
    head -c $((RANDOM * 4)) /dev/urandom >"$dir/file$i.new" || return 1
    (cd "$dir" && md5sum <"file$i.new" >"file$i.sum.new" && sync "file$i.new" "file$i.sum.new") || return 1
    mv "$dir/file$i.new" "$dir/file$i" && mv "$dir/file$i.sum.new" "$dir/file$i.sum" && sync "$dir" || return 1
    dmsetup message log 0 mark "$i" || return 1
    echo "$i" >"$work/synced"
    [ $((i % 5)) -ne 0 ] || rm "$dir/file$((i - 3))" "$dir/file$((i - 3)).sum"
  done
}
synced() { [ "$(cat "$work/synced")" -ge "$1" ]; }

# check IMAGE FS MARK: recovers, is clean, and holds every file up to MARK that was not removed.
check() {
  local image=$1 fs=$2 mark=$3 i repair
  case $fs in ext4) repair="e2fsck -fn" ;; xfs) repair="xfs_repair -n" ;; esac
  mkdir -p "$work/cut"
  mount -t "$fs" -o loop "$image" "$work/cut" || fail "$fs: does not recover: $(dmesg | tail -n 5)"
  for ((i = 1; i <= ${mark:-0}; ++i)); do
    if [ ! -e "$work/cut/file$i" ]; then
      [ $(((i + 3) % 5)) -eq 0 ] && [ $((i + 3)) -le "$mark" ] && continue  # Removed after that mark.
      fail "$fs: file$i, which was synced before mark $mark, is gone"
    fi
    [ "$(md5sum <"$work/cut/file$i")" = "$(cat "$work/cut/file$i.sum")" ] || fail "$fs: file$i was synced and has other data"
  done
  umount "$work/cut" || fail "umount"
  $repair "$image" >"$work/fsck.log" 2>&1 || fail "$fs: not clean: $(tail -n 5 "$work/fsck.log")"
}

for fs in ext4 xfs; do
  truncate -s ${size_mib}M "$work/disk.img"
  truncate -s 900M "$work/log.img"
  disk=$(losetup -f --show --direct-io=off "$work/disk.img")
  log=$(losetup -f --show --direct-io=off "$work/log.img")
  dmsetup create log --noudevsync --table "0 $((size_mib * 2048)) log-writes $disk $log" && dmsetup mknodes || fail "no dm-log-writes"
  start_server --export vol=/dev/mapper/log
  start_daemon
  map "$uri/vol"
  case $fs in ext4) mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0 "$node" ;; xfs) mkfs.xfs -q -f -K "$node" ;; esac || fail "mkfs.$fs"
  mkdir -p "$work/mnt"
  mount "$node" "$work/mnt" || fail "mount $fs"
  sync
  dmsetup message log 0 mark 0
  first=$($replay "$work/log.img" entries) # Before it there is no whole file system.
  rm -f "$work/stop"
  echo 0 >"$work/synced"
  load "$work/mnt" &
  loader=$!
  run_fio "noise-$fs" --directory="$work/mnt" --rw=randwrite --bsrange=4k-64k --size=24M --io_size=48M --fsync=16 ||
    fail "fio on $fs"
  wait_for 60 synced 10 || fail "only $(cat "$work/synced") files were synced"
  touch "$work/stop"
  wait $loader || fail "the load on $fs"
  umount "$work/mnt" || fail "umount $fs"
  unmap "$node"
  stop "$daemon_pid"
  stop "$server_pid"
  dmsetup remove --noudevsync --retry log
  losetup -d "$disk" "$log"

  read -r total flushes fua < <($replay "$work/log.img" entries)
  echo "$fs: $total entries, $flushes flushes, $fua FUA, $(cat "$work/synced") files synced"
  [ "$flushes" -ge 20 ] || fail "$fs: only $flushes flushes reached the disk"
  for ((n = 0; n < cuts; ++n)); do
    at=$((${first%% *} + (RANDOM * 32768 + RANDOM) % (total - ${first%% *} + 1)))
    rm -f "$work/cut.img"
    truncate -s ${size_mib}M "$work/cut.img"
    mark=$($replay "$work/log.img" cut "$work/cut.img" $at $n) || fail "replay"
    check "$work/cut.img" $fs "$mark"
    echo "$fs: cut before entry $at, seed $n, $mark files promised: recovered"
  done
  rm -f "$work"/*.img
done
