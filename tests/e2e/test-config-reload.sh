#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The configuration file is re-read on SIGHUP: new exports appear, removed ones go, open ones are not disturbed, and a
# broken file changes nothing.
. "$(dirname "$0")/functions.sh"
requires nbdsh

truncate -s 32M "$work/a.img"
truncate -s 32M "$work/b.img"
config() { printf 'listen = ["tcp://127.0.0.1:%s"]\n' "${port:-0}" >"$work/server.toml"; cat >>"$work/server.toml"; }
config <<EOF_TOML
[export.a]
path = "$work/a.img"
EOF_TOML
start server ibnbd-server --config "$work/server.toml"
server_pid=$pid
wait_for 20 grep -q '^listening on ' "$work/server.log" || fail "start: $(cat "$work/server.log")"
uri=$(sed -n 's/^listening on //p' "$work/server.log")
start_bridge "$uri/a"
nbdsh -u "$(nbd_uri)" -c 'h.pwrite(b"a" * 512, 0)' || fail "write"

config <<EOF_TOML
[export.a]
path = "$work/a.img"
[export.b]
path = "$work/b.img"
read_only = true
EOF_TOML
kill -HUP "$server_pid"
wait_for 10 ibnbd-client show "$uri/b" || fail "b did not appear"
nbdsh -u "$(nbd_uri)" -c 'assert h.pread(512, 0) == b"a" * 512' || fail "a was disturbed"

echo 'this is [not TOML' >"$work/server.toml"
kill -HUP "$server_pid"
wait_for 10 grep -q 'server.toml' "$work/server.log" || fail "a broken file was not reported"
ibnbd-client show "$uri/b" >/dev/null || fail "a broken file removed b"
nbdsh -u "$(nbd_uri)" -c 'assert h.pread(512, 0) == b"a" * 512' || fail "a was disturbed by a broken file"

config <<EOF_TOML
[export.a]
path = "$work/a.img"
EOF_TOML
kill -HUP "$server_pid"
gone() { ! ibnbd-client show "$uri/b"; }
wait_for 10 gone || fail "b did not go"
nbdsh -u "$(nbd_uri)" -c 'assert h.pread(512, 0) == b"a" * 512' || fail "a was disturbed by the removal of b"
stop "$bridge_pid"
stop "$server_pid"
