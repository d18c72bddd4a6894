#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Idle costs nothing: a server and a bridge with an attached NBD client that does nothing use next to no CPU time.
. "$(dirname "$0")/functions.sh"
requires nbdsh

start_server --threads 4 --export m=mem:64M
start_bridge --threads 2 "$uri/m"
cat >"$work/idle.py" <<'PY'
import sys, time
h.pwrite(b"w" * 65536, 0)  # Warm: the spin before the sleep has something to adapt to.
print("attached", flush=True)
while True:
    time.sleep(3600)
PY
start client nbdsh -u "$(nbd_uri)" -c "exec(open('$work/idle.py').read())"
wait_for 30 grep -q attached "$work/client.log" || fail "the client did not attach: $(cat "$work/client.log")"
# User and system time in ticks of 10 ms, and context switches of all threads.
ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{print $12 + $13}'; }
switches() { cat "/proc/$1/task/"*/status | awk '/ctxt_switches/ {sum += $2} END {print sum}'; }
measure() { # measure PID: sets used and switched over two seconds.
  local ticks_before switches_before
  ticks_before=$(ticks "$1") switches_before=$(switches "$1")
  sleep 2
  used=$(($(ticks "$1") - ticks_before)) switched=$(($(switches "$1") - switches_before))
}
for process in "server $server_pid" "bridge $bridge_pid"; do
  for attempt in 1 2 3; do
    measure "${process#* }"
    echo "${process% *}: $used ticks and $switched context switches in 2 s"
    [ "$used" -lt 5 ] && [ "$switched" -lt 1000 ] && continue 2
  done
  fail "an idle ${process% *} is busy"
done
stop "$bridge_pid"
stop "$server_pid"
