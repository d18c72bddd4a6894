#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The kernel's RNBD client on our server: what it believes of the volume, data of all sizes with flush, FUA, discard and
# write-zeroes, a file system, eight devices over one session, the access modes.  What it does when servers come and go
# is in test-vm-kernel-client-life.sh.
export VM_SMP=${VM_SMP:-4}  # It brings a connection for each CPU.
. "$(dirname "$0")/rnbd.sh"
requires fio mkfs.ext4 e2fsck
rxe_up || fail "no Soft-RoCE"
modprobe -a rnbd-client ext4 || fail "a module is missing"
export IBNBD_E2E_LISTEN=rdma://10.77.0.1

truncate -s 1G "$work/vol.img"
truncate -s 64M "$work/four.img" "$work/fixed.img" "$work/huge.img"
exports=(--export "vol=$work/vol.img" --export "four=$work/four.img,block-size=4K" --export "fixed=$work/fixed.img,ro"
  --export "huge=$work/huge.img,block-size=32K")
for i in 0 1 2 3 4 5 6 7; do
  truncate -s 32M "$work/d$i.img"
  exports+=(--export "d/$i=$work/d$i.img")
done
for name in one two; do
  mkdir -p "$work/by-name/$name"
  head -c 1M /dev/urandom >"$work/by-name/$name/own"
done
start_server "${exports[@]}" --search-path "$work/by-name/%SESSNAME%"
way="dest_port=$port path=ip:10.77.0.1"

# What the client believes.
map one "$way" device_path=vol access_mode=rw || fail "map"
vol=$disk
[ "$(blockdev --getsize64 "/dev/$vol")" -eq $((1 << 30)) ] || fail "size: $(blockdev --getsize64 "/dev/$vol")"
queue_is "$vol" write_cache "write back"
queue_is "$vol" fua 1
queue_is "$vol" logical_block_size 512
queue_is "$vol" max_hw_sectors_kb 128
[ "$(cat "/sys/block/$vol/queue/discard_max_bytes")" -gt 0 ] || fail "no discard"
[ "$(cat "/sys/block/$vol/queue/write_zeroes_max_bytes")" -gt 0 ] || fail "no write-zeroes"
[ "$(cat "/sys/block/$vol/rnbd/session")" = one ] || fail "session: $(cat "/sys/block/$vol/rnbd/session")"
state_is "$vol" open || fail "state: $(cat "/sys/block/$vol/rnbd/state")"
path_state_is one connected || fail "the path is not connected"
session_line one | grep -q " connections $(($(nproc) + 1)) devices 1 " || fail "connections: $(session_line one)"

big=${IBNBD_LONG:+4} big=${big:-1}  # IBNBD_LONG=1: by hand, more of the same.
# Data: sizes around the chunk's and far beyond it, then with flushes, then with every write FUA.
sizes=512/10:4k/25:20k/10:124k/10:128k/15:132k/10:512k/20
data() { # data NAME ARGS...
  local name=$1
  shift
  run_fio "$name" --filename="/dev/$vol" --ioengine=io_uring --direct=1 --bssplit=$sizes --size=256M --iodepth=16 \
    --verify=crc32c --do_verify=1 "$@" || fail "fio $name"
}
data mixed --rw=randwrite --io_size="$((16 * big))M"
data rewrite --rw=randrw --io_size="$((8 * big))M"
data flushed --rw=randwrite --io_size="$((4 * big))M" --fsync=4
run_fio trimmed --filename="/dev/$vol" --ioengine=io_uring --direct=1 --bs=64k --size=256M --io_size="$((4 * big))M" --iodepth=8 \
  --rw=randtrimwrite --verify=crc32c --do_verify=1 || fail "fio trimmed"
data fua --rw=randwrite --io_size="$((4 * big))M" --sync=dsync
[ "$(server_stat flushes)" -gt 0 ] || fail "no flush has reached the server"
run_fio poll --filename="/dev/$vol" --ioengine=pvsync2 --hipri --direct=1 --rw=randread --bs=4k --size=256M --io_size=1M ||
  fail "reads that poll"

# Discard and zeroes, on data that was there; all that is around stays.
head -c 16M /dev/urandom >"$work/pattern"
dd if="$work/pattern" of="/dev/$vol" bs=1M seek=512 oflag=direct status=none || fail "write the pattern"
blkdiscard -o $((513 << 20)) -l $((4 << 20)) "/dev/$vol" || fail "discard"
blkdiscard -z -o $((520 << 20)) -l $(((5 << 20) + 512)) "/dev/$vol" || fail "write zeroes"
cp "$work/pattern" "$work/expected"
dd if=/dev/zero of="$work/expected" bs=1M seek=1 count=4 conv=notrunc status=none
dd if=/dev/zero of="$work/expected" bs=512 seek=$((8 << 11)) count=$(((5 << 11) + 1)) conv=notrunc status=none
dd if="/dev/$vol" of="$work/seen" bs=1M skip=512 count=16 iflag=direct status=none || fail "read the pattern"
cmp "$work/expected" "$work/seen" || fail "after discard and write-zeroes the data differs"
[ "$(server_stat discards)" -gt 0 ] || fail "no discard has reached the server"
[ "$(server_stat zeroes)" -gt 0 ] || fail "no write-zeroes has reached the server"

# A file system.
mkdir "$work/mnt"
mkfs.ext4 -q -F "/dev/$vol" || fail "mkfs.ext4"
mount -t ext4 -o discard "/dev/$vol" "$work/mnt" || fail "mount"
tree=/usr/include/linux
cp -r "$tree" "$work/mnt/tree" || fail "copy"
cp -r "$tree" "$work/mnt/gone" && rm -r "$work/mnt/gone" && sync -f "$work/mnt" || fail "remove"
umount "$work/mnt" || fail "umount"
echo 3 >/proc/sys/vm/drop_caches
e2fsck -fn "/dev/$vol" >"$work/fsck.log" 2>&1 || fail "e2fsck"
mount -t ext4 "/dev/$vol" "$work/mnt" || fail "mount again"
diff -r "$tree" "$work/mnt/tree" || fail "the tree differs after a remount"
umount "$work/mnt" || fail "umount again"
[ "$(server_stat errors)" = 0 ] || fail "the server answered something with an error"
[ "$(server_stat sessions_total)" = 1 ] || fail "the session was lost on the way"

# Other geometries.
map one device_path=four || fail "map a volume of 4 KiB blocks"
queue_is "$disk" logical_block_size 4096
run_fio four --filename="/dev/$disk" --ioengine=io_uring --direct=1 --rw=randwrite --bsrange=4k-256k --size=64M --io_size="$((4 * big))M" \
  --iodepth=8 --verify=crc32c --do_verify=1 || fail "fio on 4 KiB blocks"
unmap "$disk" || fail "unmap"

# Eight devices over one session: each has its own data, all at once.
devices=()
for i in 0 1 2 3 4 5 6 7; do
  map one "device_path=d/$i" || fail "map d/$i"
  devices+=("$disk")
done
session_line one | grep -q ' devices 9 ' || fail "not nine devices in one session: $(session_line one)"
fios=()
for i in 0 1 2 3 4 5 6 7; do
  head -c 8M /dev/urandom >"$work/data$i"
  dd if="$work/data$i" of="/dev/${devices[i]}" bs=256k oflag=direct status=none &
  fios+=($!)
done
for pid in "${fios[@]}"; do wait "$pid" || fail "a write to one of eight devices"; done
for i in 0 1 2 3 4 5 6 7; do
  dd if="/dev/${devices[i]}" of="$work/seen" bs=256k count=32 iflag=direct status=none || fail "read d/$i"
  cmp "$work/data$i" "$work/seen" || fail "d/$i reads what was not written to it"
  cmp -n $((8 << 20)) "$work/data$i" "$work/d$i.img" || fail "d$i.img does not hold what was written to d/$i"
done

# Each session has its own directory; the kernel's habit of absolute paths leads nowhere else.
map one device_path=/own access_mode=ro || fail "map from the search path"
cmp "/dev/$disk" "$work/by-name/one/own" || fail "session one sees another file"
unmap "$disk" || fail "unmap"
map two "$way" device_path=own access_mode=ro || fail "map from the search path"
cmp "/dev/$disk" "$work/by-name/two/own" || fail "session two sees another file"
unmap "$disk" || fail "unmap"
expect_map 'Invalid argument' one device_path=../two/own

# Access modes against each other; what is refused is refused with the errno the kernel's server gives.
map two "$way" device_path=vol access_mode=ro || fail "a reader beside a writer"
[ "$(blockdev --getro "/dev/$disk")" = 1 ] || fail "mapped read-only, but writable"
cmp -n 1048576 "/dev/$disk" "/dev/$vol" || fail "the reader sees other data"
unmap "$disk" || fail "unmap the reader"
expect_map 'not permitted' three "$way" device_path=vol access_mode=rw
map three "$way" device_path=vol access_mode=migration || fail "migration beside a writer"
guest=$disk
expect_map 'not permitted' four "$way" device_path=vol access_mode=migration
unmap "$vol" || fail "unmap the writer"
dd if="$work/pattern" of="/dev/$guest" bs=1M count=4 oflag=direct status=none || fail "write after migration"
unmap "$guest" || fail "unmap after migration"
map three "$way" device_path=vol access_mode=rw || fail "the writer's place was not given back"
dd if="/dev/$disk" of="$work/seen" bs=1M count=4 iflag=direct status=none || fail "read after migration"
cmp -n $((4 << 20)) "$work/pattern" "$work/seen" || fail "what was written after migration is not there"
expect_map 'Read-only file system' three device_path=fixed access_mode=rw
map three device_path=fixed access_mode=ro || fail "a read-only export"
expect_fail 'not permitted|Read-only' dd if=/dev/zero "of=/dev/$disk" bs=4k count=1 oflag=direct
expect_map 'No such file' three device_path=nothing
expect_map 'File exists' three device_path=fixed access_mode=ro
# A block size that is beyond the client's pages: it refuses, and gives the device back.
expect_map 'Invalid argument' three device_path=huge
session_line three | grep -q ' devices 2 ' || fail "the client refused the device and it is still open: $(session_line three)"

for disk in $(cd /sys/block && echo rnbd*); do unmap "$disk" || fail "unmap $disk"; done
wait_for 20 no_session one || fail "session one is still there"
kernel_is_well
grep -E ' (warn|error): ' "$server_log" | grep -v ' open .*: ' && fail "the server complained"
stop "$server_pid"
