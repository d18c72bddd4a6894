#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nbd-bridge feeds its service manager's watchdog only while all its threads do their work.  Told to end when one of them hangs
# (stopped as a debugger does it), it leaves the clients of the others to the next process, and ends.
. "$(dirname "$0")/functions.sh"
requires python3 setpriv

truncate -s 16M "$work/vol.img"
start_server --export "vol=$work/vol.img"
cat >"$work/manager.py" <<'PY'
import ctypes, fcntl, glob, os, signal, socket, struct, subprocess, sys

work, command = sys.argv[1], sys.argv[2:]
ATTACH, DETACH, WALL = 16, 17, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(work + "/notify")
listening = socket.socket(socket.AF_UNIX)
listening.bind(work + "/bridge.sock")
listening.listen(16)
kept = [("unix", fcntl.fcntl(listening.fileno(), fcntl.F_DUPFD_CLOEXEC, 100))]

def hear(seconds=60):
    """One message of the service; its lines."""
    manager.settimeout(seconds)
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

def wait_for(line):
    while line not in hear():
        pass

def start():
    environment = dict(os.environ, NOTIFY_SOCKET=work + "/notify", WATCHDOG_USEC="600000",  # Fed every 0.2 s.
                       LISTEN_FDS=str(len(kept)), LISTEN_FDNAMES=":".join(name for name, _ in kept))
    environment.pop("WATCHDOG_PID", None)
    def inherit():
        for i, (_, fd) in enumerate(kept):
            os.dup2(fd, 3 + i, inheritable=True)
    bridge = subprocess.Popen(["bash", "-c", 'LISTEN_PID=$$ exec setpriv --pdeathsig KILL "$@"', "-", *command],
                              env=environment, preexec_fn=inherit, close_fds=False)
    wait_for("READY=1")
    return bridge

def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")

def stop_thread(name):
    for comm in glob.glob(f"/proc/{bridge.pid}/task/*/comm"):
        if open(comm).read().strip() == name:
            thread = int(comm.split("/")[4])
            ptrace(ATTACH, thread)
            os.waitpid(thread, WALL)
            return thread
    raise AssertionError("no thread " + name)

def expect_silence():
    for _ in range(5):  # What was on its way, and the answer to the question before.
        try:
            hear(2)
        except TimeoutError:
            return
    raise AssertionError("it is fed although a thread is stopped")

def receive(s, size):
    data = s.recv(size, socket.MSG_WAITALL)
    if len(data) != size:
        raise EOFError
    return data

def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(work + "/bridge.sock")
    receive(s, 18)
    s.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 3) + b"vol")
    receive(s, 10)
    return s

def served(s):
    try:
        s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, 512))
        assert struct.unpack(">IIQ", receive(s, 16)) == (0x67446698, 0, 7)
        receive(s, 512)
        return True
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return False

bridge = start()
try:
    # A session's thread does nothing for IO: its clients are flushed and go on.
    for name, who_goes_on in [("nbd-loop-1", [True, False]), ("ibnbd-control", [True, True])]:
        clients = [connect(), connect()]  # One on each thread.
        assert all(served(client) for client in clients)
        for _ in range(3):
            wait_for("WATCHDOG=1")
        thread = stop_thread(name)
        expect_silence()
        ptrace(DETACH, thread)
        wait_for("WATCHDOG=1")
        assert all(served(client) for client in clients)
        stop_thread(name)
        expect_silence()
        bridge.send_signal(signal.SIGTERM)  # systemd's WatchdogSignal=.
        while "BARRIER=1" not in hear():
            pass
        os.waitpid(thread, WALL)  # Until then its process has not ended.
        assert bridge.wait(30) == 2, bridge.returncode
        assert len(kept) == 1 + 2 * sum(who_goes_on), kept
        bridge = start()
        while len(kept) > 1:
            hear()
        assert [served(client) for client in clients] == who_goes_on
        for client in clients:
            client.close()
        print(name, "was missed")
    bridge.send_signal(signal.SIGTERM)
    assert bridge.wait(30) == 0, bridge.returncode
finally:
    bridge.kill()
PY
timeout 100 python3 "$work/manager.py" "$work" nbd-bridge --threads 2 --stop-timeout 1 "$uri/vol" >"$work/manager.log" 2>&1 || fail "the service manager"
grep -q "nbd-loop-1 hangs; its clients are lost" "$work/manager.log" || fail "the log does not say what hung: $(cat "$work/manager.log")"
[ "$(grep -c "was missed" "$work/manager.log")" -eq 2 ] || fail "not both were stopped"
stop "$server_pid"
