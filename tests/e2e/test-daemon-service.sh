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

# Who should take its log may be waiting for one of its devices: the daemon serves, commands and the end included.
cat >"$work/deaf.py" <<'PY'
import os, signal, subprocess, sys, time

work = sys.argv[1]
reader, writer = os.pipe()
os.set_blocking(writer, False)
try:
    while True:
        os.write(writer, b"full\n")
except BlockingIOError:
    os.set_blocking(writer, True)
daemon = subprocess.Popen(["ibnbd-client", "daemon", "--runtime-directory", work + "/run", "--socket", work + "/sock"],
                          stderr=writer, env=dict(os.environ, NOTIFY_SOCKET=""))
os.close(writer)
listed = ["ibnbd-client", "list", "--socket", work + "/sock"]
deadline = time.monotonic() + 20
try:
    while subprocess.run(listed, capture_output=True, timeout=20).returncode != 0:
        assert time.monotonic() < deadline, "it does not answer"
        time.sleep(0.05)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0, daemon.returncode
finally:
    daemon.kill()
PY
timeout 60 python3 "$work/deaf.py" "$work" >"$work/deaf.log" 2>&1 || fail "a daemon whose log nobody takes"

# Of a later daemon, say: what cannot be read is shown, left alone, kept for those who can, and can be taken away.
cat >"$work/run/devices.json" <<EOF
{"version": 1, "client_id": "$first", "devices": [
  {"device": "/dev/nbd900000", "uri": "tcp://127.0.0.1:9/vol0", "as": "vdpa", "index": 900000, "new": {"x": 1}},
  7]}
EOF
start unread ibnbd-client daemon --runtime-directory "$work/run" --socket "$work/sock"
daemon_pid=$pid
wait_for 20 ibnbd-client list --socket "$work/sock" || fail "an unreadable record keeps the daemon from serving"
reasons() {
  ibnbd-client list --json --socket "$work/sock" | python3 -c '
import json, sys
for device in json.load(sys.stdin)["devices"]: print(device["device"], device["uri"], device["state"], device["state_reason"])'
}
grep -q '^/dev/nbd900000 tcp://127.0.0.1:9/vol0 waiting .*"vdpa", which is unknown' <<<"$(reasons)" || fail "shown as $(reasons)"
grep -q '^? None waiting .*a device is no object' <<<"$(reasons)" || fail "shown as $(reasons)"
expect_fail 'cannot read the record' ibnbd-client remap /dev/nbd900000 --socket "$work/sock"
expect_fail 'cannot read the record' ibnbd-client set /dev/nbd900000 --on-loss hold --socket "$work/sock"
expect_fail 'mapped already, as /dev/nbd900000' ibnbd-client map tcp://127.0.0.1:9/vol0 --socket "$work/sock"
expect_fail 'mapped already, as /dev/nbd900000, whose record this daemon cannot read' \
  ibnbd-client map --if-needed --as nbd tcp://127.0.0.1:9/vol0 --socket "$work/sock"
expect_fail 'neither a session nor a device; there is .* with tcp://127.0.0.1:9' \
  ibnbd-client path list '?' --socket "$work/sock"
ibnbd-client unmap '?' --socket "$work/sock" || fail "cannot be taken away"
[ "$(reasons | wc -l)" = 1 ] || fail "still there: $(reasons)"
python3 -c '
import json, sys
left = json.load(open(sys.argv[1]))["devices"]
assert left == [{"device": "/dev/nbd900000", "uri": "tcp://127.0.0.1:9/vol0", "as": "vdpa", "index": 900000, "new": {"x": 1}}], left
' "$work/run/devices.json" || fail "the other record was not kept as it was"
kill "$daemon_pid"
wait "$daemon_pid" || fail "the daemon ended with $?"

echo '{"version": 1}' >"$work/run/devices.json"
expect_fail 'devices.json.*client_id' timeout 20 ibnbd-client daemon --runtime-directory "$work/run" --socket "$work/sock"
rm "$work/run/devices.json"
mkdir "$work/run/devices.json.new"  # The state cannot be written.
expect_fail 'devices.json.new' timeout 20 ibnbd-client daemon --runtime-directory "$work/run" --socket "$work/sock"
