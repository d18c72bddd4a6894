#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Our client with two paths over two RDMA devices (Soft-RoCE): memory has a key on each of them; a wire that goes dead under
# verified IO costs nothing but time, and the path comes back by itself.
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
[ -x "$IBNBD_BIN/verbs_conformance_test" ] || skip "this build has no verbs fabric"
requires fio qemu-io jq
rxe_two_ways
export IBNBD_E2E_LISTEN=rdma://0.0.0.0
truncate -s 256M "$work/vol.img"
start_server --export "vol=$work/vol.img"
start_bridge -v --path-policy round-robin --path 10.78.1.1@10.78.1.2 "rdma://10.77.0.1:$port/vol"
log=$(ls "$work"/bridge*.log)
ups() { grep -c 'path .*@10\.78\.1\.2:.* up,' "$log"; }
up_again() { [ "$(ups)" -ge "$1" ]; }
wait_for 30 up_again 1 || fail "the path over the wire did not come up: $(cat "$log")"
data() { # data NAME ARGS...
  local name=$1
  shift
  start_fio "$name" --ioengine=nbd --uri="$(nbd_uri)" --rw=randwrite --bsrange=4k-256k --size=128M --iodepth=16 \
    --verify=crc32c --do_verify=1 --verify_backlog=64 "$@"
}
data both --io_size=32M
wait "$pid" || fail "fio over both devices: $(tail -n 20 "$work/both.log")"
for round in 1 2; do
  data "cut$round" --io_size=24M
  fio_pid=$pid
  sleep 1
  losing "loss 100%"
  timeout 60 qemu-io -f raw -c "write -P 0x5$round 200M 1M" -c flush -c "read -P 0x5$round 200M 1M" "$(nbd_uri)" >"$work/qemu-io.log" 2>&1 ||
    fail "IO while the wire is dead: $(cat "$work/qemu-io.log")"
  ! grep -qiE 'failed|mismatch' "$work/qemu-io.log" || fail "data: $(cat "$work/qemu-io.log")"
  wait "$fio_pid" || fail "fio while the wire is dead: $(tail -n 20 "$work/cut$round.log")"
  before=$(ups)
  losing "delay 0us"
  wait_for 60 up_again $((before + 1)) || fail "the path over the wire did not come back: $(tail -n 20 "$log")"
done
grep -q 'path down: .*10\.78\.1\.2' "$log" || fail "the wire was never lost: $(cat "$log")"
! grep -q 'path down: .*10\.77\.0\.1' "$log" || fail "the other path was lost, too: $(cat "$log")"
grep -E 'path (down|.* up)' "$log" | tail -n 8
stop "$bridge_pid"

# The daemon: paths are given with the volume, shown, and remembered by the session.
modprobe nbd nbds_max=0 || fail "no nbd"
start_daemon
map "rdma://10.77.0.1:$port/vol" --as nbd --path 10.78.1.1@10.78.1.2
paths_up() { [ "$(ibnbd-client show --json "$node" | jq '[.session.paths[] | select(.state == "up")] | length')" = 2 ]; }
wait_for 30 paths_up || fail "paths: $(ibnbd-client show --json "$node")"
dd if=/dev/urandom of="$work/data" bs=1M count=8 status=none
dd if="$work/data" of="$node" bs=1M oflag=direct status=none && cmp -n 8M "$work/data" "$node" || fail "data on $node"
ibnbd-client show --json "$node" | jq -cM '.session.paths[] | {path, address, state, reads, writes}'
[ "$(ibnbd-client show --json "$node" | jq '[.session.paths[] | select(.reads + .writes > 0)] | length')" = 2 ] || fail "a path was not used"
unmap "$node"

# Live: another RDMA device joins, then the way that the URI says is taken away; the next daemon goes on with what is left.
map "rdma://10.77.0.1:$port/vol" --as nbd
start_fio live --filename="$node" --ioengine=libaio --direct=1 --rw=randwrite --bsrange=4k-64k --iodepth=16 --size=64M \
  --io_size=2G --time_based --runtime=10 --rate=20m --verify=crc32c --verify_backlog=128
fio_pid=$pid
ibnbd-client path add "$node" 10.78.1.1@10.78.1.2 || fail "a path cannot be added live"
wire() { ibnbd-client path list --json | jq -e ".sessions[0].paths[] | select(.path == \"10.78.1.1@10.78.1.2:$port\") | $1"; }
wait_for 20 wire '.writes > 20' || fail "the new path is not used: $(ibnbd-client path list)"
ibnbd-client path remove "$node" 10.77.0.1 || fail "the first path cannot be removed"
ibnbd-client path list
kill -KILL "$daemon_pid"
wait "$daemon_pid" 2>/dev/null
start_daemon
wait_for 30 wire '.state == "up"' || fail "the next daemon's paths: $(ibnbd-client path list)"
[ "$(ibnbd-client path list --json | jq '.sessions[0].paths | length')" = 1 ] || fail "there are more paths: $(ibnbd-client path list)"
wait "$fio_pid" || fail "fio: $(tail -n 20 "$work/live.log")"
unmap "$node"

# The device that a path needs is not there when the volume is mapped: the path says so, and comes up by itself when the device
# comes.  (rxe is deleted once nobody has it open.)
stop "$daemon_pid"
stop "$server_pid"
timeout 20 rdma link delete rxe0 || fail "rxe0 cannot be deleted"
start_server --export "vol=$work/vol.img"
start_daemon
map "rdma://10.77.0.1:$port/vol" --as nbd --path 10.78.1.1@10.78.1.2
wait_for 20 wire '.state == "pausing" and (.last_error | test("10.78.1.1:0, which is not an address of an RDMA device"))' ||
  fail "the path without a device: $(ibnbd-client path list)"
ibnbd-client path list
start_fio late --filename="$node" --ioengine=libaio --direct=1 --rw=randwrite --bsrange=4k-64k --iodepth=16 --size=64M \
  --io_size=2G --time_based --runtime=8 --rate=20m --verify=crc32c --verify_backlog=128
fio_pid=$pid
rdma link add rxe0 type rxe netdev veth0 && until_true 10 gid_ready rxe0 || fail "rxe0 cannot be added"
wait_for 30 wire '.state == "up" and .writes > 20' || fail "the path does not come up: $(ibnbd-client path list)"
wait "$fio_pid" || fail "fio while a device comes: $(tail -n 20 "$work/late.log")"
unmap "$node"
stop "$daemon_pid"
stop "$server_pid"
