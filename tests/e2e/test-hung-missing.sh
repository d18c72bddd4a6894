#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A file system that hangs where the server opens an export: when it tries a missing one again, at a reload, at a start with
# clients waiting.  The watchdog is fed, the other exports are served, and this one is when its file system answers.
[ -n "${IBNBD_IN_NAMESPACE:-}" ] || IBNBD_IN_NAMESPACE=1 exec unshare -rm "$0" "$@"
. "$(dirname "$0")/functions.sh"
requires nbdsh python3
[ -w /dev/fuse ] || skip "no /dev/fuse"

mkdir "$work/place"
start fs python3 "$here/hung_fs.py" "$work/place" "$work/hang" 1048576
fs_pid=$pid
wait_for 20 grep -q mount "$work/fs.log" || fail "no file system: $(cat "$work/fs.log")"
grep -q mounted "$work/fs.log" || skip "FUSE cannot be mounted here: $(cat "$work/fs.log")"
cleanup_fn umount -l "$work/place"
truncate -s 1M "$work/good.img" "$work/more.img"
exports() { # exports NAME=PATH...: the configuration file; the address is the manager's socket.
  local item
  echo "threads = 1"
  for item; do printf '[export.%s]\npath = "%s"\nread_only = true\n' "${item%%=*}" "${item#*=}"; done
}
good="good=$work/good.img" late="late=$work/late.img"

# What a service manager does: hands over a socket, notes what it is told; the server is killed if it does not feed the watchdog.
cat >"$work/manager.py" <<'PY'
import os, signal, socket, sys

work = sys.argv[1]
listening = socket.create_server(("127.0.0.1", 0))
address = "tcp://127.0.0.1:%d" % listening.getsockname()[1]
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(work + "/notify")
manager.settimeout(10)
environment = dict(os.environ, NOTIFY_SOCKET=work + "/notify", WATCHDOG_USEC="1000000", LISTEN_FDS="1")
environment.pop("WATCHDOG_PID", None)

def become_server():
    os.dup2(listening.fileno(), 3)
    os.set_inheritable(3, True)
    os.execvpe("ibnbd-server", ["ibnbd-server", "--config", work + "/server.toml", "--listen", address],
               dict(environment, LISTEN_PID=str(os.getpid())))

server = os.fork()
if server == 0:
    become_server()
print("server", server, address, flush=True)
try:
    while True:
        for line in manager.recv(4096).decode().split("\n"):
            print(line, flush=True)
            if line == "STOPPING=1":
                print("exit code", os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]), flush=True)
                sys.exit(0)
except socket.timeout:
    print("the watchdog was not fed", flush=True)
    os.kill(server, signal.SIGKILL)
PY
# start_managed NAME: sets $manager_log, $server_pid, $uri.  What the server says is in the same log.
start_managed() {
  rm -f "$work/notify"
  start "$1" python3 "$work/manager.py" "$work"
  manager_pid=$pid manager_log="$work/$1.log"
  cleanup_fn "kill -KILL \$(sed -n 's/^server \([0-9]*\) .*/\1/p' '$manager_log') 2>/dev/null"
  wait_for 20 grep -q '^READY=1' "$manager_log" || fail "$1 is not ready: $(cat "$manager_log")"
  read -r server_pid uri < <(sed -n 's/^server //p' "$manager_log")
}
rename() { python3 -c "import os; os.rename('$work/$1', '$work/$2')"; } # ln and mv look at what hangs.
says() { wait_for 30 grep -q -- "$1" "$manager_log" || fail "nobody says \"$1\""; }
count() { grep -c -- "$1" "$manager_log"; }
more_than() { [ "$(count "$1")" -gt "$2" ]; }
all_many() { [ "$(count "export n[0-9]*: file")" -ge 300 ]; }
# fed WHEN: three times from now on.
fed() { wait_for 30 more_than '^WATCHDOG=1' $(($(count '^WATCHDOG=1') + 2)) || fail "$1: the watchdog is not fed"; }
# served NAME WHEN: a client opens and reads it.
served() {
  start_bridge "$uri/$1"
  timeout 20 nbdsh -u "$(nbd_uri)" -c "h.pread(4096, 0)" || fail "$2: $1 is not served"
  stop "$bridge_pid"
}
stop_managed() {
  kill -TERM "$server_pid"
  wait "$manager_pid"
  grep -q '^exit code 0' "$manager_log" || fail "the server was not stopped in order: $(tail -n 3 "$manager_log")"
}

# One that is missing is tried again, and now its place does not answer.
exports "$good" "$late" >"$work/server.toml"
ln -s "$work/nowhere" "$work/late.img"
ln -s "$work/place/vol.img" "$work/late.new"
ln -s "$work/place/vol.img" "$work/server.new"
start_managed retries
says "export late: .*No such file.*tried again"
: >"$work/hang"
rename late.new late.img
says "export late: .*does not answer"
fed "a missing export hangs"
served good "a missing export hangs"

# A reload that wants another one there does the rest, and those that are new elsewhere.
exports "$good" "$late" "slow=$work/place/vol.img" "more=$work/more.img" >"$work/server.toml"
kill -HUP "$server_pid"
says "export slow: .*does not answer"
says "reload: done"
fed "after a reload"
served more "after a reload"
# One that is not wanted any more is forgotten, whatever becomes of it.
exports "$good" "$late" "more=$work/more.img" >"$work/server.toml"
kill -HUP "$server_pid"
wait_for 30 more_than "reload: done" 1 || fail "no second reload"
rm "$work/hang"
says "export late: file $work/late.img"
served late "the file system answers"
! grep -q "export slow: file" "$manager_log" || fail "an export is served that was taken away"
stop_managed

# A start, with clients waiting.  Signals that we have a use for are not left to whoever hangs.
exports "$late" "$good" >"$work/server.toml"
: >"$work/hang"
start_managed starts
says "export late: .*does not answer"
served good "started beside a file system that hangs"
kill -HUP "$server_pid"
says "reload: done"
fed "started beside a file system that hangs"
rm "$work/hang"
says "export late: file $work/late.img"
served late "the file system answers after the start"

# A lock that is not answered is in nobody else's way.
exports "$late" "$good" "first=$work/place/vol.img" "more=$work/more.img" >"$work/server.toml"
echo locks >"$work/hang"
reloads=$(count "reload: done")
kill -HUP "$server_pid"
wait_for 30 more_than "reload: done" "$reloads" || fail "no reload while a lock hangs"
served more "a lock hangs"
rm "$work/hang"
says "export first: file"
served first "the lock is answered"

# One that is to be another one, which fails, is back when its file system answers, though it does not at once.
exports "$late" "$good" "first=$work/nowhere" "more=$work/more.img" >"$work/server.toml"
: >"$work/hang"
firsts=$(count "export first: file") reloads=$(count "reload: done") late_ones=$(count "reload: export first: .*does not answer")
kill -HUP "$server_pid"
wait_for 30 more_than "reload: done" "$reloads" || fail "no reload while what is restored hangs"
says "reload: export first: .*No such file"
more_than "reload: export first: .*does not answer" "$late_ones" || fail "what is restored does not hang"
rm "$work/hang"
wait_for 30 more_than "export first: file" "$firsts" || fail "an export that was healthy before a reload is lost"
served first "the restored export's file system answers"

# Hundreds that hang, at a reload and when they are tried again.
mapfile -t many < <(seq -f "n%.0f=$work/place/vol.img" 300)
exports "$good" "${many[@]}" >"$work/server.toml"
: >"$work/hang"
reloads=$(count "reload: done")
kill -HUP "$server_pid"
wait_for 30 more_than "reload: done" "$reloads" || fail "no reload with hundreds that hang"
fed "hundreds hang"
served good "hundreds hang"
rm "$work/hang"
wait_for 60 all_many || fail "of hundreds that hung not all are served: $(count "export n[0-9]*: file")"
served n300 "the file system of hundreds answers"

# A successor does not take over what it cannot look at.  (The kernel lets it end when its question is answered.)
: >"$work/hang"
start successor ibnbd-server --handover "$work/door" --export "$late,ro" --listen "$uri"
successor_pid=$pid
wait_for 30 grep -q "^ibnbd-server: export late: .*does not answer" "$work/successor.log" || fail "the successor does not say what it waits for"
# Nor does a configuration that cannot be read stop the rest.
rename server.new server.toml
kill -HUP "$server_pid"
says "reload: .*server.toml.*does not answer.*; nothing was changed"
fed "the configuration hangs"
served good "the configuration hangs"
alive "$fs_pid" || fail "the file system has ended"
rm "$work/hang"
wait "$successor_pid"
[ $? -eq 1 ] || fail "the successor took over"
stop_managed
