#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Eight volumes over one bridge, all busy at once: each has its own data, and together they cost one session.
. "$(dirname "$0")/functions.sh"
requires nbdcopy nbdinfo

exports=() volumes=()
for i in 0 1 2 3 4 5 6 7; do
  truncate -s $((32 + i))M "$work/vol$i.img"
  head -c $((32 + i))M /dev/urandom >"$work/data$i"
  exports+=(--export "vol$i=$work/vol$i.img")
done
start_server "${exports[@]}"
for i in 0 1 2 3 4 5 6 7; do volumes+=("vol$i=$uri/vol$i"); done
start_bridge --threads 2 "${volumes[@]}"
[ "$(nbdinfo --list "$(nbd_uri)" | grep -c '^export=')" -eq 8 ] || fail "not eight exports"
copiers=()
for i in 0 1 2 3 4 5 6 7; do
  start "copy$i" nbdcopy --flush "$work/data$i" "$(nbd_uri "vol$i")"
  copiers+=("$pid")
done
for pid in "${copiers[@]}"; do wait "$pid" || fail "a copy failed"; done
for i in 0 1 2 3 4 5 6 7; do
  cmp "$work/data$i" "$work/vol$i.img" || fail "vol$i: what is stored differs"
  nbdcopy "$(nbd_uri "vol$i")" - | cmp - "$work/data$i" || fail "vol$i: what comes back differs"
done
[ "$(grep -c 'session .* opened' "$server_log")" -eq 1 ] || fail "eight volumes took more than one session"
expect_fail 'nosuch|not' nbdinfo "$(nbd_uri nosuch)"
stop "$bridge_pid"
stop "$server_pid"
