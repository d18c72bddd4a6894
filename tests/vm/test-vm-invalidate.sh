#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A key per IO (ibnbd-server --invalidate=always): the kernel's client with its connections per CPU, which uses a chunk
# through any of them, and our own client; data of all sizes, discard, zeroes.  Connections that
# break are in test-vm-hostile.sh and, by the thousand, in the simulator (ibnbd-sim --keys-per-io).
export VM_SMP=${VM_SMP:-4}
RNBD_TEST_NEEDS=fio-engine
. "$(dirname "$0")/rnbd.sh"
requires fio
require_fio_engine
rxe_up || fail "no Soft-RoCE"
modprobe rnbd-client || fail "a module is missing"
expect_fail 'invalidate always: .*rdma://' ibnbd-server --invalidate always --listen tcp://127.0.0.1:0 --export x=mem:1M
export IBNBD_E2E_LISTEN=rdma://10.77.0.1
truncate -s 256M "$work/vol.img"
start_server --invalidate always --export "vol=$work/vol.img" --export m=mem:256M
grep -q 'a key per IO' "$server_log" || fail "the log does not say that keys change"
big=${IBNBD_LONG:+4} big=${big:-1}  # IBNBD_LONG=1: by hand, more of the same.
way="dest_port=$port path=ip:10.77.0.1"
sizes=512/10:4k/25:20k/10:124k/10:128k/15:132k/10:512k/20

map one "$way" device_path=vol || fail "map"
session_line one | grep -q " connections $(($(nproc) + 1)) " || fail "connections: $(session_line one)"
kernel=(--filename="/dev/$disk" --ioengine=io_uring --direct=1 --size=256M --verify=crc32c --do_verify=1)
run_fio kernel-mixed "${kernel[@]}" --rw=randwrite --bssplit=$sizes --iodepth=32 --io_size="$((12 * big))M" --fsync=64 || fail "mixed sizes"
run_fio kernel-jobs --filename="/dev/$disk" --ioengine=io_uring --direct=1 --size=256M --rw=randrw --bs=4k --iodepth=16 --numjobs=4 \
  --io_size="$((2 * big))M" --group_reporting || fail "four jobs"
run_fio kernel-trim "${kernel[@]}" --bs=64k --io_size=4M --iodepth=8 --rw=randtrimwrite || fail "trims"
head -c 4M /dev/urandom >"$work/data"
dd if="$work/data" of="/dev/$disk" bs=1M oflag=direct status=none || fail "write"
blkdiscard -z -o $((1 << 20)) -l $((1 << 20)) "/dev/$disk" || fail "zeroes"
dd if=/dev/zero of="$work/data" bs=1M seek=1 count=1 conv=notrunc status=none
cmp -n $((4 << 20)) "$work/data" "/dev/$disk" || fail "after write-zeroes the data differs"
unmap "$disk" || fail "unmap"
wait_for 20 no_session one || fail "the session is still there"

ibnbd-client copy --no-progress --verify "$work/data" "$uri/vol" || fail "copy"
ours=(--ioengine="external:$engine" --thread --direct=1 --size=64M --verify=crc32c --do_verify=1)
run_fio our-mixed "${ours[@]}" --uri="$uri/m" --rw=randwrite --bssplit=$sizes --iodepth=32 --io_size="$((10 * big))M" --fsync=64 || fail "our mixed sizes"
kernel_is_well
