#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ibnbd-client's daemon feeds its service manager's watchdog only while all threads that devices need do their work: one
# thread at a time is stopped, as a debugger does it, a loop's and that of a session.
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
requires python3
modprobe nbd || fail "a module is missing"
mkdir -p /run/ibnbd
cat >"$work/manager.py" <<'PY'
import ctypes, glob, os, signal, socket, subprocess, sys

work, uri = sys.argv[1:]
ATTACH, DETACH, WALL = 16, 17, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(work + "/notify")
environment = dict(os.environ, NOTIFY_SOCKET=work + "/notify", WATCHDOG_USEC="600000")  # Fed every 0.2 s.
environment.pop("WATCHDOG_PID", None)
daemon = subprocess.Popen(["ibnbd-client", "daemon"], env=environment)

def wait_for(text):
    manager.settimeout(30)
    while text not in manager.recv(4096).decode().split("\n"):
        pass

def expect_silence():
    manager.settimeout(3)
    for _ in range(5):  # What was on its way, and the answer to the question before.
        try:
            manager.recv(4096)
        except TimeoutError:
            return
    raise AssertionError("it is fed although a thread is stopped")

def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")

def threads_named(name):
    comms = glob.glob(f"/proc/{daemon.pid}/task/*/comm")
    return [int(comm.split("/")[4]) for comm in comms if open(comm).read().strip() == name]

try:
    wait_for("READY=1")
    node = subprocess.run(["ibnbd-client", "map", uri, "--as", "nbd"], check=True, capture_output=True, text=True).stdout.strip()
    for name in ["ibnbd-loop", "ibnbd-control"]:
        for _ in range(3):
            wait_for("WATCHDOG=1")
        thread = threads_named(name)[0]
        ptrace(ATTACH, thread)
        os.waitpid(thread, WALL)
        expect_silence()
        ptrace(DETACH, thread)
        wait_for("WATCHDOG=1")
        print(name, "was missed")
    subprocess.run(["dd", "if=" + node, "of=/dev/null", "bs=64k", "count=16", "iflag=direct"], check=True)
    subprocess.run(["ibnbd-client", "unmap", node], check=True)
    daemon.send_signal(signal.SIGTERM)
    wait_for("STOPPING=1")
    assert daemon.wait(20) == 0, daemon.returncode
finally:
    daemon.kill()
PY
truncate -s 16M "$work/vol.img"
start_server --export "vol=$work/vol.img"
timeout 90 python3 "$work/manager.py" "$work" "$uri/vol" >"$work/manager.log" 2>&1 || fail "the service manager"
[ "$(grep -c "was missed" "$work/manager.log")" -eq 2 ] || fail "not both were stopped"
