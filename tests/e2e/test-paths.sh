#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Two paths, each through a network that is cut and silenced in turn, under fio with verification: no error, every byte right, and
# while one path is away IO goes on over the other.
. "$(dirname "$0")/functions.sh"
requires fio qemu-io python3

truncate -s 128M "$work/vol.img"
start_server --export "vol=$work/vol.img"
server_port=$port

# proxy N [PORT]: the network of path N, on 127.0.0.N; sets ${proxy_pid[N]} and ${proxy_port[N]}.
declare -A proxy_pid proxy_port
proxy() {
  start "proxy$1" python3 "$here/tcp_proxy.py" "127.0.0.$1" "${2:-0}" 127.0.0.1 "$server_port"
  proxy_pid[$1]=$pid
  wait_for 20 grep -q '^listening on ' "$work/proxy$1.log" || fail "proxy $1: $(cat "$work/proxy$1.log")"
  proxy_port[$1]=$(sed -n 's/^listening on .*://p' "$work/proxy$1.log")
}
connections() { grep -c '^connection' "$work/proxy$1.log"; }
connected() { [ "$(connections "$1")" -ge "$2" ]; }
# await_path N [BEFORE]: path N has connected: connection 0 and one per thread more than there were.
await_path() { wait_for 30 connected "$1" $((${2:-0} + 2)) || fail "path $1 was not connected again"; }
silences() { grep -c 'no sign of life, while another path is alive' "$log"; }
silenced() { [ "$(silences)" -gt "$1" ]; }
works() { # IO on a part of the volume that fio leaves alone, within a bound.
  timeout 20 qemu-io -f raw -c "write -P 0x$1 127M 1M" -c flush -c "read -P 0x$1 127M 1M" "$(nbd_uri)" >"$work/qemu-io.log" 2>&1 &&
    ! grep -qiE 'failed|mismatch|error' "$work/qemu-io.log" || fail "IO while a path is away: $(cat "$work/qemu-io.log")"
}

proxy 1
proxy 2
start_bridge -v --path "127.0.0.2:${proxy_port[2]}" "tcp://127.0.0.1:${proxy_port[1]}/vol"
log=$(ls "$work"/bridge*.log)
await_path 1
await_path 2
start_fio paths --ioengine=nbd --uri="$(nbd_uri)" --rw=randwrite --bsrange=4k-64k --iodepth=16 --size=120M --io_size=1G \
  --rate=60m --time_based --runtime="${PATHS_SECONDS:-20}" --verify=crc32c --verify_backlog=256
fio_pid=$pid
round=0
while alive "$fio_pid" && [ $round -lt "${PATHS_ROUNDS:-6}" ]; do
  victim=$((round % 2 + 1))
  if [ $((round / 2 % 2)) -eq 0 ]; then
    kill -KILL "${proxy_pid[$victim]}"  # Cut.
    wait "${proxy_pid[$victim]}" 2>/dev/null
    works "$((round + 10))"
    proxy "$victim" "${proxy_port[$victim]}"
    await_path "$victim"
  else
    before=$(connections "$victim")
    noticed=$(silences)
    kill -STOP "${proxy_pid[$victim]}"  # Silence.
    works "$((round + 10))"
    wait_for 20 silenced "$noticed" || fail "the silence was not noticed"
    kill -CONT "${proxy_pid[$victim]}"
    await_path "$victim" "$before"
  fi
  round=$((round + 1))
done
[ $round -ge 4 ] || fail "only $round rounds before fio ended: $(tail -n 5 "$work/paths.log")"
wait "$fio_pid" || fail "fio: $(tail -n 20 "$work/paths.log")"
[ "$(grep -c 'path down' "$log")" -ge "$round" ] || fail "paths were not lost $round times: $(cat "$log")"
echo "$round rounds; $(grep -c 'path down' "$log") paths lost; fio: $(grep -m1 -E ' lat \(|clat \(' "$work/paths.log")"

# What cannot be a path is refused, in words.
expect_fail '\[SRC@\]DST' nbd-bridge --socket "$work/no.sock" --path '@1' "tcp://127.0.0.1:$server_port/vol"
expect_fail 'its port' nbd-bridge --socket "$work/no.sock" --path '127.0.0.1:0' "tcp://127.0.0.1:$server_port/vol"
expect_fail 'one server' nbd-bridge --socket "$work/no.sock" --path 127.0.0.2 "a=tcp://127.0.0.1/vol" "b=tcp://127.0.0.3/vol"
stop "$bridge_pid"
stop "$server_pid"
