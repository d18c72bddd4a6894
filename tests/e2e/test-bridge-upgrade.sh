#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nbd-bridge is upgraded $UPGRADES times under clients that cannot connect again: each new process takes the listening socket
# and the clients' connections over from the one that runs, between two requests of each; nobody sees an error, every byte
# is right.  Also a client that is in the middle of a request, or of saying hello.  A bridge that is killed loses its
# connections; clients that connect again go on (qemu's reconnect-delay).
. "$(dirname "$0")/functions.sh"
requires fio qemu-io nbdinfo python3

truncate -s 64M "$work/vol.img"
start_server --export "vol=$work/vol.img"
volume="$uri/vol"
door="$work/handover.sock"
socket="$work/bridge.sock"
number=0
serve() { # ARGS...
  number=$((number + 1))
  start "bridge$number" nbd-bridge -v --threads 2 --socket "$socket" --handover "$door" "$@" "$volume"
  bridge_pid=$pid
  wait_for 30 grep -q '^listening on ' "$work/bridge$number.log" || fail "the bridge did not start: $(cat "$work/bridge$number.log")"
}
serve
start odd python3 "$here/odd_nbd_clients.py" "$socket" "$work/odd"
odd_pid=$pid
wait_for 20 test -e "$work/odd.ready" || fail "the odd clients: $(cat "$work/odd.log")"
rewrite_through_bridge 4k-512k &
fio_pid=$!
for ((i = 1; i <= ${UPGRADES:-8}; i++)); do
  wait_for 60 has_changed "$work/vol.img" "$(stat -c %y "$work/vol.img")" || fail "before upgrade $i: no IO"
  before=$bridge_pid
  serve
  rc=0
  wait "$before" || rc=$?
  [ $rc -eq 0 ] || fail "upgrade $i: the bridge before ended with $rc"
  alive "$fio_pid" || fail "upgrade $i: fio has ended: $(tail -n 5 "$work/verify.log")"
  alive "$odd_pid" || fail "upgrade $i: an odd client: $(cat "$work/odd.log")"
done
wait_for 60 has_changed "$work/vol.img" "$(stat -c %y "$work/vol.img")" || fail "no IO after the last upgrade"
: >"$work/odd.enough"
wait "$odd_pid" || fail "an odd client: $(cat "$work/odd.log")"
tail -n 1 "$work/odd.log"
: >"$work/enough"
wait "$fio_pid" || fail "fio: $(tail -n 20 "$work/verify.log")"
nbdinfo "$(nbd_uri)" >/dev/null || fail "nobody listens"

# One that cannot start does not disturb the one that runs.
expect_fail "is not a size|megabytes" nbd-bridge --socket "$socket" --handover "$door" --connection-memory x "$volume"
alive "$bridge_pid" || fail "the bridge has ended"
# Not a bridge's.
first_server=$server_pid
start_server --handover "$work/server.sock" --export m=mem:1M
expect_fail "no nbd-bridge of this kind" nbd-bridge --socket "$work/other.sock" --handover "$work/server.sock" "$uri/m"
wait_for 20 grep -q "does not want it" "$server_log" || fail "the server says nothing: $(cat "$server_log")"
stop "$server_pid"
server_pid=$first_server
# Another user's: its clients might be anybody's descriptors.
if [ "$(id -u)" -eq 0 ]; then
  mkdir -m 777 "$work/theirs"
  chmod 711 "$work"
  start theirs setpriv --reuid 65534 --regid 65534 --clear-groups python3 -c 'import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.bind(sys.argv[1])
s.listen(4)
print("ready", flush=True)
while True: s.accept()[0].send(b"nbd-bridge listening sockets 1\0")' "$work/theirs/door"
  theirs_pid=$pid
  wait_for 20 grep -q ready "$work/theirs.log" || fail "the other user: $(cat "$work/theirs.log")"
  expect_fail "user 65534 is at the other end" timeout 20 nbd-bridge --socket "$work/other.sock" --handover "$work/theirs/door" "$volume"
  kill -KILL "$theirs_pid" 2>/dev/null # If that was not the end of it.
else
  echo "not root: who is at the other end of a hand-over is not tested"
fi

stop "$bridge_pid"

# IO that hangs costs the client its connection, and the bridge before says so by its exit status.  The server stands still when
# the successor has looked at it: half a request is waited for meanwhile.  The successor has less patience than the one before it
# needs, and waits all the same.
serve --stop-timeout 15
before=$bridge_pid
cat >"$work/hangs.py" <<'PY'
import fcntl, socket, struct, sys, termios, time

s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 3) + b"vol")
s.recv(28, socket.MSG_WAITALL)
s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 512) + bytes(256))
while struct.unpack("i", fcntl.ioctl(s, termios.TIOCOUTQ, b"    "))[0]:
    time.sleep(0.01)
print("half", flush=True)
sys.stdin.readline()
s.sendall(bytes(256))
while struct.unpack("i", fcntl.ioctl(s, termios.TIOCOUTQ, b"    "))[0]:
    time.sleep(0.01)
print("sent", flush=True)
print("the end" if not s.recv(1) else "an answer", flush=True)
PY
mkfifo "$work/hang"
python3 "$work/hangs.py" "$socket" <"$work/hang" >"$work/hangs.log" 2>&1 &
hangs_pid=$!
exec 9>"$work/hang"
wait_for 20 grep -q half "$work/hangs.log" || fail "the client: $(cat "$work/hangs.log")"
start next nbd-bridge -v --stop-timeout 1 --socket "$socket" --handover "$door" "$volume"
bridge_pid=$pid
wait_for 20 grep -q "took over 1 listening sockets" "$work/next.log" || fail "the next bridge: $(cat "$work/next.log")"
kill -STOP "$server_pid"
stands_still() { ! grep -L "^State:.T" "/proc/$server_pid/task/"*/status | grep -q .; } # Each of its threads.
wait_for 20 stands_still || fail "the server does not stop"
echo >&9
wait_for 20 grep -q sent "$work/hangs.log" || fail "the client: $(cat "$work/hangs.log")"
rc=0
wait "$before" || rc=$?
kill -CONT "$server_pid"
[ $rc -eq 2 ] || fail "a bridge that gave IO up ended with $rc"
exec 9>&-
wait "$hangs_pid"
[ "$(tail -n 1 "$work/hangs.log")" = "the end" ] || fail "the client: $(cat "$work/hangs.log")"
wait_for 60 grep -q '^listening on ' "$work/next.log" || fail "the bridge did not start: $(cat "$work/next.log")"
stop "$bridge_pid"
rc=0
nbd-bridge --socket "$socket" "$uri/missing" >"$work/missing.log" 2>&1 || rc=$?
[ $rc -eq 1 ] || fail "a bridge without its volume ended with $rc"

# Killed: who connects again goes on.
serve
{ coproc QEMU { qemu-io --image-opts "driver=nbd,server.type=unix,server.path=$socket,reconnect-delay=60" 2>&1; }; } 2>/dev/null
qemu() { # COMMAND PATTERN: its next line that looks so.
  local line
  [ -z "$1" ] || echo "$1" >&"${QEMU[1]}"
  while read -r -t 60 line <&"${QEMU[0]}"; do
    case $line in
      *"$2"*) return 0 ;;
      *rror* | *ailed*) fail "qemu-io $1: $line" ;;
    esac
  done
  fail "qemu-io $1: no answer"
}
qemu "write -P 1 0 1M" "wrote 1048576/1048576"
kill -KILL "$bridge_pid"
wait "$bridge_pid" 2>/dev/null
echo "write -P 2 0 1M" >&"${QEMU[1]}"
serve
qemu "" "wrote 1048576/1048576"
qemu "read -P 2 0 1M" "read 1048576/1048576"
exec {QEMU[1]}>&-
stop "$bridge_pid"
stop "$server_pid"
