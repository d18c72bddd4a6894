#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Our client with two paths to the kernel's RNBD server, mapped with the kernel's words: both are used, and verified IO
# goes on while the server disconnects one, and while a wire is dead; what was lost comes back by itself.
. "$(dirname "$0")/rnbd.sh"
. "$(dirname "$0")/map-functions.sh"
requires fio jq
rxe_two_ways
modprobe -a nbd ublk_drv || fail "a module is missing"
memory_disk 0 128 || fail "no null_blk"
kernel_server Y || fail "rnbd-server"
wire=10.78.1.1@10.78.1.2
paths() { ibnbd-client show --json "$node" | jq -cM ".session.paths[] | $1"; }
# up_paths N: so many are up.
up_paths() { [ "$(paths 'select(.state == "up") | .path' | wc -l)" = "$1" ]; }
wire_of() { paths "select(.path | startswith(\"$wire\")) | $1"; }
wire_is_up() { [ "$(wire_of .state)" = '"up"' ]; }
wire_is_down() { ! wire_is_up; }
wire_came_back() { wire_is_up && [ "$(wire_of .reconnects)" -gt "$1" ]; }
server_paths() { find /sys/class/rtrs-server/hostA/paths -mindepth 1 -maxdepth 1 -type d | wc -l; }
server_paths_are() { [ "$(server_paths)" = "$1" ]; }
data() { # data NAME ARGS...: started; wait for $pid.
  local name=$1
  shift
  start_fio "$name" --filename="$node" --ioengine=io_uring --direct=1 --rw=randwrite --bsrange=4k-256k --size=96M --iodepth=8 \
    --fsync=64 --verify=crc32c --do_verify=1 --verify_backlog=64 "$@"
}

start_daemon
map sessname=hostA "path=ip:${wire/@/@ip:}" path=ip:10.77.0.1 device_path=/dev/nullb0 access_mode=rw
wait_for 30 up_paths 2 || fail "paths: $(paths .)"
server_paths_are 2 || fail "the server has not two paths: $(server_paths)"
data both --io_size=16M
wait "$pid" || fail "fio over both paths: $(tail -n 20 "$work/both.log")"
[ "$(paths 'select(.reads + .writes > 0)' | wc -l)" = 2 ] || fail "a path was not used: $(paths .)"

# The server takes one away under IO.
data disconnected --io_size=1G --time_based --runtime=6
for _ in 1 2; do
  before=$(wire_of .reconnects)
  echo 1 | tee /sys/class/rtrs-server/hostA/paths/*10.78.1.1*/disconnect >/dev/null || fail "disconnect"
  wait_for 30 wire_came_back "$before" || fail "the path does not come back: $(paths .)"
done
wait "$pid" || fail "IO failed while the server disconnected a path: $(tail -n 20 "$work/disconnected.log")"
wait_for 10 server_paths_are 2 || fail "the server has $(server_paths) paths"

# The wire goes dead.  A kernel's server is given the kernel's patience, 36 s; until then IO that is on the wire waits.
data dead --io_size=1G --time_based --runtime=8
sleep 1
losing "loss 100%"
wait_for 60 wire_is_down || fail "a dead wire is not noticed: $(paths .)"
wait "$pid" || fail "IO failed although one path was alive: $(tail -n 20 "$work/dead.log")"
losing "delay 0us"
# The server has its own patience, and refuses the path until it has noticed, too.
wait_for 90 wire_is_up || fail "the path does not come back over a wire that works: $(paths .)"
data after --io_size=16M
wait "$pid" || fail "fio after the wire was dead: $(tail -n 20 "$work/after.log")"
up_paths 2 || fail "paths: $(paths .)"
paths '{path, state, reads, writes, lost, reconnects}'
unmap "$node"
stop "$daemon_pid"
no_server_session() { [ ! -e /sys/class/rtrs-server/hostA ]; }
wait_for 10 no_server_session || fail "the server keeps the session"
stop_kernel_server || fail "rmmod"
kernel_is_well
