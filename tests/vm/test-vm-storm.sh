#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Whatever can die dies, again and again, under file systems and raw devices that are written to and verified: the server
# is killed, stopped, restarted; the wire is cut, slow, lossy; the daemon is killed and restarted.  No application sees an
# error, every byte is right, every device goes in time, nothing is left.
#   IBNBD_EVENTS: how many (default 7, 100 in `ci/test long`; 1000 by hand).  IBNBD_SEED: which ones.  IBNBD_SCHEME: rdma (default) or tcp.
#   IBNBD_KINDS: of events, by default all.
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
scheme=${IBNBD_SCHEME:-rdma}
[ "$scheme" = tcp ] || [ -x "$IBNBD_BIN/verbs_conformance_test" ] || skip "this build has no verbs fabric"
requires fio mkfs.ext4 mkfs.xfs
events=${IBNBD_EVENTS:-$([ "${IBNBD_LONG:-}" = 1 ] && echo 100 || echo 7)}
seed=${IBNBD_SEED:-$RANDOM}
RANDOM=$seed
echo "SEED=$seed EVENTS=$events SCHEME=$scheme"
rxe_veth || fail "no Soft-RoCE"
tc qdisc add dev veth0 root netem delay 0us || fail "no netem"
modprobe -a nbd ublk_drv ext4 xfs || fail "a module is missing"
export IBNBD_E2E_LISTEN=$scheme://10.78.1.1
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
  map "$uri/$volume" --as "${volume%-*}"
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
event() { # One thing that happens.  The pauses are the outages.
  case $1 in
    server-killed) kill -KILL "$server_pid" && pause 3 && start_server "${exports[@]}" ;;
    server-restarted) stop "$server_pid" && pause 2 && start_server "${exports[@]}" ;;
    server-stopped) kill -STOP "$server_pid" && pause 4 && kill -CONT "$server_pid" ;;
    wire-cut) tc qdisc change dev veth0 root netem loss 100% && pause 4 && tc qdisc change dev veth0 root netem delay 0us ;;
    wire-bad) tc qdisc change dev veth0 root netem delay 5ms loss 2% && pause 3 && tc qdisc change dev veth0 root netem delay 0us ;;
    daemon-killed) kill -KILL "$daemon_pid" && daemon_again ;;
    daemon-restarted) kill -TERM "$daemon_pid" && daemon_again ;;
  esac
}
read -ra kinds <<<"${IBNBD_KINDS:-server-killed server-restarted server-stopped wire-cut wire-bad daemon-killed daemon-restarted}"
declare -A count_of
for ((n = 1; n <= events; ++n)); do
  kind=${kinds[$((n <= ${#kinds[@]} ? n - 1 : RANDOM % ${#kinds[@]}))]}
  count_of[$kind]=$((${count_of[$kind]:-0} + 1))
  event "$kind" || fail "event $n, $kind"
  for application in "${applications[@]}"; do
    kill -0 "$application" 2>/dev/null || fail "event $n, $kind: an application saw an error: $(tail -n 5 "$work"/app-*.log)"
  done
  pause 2
  [ $((n % 8)) -eq 0 ] || [ "$n" -eq "$events" ] || continue
  for volume in "${volumes[@]}"; do # Nobody is wedged.
    until_true 90 went_on "$volume" "$(ios_done "$volume")" || fail "after event $n, $kind: $volume does not go on"
  done
  echo "$n events, rounds of the applications: $(cat "$work"/rounds-* 2>/dev/null | tr '\n' ' ')"
done

touch "$work/over"
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
