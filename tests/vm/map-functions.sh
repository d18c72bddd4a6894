# SPDX-License-Identifier: Apache-2.0
# For tests of ibnbd-client's daemon and its devices, in the guest.
# shellcheck shell=bash

# start_daemon ARGS...: sets $daemon_pid; its log is $work/daemon.log, of all daemons of the test.
start_daemon() {
  ibnbd-client daemon "$@" >>"$work/daemon.log" 2>&1 </dev/null &
  daemon_pid=$!
  wait_for 20 ibnbd-client list || fail "the daemon does not answer: $(tail -n 5 "$work/daemon.log")"
}

# map URI ARGS...: sets $node.
map() {
  node=$(ibnbd-client map "$@" 2>"$work/map.log") || fail "map $*: $(cat "$work/map.log")"
  [ -b "$node" ] || fail "map $*: there is no $node"
}
unmap() { ibnbd-client unmap "$@" 2>"$work/unmap.log" || fail "unmap $*: $(cat "$work/unmap.log")"; }

# queue_attribute NODE NAME: what sysfs says.
queue_attribute() { cat "/sys/block/${1##*/}/queue/$2"; }
# expect_attribute NODE NAME VALUE
expect_attribute() {
  local is
  is=$(queue_attribute "$1" "$2")
  [ "$is" = "$3" ] || fail "$1: $2 is $is, the export has $3"
}

# check_filesystem NODE ext4|xfs: made, filled with a real tree, unmounted, mounted again, compared, checked.
tree=/usr/include/linux
check_filesystem() {
  local node=$1 fs=$2 force check
  case $fs in ext4) force=-F check="e2fsck -fn" ;; xfs) force=-f check="xfs_repair -n" ;; esac
  mkdir -p "$work/mnt"
  "mkfs.$fs" -q $force "$node" || fail "mkfs.$fs $node"
  mount -t "$fs" "$node" "$work/mnt" || fail "mount $fs $node"
  cp -r "$tree" "$work/mnt/tree" || fail "copy to $fs"
  umount "$work/mnt" || fail "umount $fs"
  echo 3 >/proc/sys/vm/drop_caches
  $check "$node" >"$work/fsck.log" 2>&1 || fail "$check: $(tail -n 5 "$work/fsck.log")"
  mount -t "$fs" "$node" "$work/mnt" || fail "mount $fs again"
  diff -r "$tree" "$work/mnt/tree" || fail "$fs: the tree differs after a remount"
  umount "$work/mnt" || fail "umount $fs again"
}

# fio_verify NAME NODE ARGS...: mixed sizes and flushes, everything read back and compared.
fio_verify() {
  local name=$1 node=$2
  shift 2
  run_fio "$name" --filename="$node" --ioengine=io_uring --direct=1 --rw=randwrite --bsrange=512-1M --bs_unaligned=0 \
    --iodepth=16 --fsync=64 --size=128M --io_size=64M --verify=crc32c --do_verify=1 "$@" || fail "fio verify on $node"
}

daemon_fds() { find "/proc/$daemon_pid/fd" -mindepth 1 | wc -l; }
daemon_fd_list() { readlink "/proc/$daemon_pid"/fd/* | sed 's/[0-9]\+/N/' | sort | uniq -c | tr '\n' ' '; }
daemon_threads() { find "/proc/$daemon_pid/task" -mindepth 1 -maxdepth 1 | wc -l; }
daemon_rss_kib() { awk '$1 == "VmRSS:" { print $2 }' "/proc/$daemon_pid/status"; }
