#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Nobody takes what the server says, or the bridge: they serve, and end, as ever.
. "$(dirname "$0")/functions.sh"
requires python3 nbdsh

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
server = subprocess.Popen(["ibnbd-server", "--log-level", "debug", "--listen", "tcp://127.0.0.1:0", "--port-file", work + "/port",
                           "--export", "vol=mem:16M"], stderr=writer, stdout=subprocess.DEVNULL)
try:
    deadline = time.monotonic() + 20
    while not os.path.exists(work + "/port"):
        assert time.monotonic() < deadline and server.poll() is None, "it does not serve"
        time.sleep(0.05)
    uri = "tcp://127.0.0.1:" + open(work + "/port").read().strip()
    for _ in range(10):  # Each a session, which is worth a few lines.
        subprocess.run(["ibnbd-client", "show", uri + "/vol"], check=True, timeout=30, stdout=subprocess.DEVNULL)
    bridge = subprocess.Popen(["nbd-bridge", "-vv", "--socket", work + "/nbd", uri + "/vol"], stderr=writer, stdout=subprocess.DEVNULL)
    os.close(writer)
    try:
        while not os.path.exists(work + "/nbd"):
            assert time.monotonic() < deadline and bridge.poll() is None, "the bridge does not serve"
            time.sleep(0.05)
        for _ in range(5):
            subprocess.run(["nbdsh", "-u", "nbd+unix:///?socket=" + work + "/nbd", "-c", "h.pwrite(b'x' * 512, 0)"], check=True, timeout=30)
        bridge.send_signal(signal.SIGTERM)
        assert bridge.wait(60) == 0, bridge.returncode
    finally:
        bridge.kill()
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0, server.returncode
finally:
    server.kill()
PY
timeout 90 python3 "$work/deaf.py" "$work" >"$work/deaf.log" 2>&1 || fail "a server or bridge whose log nobody takes"
