#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The contract of fabric.h, held by the verbs fabric on Soft-RoCE: over IPv4 and over IPv6.
. "$(dirname "$0")/functions.sh"
test_program=$IBNBD_BIN/verbs_conformance_test
[ -x "$test_program" ] || skip "this build has no verbs fabric"
rxe_up || fail "no Soft-RoCE"
for address in 10.77.0.1 fd77::1; do
  IBNBD_TEST_RDMA=$address timeout 120 "$test_program" >"$work/conformance.log" 2>&1 ||
    fail "over $address: $(grep -A 8 -E 'Failure|Check failed' "$work/conformance.log" | head -n 40)"
  grep -q '^\[  PASSED  \] [3-9][0-9] tests' "$work/conformance.log" ||
    fail "over $address too little was run: $(tail -n 5 "$work/conformance.log")"
done
