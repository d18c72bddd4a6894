#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A successor that could not serve the clients of the bridge that runs finds out before it takes them: it says why and ends, and
# nobody else notices.  What goes wrong after that is waited for, with the clients.
. "$(dirname "$0")/functions.sh"
requires nbdsh python3

truncate -s 16M "$work/vol.img" "$work/second.img"
start_server --export "vol=$work/vol.img" --export "second=$work/second.img"
door="$work/handover.sock"
socket="$work/bridge.sock"
serve() { # NAME ARGS...
  local name=$1
  shift
  start "$name" nbd-bridge -v --socket "$socket" --handover "$door" "$@"
  bridge_pid=$pid
  wait_for 30 grep -q '^listening on ' "$work/$name.log" || fail "the bridge did not start: $(cat "$work/$name.log")"
}
serve first "$uri/vol" "$uri/second"

# One client, which cannot connect again, for the whole test.
cat >"$work/client.py" <<'PY'
import sys
for line in sys.stdin:
    word = line.split()[0]
    if word == "end":
        break
    if word == "write":
        h.pwrite(line.split()[1].encode() * 4096, 0)
    else:
        assert h.pread(4096, 0) == line.split()[1].encode() * 4096, "another content"
    print("did", line.strip(), flush=True)
PY
mkfifo "$work/say"
nbdsh -u "$(nbd_uri vol)" -c "exec(open('$work/client.py').read())" <"$work/say" >"$work/client.log" 2>&1 &
client_pid=$!
exec 9>"$work/say"
count=0
client() { # write|read LETTER
  echo "$1 $2" >&9
  count=$((count + 1))
  did_all() { [ "$(grep -c ^did "$work/client.log")" -eq $count ] || ! alive "$client_pid"; }
  wait_for 60 did_all && alive "$client_pid" || fail "the client cannot $1: $(cat "$work/client.log")"
}
client write a

refused() { # PATTERN ARGS...
  local pattern=$1
  shift
  expect_fail "$pattern" timeout 60 nbd-bridge --socket "$socket" --handover "$door" "$@"
  alive "$bridge_pid" || fail "the bridge that ran has ended: $(cat "$work/first.log")"
  client read a
}
refused "tcp://127.0.0.1:1: .*Connection refused" vol=tcp://127.0.0.1:1/vol
refused "open missing: No such file" "vol=$uri/missing"
refused "clients of \"vol\".*: the server has another volume under the name" "vol=$uri/second"
refused "clients of \"vol\".*: no such export here" "$uri/second"
refused "clients of \"vol\".*: --connection-memory is smaller" --connection-memory 1M "$uri/vol"
refused "clients of \"vol\".*: it would be read-only" --readonly "$uri/vol"
refused "listen on tcp:192.0.2.1:1: bind: Cannot assign" --listen 192.0.2.1:1 "$uri/vol"
refused "listen on unix:$work/vol.img: there is a file" --socket "$work/vol.img" "$uri/vol"
! grep -q "takes over" "$work/first.log" || fail "a successor that could not serve took over"
[ "$(grep -c "looks whether" "$work/first.log")" -eq 8 ] || fail "the successors did not look: $(cat "$work/first.log")"

# Nobody uses the volume that the next one does not offer.
before=$bridge_pid
serve second --stop-timeout 1 "$uri/vol"
wait "$before" || fail "the first bridge ended with $?"
client write b

# --wait: it waits for the server before it takes over, not with the clients in its hands.
start waits nbd-bridge -v --wait --socket "$socket" --handover "$door" vol=tcp://127.0.0.1:1/vol
waits_pid=$pid
wait_for 30 grep -q "connect failed" "$work/waits.log" || fail "it does not wait: $(cat "$work/waits.log")"
client read b
stop "$waits_pid"

# The server goes away after the look: the next one holds the clients until it is back, and can itself be replaced meanwhile.  The
# bridge before is read-only (it has nothing to flush), and waits for the rest of a request while the server goes.
echo end >&9
wait "$client_pid" || fail "the client: $(cat "$work/client.log")"
stop "$bridge_pid"
serve readonly --readonly --stop-timeout 20 "$uri/vol"
cat >"$work/half.py" <<'PY'
import fcntl, socket, struct, sys, termios, time

def answer(cookie, error):
    got = s.recv(16, socket.MSG_WAITALL)
    assert struct.unpack(">IIQ", got) == (0x67446698, error, cookie), got

s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 3) + b"vol")
s.recv(28, socket.MSG_WAITALL)
s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 4096) + bytes(2048))  # A write: it will be refused.
while struct.unpack("i", fcntl.ioctl(s, termios.TIOCOUTQ, b"    "))[0]:
    time.sleep(0.01)
print("half", flush=True)
sys.stdin.readline()
s.sendall(bytes(2048))
answer(1, 1)
print("refused", flush=True)
s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 2, 0, 4096))
answer(2, 0)
assert s.recv(4096, socket.MSG_WAITALL) == b"b" * 4096, "another content"
print("read", flush=True)
PY
mkfifo "$work/rest"
python3 "$work/half.py" "$socket" <"$work/rest" >"$work/half.log" 2>&1 &
half_pid=$!
exec 9>"$work/rest"
wait_for 20 grep -q half "$work/half.log" || fail "the client: $(cat "$work/half.log")"
before=$bridge_pid
start heir nbd-bridge -v --stop-timeout 1 --readonly --socket "$socket" --handover "$door" "$uri/vol"
heir_pid=$pid
wait_for 20 grep -q "took over 1 listening sockets" "$work/heir.log" || fail "it does not take over: $(cat "$work/heir.log")"
kill -KILL "$server_pid"
wait "$server_pid" 2>/dev/null
echo >&9
wait_for 20 grep -q refused "$work/half.log" || fail "the client: $(cat "$work/half.log")"
wait "$before" || fail "the bridge before ended with $?"
wait_for 30 grep -q "it is tried again, and 1 clients wait" "$work/heir.log" || fail "the next bridge does not wait: $(cat "$work/heir.log")"
expect_fail "Connection refused.*; the bridge that runs there goes on" timeout 60 nbd-bridge --readonly --socket "$socket" --handover "$door" "$uri/vol"
# The heir looks for the server where it was, and nothing listens there.
start_server --export "vol=$work/vol.img"
start last nbd-bridge -v --readonly --socket "$socket" --handover "$door" "$uri/vol"
bridge_pid=$pid
wait_for 60 grep -q '^listening on ' "$work/last.log" || fail "the last bridge did not start: $(cat "$work/last.log")"
wait_for 60 grep -q read "$work/half.log" || fail "the client: $(cat "$work/half.log")"
wait "$half_pid" || fail "the client: $(cat "$work/half.log")"
wait "$heir_pid" || fail "the heir ended with $?: $(cat "$work/heir.log")"
stop "$bridge_pid"
stop "$server_pid"
