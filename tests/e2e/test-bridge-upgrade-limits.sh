#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# nbd-bridge hands over more than is usual: more listening sockets than one message carries, more clients than its own limit
# on descriptors would let it have, and then to a successor that may not have so many: only clients for whom there is none
# are closed, the log says so, and the others go on.
. "$(dirname "$0")/functions.sh"
requires python3 prlimit

truncate -s 16M "$work/vol.img"
start_server --export "vol=$work/vol.img"
many=()
for ((i = 0; i < 70; i++)); do many+=(--socket "$work/$i.sock"); done
socket="$work/69.sock"
serve() { # NAME LIMITS
  start "$1" prlimit --nofile="$2" nbd-bridge "${many[@]}" --handover "$work/door" "$uri/vol"
  bridge_pid=$pid
  wait_for 30 grep -q '^listening on .*/69\.sock' "$work/$1.log" || fail "the bridge did not start: $(cat "$work/$1.log")"
}
cat >"$work/clients.py" <<'PY'
import os, socket, struct, sys, time

path, work, count = sys.argv[1], sys.argv[2], 250

def receive(s, size):
    data = b""
    while len(data) < size:
        piece = s.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data

def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(path)
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

clients = [connect() for _ in range(count)]
for step in ("first", "second", "third"):
    left = [s for s in clients if served(s)]
    print(step, len(left), flush=True)
    while not os.path.exists(work + "/after." + step):
        time.sleep(0.02)
assert served(connect()), "a new client"
print("new", flush=True)
PY
serve bridge0 100:20000
start clients python3 "$work/clients.py" "$socket" "$work"
clients_pid=$pid
said() { sed -n "s/^$1 //p" "$work/clients.log"; }
wait_for 60 grep -q '^first' "$work/clients.log" || fail "the clients: $(cat "$work/clients.log")"
[ "$(said first)" = 250 ] || fail "not all clients are served: $(said first)"

files() { stat -c '%i %z' "$work"/*.sock; }
before=$(files)
before_pid=$bridge_pid
serve bridge1 100:20000
wait "$before_pid" || fail "the first bridge ended with $?"
[ "$(files)" = "$before" ] || fail "a listening socket was not handed over"
: >"$work/after.first"
wait_for 60 grep -q '^second' "$work/clients.log" || fail "the clients: $(cat "$work/clients.log")"
[ "$(said second)" = 250 ] || fail "the second bridge serves only $(said second)"

before_pid=$bridge_pid
serve bridge2 300:300
wait "$before_pid" || fail "the second bridge ended with $?"
: >"$work/after.second"
wait_for 60 grep -q '^third' "$work/clients.log" || fail "the clients: $(cat "$work/clients.log")"
left=$(said third)
closed=$(grep -c 'connection .*300 open files are allowed' "$work/bridge2.log")
echo "of 250 clients $left go on below a limit of 300 descriptors"
[ "$left" -ge 100 ] && [ "$((left + closed))" -eq 250 ] || fail "$left clients are served, $closed are said to be closed: $(cat "$work/bridge2.log")"
: >"$work/after.third"
wait "$clients_pid" || fail "the clients: $(cat "$work/clients.log")"
stop "$bridge_pid"
stop "$server_pid"
