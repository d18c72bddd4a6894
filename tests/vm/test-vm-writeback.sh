#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Dirty pages are written back through the daemon while memory is short: first of a cgroup, then of the whole machine,
# which has more to write back than it has memory left.  Writers come to their end, nobody is killed for memory, every
# byte is right, and the daemon never needs a page: it takes no page fault, and its threads never wait for IO to get
# memory.  (It is not killed here: while nobody writes back a machine without memory kills others, as with any disk.)
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
requires mkfs.ext4 udevadm
modprobe -a nbd ublk_drv ext4 || fail "a module is missing"
mkdir -p "$work/cg" "$work/mnt0" "$work/mnt1" /run/ibnbd /run/udev/rules.d
cp "$here/../../packaging/60-ibnbd.rules" /run/udev/rules.d/
/lib/systemd/systemd-udevd --daemon || fail "no udev"
mount -t cgroup2 none "$work/cg" || skip "no cgroup v2"
cleanup_fn 'umount "$work/cg"'
echo +memory +io >"$work/cg/cgroup.subtree_control" || skip "no memory controller"
group=$work/cg/tight
mkdir "$group"
# Who is above that waits until something has been written back.  (Above memory.max he is killed, if it takes too long.)
echo 32M >"$group/memory.high"

# What is written must not need memory on the server's side: that is on another machine otherwise.  (So nothing is discarded, either.)
fallocate -l 192M "$work/a.img"
fallocate -l 192M "$work/b.img"
start_server --export "a=$work/a.img" --export "b=$work/b.img"
echo -900 >"/proc/$server_pid/oom_score_adj" # As its unit does.
start_daemon
map "$uri/a"
ublk=$node
map "$uri/b" --as nbd
nbd=$node
faults() { sed 's/.*) //' "/proc/$daemon_pid/stat" | awk '{ print $8 + $10 }'; }
before=$(faults)
mkfs.ext4 -q -F -E nodiscard "$ublk" && mount "$ublk" "$work/mnt0" || fail "ext4 on $ublk"
mkfs.ext4 -q -F -E nodiscard "$nbd" && mount "$nbd" "$work/mnt1" || fail "ext4 on $nbd"
head -c $((40 << 20)) /dev/urandom >"$work/data"

echo "--- the daemon has what it will need"
locked() { awk -v "key=$1:" '$1 == key { print $2 }' "/proc/$daemon_pid/status"; }
echo "$(daemon_threads) threads, VmRSS $(locked VmRSS) KiB, VmLck $(locked VmLck) KiB"
check_threads() {
  local thread name flags
  for thread in "/proc/$daemon_pid/task/"*; do
    flags=$(sed 's/.*) //' "$thread/stat" 2>/dev/null | cut -d' ' -f7)
    [ -n "$flags" ] || continue # It has ended.
    # PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE of linux/sched.h.
    [ $((flags & 0x180000)) -eq $((0x180000)) ] || fail "thread $(cat "$thread/comm") may wait for IO to get memory: $flags"
  done
  [ "$(locked VmLck)" -gt 0 ] || fail "no memory is locked"
  [ "$(cat "/proc/$daemon_pid/oom_score_adj")" = -1000 ] || fail "the daemon may be killed when memory is short"
}
check_threads
# Compaction may move a page now and then.
check_faults() {
  local count=$(($(faults) - before))
  echo "$count page faults of the daemon"
  [ $count -le 20 ] || fail "the daemon needed memory"
}

writers=()
writer() { # NUMBER DIRECTORY GROUP
  echo "$BASHPID" >"$3/cgroup.procs" || return 1
  cp "$work/data" "$2/file$1" && sync "$2/file$1"
}
write_all() { # NUMBER GROUP
  local directory
  writers=()
  for directory in "$work/mnt0" "$work/mnt1"; do
    writer "$1" "$directory" "$2" &
    writers+=($!)
  done
}
await_writers() {
  local pid
  for pid in "${writers[@]}"; do wait "$pid" || fail "$1: a writer failed"; done
}
# Also for what it does for the first time: the first use of a buffer, of a function, of a cache.
write_all 0 "$work/cg"
await_writers "at leisure"
check_faults
rm "$work/mnt0/file0" "$work/mnt1/file0"

echo "--- a cgroup that is short, after $SECONDS s"
before=$(faults)
write_all 1 "$group"
await_writers "a cgroup"
check_faults
echo "$(grep '^high ' "$group/memory.events")"
[ "$(awk '$1 == "high" { print $2 }' "$group/memory.events")" -gt 0 ] || fail "memory was not short"

echo "--- the machine is short, after $SECONDS s"
echo 3 >/proc/sys/vm/drop_caches
available() { awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo; }
# Memory is taken away until what is left is less than what is to be written; and most of it may be dirty.
echo $((($(available) - ${LEFT:-50}) / 2)) >/proc/sys/vm/nr_hugepages
echo 60 >/proc/sys/vm/dirty_ratio
echo 50 >/proc/sys/vm/dirty_background_ratio
echo "$(available) MiB available, 80 to be written"
scans() { awk '/^pgscan_kswapd |^pgscan_direct / { n += $2 } END { print n }' /proc/vmstat; }
before=$(faults)
scans_before=$(scans)
write_all 1 "$work/cg"
await_writers "the machine"
check_faults
echo "$(($(scans) - scans_before)) pages looked at by who needed some"
[ "$(scans)" -gt "$scans_before" ] || fail "memory was not short"

echo 0 >/proc/sys/vm/nr_hugepages
! dmesg | grep -i "out of memory\|oom-kill" || fail "somebody was killed"
! dmesg | grep -E "I/O error.* (${ublk##*/}|${nbd##*/})" || fail "the kernel saw errors"

echo "--- every byte, after $SECONDS s"
umount "$work/mnt0" && umount "$work/mnt1" || fail "umount"
echo 3 >/proc/sys/vm/drop_caches
mount "$ublk" "$work/mnt0" && mount "$nbd" "$work/mnt1" || fail "mount again"
for directory in "$work/mnt0" "$work/mnt1"; do
  cmp "$directory/file1" "$work/data" || fail "$directory/file1 differs"
done
umount "$work/mnt0" && umount "$work/mnt1" || fail "umount again"
ibnbd-client unmap --all || fail "unmap"
! stuck_tasks || fail "tasks are stuck"
stop "$daemon_pid"
stop "$server_pid"
