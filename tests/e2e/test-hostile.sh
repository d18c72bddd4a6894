#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Random bytes, half a handshake, oversized options and clients that stop reading, on every listening socket, while a
# well-behaved client works: it does not notice, nothing dies, memory is bounded.
. "$(dirname "$0")/functions.sh"
requires nbdcopy nbdinfo python3

truncate -s 64M "$work/vol.img"
start_server --export "vol=$work/vol.img" --export noise=mem:64M
# Memory that a connection used is kept for the next: little of it, so that growth is not mistaken for that.
start_bridge --connection-memory 4M "$uri/vol" "$uri/noise"
memory_kib() { awk '/^VmRSS/ {print $2}' "/proc/$1/status"; }
python3 "$(dirname "$0")/hostile.py" "$port" "$socket" warm >"$work/hostile-warm.log" 2>&1 || fail "hostile.py: $(cat "$work/hostile-warm.log")"
server_before=$(memory_kib "$server_pid") bridge_before=$(memory_kib "$bridge_pid")
start hostile python3 "$(dirname "$0")/hostile.py" "$port" "$socket" storm
hostile_pid=$pid
head -c 16M /dev/urandom >"$work/data"
truncate -s 64M "$work/data"
rounds=0
while alive "$hostile_pid"; do
  nbdcopy "$work/data" "$(nbd_uri vol)" || fail "an honest client was disturbed (in)"
  nbdcopy "$(nbd_uri vol)" "$work/back" || fail "an honest client was disturbed (out)"
  cmp "$work/data" "$work/back" || fail "an honest client's data differs"
  rounds=$((rounds + 1))
done
wait "$hostile_pid" || fail "hostile.py: $(tail -n 20 "$work/hostile.log")"
alive "$server_pid" || fail "the server died"
alive "$bridge_pid" || fail "the bridge died"
# The last of them may not have been buried yet.
bounded() { [ $(($(memory_kib "$1") - $2)) -lt 98304 ]; }
wait_for 20 bounded "$server_pid" "$server_before" || fail "the server grew from $server_before to $(memory_kib "$server_pid") KiB"
wait_for 20 bounded "$bridge_pid" "$bridge_before" || fail "the bridge grew from $bridge_before to $(memory_kib "$bridge_pid") KiB"
nbdinfo --size "$(nbd_uri vol)" >/dev/null || fail "no handshake after the storm"
tail -n 1 "$work/hostile.log"
echo "server from $server_before to $(memory_kib "$server_pid") KiB, bridge from $bridge_before to $(memory_kib "$bridge_pid") KiB"
echo "$rounds honest rounds during the storm"
stop "$bridge_pid"
stop "$server_pid"
