#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a service manager sees of ibnbd-client's daemon: ready, the watchdog fed, stopping.  The daemon keeps its identity
# over restarts, and refuses to serve where it cannot write down what it serves.
. "$(dirname "$0")/functions.sh"
requires python3

cat >"$work/manager.py" <<'PY'
import json, os, signal, socket, subprocess, sys

work = sys.argv[1]
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(work + "/notify")
manager.settimeout(20)
environment = dict(os.environ, NOTIFY_SOCKET=work + "/notify", WATCHDOG_USEC="300000")
environment.pop("WATCHDOG_PID", None)
daemon = subprocess.Popen(["ibnbd-client", "daemon", "--runtime-directory", work + "/run", "--socket", work + "/sock"],
                          env=environment)

def wait_for(text):
    while text not in manager.recv(4096).decode().split("\n"):
        pass

wait_for("READY=1")
for _ in range(3):
    wait_for("WATCHDOG=1")
subprocess.run(["ibnbd-client", "list", "--socket", work + "/sock"], check=True)
paths = subprocess.run(["ibnbd-client", "path", "list", "--json", "--socket", work + "/sock"], check=True, capture_output=True)
assert json.loads(paths.stdout) == {"sessions": []}, paths.stdout
for command in ["add", "remove"]:
    refused = subprocess.run(["ibnbd-client", "path", command, "hostA", "127.0.0.2", "--socket", work + "/sock"], capture_output=True)
    assert refused.returncode == 1 and refused.stderr == b"ibnbd-client: session hostA: there is none, because nothing is mapped\n", refused
daemon.send_signal(signal.SIGTERM)
wait_for("STOPPING=1")
assert daemon.wait() == 0, daemon.returncode
PY
identity() { sed -n 's/.*"client_id": "\(.*\)".*/\1/p' "$work/run/devices.json"; }
timeout 60 python3 "$work/manager.py" "$work" >"$work/manager.log" 2>&1 || fail "the service manager"
first=$(identity)
[ -n "$first" ] || fail "no identity: $(cat "$work/run/devices.json")"
rm "$work/notify"
timeout 60 python3 "$work/manager.py" "$work" >"$work/manager.log" 2>&1 || fail "the service manager, again"
[ "$(identity)" = "$first" ] || fail "the identity was $first and is $(identity)"

echo '{"version": 1}' >"$work/run/devices.json"
expect_fail 'devices.json.*client_id' timeout 20 ibnbd-client daemon --runtime-directory "$work/run" --socket "$work/sock"
rm "$work/run/devices.json"
mkdir "$work/run/devices.json.new"  # The state cannot be written.
expect_fail 'devices.json.new' timeout 20 ibnbd-client daemon --runtime-directory "$work/run" --socket "$work/sock"
