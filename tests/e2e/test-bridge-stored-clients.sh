#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nbd-bridge is restarted by a service manager that keeps what it is given (systemd's FDSTORE): clients that cannot connect
# again go on with the next process, also those in the middle of a request; nothing stays in the manager's store.  A process
# that does not get so far as to serve them loses nobody.
. "$(dirname "$0")/functions.sh"
requires python3 setpriv

truncate -s 64M "$work/vol.img"
start_server --export "vol=$work/vol.img"
cat >"$work/manager.py" <<'PY'
import fcntl, os, signal, socket, subprocess, sys

work, command, cannot, waits = sys.argv[1], sys.argv[2:4], sys.argv[4:6], sys.argv[6:]
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(work + "/notify")
manager.settimeout(60)
listening = socket.socket(socket.AF_UNIX)
listening.bind(work + "/bridge.sock")
listening.listen(16)
kept = [("unix", fcntl.fcntl(listening.fileno(), fcntl.F_DUPFD_CLOEXEC, 100))]

def hear():
    """One message of the service; its lines."""
    message, fds, _, _ = socket.recv_fds(manager, 4096, 16)
    lines = message.decode().split("\n")
    names = [line[7:] for line in lines if line.startswith("FDNAME=")]
    if "FDSTOREREMOVE=1" in lines:
        for name, fd in [entry for entry in kept if entry[0] in names]:
            os.close(fd)
            kept.remove((name, fd))
    for fd in fds:
        if "FDSTORE=1" in lines:
            kept.append((names[0], fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100)))
        os.close(fd)  # So goes a barrier's.
    return lines

def spawn(command, **options):
    environment = dict(os.environ, NOTIFY_SOCKET=work + "/notify", LISTEN_FDS=str(len(kept)),
                       LISTEN_FDNAMES=":".join(name for name, _ in kept))
    def inherit():
        for i, (_, fd) in enumerate(kept):
            os.dup2(fd, 3 + i, inheritable=True)
    return subprocess.Popen(["bash", "-c", 'LISTEN_PID=$$ exec setpriv --pdeathsig KILL "$@"', "-", *command],
                            env=environment, preexec_fn=inherit, close_fds=False, **options)

def start():
    bridge = spawn(command)
    while "READY=1" not in hear():
        pass
    return bridge

bridge = start()
open(work + "/serving", "w").close()
for i in range(4):
    while not os.path.exists(work + "/go"):
        signal.sigtimedwait([], 0.05)
    os.unlink(work + "/go")
    bridge.send_signal(signal.SIGTERM)
    lines = []
    while "BARRIER=1" not in lines:
        lines = hear()
    assert bridge.wait() == 0, bridge.returncode
    assert len(kept) == 7, kept
    failing = spawn(cannot)
    assert failing.wait() == 1, failing.returncode
    waiting = spawn(waits, stderr=subprocess.PIPE)
    while b"connect failed" not in (line := waiting.stderr.readline()):
        assert line, "it does not wait"
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait() == 0, waiting.returncode
    manager.settimeout(0)
    try:
        while True:
            hear()
    except BlockingIOError:
        manager.settimeout(60)
    assert len(kept) == 7, kept
    bridge = start()
    assert len(kept) == 1, kept
    open(work + "/done", "w").close()
while not os.path.exists(work + "/go"):
    signal.sigtimedwait([], 0.05)
bridge.send_signal(signal.SIGTERM)
assert bridge.wait() == 0, bridge.returncode
PY
start manager python3 "$work/manager.py" "$work" nbd-bridge "$uri/vol" nbd-bridge "$uri/missing" nbd-bridge -v --wait "tcp://127.0.0.1:1/vol"
manager_pid=$pid
wait_for 20 test -e "$work/serving" || fail "the bridge does not start"
start odd python3 "$here/odd_nbd_clients.py" "$work/bridge.sock" "$work/odd"
odd_pid=$pid
wait_for 20 test -e "$work/odd.ready" || fail "the odd clients: $(cat "$work/odd.log")"
for i in 1 2 3 4 5; do
  wait_for 60 has_changed "$work/vol.img" "$(stat -c %y "$work/vol.img")" || fail "before restart $i: no IO"
  [ $i -lt 5 ] || { : >"$work/odd.enough"; wait "$odd_pid" || fail "an odd client: $(cat "$work/odd.log")"; break; }
  : >"$work/go"
  wait_for 60 test -e "$work/done" || fail "restart $i: the bridge does not come back"
  rm "$work/done"
  alive "$odd_pid" || fail "restart $i: an odd client: $(cat "$work/odd.log")"
done
: >"$work/go"
wait "$manager_pid" || fail "the service manager"
tail -n 1 "$work/odd.log"
