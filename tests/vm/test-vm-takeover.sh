#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The daemon is killed while the server is away, and started again while it still is: the next one serves all devices at
# once, as the one before did.  IOs are held and listed, fail when the loss policy's time is over, counted from the loss
# and not from the restart, a device goes when it is told to; and when the server's machine comes back from a loss of power,
# the next flush fails.
. "$(dirname "$0")/fixed-ublk.sh"
. "$(dirname "$0")/map-functions.sh"
requires fio
modprobe nbd && load_ublk || fail "a module is missing"
if [ "${IBNBD_SCHEME:-rdma}" = rdma ] && [ -x "$IBNBD_BIN/verbs_conformance_test" ]; then
  rxe_up || fail "no Soft-RoCE"
  export IBNBD_E2E_LISTEN=rdma://10.77.0.1
fi
volumes=(ublk-held nbd-held ublk-fails nbd-fails ublk-goes)
exports=()
for volume in "${volumes[@]}"; do
  truncate -s 32M "$work/$volume.img"
  exports+=(--export "$volume=$work/$volume.img")
done
start_server "${exports[@]}"
port_wanted=$port
start_daemon
declare -A node_of writer_of
for volume in "${volumes[@]}"; do
  policy=()
  [ "${volume#*-}" != fails ] || policy=(--on-loss fail-after=15s)
  map "$uri/$volume" --as "${volume%-*}" "${policy[@]}"
  node_of[$volume]=$node
  echo 5000 >"/sys/block/${node##*/}/queue/io_timeout" # As our udev rule does.
  dd if=/dev/urandom of="$node" bs=64k count=16 oflag=direct status=none || fail "write $volume"
done
sleep 2 # What the next daemon wants to know is written down every second.

kill -KILL "$server_pid" && wait "$server_pid" 2>/dev/null
lost=$SECONDS
for volume in "${volumes[@]}"; do
  dd if=/dev/zero of="${node_of[$volume]}" bs=64k count=1 oflag=direct status=none 2>"$work/dd-$volume.log" &
  writer_of[$volume]=$!
done
sleep 2
restart() { # Without the server.
  kill -KILL "$daemon_pid" && wait "$daemon_pid" 2>/dev/null
  start_daemon
}
# The time of some may be over before a slow machine has looked.
all_held() { [ "$(ibnbd-client list --json | grep -cE '"state": "(held|failing)"')" -eq "${#volumes[@]}" ]; }
restart
wait_for 20 all_held || fail "without the server the devices are not served: $(ibnbd-client list)"
restart # Nor by the third one.
wait_for 20 all_held || fail "without the server the devices are not served again: $(ibnbd-client list)"
for volume in ublk-held nbd-held; do
  listed() { ibnbd-client show --ios "${node_of[$volume]}" | grep -q 'write.*server'; }
  wait_for 40 listed || fail "$volume: what waits is not listed: $(ibnbd-client show --ios "${node_of[$volume]}")"
done
for volume in ublk-fails nbd-fails; do
  gone() { ! kill -0 "${writer_of[$volume]}" 2>/dev/null; }
  wait_for 60 gone || fail "$volume: its time is over, but its IO waits: $(ibnbd-client show "${node_of[$volume]}")"
  [ $((SECONDS - lost)) -ge 14 ] || fail "$volume: failed after $((SECONDS - lost)) s of 15"
  wait "${writer_of[$volume]}" && fail "$volume: a write succeeded without a server"
  ibnbd-client list | grep "${node_of[$volume]}" | grep -q failing || fail "$volume: not failing: $(ibnbd-client list)"
done
unmap "${node_of[ublk-goes]}" --force --timeout 10
wait "${writer_of[ublk-goes]}" && fail "a write to a device that was taken away succeeded"
kill -0 "${writer_of[ublk-held]}" && kill -0 "${writer_of[nbd-held]}" || fail "what is to be held has ended"

# The server's machine comes back, and it is not the one that acknowledged what was written.
cat /proc/sys/kernel/random/uuid >"$work/boot_id"
mount --bind "$work/boot_id" /proc/sys/kernel/random/boot_id || fail "no other boot"
start_server "${exports[@]}"
for volume in ublk-held nbd-held; do
  wait "${writer_of[$volume]}" || fail "$volume: what was held has failed: $(cat "$work/dd-$volume.log")"
  cmp -n 65536 "$work/$volume.img" /dev/zero || fail "$volume: what was held is not there"
  flush() { python3 -c "import os; os.fsync(os.open('${node_of[$volume]}', os.O_RDWR))" 2>/dev/null; }
  if flush && flush && flush && flush; then fail "$volume: flushes succeed over a loss of power"; fi
  wait_for 20 flush || fail "$volume: flushes fail for ever" # Every queue tells it once.
done
for volume in ublk-fails nbd-fails; do
  came_back() { dd if=/dev/zero of="${node_of[$volume]}" bs=64k count=1 oflag=direct status=none; }
  wait_for 30 came_back || fail "$volume does not come back"
done

# A daemon that is killed while it takes a device over, after this many of its queues have a process.
volume=ublk-held
for queues in 0 1 2; do
  kill -KILL "$daemon_pid" && wait "$daemon_pid" 2>/dev/null
  "$IBNBD_BIN/ibnbd-half-taker" "${node_of[$volume]#/dev/ublkb}" $queues 2>"$work/half.log"
  [ ! -s "$work/half.log" ] || fail "$(cat "$work/half.log")"
  start_daemon
  dd if=/dev/urandom of="${node_of[$volume]}" bs=64k count=1 oflag=direct status=none &
  writer_of[$volume]=$!
  gone() { ! kill -0 "${writer_of[$volume]}" 2>/dev/null; }
  wait_for 60 gone || fail "half taken, with $queues queues, it is lost: $(ibnbd-client list)"
  wait "${writer_of[$volume]}" || fail "half taken, with $queues queues, it fails"
done

# Killed before the server is, and the next one before it has seen a server: the one after that knows since when.
state=/run/ibnbd/devices.json
healthy() { ! grep -q '"lost_at_ms": [1-9]' "$state"; }
wait_for 20 healthy || fail "the server is there, but lost: $(cat "$state")"
kill -KILL "$daemon_pid" && wait "$daemon_pid" 2>/dev/null
kill -KILL "$server_pid" && wait "$server_pid" 2>/dev/null
start_daemon
restart
! grep -q '"lost_at_ms": 0' "$state" || fail "since when IOs wait begins anew: $(cat "$state")"
start_server "${exports[@]}"
for volume in ublk-held nbd-held ublk-fails nbd-fails; do
  came_back() { dd if="${node_of[$volume]}" of=/dev/null bs=64k count=1 iflag=direct status=none; }
  wait_for 60 came_back || fail "$volume does not come back: $(ibnbd-client list)"
done
for volume in ublk-held nbd-held ublk-fails nbd-fails; do unmap "${node_of[$volume]}" --timeout 20; done
stop "$daemon_pid"
stop "$server_pid"
