#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ci/soak: it runs for as long as asked and counts what happened; a bug, a crash and bad arguments
# fail it; every finding is one line that replays.  $1: ci/soak, $2: ibnbd-sim, $3: ibnbd-sim-canary.
set -u -o pipefail
soak=$1 sim=$2 canary=$3
scratch=$(mktemp -d "${TMPDIR:-/tmp}/ibnbd-soak-test.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

fail() {
  echo "FAIL $*" >&2
  tail -n 30 "$scratch"/* >&2
  exit 1
}

"$soak" --program "$sim" --for 2s --jobs 2 --first 1 --json >"$scratch/clean" 2>"$scratch/clean.err" ||
  fail "a clean engine: exit code $?"
python3 - "$scratch/clean" <<'END' || fail "the summary of a clean engine"
import json, sys
summary = json.load(open(sys.argv[1]))
totals = summary["totals"]
assert summary["findings"] == [] and summary["jobs"] == 2, summary
assert totals["seeds"] > 0 and totals["IOs"] > 0 and summary["seeds_per_second"] > 0, summary
for name in ("cuts", "power losses", "client crashes", "reconnects"):
    assert name in totals, name
assert summary["marks"] and set(summary["cold"]) == {m for m, n in summary["marks"].items() if n == 0}
END

# The bug shows at its first seeds; a line of it replays it.
"$soak" --program "$canary" --canary 2 --for 2s --jobs 1 --first 1 >"$scratch/canary" 2>&1
[ $? -eq 1 ] || fail "a canary was not noticed"
line=$(grep -m1 '^SEED=[0-9]* oracle=O2 ' "$scratch/canary") || fail "no finding of O2"
arguments=${line##*rerun: build/dev/bin/ibnbd-sim-canary }
# shellcheck disable=SC2086
"$canary" $arguments >"$scratch/replay" 2>&1 || fail "the canary's oracle did not find it again: $arguments"
grep -qF "${line%% ; rerun*}" "$scratch/replay" || fail "the replay says something else: $line"

# A program that crashes at a seed, and then goes on: a finding that names the seed.
cat >"$scratch/crasher" <<'END'
#!/bin/sh
for argument; do
  case $argument in --first=*) first=${argument#--first=} ;; esac
done
echo "seed $first"
[ "$first" -lt 102 ] && { echo "CHECK failed: something" >&2; kill -ABRT $$; }
echo 'total {"seeds": 3, "IOs": 5, "marks": {"a mark": 1}}'
END
chmod +x "$scratch/crasher"
"$soak" --program "$scratch/crasher" --for 30s --jobs 1 --first 100 >"$scratch/crashes" 2>&1
[ $? -eq 1 ] || fail "a crash was not noticed"
for seed in 100 101; do
  grep -q "^SEED=$seed oracle=CRASH signal 6: CHECK failed: something ; rerun: .* --seed=$seed --verbose" \
    "$scratch/crashes" || fail "no finding for the crash of seed $seed"
done
grep -q '^2 findings$' "$scratch/crashes" || fail "crashes are not counted"

for bad in "--for 0s" "--for soon" "--jobs 0" "--first x" "--program /nonexistent"; do
  # shellcheck disable=SC2086
  "$soak" $bad >"$scratch/bad" 2>&1
  [ $? -eq 2 ] || fail "'$bad' is taken"
done
echo "ok"
