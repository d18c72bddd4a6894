#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The lab itself: a kernel that has what the other tests need, and a Soft-RoCE device that carries data.
. "$(dirname "$0")/functions.sh"
modprobe -a ublk_drv nbd || fail "a module is missing"
[ -c /dev/ublk-control ] || fail "no /dev/ublk-control"
[ -b /dev/nbd0 ] || fail "no /dev/nbd0"
rxe_up || fail "no Soft-RoCE"
memory_disk 0 64 || fail "no null_blk"
requires rping
timeout 30 rping -s -a 10.77.0.1 -C 3 >"$work/rping-server.log" 2>&1 &
until_true 10 timeout 5 rping -c -a 10.77.0.1 -C 3 || fail "rping does not get through: $(cat "$work/rping-server.log")"
wait
