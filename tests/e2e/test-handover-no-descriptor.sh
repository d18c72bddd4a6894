#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A successor at the door of a process that can open nothing any more, not even the door: the process says so once a second,
# goes on, and hands over when it can.
. "$(dirname "$0")/functions.sh"
requires prlimit

start_server --export m=mem:16M
try() { # NAME COMMAND...: two of them, one after the other.
  local name=$1 first began said rc=0
  shift
  start "$name.1" "$@" --handover "$work/$name.door"
  first=$pid
  wait_for 20 test -S "$work/$name.door" && wait_for 20 grep -q '^listening on ' "$work/$name.1.log" || fail "the first $name: $(cat "$work/$name.1.log")"
  prlimit --pid "$first" --nofile=3: || fail "prlimit"
  began=$SECONDS
  start "$name.2" "$@" --handover "$work/$name.door"
  complaints() { grep -c 'handover: accept: Too many open files' "$work/$name.1.log"; }
  again() { [ "$(complaints)" -ge 2 ]; }
  wait_for 20 again || fail "the first $name says nothing: $(cat "$work/$name.1.log")"
  said=$(complaints)
  [ "$said" -le $((SECONDS - began + 2)) ] || fail "the $name says so $said times in $((SECONDS - began)) s"
  prlimit --pid "$first" --nofile=1000: || fail "prlimit"
  wait "$first" || rc=$?
  [ $rc -eq 0 ] || fail "the first $name ended with $rc: $(tail -n 5 "$work/$name.1.log")"
  wait_for 20 grep -q '^listening on ' "$work/$name.2.log" || fail "the second $name: $(cat "$work/$name.2.log")"
  stop "$pid"
}
try bridge nbd-bridge --socket "$work/b.sock" "$uri/m"
try server ibnbd-server --listen tcp://127.0.0.1:0 --export m=mem:1M
stop "$server_pid"
