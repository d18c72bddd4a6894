#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sockets that the service manager made: nbd-bridge serves on them, on two at once, and leaves their files to their owner.
. "$(dirname "$0")/functions.sh"
requires nbdsh python3

start_server --export m=mem:16M --export r=mem:1M
start activated python3 "$here/listen_fds.py" "$work/one.sock" "$work/two.sock" -- nbd-bridge "m=$uri/m" "r=$uri/r"
bridge_pid=$pid
wait_for 20 test -S "$work/two.sock" || fail "no socket"
nbdsh -u "nbd+unix:///m?socket=$work/one.sock" -c 'h.pwrite(b"s" * 4096, 0)' || fail "the first socket"
nbdsh -u "nbd+unix:///m?socket=$work/two.sock" -c 'assert h.pread(4096, 0) == b"s" * 4096' || fail "the second socket"
stop "$bridge_pid"
[ -S "$work/one.sock" ] || fail "the bridge removed a socket that was not its own"

# Handed over to somebody else: LISTEN_PID says so, and the bridge has nothing to listen on.
LISTEN_FDS=1 LISTEN_PID=1 expect_fail 'listen|socket' nbd-bridge "m=$uri/m"

if command -v systemd-socket-activate >/dev/null; then
  start systemd systemd-socket-activate -l "$work/systemd.sock" "$IBNBD_BIN/nbd-bridge" "m=$uri/m"
  bridge_pid=$pid
  wait_for 20 test -S "$work/systemd.sock" || fail "systemd-socket-activate: $(cat "$work/systemd.log")"
  [ "$(nbdinfo --size "nbd+unix:///?socket=$work/systemd.sock")" -eq 16777216 ] || fail "by systemd-socket-activate"
  stop "$bridge_pid"
else
  echo "note: systemd-socket-activate is not installed; its part was played by listen_fds.py alone"
fi
stop "$server_pid"
