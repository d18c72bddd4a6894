#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A server that does not come back: the volume's loss policy ends the wait when it says so, with an error and not
# before; the next IO after the server's return works.
. "$(dirname "$0")/functions.sh"
requires nbdsh python3

truncate -s 64M "$work/vol.img"
start_server --export "vol=$work/vol.img"
start_bridge --on-loss fail-after=2s "$uri/vol"
port_wanted=$port
nbdsh -u "$(nbd_uri)" -c 'h.pwrite(b"x" * 4096, 0)' || fail "write before the loss"
killed=$(python3 -c 'import time; print(time.monotonic())')
export killed
kill -KILL "$server_pid"
wait "$server_pid" 2>/dev/null
cat >"$work/lost.py" <<'PY'
import os, time
try:
    h.pwrite(b"y" * 4096, 4096)
    raise SystemExit("a write without a server succeeded")
except nbd.Error as error:
    waited = time.monotonic() - float(os.environ["killed"])
    print("failed after %.1f s: %s" % (waited, error.errno))
    assert error.errno == "EIO", error.errno
    # The bound below is the policy's promise; the one above is generous: it shows that the wait ends at all.
    assert 2.0 <= waited <= 40.0, waited
PY
nbdsh -u "$(nbd_uri)" -c - <"$work/lost.py" || fail "the loss policy"
start_server --export "vol=$work/vol.img"
wait_for 30 nbdsh -u "$(nbd_uri)" -c 'h.pwrite(b"z" * 4096, 8192)' || fail "no IO after the server returned"
nbdsh -u "$(nbd_uri)" -c 'assert h.pread(4096, 0) == b"x" * 4096 and h.pread(4096, 8192) == b"z" * 4096' || fail "data"

stop "$bridge_pid"

# Holding is the default, and detaching still works: SIGTERM ends a bridge whose server is gone.
start_bridge --stop-timeout 1 "$uri/vol"
kill -KILL "$server_pid"
wait "$server_pid" 2>/dev/null
start writer nbdsh -u "$(nbd_uri)" -c 'h.pwrite(b"h" * 4096, 0)'
writer=$pid
sleep 1
alive "$writer" || fail "a held write ended: $(cat "$work/writer.log")"
kill -TERM "$bridge_pid"
bridge_ended() { ! alive "$bridge_pid"; }
wait_for 20 bridge_ended || fail "a bridge whose server is gone does not end"
wait "$bridge_pid"
rc=$?
[ "$rc" -eq 2 ] || fail "a bridge that gave IO up ended with code $rc instead of 2"
wait "$writer" && fail "a write that never reached a server succeeded"
true
