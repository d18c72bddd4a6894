#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A bridge that waits for a server: SIGTERM ends it at once, and when the server comes it serves.
. "$(dirname "$0")/functions.sh"
requires nbdinfo

truncate -s 16M "$work/vol.img"
start_server --export "vol=$work/vol.img"
stop "$server_pid"

# Without a server it has nothing to finish: the stop time-out is not used up, and signals are not held back.
socket="$work/waiting.sock"
start waiting nbd-bridge --wait --stop-timeout 3600 --socket "$socket" "$uri/vol"
bridge_pid=$pid
wait_for 20 test -S "$socket" || fail "the bridge did not start: $(cat "$work/waiting.log")"
stop "$bridge_pid"

# The socket file that it left behind is replaced.
start "again" nbd-bridge --wait --socket "$socket" "$uri/vol"
bridge_pid=$pid
port_wanted=$port
start_server --export "vol=$work/vol.img"
wait_for 30 grep -q '^listening on ' "$work/again.log" || fail "the bridge did not see the server come"
nbdinfo --size "$(nbd_uri vol)" || fail "the bridge does not serve"
stop "$bridge_pid"
