#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a service manager sees of the server: ready, the watchdog fed however many other signals come, reloading and
# ready again, stopping.
. "$(dirname "$0")/functions.sh"
requires python3

cat >"$work/server.toml" <<EOF
listen = "tcp://127.0.0.1:0"
[export.m]
path = "mem:1M"
EOF
cat >"$work/manager.py" <<'PY'
import os, signal, socket, subprocess, sys, time

work = sys.argv[1]
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(work + "/notify")
environment = dict(os.environ, NOTIFY_SOCKET=work + "/notify", WATCHDOG_USEC="1000000")
environment.pop("WATCHDOG_PID", None)
server = subprocess.Popen(["ibnbd-server", "--config", work + "/server.toml"], env=environment)

def wait_for(text, nudge=None):
    """Until a message has the line; `nudge` is sent ten times a second meanwhile."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        manager.settimeout(0.1 if nudge else 20)
        try:
            message = manager.recv(4096).decode()
        except socket.timeout:
            if nudge:
                server.send_signal(nudge)
            continue
        if text in message.split("\n"):
            return message
    server.kill()
    raise SystemExit("the server did not say " + text)

assert "STATUS=serving on tcp://127.0.0.1:" in wait_for("READY=1")
for _ in range(3):
    wait_for("WATCHDOG=1", nudge=signal.SIGUSR1)
server.send_signal(signal.SIGHUP)
assert "MONOTONIC_USEC=" in wait_for("RELOADING=1")
wait_for("READY=1")
server.send_signal(signal.SIGTERM)
wait_for("STOPPING=1")
assert server.wait() == 0, server.returncode
PY
python3 "$work/manager.py" "$work" >"$work/manager.log" 2>&1 || fail "the service manager"
