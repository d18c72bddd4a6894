#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# /dev/nbdN and those who have to do with it beside the daemon: its connection ends under load, or is still the dead
# daemon's when the next one comes, or the kernel cannot be asked; IO goes on nevertheless.  Another program detaches
# the device and takes its number: that is shown, and what is the other's is not touched.
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
requires python3 fio nbdkit nbd-client cc unshare
modprobe -a nbd || fail "a module is missing"
mkdir -p /run/ibnbd
truncate -s 64M "$work/raw.img"
start_server --export "raw=$work/raw.img"
start_daemon
map "$uri/raw" --as nbd
short_timeout() { echo 5000 >"/sys/block/${node##*/}/queue/io_timeout" || fail "no request time-out"; } # As our udev rule.
short_timeout

# The same blocks again and again: an old write that comes late is found.
rewrite() {
  until [ -e "$work/enough" ]; do
    env -C "$work" fio --name=raw --verify_state_save=0 --verify_fatal=1 --ioengine=io_uring --direct=1 --rw=randwrite \
      --norandommap --randseed=$RANDOM --bsrange=4k-32k --bs_unaligned=0 --iodepth=8 --serialize_overlap=1 --size=8M \
      --io_size=16M --fsync=50 --verify=crc32c --do_verify=1 --filename="$node" >"$work/raw.log" 2>&1 </dev/null || return 1
  done
}
writes() { awk '{ print $5 }' "/sys/block/${node##*/}/stat"; }
has_written() { [ "$(writes)" -gt "$1" ]; }
goes_on() {
  wait_for 30 has_written $(($(writes) + 20)) || fail "$1: no IO: $(ibnbd-client list) $(tail -n 3 "$work/raw.log")"
  alive "$writer" || fail "$1: an error was seen: $(tail -n 5 "$work/raw.log")"
}
waits_because() { ibnbd-client list --json | grep -A1 '"state": "waiting"' | grep -q "\"state_reason\": \".*$1"; }
die() { # The daemon.
  kill -KILL "$daemon_pid"
  wait "$daemon_pid" 2>/dev/null
}
rewrite &
writer=$!
goes_on "at first"

python3 "$here/../vm/nbd_sockets.py" shut "$daemon_pid" || fail "cannot end the connection"
wait_for 20 grep -q "its connection had ended, it has a new one" "$work/daemon.log" || fail "nobody noticed"
goes_on "the connection ended"

python3 "$here/../vm/nbd_sockets.py" hold "$daemon_pid" >"$work/hold.log" 2>&1 &
holder=$!
wait_for 20 grep -q holding "$work/hold.log" || fail "$(cat "$work/hold.log")"
die
start_daemon
wait_for 20 waits_because "still has the connection" || fail "it is thought to be served: $(ibnbd-client list --json)"
kill "$holder"
wait "$holder" 2>/dev/null
goes_on "the dead daemon's connection was alive"

die
echo '#include <netlink/errno.h>
  int genl_ctrl_resolve(void* socket, const char* name) { return -NLE_AGAIN; }' >"$work/no_answer.c"
cc -shared -fPIC -I/usr/include/libnl3 -o "$work/no_answer.so" "$work/no_answer.c" || fail "no compiler"
LD_PRELOAD="$work/no_answer.so" ibnbd-client daemon >>"$work/daemon.log" 2>&1 </dev/null &
daemon_pid=$!
wait_for 20 waits_because "look for the kernel's NBD client" || fail "the device is not waited for: $(ibnbd-client list --json)"
die
start_daemon
goes_on "the kernel could not be asked"
: >"$work/enough"
wait "$writer" || fail "fio: $(tail -n 5 "$work/raw.log")"

# Requests as large as the kernel lets anybody have them.
attribute=/sys/block/${node##*/}/queue/max_sectors_kb
cat "${attribute/max_sectors/max_hw_sectors}" >"$attribute" || fail "larger requests are not to be had"
head -c 32M /dev/urandom >"$work/large"
requests=$(writes)
dd if="$work/large" of="$node" bs=32M oflag=direct conv=notrunc 2>"$work/dd.log" || fail "large requests: $(cat "$work/dd.log")"
echo "32 MiB in $(($(writes) - requests)) requests of up to $(cat "$attribute") KiB"
cmp "$work/large" <(dd if="$node" bs=32M iflag=direct count=1 status=none) || fail "large requests: other data"

# Detached, and still open: nobody can have the number yet, nor can we go on.
exec 9<"$node"
nbd-client -d "$node" >"$work/detach.log" 2>&1 || fail "detach: $(cat "$work/detach.log")"
wait_for 20 waits_because "still in use: unmap it" || fail "it is thought to be served: $(ibnbd-client list --json)"
exec 9<&-
unmap "$node"
map "$uri/raw" --as nbd

# Another program, which serves other data under the same number.
nbdkit -f -U "$work/other.sock" pattern 16M >"$work/nbdkit.log" 2>&1 </dev/null &
wait_for 20 test -S "$work/other.sock" || fail "nbdkit: $(cat "$work/nbdkit.log")"
take() {
  nbd-client -d "$node" >"$work/detach.log" 2>&1 || fail "detach: $(cat "$work/detach.log")"
  nbd-client -unix "$work/other.sock" "$node" >"$work/attach.log" 2>&1 || fail "attach: $(cat "$work/attach.log")"
}
still_theirs() {
  ibnbd-client unmap "$node" 2>"$work/unmap.log" || fail "unmap: $(cat "$work/unmap.log")"
  [ "$(blockdev --getsize64 "$node")" -eq $((16 << 20)) ] || fail "$node was taken from the other program"
  [ "$(dd if="$node" bs=8 skip=1 count=1 status=none iflag=fullblock | od -An -tx1 | tr -d ' \n')" = 0000000000000008 ] ||
    fail "$node is not the other's"
  [ "$(ibnbd-client list | wc -l)" = 1 ] || fail "something is left: $(ibnbd-client list)"
  nbd-client -d "$node" >"$work/detach.log" 2>&1 || fail "detach: $(cat "$work/detach.log")"
}
take
wait_for 20 waits_because "detached by another program" || fail "it is thought to be ours: $(ibnbd-client list --json)"
still_theirs
# Likewise if all that is known of it is its number.
map "$uri/raw" --as nbd
die
sed -i 's/"as": "nbd"/"as": "of tomorrow"/' /run/ibnbd/devices.json
take
start_daemon
still_theirs

# Where nobody says whose a device is, a record is kept, and no device is made that could not be known again.
map "$uri/raw" --as nbd
die
unshare --mount sh -c 'mount -t tmpfs none /sys && exec ibnbd-client daemon' >>"$work/daemon.log" 2>&1 </dev/null &
daemon_pid=$!
wait_for 20 waits_because "ask whose $node is" || fail "the device is not waited for: $(ibnbd-client list --json)"
expect_fail "ask whose $node is" ibnbd-client unmap "$node" --force
die
mv /run/ibnbd/devices.json "$work/devices.json"
unshare --mount sh -c 'mount -t tmpfs none /sys && exec ibnbd-client daemon' >>"$work/daemon.log" 2>&1 </dev/null &
daemon_pid=$!
wait_for 20 ibnbd-client list || fail "no daemon without sysfs"
expect_fail "ask whose /dev/nbd[1-9]* is" ibnbd-client map "$uri/raw" --as nbd --ro # Another writer would end our turn.
die
for other in /dev/nbd[1-9]*; do
  [ "$(blockdev --getsize64 "$other")" -eq 0 ] || fail "$other is left"
done
mv "$work/devices.json" /run/ibnbd/devices.json
start_daemon
is_served() { ibnbd-client list --json | grep -q '"state": "open"'; }
wait_for 20 is_served || fail "not taken over: $(ibnbd-client list)"
unmap "$node"

! stuck_tasks || fail "tasks are stuck"
stop "$daemon_pid"
stop "$server_pid"
