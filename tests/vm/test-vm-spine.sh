#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The end-to-end tests of the TCP spine again, over RDMA (Soft-RoCE): the same scripts, other addresses.
. "$(dirname "$0")/functions.sh"
[ -x "$IBNBD_BIN/verbs_conformance_test" ] || skip "this build has no verbs fabric"
rxe_up || fail "no Soft-RoCE"
export IBNBD_E2E_LISTEN=rdma://10.77.0.1
# All of them would take a quarter of an hour in an emulated guest; arguments name others.  Those with time-outs of
# seconds (test-loss-policy) are for machines that are not emulated.
tests=(test-nbd-tools test-ext4-image test-many-volumes test-stop-drains test-server-upgrade)
[ $# -eq 0 ] || tests=("$@")
export UPGRADES=4
for name in "${tests[@]}"; do
  start=$SECONDS
  rc=0
  timeout 200 "$(dirname "$0")/../e2e/$name.sh" >"$work/$name.log" 2>&1 || rc=$?
  case $rc in
    0) echo "ok   $name over rdma, $((SECONDS - start)) s" ;;
    77) echo "skipped $name: $(grep '^SKIP' "$work/$name.log")" ;;
    *) fail "$name over rdma ended with $rc: $(tail -n 30 "$work/$name.log")" ;;
  esac
done
