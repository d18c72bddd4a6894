#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Whatever can die dies, again and again, under file systems and raw devices that are written to and verified: the server
# is killed, stopped, restarted; one of the two wires, or both, are cut, slow, lossy, pulled; the daemon is killed and
# restarted.  No application sees an error, every byte is right, every device goes in time, nothing is left.
#   IBNBD_EVENTS: how many (default 11, 100 in `ci/test long`; 1000 by hand).  IBNBD_SEED: which ones.  IBNBD_SCHEME: rdma (default) or tcp.
#   IBNBD_KINDS: of events, by default all.
. "$(dirname "$0")/fixed-ublk.sh"
. "$(dirname "$0")/map-functions.sh"
scheme=${IBNBD_SCHEME:-rdma}
[ "$scheme" = tcp ] || [ -x "$IBNBD_BIN/verbs_conformance_test" ] || skip "this build has no verbs fabric"
requires fio mkfs.ext4 mkfs.xfs
events=${IBNBD_EVENTS:-$([ "${IBNBD_LONG:-}" = 1 ] && echo 100 || echo 11)}
seed=${IBNBD_SEED:-$RANDOM}
RANDOM=$seed
echo "SEED=$seed EVENTS=$events SCHEME=$scheme"
for wire in 0 1; do
  rxe_veth $wire || fail "no Soft-RoCE"
  tc qdisc add dev veth$((2 * wire)) root netem delay 0us || fail "no netem"
done
modprobe -a nbd ext4 xfs && load_ublk || fail "a module is missing"
export IBNBD_E2E_LISTEN=$scheme://0.0.0.0
volumes=(ublk-raw nbd-raw ublk-ext4 nbd-xfs)
exports=()
for volume in "${volumes[@]}"; do
  truncate -s 320M "$work/$volume.img"
  exports+=(--export "$volume=$work/$volume.img")
done
start_server "${exports[@]}"
port_wanted=$port
start_daemon
declare -A node_of
for volume in "${volumes[@]}"; do
  map "$scheme://10.78.1.1:$port/$volume" --as "${volume%-*}" --path 10.78.2.1
  node_of[$volume]=$node
done
mkfs.ext4 -q -F "${node_of[ublk-ext4]}" && mkfs.xfs -q -f "${node_of[nbd-xfs]}" || fail "mkfs"
mkdir "$work/ublk-ext4" "$work/nbd-xfs"
mount "${node_of[ublk-ext4]}" "$work/ublk-ext4" && mount "${node_of[nbd-xfs]}" "$work/nbd-xfs" || fail "mount"

# The applications: each writes, reads back and compares, again and again, until the storm is over.
application() { # application VOLUME
  local volume=$1 file=${node_of[$1]} rounds=0
  [ -d "$work/$volume" ] && file=$work/$volume/data
  while [ ! -e "$work/over" ]; do
    env -C "$work" fio --name="$volume" --filename="$file" --ioengine=io_uring --direct=1 --rw=randrw --bsrange=512-128k \
      --bs_unaligned=0 --iodepth=8 --fsync=32 --size=24M --verify=crc32c --verify_backlog=128 --verify_fatal=1 \
      --verify_state_save=0 --randseed=$((seed + rounds)) >"$work/app-$volume.log" 2>&1 || return 1
    rounds=$((rounds + 1))
    echo $rounds >"$work/rounds-$volume"
  done
}
applications=()
for volume in "${volumes[@]}"; do
  (trap - EXIT && application "$volume") &
  applications+=($!)
done
ios_done() { awk '{ print $1 + $5 }' "/sys/block/${node_of[$1]##*/}/stat"; }
went_on() { [ "$(ios_done "$1")" -gt "$2" ]; }

pause() { sleep "$((RANDOM % $1)).$((RANDOM % 10))"; }
daemon_again() {
  wait "$daemon_pid"
  pause 2
  start_daemon
}
# wires NETEM [WIRE]: what the wires, or the one, do to packets that leave the server.
wires() {
  local wire
  for wire in ${2:-0 1}; do tc qdisc change dev "veth$((2 * wire))" root netem $1 || return 1; done
}
daemon_killed_young() { # While it takes its devices over.
  wait "$daemon_pid"
  ibnbd-client daemon >>"$work/daemon.log" 2>&1 </dev/null &
  daemon_pid=$!
  sleep "$((RANDOM % 3)).$((RANDOM % 10))" && kill -KILL "$daemon_pid"
}
event() { # One thing that happens.  The pauses are the outages.
  local one=$((RANDOM % 2))
  case $1 in
    server-killed) kill -KILL "$server_pid" && pause 3 && start_server "${exports[@]}" ;;
    server-restarted) stop "$server_pid" && pause 2 && start_server "${exports[@]}" ;;
    server-stopped) kill -STOP "$server_pid" && pause 4 && kill -CONT "$server_pid" ;;
    wires-cut) wires "loss 100%" && pause 4 && wires "delay 0us" ;;
    wires-bad) wires "delay 5ms loss 2%" && pause 3 && wires "delay 0us" ;;
    path-cut) wires "loss 100%" $one && pause 4 && wires "delay 0us" $one ;;
    path-bad) wires "delay 20ms loss 2%" $one && pause 3 && wires "delay 0us" $one ;;
    path-flaps) for _ in 1 2 3; do wires "loss 100%" $one && sleep 0.3 && wires "delay 0us" $one && sleep 0.3 || return 1; done ;;
    link-down) veth_down $one && pause 4 && veth_up $one ;;
    daemon-killed) kill -KILL "$daemon_pid" && daemon_again ;;
    daemon-killed-twice) kill -KILL "$daemon_pid" && daemon_killed_young && daemon_again ;;
    daemon-restarted) kill -TERM "$daemon_pid" && daemon_again ;;
  esac
}
kinds="server-killed server-restarted server-stopped wires-cut wires-bad path-cut path-bad path-flaps daemon-killed daemon-killed-twice daemon-restarted"
[ "$scheme" = rdma ] || kinds+=" link-down" # Soft-RoCE does not survive it: ci/vm/README.md.
read -ra kinds <<<"${IBNBD_KINDS:-$kinds}"
waiting() { for volume in "${volumes[@]}"; do ibnbd-client show --ios "${node_of[$volume]}" | head -n 40; done; }
# nobody_gave_up WHEN: all processes are there that should be.
nobody_gave_up() {
  for application in "${applications[@]}"; do
    kill -0 "$application" 2>/dev/null || [ -e "$work/over" ] || fail "$1: an application saw an error: $(tail -n 5 "$work"/app-*.log)"
  done
  kill -0 "$daemon_pid" 2>/dev/null || fail "$1: the daemon died: $(tail -n 40 "$work/daemon.log")"
  kill -0 "$server_pid" 2>/dev/null || fail "$1: the server died"
}
declare -A count_of
for ((n = 1; n <= events; ++n)); do
  kind=${kinds[$((n <= ${#kinds[@]} ? n - 1 : RANDOM % ${#kinds[@]}))]}
  count_of[$kind]=$((${count_of[$kind]:-0} + 1))
  event "$kind" || fail "event $n, $kind"
  nobody_gave_up "event $n, $kind"
  pause 2
  [ $((n % 8)) -eq 0 ] || [ "$n" -eq "$events" ] || continue
  for volume in "${volumes[@]}"; do # Nobody is wedged.
    until_true 90 went_on "$volume" "$(ios_done "$volume")" || { nobody_gave_up "after event $n, $kind"; fail "after event $n, $kind: $volume does not go on: $(waiting)"; }
  done
  echo "$n events, rounds of the applications: $(cat "$work"/rounds-* 2>/dev/null | tr '\n' ' ')"
done

touch "$work/over"
applications_end() { ! kill -0 "${applications[@]}"; }
until_true 120 applications_end || { nobody_gave_up "at the end"; fail "the applications do not end: $(waiting)"; }
for application in "${applications[@]}"; do
  wait "$application" || fail "an application saw an error: $(tail -n 5 "$work"/app-*.log)"
done
! dmesg | grep -E "I/O error, dev|Remounting filesystem read-only|log I/O error" || fail "the kernel saw errors"
! stuck_tasks || fail "tasks are stuck"
umount "$work/ublk-ext4" && umount "$work/nbd-xfs" || fail "umount"
e2fsck -fn "${node_of[ublk-ext4]}" >"$work/fsck.log" 2>&1 || fail "e2fsck: $(tail -n 5 "$work/fsck.log")"
xfs_repair -n "${node_of[nbd-xfs]}" >"$work/fsck.log" 2>&1 || fail "xfs_repair: $(tail -n 5 "$work/fsck.log")"
for volume in "${volumes[@]}"; do unmap "${node_of[$volume]}" --timeout 20; done
[ -z "$(ls /dev/ublkc* 2>/dev/null)" ] || fail "a ublk device is left: $(ls /dev/ublkc*)"
[ "$(ibnbd-client list | wc -l)" = 1 ] || fail "a device is left: $(ibnbd-client list)"
stop "$daemon_pid"
stop "$server_pid"
for kind in "${kinds[@]}"; do printf '%s %s, ' "${count_of[$kind]:-0}" "$kind"; done
echo "rounds: $(cat "$work"/rounds-* | tr '\n' ' ')"
