#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The kernel's RNBD client when things come and go: poll queues, heartbeats on an idle session, rounds of map and unmap,
# a volume that grows, servers that are stopped, killed and started again, a client that vanishes without CLOSE.
. "$(dirname "$0")/rnbd.sh"
requires fio
rxe_up || fail "no Soft-RoCE"
modprobe rnbd-client || fail "a module is missing"
export IBNBD_E2E_LISTEN=rdma://10.77.0.1
truncate -s 64M "$work/vol.img" "$work/idle.img" "$work/poll.img"
exports=(--export "vol=$work/vol.img" --export "idle=$work/idle.img" --export "poll=$work/poll.img")
start_server "${exports[@]}"
port_wanted=$port
way="dest_port=$port path=ip:10.77.0.1"
reconnects() { cat "$rtrs_clients/$1/paths/"*/stats/reconnects; }
more_writes_than() { [ "$(server_stat writes)" -gt "$1" ]; }
back() { # back SESSION: asks for a reconnect at once; by itself the kernel comes back after 31 s.
  echo 1 >"$(paths_of "$1")/reconnect" 2>/dev/null
  path_state_is "$1" connected
}

map idle "$way" device_path=idle || fail "map"

# Poll queues are more connections, with cids behind those of the CPUs; their session has one device.
map poll "$way" device_path=poll nr_poll_queues=2 || fail "map with poll queues"
session_line poll | grep -q " connections $(($(nproc) + 3)) " || fail "connections: $(session_line poll)"
run_fio poll --filename="/dev/$disk" --ioengine=io_uring --hipri --direct=1 --rw=randwrite --bsrange=4k-256k --size=64M \
  --io_size=8M --iodepth=8 --verify=crc32c --do_verify=1 || fail "fio on a session with poll queues"
unmap "$disk" || fail "unmap"
wait_for 20 no_session poll || fail "the session is still there"

# Rounds.  Nothing is left of them in the server.
session_count_is() { server_stat_is sessions "$1"; }
wait_for 10 session_count_is 1 || fail "the session with poll queues has not ended: $(server_stat sessions)"
descriptors=$(ls "/proc/$server_pid/fd" | wc -l)
memory=$(server_stat chunk_memory)
for ((round = 1; round <= ${VM_MAP_ROUNDS:-100}; round++)); do
  map rounds "$way" device_path=vol || fail "map, round $round"
  if ((round % 10 == 1)); then
    head -c 1M /dev/urandom >"$work/block"
    dd if="$work/block" of="/dev/$disk" bs=1M seek=$((round % 64)) oflag=direct status=none || fail "write, round $round"
  fi
  unmap "$disk" || fail "unmap, round $round"
  no_session rounds || wait_for 20 no_session rounds || fail "the session of round $round is still there"
done
wait_for 10 session_count_is 1 || fail "sessions are left over: $(server_stat sessions)"
[ "$(server_stat chunk_memory)" = "$memory" ] || fail "chunk memory: $(server_stat chunk_memory), was $memory"
[ "$(ls "/proc/$server_pid/fd" | wc -l)" -eq "$descriptors" ] || fail "file descriptors: $descriptors, then $(ls -l "/proc/$server_pid/fd")"

# A volume that grows: the kernel takes the new size when it opens the device again.
map one "$way" device_path=vol || fail "map"
one=$disk
truncate -s 96M "$work/vol.img"
echo 1 >"$(paths_of one)/disconnect"
wait_for 10 state_is "$one" closed || fail "the device is $(cat "/sys/block/$one/rnbd/state") on a path that was disconnected"
wait_for 20 back one || fail "no reconnect"
wait_for 10 state_is "$one" open || fail "not open after a reconnect"
[ "$(blockdev --getsize64 "/dev/$one")" -eq $((96 << 20)) ] || fail "size after growth: $(blockdev --getsize64 "/dev/$one")"

# The server is stopped, and killed, under IO; the client comes back to what was acknowledged.
for how in TERM KILL; do
  head -c 16M /dev/urandom >"$work/pattern"
  dd if="$work/pattern" of="/dev/$one" bs=1M oflag=direct conv=fsync status=none || fail "write before SIG$how"
  start_fio "during-$how" --filename="/dev/$one" --ioengine=io_uring --direct=1 --rw=randwrite --bs=16k --offset=32M --size=32M \
    --iodepth=16 --time_based --runtime=60 --continue_on_error=none
  during=$pid
  before=$(server_stat writes)
  wait_for 20 more_writes_than "$((before + 50))" || fail "fio does not write"
  kill "-$how" "$server_pid"
  wait "$server_pid"
  wait "$during" && fail "IO succeeds without a server"
  wait_for 40 state_is "$one" closed || fail "the device is $(cat "/sys/block/$one/rnbd/state") without a server"
  expect_fail 'Input/output error' dd "if=/dev/$one" of=/dev/null bs=4k count=1 iflag=direct
  start_server "${exports[@]}"
  [ "$port" = "$port_wanted" ] || fail "another port"
  if [ "$how" = TERM ]; then
    wait_for 30 back one || fail "no reconnect after SIG$how"
  else
    wait_for 60 path_state_is one connected || fail "the client does not come back by itself after SIG$how"
  fi
  wait_for 10 state_is "$one" open || fail "not open again after SIG$how"
  dd if="/dev/$one" of="$work/seen" bs=1M count=16 iflag=direct status=none || fail "read after SIG$how"
  cmp "$work/pattern" "$work/seen" || fail "data differs after SIG$how"
  run_fio "after-$how" --filename="/dev/$one" --ioengine=io_uring --direct=1 --rw=randwrite --bs=16k --size=32M --io_size=4M \
    --iodepth=8 --verify=crc32c --do_verify=1 || fail "fio after SIG$how"
  # The others are restored as well.
  wait_for 40 back idle || fail "the idle session does not come back after SIG$how"
done

# An idle session lives by its heartbeats alone.
reconnects_before=$(reconnects idle)
sleep 42  # The time after which a heartbeat that goes unanswered ends a path, 30 to 36 s.
path_state_is idle connected || fail "the idle path is $(cat "$rtrs_clients/idle/paths/"*/state)"
[ "$(reconnects idle)" = "$reconnects_before" ] || fail "the idle session was lost: $(reconnects idle), was $reconnects_before"
[ "$(cat "$rtrs_clients/idle/paths/"*/cur_latency)" != "0 ns" ] || fail "no heartbeat was answered"
dd if=/dev/urandom of="/dev/$one" bs=4k count=1 oflag=direct status=none || fail "write after a pause"

# Unmapped without CLOSE: rmmod ends sessions first.  The writer's place is free again.
modprobe -r rnbd-client || fail "rmmod"
wait_for 10 session_count_is 0 || fail "sessions of a module that is gone: $(server_stat sessions)"
modprobe rnbd-client || fail "insmod"
map one "$way" device_path=vol access_mode=rw || fail "map after rmmod"
unmap "$disk" force || fail "unmap"
kernel_is_well
grep -E ' error: ' "$server_log" && fail "the server complained"
stop "$server_pid"
