#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The kernel's RNBD client with several paths to our server: all its policies, paths that are added, removed,
# disconnected and cut off under IO that is verified, and a wire that goes dead under everything.
. "$(dirname "$0")/rnbd.sh"
requires fio
rxe_two_ways
modprobe rnbd-client || fail "a module is missing"
export IBNBD_E2E_LISTEN=rdma://0.0.0.0
truncate -s 256M "$work/vol.img"
start_server --export "vol=$work/vol.img"
wire="ip:10.78.1.1@ip:10.78.1.2" inner="ip:10.77.0.1@ip:10.77.0.1"
session=$rtrs_clients/two
state_of() { cat "$session/paths/$1/state"; }
path_is() { [ "$(state_of "$1")" = "$2" ]; }
ios_of() { read -r reads _ writes _ <"$session/paths/$1/stats/rdma" && echo $((reads + writes)); }
server_paths() { session_line two | grep -o '10\.7[78]\.[0-9.]*:' | wc -l; }
server_paths_are() { [ "$(server_paths)" = "$1" ]; }
data() { # data NAME ARGS...
  local name=$1
  shift
  start_fio "$name" --filename="/dev/$disk" --ioengine=io_uring --direct=1 --rw=randwrite --bsrange=4k-256k --size=128M --iodepth=16 \
    --verify=crc32c --do_verify=1 --verify_backlog=256 "$@"
}

map two "dest_port=$port path=$wire path=$inner" device_path=vol || fail "map over two paths"
wait_for 10 server_paths_are 2 || fail "the server has not two paths: $(session_line two)"
for policy in round-robin min-inflight min-latency; do
  echo "$policy" >"$session/mpath_policy" || fail "policy $policy"
  before=$(ios_of "$wire") before_inner=$(ios_of "$inner")
  data "$policy" --io_size=16M
  wait "$pid" || fail "fio with $policy"
  [ "$policy" = min-latency ] || { [ "$(ios_of "$wire")" -gt "$before" ] && [ "$(ios_of "$inner")" -gt "$before_inner" ]; } ||
    fail "$policy does not use both paths"
done
echo round-robin >"$session/mpath_policy"

# Under IO: a path goes, comes back, goes for good, and another is added.
busy() { data "$1" --io_size=1G --time_based --runtime="$2"; }
busy changes 15
echo 1 >"$session/paths/$wire/disconnect" || fail "disconnect"
wait_for 10 server_paths_are 1 || fail "the server keeps a path that was disconnected: $(session_line two)"
echo 1 >"$session/paths/$wire/reconnect" || fail "reconnect"
wait_for 10 path_is "$wire" connected || fail "not connected again: $(state_of "$wire")"
echo 1 >"$session/paths/$wire/remove_path" || fail "remove_path"
wait_for 10 server_paths_are 1 || fail "the server keeps a path that was removed: $(session_line two)"
echo "$wire" >"$session/add_path" || fail "add_path"
wait_for 10 path_is "$wire" connected || fail "the added path is $(state_of "$wire")"
wait_for 10 server_paths_are 2 || fail "the server does not have the added path: $(session_line two)"
wait "$pid" || fail "IO failed while paths came and went"

# The wire goes dead under IO: what was on its way goes over the other path, as soon as the client notices: with its
# heartbeats, 36 s.
busy dead 50
losing "loss 100%"
wait_for 60 path_is "$wire" reconnecting || wait_for 1 path_is "$wire" disconnected || fail "the dead path is $(state_of "$wire")"
wait "$pid" || fail "IO failed although one path was alive"
wait_for 60 server_paths_are 1 || fail "the server keeps a path whose client is silent: $(session_line two)"
losing "delay 0us"
back() { echo 1 >"$session/paths/$wire/reconnect" 2>/dev/null; path_is "$wire" connected; }
# A kernel that tried while the wire was dead waits for half a minute, twice.
wait_for 120 back || fail "the path does not come back over a wire that works: $(state_of "$wire")"
wait_for 10 server_paths_are 2 || fail "the server does not have it: $(session_line two)"
data after --io_size=16M
wait "$pid" || fail "fio after the wire was dead"
[ "$(server_stat sessions_total)" = 1 ] || fail "the session was lost on the way"
unmap "$disk" || fail "unmap"
kernel_is_well
stop "$server_pid"
