#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ibnbd-client's daemon is killed (-9) and started again, $KILLS times per network, under a mounted ext4 on /dev/ublkbN
# and fio on /dev/nbdN: the nodes and the mount stay, nobody sees an error, IO goes on, every byte is right and no
# older one comes back, nothing leaks.  SIGTERM is the same, so is an upgrade.  Killed in the middle of a map, it leaves
# a device that the next one serves, or none.
. "$(dirname "$0")/fixed-ublk.sh"
. "$(dirname "$0")/map-functions.sh"
requires mkfs.ext4 e2fsck fio udevadm
modprobe -a nbd ext4 && load_ublk || fail "a module is missing"
schemes=(tcp://127.0.0.1)
if [ -x "$IBNBD_BIN/verbs_conformance_test" ]; then
  rxe_up || fail "no Soft-RoCE"
  schemes+=(rdma://10.77.0.1)
fi
mkdir -p "$work/mnt" /run/ibnbd /run/udev/rules.d
cp "$here/../../packaging/60-ibnbd.rules" /run/udev/rules.d/
/lib/systemd/systemd-udevd --daemon || fail "no udev"

writes_of() { awk '{ print $5 }' "/sys/block/${1##*/}/stat"; }
has_written() { [ "$(writes_of "$1")" -gt "$2" ]; }
# Both devices go on: they have completed writes that were not done when we looked.
await_progress() {
  local node now
  for node in "$ublk" "$nbd"; do
    now=$(writes_of "$node")
    wait_for 60 has_written "$node" $((now + 20)) || fail "no IO on $node: $(ibnbd-client list)"
  done
}
# Writes the same blocks again and again, and looks whether what is there is what was written last.
rewrite_until_told() { # NAME ARGS...
  local name=$1
  shift
  until [ -e "$work/enough" ]; do
    env -C "$work" fio --name="$name" --verify_state_save=0 --verify_fatal=1 --ioengine=io_uring --direct=1 --rw=randwrite \
      --norandommap --randseed=$RANDOM --bsrange=4k-32k --bs_unaligned=0 --iodepth=8 --serialize_overlap=1 --size=8M \
      --io_size=24M --fsync=50 --verify=crc32c --do_verify=1 "$@" >"$work/$name.log" 2>&1 </dev/null || return 1
  done
}
settle() { udevadm settle --timeout=30 || fail "udev looks at a device for ever"; }
restart_daemon() { # SIGNAL
  kill "-$1" "$daemon_pid"
  wait "$daemon_pid" 2>/dev/null
  start_daemon
}
all_open() { [ "$(ibnbd-client list --json | grep -c '"state": "open"')" -eq "$1" ]; }

# Network independent: with the first alone.  Finds $ublk and $nbd mapped, and leaves them so.
die_while_mapping() {
  local i kind map_pid
  echo "$listen: killed while it maps, after $SECONDS s"
  # Killed while it maps, at some point or other: the next one serves the device, or there is none.  (Not with ublk: a
  # process that is killed in the very moment when the kernel reads the partition table is never gone, Linux 6.12.)
  for i in 1 2 3; do
    ibnbd-client map "$uri/new" --ro --as nbd >"$work/map.log" 2>&1 &
    map_pid=$!
    sleep "0.0$((RANDOM % 10))"
    restart_daemon KILL
    wait "$map_pid"
    settle
    ibnbd-client unmap "$uri/new" >"$work/unmap.log" 2>&1 || grep -q "not mapped" "$work/unmap.log" || fail "$(cat "$work/unmap.log")"
  done
  # What is not written down was not announced, and is taken away.
  kill -KILL "$daemon_pid"
  wait "$daemon_pid" 2>/dev/null
  cp /run/ibnbd/devices.json "$work/devices.json"
  start_daemon
  for kind in ublk nbd; do
    map "$uri/new" --ro --as $kind
    kill -KILL "$daemon_pid"
    wait "$daemon_pid" 2>/dev/null
    cp "$work/devices.json" /run/ibnbd/devices.json
    start_daemon
    wait_for 20 grep -q "${node##*b}.* was being made when the daemon ended" "$work/daemon.log" || fail "$node was not noticed"
    [ "$(ibnbd-client list | wc -l)" -eq 3 ] || fail "$node is listed: $(ibnbd-client list)"
    [ $kind = nbd ] || [ ! -e "$node" ] || fail "$node is still there"
    [ $kind = ublk ] || [ "$(blockdev --getsize64 "$node")" -eq 0 ] || fail "$node is still there"
  done
}

serve() {
  IBNBD_E2E_LISTEN=$listen start_server --export "fs=$work/fs.img" --export "raw=$work/raw.img" --export "new=$work/raw.img,ro"
}

# A device of which a daemon cannot read the record is left as it is, IOs and all, for one that can; the other goes on.
be_misunderstood() {
  local now
  kill -TERM "$daemon_pid"
  wait "$daemon_pid" 2>/dev/null
  sed -i 's/"as": "nbd"/"as": "of tomorrow"/' /run/ibnbd/devices.json
  start_daemon
  now=$(writes_of "$ublk")
  wait_for 60 has_written "$ublk" $((now + 20)) || fail "no IO on $ublk: $(ibnbd-client list)"
  ibnbd-client list --json | grep -q '"state_reason": ".*cannot read the record.*of tomorrow' || fail "not shown: $(ibnbd-client list --json)"
  kill -KILL "$daemon_pid"
  wait "$daemon_pid" 2>/dev/null
  sed -i 's/"as": "of tomorrow"/"as": "nbd"/' /run/ibnbd/devices.json
  start_daemon
  await_progress
}

for listen in "${schemes[@]}"; do
  rm -f "$work/enough"
  truncate -s 256M "$work/fs.img"
  truncate -s 64M "$work/raw.img"
  serve
  start_daemon
  map "$uri/fs"
  ublk=$node
  map "$uri/raw" --as nbd
  nbd=$node
  mkfs.ext4 -q -F "$ublk" || fail "mkfs.ext4 $ublk"
  mount "$ublk" "$work/mnt" || fail "mount $ublk"
  rewrite_until_told file --filename="$work/mnt/file" &
  file_pid=$!
  rewrite_until_told raw --filename="$nbd" &
  raw_pid=$!
  await_progress
  fds=0
  for ((i = 1; i <= ${KILLS:-3}; i++)); do
    echo "$listen: restart $i after $SECONDS s"
    [ $((i % 3)) -eq 0 ] && restart_daemon TERM || restart_daemon KILL
    await_progress
    wait_for 30 all_open 2 || fail "$listen, restart $i: $(ibnbd-client list)"
    [ "$fds" -eq 0 ] && fds=$(daemon_fds)
    alive "$file_pid" && alive "$raw_pid" || fail "$listen, restart $i: an error was seen: $(tail -n 5 "$work/file.log" "$work/raw.log")"
  done
  [ "$listen" != "${schemes[0]}" ] || be_misunderstood
  # One and the same daemon, which comes back to servers that come and go: nothing is left of what was.
  for ((i = 1; i <= 5; i++)); do
    port_wanted=$port
    kill -KILL "$server_pid"
    wait "$server_pid" 2>/dev/null
    serve
    await_progress
    wait_for 30 all_open 2 || fail "$listen, server $i: $(ibnbd-client list)"
    [ $i -eq 1 ] && reconnected_fds=$(daemon_fds)
  done
  port_wanted=
  [ "$(daemon_fds)" -le "$reconnected_fds" ] ||
    fail "$listen: $reconnected_fds descriptors after the first reconnect, $(daemon_fds) after the fifth: $(daemon_fd_list)"
  : >"$work/enough"
  wait "$file_pid" || fail "$listen: fio on the file system: $(tail -n 5 "$work/file.log")"
  wait "$raw_pid" || fail "$listen: fio on $nbd: $(tail -n 5 "$work/raw.log")"
  [ "$(daemon_fds)" -le $((fds + 2)) ] || fail "$listen: $fds descriptors after the first restart, $(daemon_fds) now"
  [ "$(ibnbd-client list | grep -c "^$ublk \|^$nbd ")" -eq 2 ] || fail "not the same nodes: $(ibnbd-client list)"
  umount "$work/mnt" || fail "umount"
  e2fsck -fn "$ublk" >"$work/fsck.log" 2>&1 || fail "e2fsck: $(tail -n 5 "$work/fsck.log")"

  ! dmesg | grep -E "I/O error.* (${ublk##*/}|${nbd##*/})" || fail "the kernel saw errors"

  [ "$listen" != "${schemes[0]}" ] || die_while_mapping
  wait_for 30 all_open 2 || fail "$listen: $(ibnbd-client list)"
  settle
  ibnbd-client unmap --all || fail "unmap --all: $(ibnbd-client list)"
  [ -z "$(ls /sys/class/ublk-char 2>/dev/null)" ] || fail "ublk devices are left: $(ls /sys/class/ublk-char)"
  ! grep -l . /sys/block/nbd*/pid 2>/dev/null || fail "nbd devices are left"
  stop "$daemon_pid"
  stop "$server_pid"
done
! stuck_tasks || fail "tasks are stuck"
