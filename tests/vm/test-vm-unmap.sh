#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Devices come and go: unmap is in time with the server alive, stopped, dead and unreachable, under load; many rounds
# leave nothing behind; what cannot be is refused in one line, and leaves nothing behind, either.
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
[ -x "$IBNBD_BIN/verbs_conformance_test" ] || skip "this build has no verbs fabric"
requires fio
rxe_veth || fail "no Soft-RoCE"
modprobe -a nbd ublk_drv || fail "a module is missing"
export IBNBD_E2E_LISTEN=rdma://10.78.1.1

truncate -s 64M "$work/vol.img" "$work/other.img"
start_server --export "vol=$work/vol.img" --export "other=$work/other.img"
port_wanted=$port

# Bad input first: the daemon is not there yet.
one_line() { # one_line PATTERN command...: it fails, with one line that matches
  local pattern=$1 out
  shift
  if out=$("$@" 2>&1 </dev/null); then fail "succeeded, but should not have: $*: $out"; fi
  [ "$(wc -l <<<"$out")" -eq 1 ] || fail "$*: not one line: $out"
  grep -Eq -- "$pattern" <<<"$out" || fail "$*: expected /$pattern/, got: $out"
}
one_line "systemctl start ibnbd-client.socket" ibnbd-client map "$uri/vol"
start_daemon
one_line "lock .*: the daemon that runs already has it" ibnbd-client daemon
one_line "No such file|no such export|not found|No such" ibnbd-client map "$uri/nothing"
one_line "names no volume" ibnbd-client map "$uri"
one_line "10.78.1.1:9|refused|reject" ibnbd-client map rdma://10.78.1.1:9/vol --timeout 5
one_line "RDMA|route|device|address" ibnbd-client map rdma://127.0.0.1:9/vol --timeout 5
one_line "no-such-host" ibnbd-client map tcp://no-such-host.invalid/vol --timeout 5
one_line "not mapped" ibnbd-client unmap /dev/ublkb7
one_line "not mapped" ibnbd-client show /dev/ublkb7
one_line "Permission denied.*root may" setpriv --reuid 65534 --clear-groups ibnbd-client list
echo /bin/false >/proc/sys/kernel/modprobe  # The kernel would load nbd by itself.
rmmod ublk_drv && one_line "modprobe ublk_drv" ibnbd-client map "$uri/vol" --as ublk
rmmod nbd && one_line "modprobe nbd" ibnbd-client map "$uri/vol" --as nbd
echo /sbin/modprobe >/proc/sys/kernel/modprobe
modprobe -a nbd ublk_drv || fail "a module is missing"
python3 "$here/../vm/control_garbage.py" /run/ibnbd/client.sock || fail "garbage on the control socket"
[ "$(ibnbd-client list | wc -l)" = 1 ] || fail "something half-made is left: $(ibnbd-client list)"
[ -z "$(ls /dev/ublkc* 2>/dev/null)" ] || fail "a ublk device is left: $(ls /dev/ublkc*)"

# Twice: by URI, and to a volume that somebody else writes.
map "$uri/vol"
one_line "mapped already, as $node" ibnbd-client map "$uri/vol"
one_line "index|is there already" ibnbd-client map "$uri/other" --index "${node##*b}"
unmap "$node"
ibnbd-client map "$uri/vol" --foreground >"$work/foreground.log" 2>&1 &
foreground=$!
wait_for 20 grep -q '^/dev/ublkb' "$work/foreground.log" || fail "map --foreground: $(cat "$work/foreground.log")"
one_line "map $uri/vol: " ibnbd-client map "$uri/vol" --timeout 5
kill -TERM $foreground
wait $foreground || fail "map --foreground ended with $?"

# Rounds of both kinds at once leave nothing behind: 200 where there is time.
count=20
[ "${IBNBD_LONG:-}" != 1 ] || count=90
rounds() { # rounds KIND VOLUME COUNT
  local i
  for ((i = 0; i < $3; ++i)); do
    ibnbd-client map "$uri/$2" --as "$1" >"$work/map-$1.log" 2>&1 || fail "round $i: $(cat "$work/map-$1.log")"
    ibnbd-client unmap "$uri/$2" 2>"$work/unmap-$1.log" || fail "round $i: $(cat "$work/unmap-$1.log")"
  done
}
both_kinds() { # both_kinds COUNT
  (trap - EXIT && rounds ublk vol "$1") &
  local ublk=$!
  (trap - EXIT && rounds nbd other "$1") &
  wait $! || fail "nbd rounds"
  wait $ublk || fail "ublk rounds"
}
both_kinds 10
fds=$(daemon_fds) threads=$(daemon_threads) rss=$(daemon_rss_kib)
both_kinds $count
[ "$(daemon_fds)" -le "$fds" ] || fail "$fds descriptors after 20 rounds, $(daemon_fds) after $count more of each"
[ "$(daemon_threads)" -le "$threads" ] || fail "$threads threads after 20 rounds, $(daemon_threads) after $count more of each"
[ "$(daemon_rss_kib)" -le $((rss + 8192)) ] || fail "$rss KiB after 20 rounds, $(daemon_rss_kib) after $count more of each"
[ -z "$(ls /dev/ublkc* 2>/dev/null)" ] || fail "a ublk device is left: $(ls /dev/ublkc*)"

# Under load, whatever became of the server: in time, and nobody is stuck.
sectors_written() { awk '{ print $7 }' "/sys/block/${node##*/}/stat"; }
written() { [ "$(sectors_written)" -gt $(($1 + 100)) ]; }
waits_for() { ibnbd-client show --ios "$node" | grep -q "$1\$"; }
tc qdisc add dev veth0 root netem delay 0us
for kind in ublk nbd; do
  for ill in alive stopped dead unreachable; do
    map "$uri/vol" --as $kind
    before=$(sectors_written) # /dev/nbd0 was there before, and counts on.
    start_fio "load-$kind-$ill" --filename="$node" --ioengine=io_uring --direct=1 --rw=randrw --bs=4k --iodepth=16 \
      --time_based --runtime=600
    fio_pid=$pid
    wait_for 30 written "$before" || fail "$kind, server $ill: no IO"
    case $ill in
      stopped) kill -STOP "$server_pid" ;;
      dead) kill -KILL "$server_pid" ;;
      unreachable) tc qdisc change dev veth0 root netem loss 100% ;;
    esac
    if [ $ill = dead ]; then
      # What waits, and for what, can be seen; how long it waits can be changed.
      wait_for 20 waits_for server || fail "$kind: no IO waits for the server: $(ibnbd-client show --ios "$node")"
      ibnbd-client set --on-loss fail-after=10m "$node" >"$work/set.log" 2>&1 || fail "set: $(cat "$work/set.log")"
      ibnbd-client show "$node" | grep -q 'on_loss *fail-after=600s' || fail "the loss policy is not the new one"
    fi
    one_line "open in fio" ibnbd-client unmap "$node"
    start_s=$SECONDS
    timeout 60 ibnbd-client unmap "$node" --force --timeout 2 2>"$work/unmap.log" ||
      fail "$kind, server $ill: unmap: $? $(cat "$work/unmap.log")"
    [ $((SECONDS - start_s)) -le 20 ] || fail "$kind, server $ill: unmap took $((SECONDS - start_s)) s"
    wait_for 30 eval "! kill -0 $fio_pid" || fail "$kind, server $ill: fio still waits for its IO"
    ! stuck_tasks || fail "$kind, server $ill: tasks are stuck"
    case $ill in
      stopped) kill -CONT "$server_pid" ;;
      dead) start_server --export "vol=$work/vol.img" --export "other=$work/other.img" ;;
      unreachable) tc qdisc change dev veth0 root netem delay 0us ;;
    esac
  done
done
[ "$(ibnbd-client list | wc -l)" = 1 ] || fail "something is left: $(ibnbd-client list)"
map "$uri/vol" --timeout 60
run_fio after --filename="$node" --direct=1 --rw=randread --bs=4k --io_size=1M --size=1M || fail "the volume is unusable afterwards"
unmap "$node"
stop "$daemon_pid"
stop "$server_pid"
