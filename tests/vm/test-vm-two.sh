#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The lab with two machines: RDMA gets from one guest to the other, not while the wire is pulled, and again after.
export IBNBD_VM_RUN=run-two
. "$(dirname "$0")/functions.sh"
requires rping rdma
listens() { rdma resource show cm_id | grep -q LISTEN; }
rxe_eth || fail "no Soft-RoCE between the guests"
if [ "$ROLE" = server ]; then
  for round in before after; do
    start "rping-$round" timeout 60 rping -s -a 10.78.0.1 -C 20 -S 4000
    until_true 20 listens || fail "rping does not listen, $round"
    tell "$round"
    wait "$pid" || fail "rping -s, $round"
    await 60 "done-$round" || fail "the client has ended"
  done
  exit 0
fi

# The client's side.
speaks() { # speaks ROUND
  await 60 "$1" || fail "the server is not ready"
  timeout 60 rping -c -a 10.78.0.1 -C 20 -S 4000 >"$work/rping-$1.log" 2>&1 ||
    fail "rping does not get through, $1"
  tell "done-$1"
}
carrier_is() { [ "$(cat /sys/class/net/eth0/carrier)" = "$1" ]; }
speaks before
wire down || fail "the wire cannot be pulled"
until_true 10 carrier_is 0 || fail "the card has a carrier on a pulled wire"
! ping -c 1 -W 1 10.78.0.1 >/dev/null || fail "a packet got through a pulled wire"
wire up || fail "the wire cannot be plugged"
until_true 10 carrier_is 1 || fail "the card has no carrier"
until_true 20 ping -c 1 -W 1 10.78.0.1 || fail "no packet gets through"
speaks after
