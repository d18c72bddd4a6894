#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `ibnbd-client doctor` on a server that is there, one that is not, and one that has no such export: a verdict, a fix,
# and an exit code.  What it finds of RDMA is for tests/vm/test-vm-softroce.sh, which can break things.
. "$(dirname "$0")/functions.sh"
requires python3

result_of() { # result_of FILE CHECK: its result, and its fix.
  python3 -c 'import json, sys
for check in json.load(open(sys.argv[1]))["checks"]:
    if check["check"] == sys.argv[2]: print(check["result"], check["fix"])' "$1" "$2"
}

start_server --export vol=mem:8M
ibnbd-client doctor --json "$uri/vol" >"$work/good.json" || fail "something is wrong: $(cat "$work/good.json")"
for check in io_uring name session; do
  [ "$(result_of "$work/good.json" $check)" = "ok None" ] || fail "$check: $(cat "$work/good.json")"
done
[ "$(result_of "$work/good.json" rdma)" = "not needed None" ] || fail "tcp:// needs RDMA: $(cat "$work/good.json")"
ibnbd-client doctor "$uri/vol" | grep -Eq '^ok +session .*answers in .*export vol: 8.0 MiB$' || fail "the table lacks the session"

rc=0
ibnbd-client doctor --json "$uri/nosuch" >"$work/export.json" 2>"$work/error" || rc=$?
[ $rc = 1 ] || fail "an unknown export: exit code $rc"
[ "$(cat "$work/error")" = "ibnbd-client: doctor: 1 problem" ] || fail "$(cat "$work/error")"
grep -q "^problem ibnbd-client list $uri\$" <<<"$(result_of "$work/export.json" session)" || fail "$(cat "$work/export.json")"

expect_fail 'refused.*fix: on the server: ibnbd-server --listen tcp://127.0.0.1:1 ' \
  bash -c 'ibnbd-client doctor tcp://127.0.0.1:1 | tr "\n" " "; exit "${PIPESTATUS[0]}"'
for wrong in pigeon://x 127.0.0.1 "tcp://127.0.0.1:99999"; do
  rc=0
  ibnbd-client doctor "$wrong" >"$work/usage.log" 2>&1 || rc=$?
  [ $rc = 2 ] || fail "doctor $wrong: exit code $rc, not 2"
done
