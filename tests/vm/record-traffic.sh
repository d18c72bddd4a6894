#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# By hand: records a session of the kernel's client with the kernel's server, for proto/testdata/recorded_kernel.txt.
#   tests/vm/record-traffic.sh [INVALIDATE] >FILE         Y (the kernel's default) or N
export VM_SMP=${VM_SMP:-1}  # Two connections.
. "$(dirname "$0")/rnbd.sh"
requires python3
rxe_veth || fail "no Soft-RoCE"
modprobe -a rnbd-client || fail "a module is missing"
modprobe loop
truncate -s 16M "$work/backing"
loop=$(losetup --show -f "$work/backing") || fail "no loop device"  # With a write cache: it is flushed.
cleanup_fn 'losetup -d "$loop"'
kernel_server "${1:-Y}" sess_queue_depth=8 || fail "rnbd-server"
printf '%0.s1' {1..4096} >"$work/ones"
start recorder python3 "$(dirname "$0")/roce_recorder.py" veth1 10.78.1.2
recorder=$pid
wait_for 10 grep -q recording "$work/recorder.log" || fail "nothing is recorded"
map one path=ip:10.78.1.1@ip:10.78.1.2 "device_path=$loop" || fail "map"
sleep 1  # udev and the partition scan read.
dd if="$work/ones" of="/dev/$disk" bs=4k count=1 seek=1 oflag=direct status=none || fail "write"
dd if="/dev/$disk" of=/dev/null bs=4k count=1 skip=1 iflag=direct status=none || fail "read"
dd if="$work/ones" of="/dev/$disk" bs=512 count=1 seek=3 oflag=direct,dsync status=none || fail "write, flushed"
blkdiscard -o 65536 -l 8192 "/dev/$disk" || fail "discard"
blkdiscard -z -o 131072 -l 4096 "/dev/$disk" || fail "zeroes"
dd if="/dev/$disk" of=/dev/null bs=1k count=1 skip=16383 iflag=direct status=none || fail "read the end"
expect_map 'No such file' one device_path=/dev/nothing
sleep 6  # A heartbeat.
unmap "$disk" || fail "unmap"
sleep 1
stop "$recorder"
cat "$work/recorder.log" | grep -v recording
