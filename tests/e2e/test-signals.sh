#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A storm of signals under load: SIGHUP (the configuration is read again), SIGUSR1 (statistics) and, at the bridge,
# SIGHUP (ignored) cost no IO and no process.
. "$(dirname "$0")/functions.sh"
requires nbdcopy

head -c 64M /dev/urandom >"$work/data"
truncate -s 64M "$work/vol.img" "$work/other.img"
cat >"$work/server.toml" <<EOF_TOML
listen = ["tcp://127.0.0.1:0"]
[export.vol]
path = "$work/vol.img"
EOF_TOML
cp "$work/server.toml" "$work/one.toml"
printf '[export.other]\npath = "%s"\n' "$work/other.img" | cat "$work/one.toml" - >"$work/two.toml"
start server ibnbd-server --config "$work/server.toml"
server_pid=$pid
wait_for 20 grep -q '^listening on ' "$work/server.log" || fail "start: $(cat "$work/server.log")"
uri=$(sed -n 's/^listening on //p' "$work/server.log")
start_bridge "$uri/vol"
storm() {
  local i
  for i in $(seq 1 400); do
    if [ $((i % 2)) -eq 0 ]; then cp "$work/one.toml" "$work/new.toml"; else cp "$work/two.toml" "$work/new.toml"; fi
    mv "$work/new.toml" "$work/server.toml"
    kill -HUP "$server_pid" "$bridge_pid" && kill -USR1 "$server_pid" || return 1
  done
}
storm &
storm_pid=$!
rounds=0
while [ $rounds -lt 2 ] || alive "$storm_pid"; do
  nbdcopy --flush "$work/data" "$(nbd_uri)" || fail "copy in"
  nbdcopy "$(nbd_uri)" - | cmp - "$work/data" || fail "data"
  rounds=$((rounds + 1))
done
wait "$storm_pid" || fail "a process was gone in the middle of the storm"
cp "$work/two.toml" "$work/server.toml"
kill -HUP "$server_pid"
wait_for 20 ibnbd-client show "$uri/other" || fail "the last word of the configuration was not heard"
echo "$rounds rounds under the storm"
stop "$bridge_pid"
stop "$server_pid"
