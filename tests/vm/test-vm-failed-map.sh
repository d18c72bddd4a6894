#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The server's disk hangs while a volume is being mapped, before the kernel is told of the device and while it reads the
# partition table, or the server goes away then: the map fails in its time and leaves nothing behind, the daemon ends when
# it is told to, and when all is well again the volume is mapped.
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
requires dmsetup python3
modprobe -a ublk_drv loop dm-mod || fail "a module is missing"
mkdir -p /run/ibnbd
# The first 64 KiB and the rest hang one by one.  The first sector says that there is an extended partition at 4 MiB,
# so the kernel reads there.
truncate -s 16M "$work/disk"
printf '\0\0\2\0\5\xff\xff\xff\0\x20\0\0\0\x10\0\0' | dd of="$work/disk" bs=1 seek=446 conv=notrunc status=none
printf '\x55\xaa' | dd of="$work/disk" bs=1 seek=510 conv=notrunc status=none
loop=$(losetup --show -f "$work/disk") || fail "no loop device"
cleanup_fn 'losetup -d "$loop"'
start=0
for part in begin:128 end:32640; do
  dmsetup --noudevsync create "${part%:*}" --table "0 ${part#*:} linear $loop $start" || fail "no device mapper"
  start=${part#*:}
done
dmsetup mknodes
cleanup_fn 'dmsetup --noudevsync remove -f begin; dmsetup --noudevsync remove -f end'
dmsetup --noudevsync create volume <<'TABLE' || fail "no device mapper of device mappers"
0 128 linear /dev/mapper/begin 0
128 32640 linear /dev/mapper/end 0
TABLE
dmsetup mknodes
cleanup_fn 'dmsetup --noudevsync remove -f volume'
hang() { dmsetup --noudevsync --noflush --nolockfs suspend "$1" || fail "suspend $1"; }
mend() { dmsetup --noudevsync resume "$1" || fail "resume $1"; }
start_server --export vol=/dev/mapper/volume
start_daemon
nothing_left() { [ -z "$(ls /dev/ublkc* /sys/class/ublk-char/ublkc* 2>/dev/null)" ] && [ "$(ibnbd-client list | wc -l)" = 1 ]; }

declare -A said=([begin]="first block" [end]="partition table")
for part in begin end; do
  hang $part
  start_s=$SECONDS
  if ibnbd-client map "$uri/vol" --as ublk --timeout 5 >"$work/map.log" 2>&1; then fail "mapped a disk whose $part hangs"; fi
  [ $((SECONDS - start_s)) -le 20 ] || fail "the $part hangs, and map took $((SECONDS - start_s)) s of 5"
  [ "$(wc -l <"$work/map.log")" = 1 ] || fail "not one line: $(cat "$work/map.log")"
  grep -q "${said[$part]}" "$work/map.log" || fail "the $part hangs, and not the ${said[$part]}: $(cat "$work/map.log")"
  nothing_left || fail "the $part hangs, and something is left: $(ls /dev/ublkc*; ibnbd-client list)"
  mend $part
  ! stuck_tasks || fail "the $part hung: tasks are stuck"
  map "$uri/vol" --as ublk --timeout 20
  unmap "$node"
done

map_until_it_reads() { # TIMEOUT: sets $mapping
  hang end
  ibnbd-client map "$uri/vol" --as ublk --timeout "$1" >"$work/map.log" 2>&1 &
  mapping=$!
  device_there() { [ -e /sys/class/ublk-char/ublkc0 ] && [ -e /sys/block/ublkb0 ]; }
  wait_for 20 device_there || fail "the kernel does not read the partition table"
}

# The server goes away meanwhile.
map_until_it_reads 5
kill -KILL "$server_pid" && wait "$server_pid" 2>/dev/null
wait $mapping && fail "mapped without a server"
nothing_left || fail "the server went away, and something is left: $(ls /dev/ublkc*; ibnbd-client list)"
mend end
port_wanted=$port
start_server --export vol=/dev/mapper/volume
map "$uri/vol" --as ublk --timeout 20
unmap "$node"

# The daemon is told to end meanwhile.
map_until_it_reads 60
start_s=$SECONDS
kill -TERM "$daemon_pid"
wait_for 20 eval '! kill -0 $daemon_pid 2>/dev/null' || fail "the daemon does not end"
[ $((SECONDS - start_s)) -le 10 ] || fail "the daemon took $((SECONDS - start_s)) s to end"
wait $mapping && fail "mapped by a daemon that has ended"
start_daemon
wait_for 20 nothing_left || fail "something is left: $(ls /dev/ublkc*; ibnbd-client list)"
mend end
! stuck_tasks || fail "tasks are stuck"
map "$uri/vol" --as ublk --timeout 20
unmap "$node"
stop "$daemon_pid"
stop "$server_pid"
