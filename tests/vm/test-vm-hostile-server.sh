#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Servers over RDMA that break every rule of the protocol, one after the other (hostile_deeds.cc says which), each with a
# client of libibnbd that must end as it should, beside two others, one on an honest server, that notice nothing.
. "$(dirname "$0")/functions.sh"
[ -x "$IBNBD_BIN/ibnbd-hostile-server" ] || skip "this build has no verbs fabric"
rxe_up || fail "no Soft-RoCE"
export IBNBD_E2E_LISTEN=rdma://10.77.0.1
truncate -s 64M "$work/vol.img"
start_server --export "vol=$work/vol.img"
timeout 350 ibnbd-hostile-server "$uri" "$@" >"$work/hostile.log" 2>&1 || fail "$(grep -A 12 FAILED "$work/hostile.log" || tail -n 20 "$work/hostile.log")"
[ $# != 0 ] || [ "$(grep -c ': ok ' "$work/hostile.log")" -ge 60 ] || fail "too little was tried: $(cat "$work/hostile.log")"
alive "$server_pid" || fail "the honest server died"
sort -t'(' -k2 -rn "$work/hostile.log" | head -n 8
tail -n 1 "$work/hostile.log"
stop "$server_pid"
