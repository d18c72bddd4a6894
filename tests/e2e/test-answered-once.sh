#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Connections that break and a server that is killed three times, under a client that counts: every request is answered,
# once, with the right data.
. "$(dirname "$0")/functions.sh"
requires python3

truncate -s 16M "$work/vol.img"
serve() { start_server --export "vol=$work/vol.img" --fault "cut-every=700ms,seed=$1"; }
serve 1
port_wanted=$port
start_bridge "$uri/vol"
start client python3 "$here/answered_once.py" "$socket" vol 15000
client=$pid
kills=0
for round in 2 3 4; do
  at=$(tail -n 1 "$work/client.log")
  moved() { [ "$(tail -n 1 "$work/client.log")" != "$at" ]; }
  wait_for 60 moved || fail "round $round: no progress after $at"
  alive "$client" || break
  kill -KILL "$server_pid"
  wait "$server_pid" 2>/dev/null
  kills=$((kills + 1))
  serve "$round"
done
wait "$client" || fail "the client: $(tail -n 5 "$work/client.log")"
[ "$kills" -eq 3 ] || fail "the client was done before the server was killed"
tail -n 1 "$work/client.log"
stop "$bridge_pid"
stop "$server_pid"
