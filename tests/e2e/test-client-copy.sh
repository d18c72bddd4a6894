#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ibnbd-client: list, show and ping with and without --json; copy from and to files, pipes and volumes.
. "$(dirname "$0")/functions.sh"
requires python3

truncate -s 256M "$work/vol.img"
start_server --export "vol=$work/vol.img" --export "mem=mem:256M" --export "ro=$work/vol.img,ro"
ibnbd-client list "$uri" | grep -q vol || fail "list"
ibnbd-client list --json "$uri" | python3 -c '
import json, sys
names = {e["name"]: e for e in json.load(sys.stdin)["exports"]}
assert set(names) == {"vol", "mem", "ro"}, names
assert names["vol"]["size"] == 256 << 20 and names["ro"]["read_only"]' || fail "list --json"
ibnbd-client show --json "$uri/vol" | python3 -c '
import json, sys
info = json.load(sys.stdin)
assert info["size"] == 256 << 20 and info["logical_block_size"] in (512, 4096), info
assert info["write_zeroes_max"] > 0 and not info["read_only"] and len(info["volume_id"]) == 16, info' || fail "show --json"
ibnbd-client ping -c 3 "$uri" || fail "ping"
ibnbd-client ping -c 2 --json "$uri" | python3 -c 'import json, sys; json.load(sys.stdin)' || fail "ping --json"

head -c 20M /dev/urandom >"$work/data"
truncate -s 200M "$work/data"
head -c 3M /dev/urandom >>"$work/data"
size=$(stat -c %s "$work/data")
ibnbd-client copy "$work/data" "$uri/vol" || fail "copy a file in"
cmp -n "$size" "$work/data" "$work/vol.img" || fail "what the server stored differs"
[ "$(du -k "$work/vol.img" | cut -f1)" -lt 40960 ] || fail "holes were written"
ibnbd-client copy "$uri/vol" "$uri/mem" || fail "copy volume to volume"
ibnbd-client copy "$uri/mem" "$work/back" || fail "copy a volume out"
cmp "$work/back" "$work/vol.img" || fail "what came back differs"
[ "$(du -k "$work/back" | cut -f1)" -lt 40960 ] || fail "holes were filled in the copy"
ibnbd-client copy "$uri/mem" - | cmp - "$work/vol.img" || fail "copy to a pipe"
ibnbd-client copy - "$uri/mem" <"$work/vol.img" || fail "copy from a pipe"
ibnbd-client copy "$uri/mem" - | cmp - "$work/vol.img" || fail "what the pipe brought differs"
truncate -s 512M "$work/large"
expect_fail 'large|fit|bigger|smaller' ibnbd-client copy "$work/large" "$uri/vol"
expect_fail 'same file' ibnbd-client copy "$work/back" "$work/../${work##*/}/back"
cmp "$work/back" "$work/vol.img" || fail "a copy onto itself destroyed the file"
expect_fail 'nothere' ibnbd-client copy "$work/nothere" "$uri/vol"
stop "$server_pid"
