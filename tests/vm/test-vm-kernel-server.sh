#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Our client on the kernel's RNBD server, with a fresh key for each IO (always_invalidate=Y, its default) and without, in
# its default geometry and in another: ibnbd-client, the fio engine, and nbd-bridge with a file system, over restarts of
# the server.
RNBD_TEST_NEEDS=fio-engine
. "$(dirname "$0")/rnbd.sh"
requires fio nbd-client mkfs.ext4 e2fsck python3
require_fio_engine
rxe_up || fail "no Soft-RoCE"
modprobe -a nbd loop ext4 || fail "a module is missing"
memory_disk 0 64 || fail "no null_blk"
truncate -s 64M "$work/backing"
loop=$(losetup --show -f "$work/backing") || fail "no loop device"  # A write cache, no FUA, and write-zeroes.
cleanup_fn 'losetup -d "$loop"'
uri=rdma://10.77.0.1
big=${IBNBD_LONG:+4} big=${big:-1}  # IBNBD_LONG=1: by hand, more of the same.
volume=(--ioengine="external:$engine" --thread --direct=1 --verify=crc32c --do_verify=1)
nobody_on() { [ "$(sessions_on "$1")" = 0 ]; }

# checked_show DEVICE KEY=VALUE...
checked_show() {
  ibnbd-client show --json "$uri$1" >"$work/show" || fail "show $1"
  python3 - "$work/show" "${@:2}" <<'PYTHON' || fail "show $1: $(cat "$work/show")"
import json, sys
info = json.load(open(sys.argv[1]))
for pair in sys.argv[2:]:
    key, value = pair.split("=")
    assert info[key] == json.loads(value), (key, info[key], value)
PYTHON
}

data() { # data NAME
  ibnbd-client ping -c 3 -i 0.1 "$uri" || fail "ping, $1"
  head -c 8M /dev/urandom >"$work/data"
  truncate -s 45M "$work/data"
  head -c 3M /dev/urandom >>"$work/data"
  local device size=$((48 << 20))
  for device in "/dev/nullb0" "$loop"; do
    ibnbd-client copy --no-progress --verify "$work/data" "$uri$device" || fail "copy to $device, $1"
    cmp -n "$size" "$work/data" "$device" || fail "what the kernel stored on $device differs, $1"
    ibnbd-client copy --no-progress "$uri$device" "$work/back" || fail "copy from $device, $1"
    cmp "$work/back" "$device" || fail "what came back from $device differs, $1"
    run_fio "mixed-$1" "${volume[@]}" --uri="$uri$device" --rw=randwrite --blockalign=512 --iodepth=32 --size=48M --io_size="$((8 * big))M" \
      --bssplit=512/10:4k/20:20k/10:124k/10:128k/20:132k/10:512k/20 --fsync=32 || fail "mixed sizes on $device, $1"
    run_fio "fua-$1" "${volume[@]}" --uri="$uri$device" --rw=write --bs=16k --size=4M --sync=1 --iodepth=4 || fail "FUA on $device, $1"
    run_fio "trim-$1" "${volume[@]}" --uri="$uri$device" --rw=randwrite --bs=64k --size=16M --iodepth=16 --verify_backlog=64 \
      --trim_percentage=30 --trim_verify_zero=1 --trim_backlog=64 --fsync=100 || fail "discard on $device, $1"
    wait_for 10 nobody_on "$(basename "$device")" || fail "sessions are left over on $device, $1"
  done
}

# What the kernel's server does not enforce, we do not ask of it; who may write is its to say.
access() {
  start_bridge --readonly "vol=$uri/dev/nullb0"
  md5sum /dev/nullb0 >"$work/before"
  nbd-client -unix "$socket" /dev/nbd0 -N vol >"$work/nbd-client.log" 2>&1 || fail "attach read-only"
  expect_fail 'not permitted|Read-only' dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct
  cmp -n 16777216 /dev/nbd0 /dev/nullb0 || fail "read-only reads differ"
  nbd-client -d /dev/nbd0 >/dev/null
  stop "$bridge_pid"
  md5sum --quiet -c "$work/before" || fail "written through a read-only device"
  start_bridge "vol=$uri/dev/nullb0"
  expect_fail 'not permitted.*another client writes it' ibnbd-client copy --no-progress "$work/data" "$uri/dev/nullb0"
  ibnbd-client show "$uri/dev/nullb0" >/dev/null || fail "a reader beside a writer"
  stop "$bridge_pid"
  blockdev --setro /dev/nullb0
  expect_fail 'open|Permission|not permitted|Read-only' ibnbd-client copy --no-progress "$work/data" "$uri/dev/nullb0"
  blockdev --setrw /dev/nullb0
}

# A device of our own, mapped as the kernel's client is told to map one.
words() {
  modprobe ublk_drv || fail "no ublk"
  start words ibnbd-client map --foreground sessname=hostA path=ip:10.77.0.1 dest_port=1234 device_path=/dev/nullb0 access_mode=ro
  wait_for 20 test -b /dev/ublkb0 || fail "nothing was mapped"
  [ -e /sys/class/rtrs-server/hostA ] || fail "the server knows the session as $(ls /sys/class/rtrs-server)"
  [ "$(blockdev --getro /dev/ublkb0)" = 1 ] || fail "not read-only"
  cmp -n 16777216 /dev/ublkb0 /dev/nullb0 || fail "the device reads other data"
  stop "$pid"
  expect_fail 'path=gid:fe80::1: .*AF_IB' ibnbd-client map sessname=hostA path=gid:fe80::1 device_path=/dev/nullb0
}

# A file system while the path is cut, the device is taken away, and the server is unloaded and loaded again: IO is held
# and finishes.  $@: the parameters to load it with.
filesystem() {
  local sessions=/sys/class/rtrs-server tree=/usr/include/linux copier how bridge_log opened
  start_bridge --verbose "vol=$uri$loop"
  bridge_log=${socket%.sock}.log
  nbd-client -unix "$socket" /dev/nbd0 -N vol -C 2 >"$work/nbd-client.log" 2>&1 || fail "attach: $(cat "$work/nbd-client.log")"
  mkfs.ext4 -q -F /dev/nbd0 || fail "mkfs"
  mkdir -p "$work/mnt"
  mount /dev/nbd0 "$work/mnt" || fail "mount"
  for how in cut close restart; do
    (cp -r "$tree" "$work/mnt/$how" && sync -f "$work/mnt") &
    copier=$!
    wait_for 20 test -e "$work/mnt/$how" || fail "nothing is copied"
    case $how in
      cut) echo 1 | tee "$sessions"/*/paths/*/disconnect >/dev/null || fail "disconnect" ;;
      close) echo 1 | tee "$rnbd_served/${loop#/dev/}/sessions"/*/force_close >/dev/null || fail "force_close" ;;
      restart)
        stop_kernel_server || fail "rmmod under IO"
        expect_fail 'refused|reset|not reachable|No route' ibnbd-client show --timeout 3 "$uri$loop"
        kernel_server "$@" || fail "rnbd-server again"
        ;;
    esac
    wait "$copier" || fail "IO failed: $how"  # What was written is looked at below, where the kernel stored it.
  done
  umount "$work/mnt" || fail "umount"
  sync -d /dev/nbd0
  echo 3 >/proc/sys/vm/drop_caches
  e2fsck -fn /dev/nbd0 >"$work/fsck.log" 2>&1 || fail "e2fsck"
  nbd-client -d /dev/nbd0 >/dev/null || fail "detach"
  opened=$(grep -c 'device .* open, ' "$bridge_log")
  [ "$opened" -ge 4 ] || fail "the bridge has opened the device $opened times: $(cat "$bridge_log")"
  stop "$bridge_pid"
  mount -o ro,noload "$loop" "$work/mnt" || fail "mount what the kernel stored"
  for how in cut close restart; do diff -r "$tree" "$work/mnt/$how" || fail "what the kernel stored differs: $how"; done
  umount "$work/mnt"
  wait_for 10 nobody_on "${loop#/dev/}" || fail "sessions are left over"
}

kernel_server Y || fail "rnbd-server"
checked_show /dev/nullb0 'name="dev/nullb0"' size=67108864 io_size_max=126976 logical_block_size=512 volume_id=null \
  write_cache=false secure_erase=false
checked_show "$loop" write_cache=true fua=false size=67108864
expect_fail 'is not ibnbd' ibnbd-client list "$uri"
expect_fail 'No such file' ibnbd-client show "$uri/dev/nothing"
data default
access
words
filesystem Y
stop_kernel_server || fail "rmmod"

plain=(N max_chunk_size=262144 sess_queue_depth=64)
kernel_server "${plain[@]}" || fail "rnbd-server"
checked_show /dev/nullb0 io_size_max=258048
data plain-keys
[ "$big" = 1 ] || filesystem "${plain[@]}"
stop_kernel_server || fail "rmmod"
kernel_is_well
