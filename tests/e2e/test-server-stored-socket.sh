#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A restart by a service manager that keeps what the server gives it (systemd's FDSTORE): the next process gets the
# listening socket back, and no connect is refused in between.
. "$(dirname "$0")/functions.sh"
requires python3 qemu-io

truncate -s 16M "$work/vol.img"
cat >"$work/manager.py" <<'PY'
import fcntl, os, signal, socket, subprocess, sys

work, command = sys.argv[1], sys.argv[2:]
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(work + "/notify")
manager.settimeout(60)
kept = []

def start(*listen):
    """Starts the server with what is kept as its descriptors 3, 4, ..., until it is ready."""
    environment = dict(os.environ, NOTIFY_SOCKET=work + "/notify")
    if kept:
        environment["LISTEN_FDS"] = str(len(kept))
    def inherit():
        for i, fd in enumerate(kept):
            os.dup2(fd, 3 + i, inheritable=True)
    server = subprocess.Popen(["bash", "-c", 'LISTEN_PID=$$ exec "$@"', "-", *command, "--listen", *listen],
                              env=environment, preexec_fn=inherit, close_fds=False)
    while True:
        message, fds, _, _ = socket.recv_fds(manager, 4096, 16)
        lines = message.decode().split("\n")
        if "FDSTOREREMOVE=1" in lines:
            while kept:
                os.close(kept.pop())
        for fd in fds:
            kept.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100))
            os.close(fd)
        if "READY=1" in lines:
            return server

def end(server):
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0, server.returncode

server = start("tcp://127.0.0.1:0")
assert len(kept) == 1, kept
with socket.socket(fileno=os.dup(kept[0])) as listening:
    port = listening.getsockname()[1]
with open(work + "/port.new", "w") as file:
    file.write("%d\n" % port)
os.rename(work + "/port.new", work + "/port")
def await_go():
    while not os.path.exists(work + "/go"):
        signal.sigtimedwait([], 0.05)
    os.unlink(work + "/go")

for _ in range(5):
    await_go()
    end(server)
    server = start("tcp://127.0.0.1:%d" % port)
    assert len(kept) == 1, kept
    open(work + "/done", "w").close()
# Another address: the old socket is let go.
await_go()
end(server)
server = start("tcp://127.0.0.2:%d" % port)
assert len(kept) == 1, kept
try:
    socket.create_connection(("127.0.0.1", port), timeout=5)
    sys.exit("the old address is still listened on")
except ConnectionRefusedError:
    pass
end(server)
PY
start manager python3 "$work/manager.py" "$work" ibnbd-server --export "vol=$work/vol.img"
manager_pid=$pid
wait_for 20 test -s "$work/port" || fail "the server does not start"
port=$(cat "$work/port")
start_bridge "tcp://127.0.0.1:$port/vol"
start knock python3 "$here/knock.py" "$port" "$work/enough"
knock_pid=$pid
wait_for 20 grep -q knocking "$work/knock.log" || fail "nobody knocks"
for i in 1 2 3 4 5; do
  qemu-io -f raw -c "write -P $i 0 1M" -c flush "$(nbd_uri)" >"$work/write.log" 2>&1 || fail "restart $i: $(cat "$work/write.log")"
  : >"$work/go"
  wait_for 60 test -e "$work/done" || fail "restart $i: the server does not come back"
  rm "$work/done"
  qemu-io -r -f raw -c "read -P $i 0 1M" "$(nbd_uri)" >"$work/read.log" 2>&1 || fail "restart $i: $(cat "$work/read.log")"
  ! grep -q "verification failed" "$work/read.log" || fail "restart $i: what was written is not there"
done
: >"$work/enough"
wait "$knock_pid" || fail "a connect was refused: $(cat "$work/knock.log")"
stop "$bridge_pid"
: >"$work/go"
wait "$manager_pid" || fail "the service manager"
