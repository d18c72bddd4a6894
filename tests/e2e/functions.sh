# SPDX-License-Identifier: Apache-2.0
# The whole framework of the end-to-end tests.  A test sources this file, says what it requires, starts what
# it needs, and exits 0 (passed), 77 (skipped, the reason printed) or anything else (failed).
# shellcheck shell=bash
set -u -o pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${IBNBD_BIN:=$here/../../build/dev/bin}"
[ -x "$IBNBD_BIN/ibnbd-server" ] || { echo "FAIL: no ibnbd-server in IBNBD_BIN=$IBNBD_BIN: build it first" >&2; exit 1; }
# The system's own programs first: a private Python has no nbd module.
export PATH="$IBNBD_BIN:/usr/sbin:/usr/bin:/sbin:/bin:$PATH"
export PYTHONDONTWRITEBYTECODE=1
work=$(mktemp -d "${TMPDIR:-/tmp}/ibnbd-e2e.XXXXXX")
pids=()
cleanups=()

on_exit() {
  local rc=$? i running
  mapfile -t running < <(jobs -p)  # Not pids: what has ended may be somebody else's number by now.
  [ ${#running[@]} -eq 0 ] || kill -KILL "${running[@]}" 2>/dev/null
  # What a kernel keeps, because it waits for a device that nobody serves, must not keep the answer as well.
  for ((i = 0; i < 100; i++)); do [ -n "$(jobs -pr)" ] && sleep 0.05 || break; done
  for ((i = ${#cleanups[@]} - 1; i >= 0; i--)); do eval "${cleanups[i]}"; done
  if [ "$rc" -ne 0 ] && [ "$rc" -ne 77 ]; then
    for log in "$work"/*.log; do
      [ -s "$log" ] && { echo "--- ${log##*/}"; tail -n 40 "$log"; }
    done
  fi
  rm -rf "$work"
  exit "$rc"
}
trap on_exit EXIT
trap 'exit 1' INT TERM

fail() { echo "FAIL: $*" >&2; exit 1; }
skip() { echo "SKIP $*"; exit 77; }
cleanup_fn() { cleanups+=("$*"); }
requires() { # requires program...
  local program
  for program in "$@"; do command -v "$program" >/dev/null || skip "$program is not installed"; done
}

# expect_fail PATTERN command...: the command fails and its output matches the extended regex.
expect_fail() {
  local pattern=$1 out
  shift
  if out=$("$@" 2>&1 </dev/null); then fail "succeeded, but should not have: $*: $out"; fi
  grep -Eq -- "$pattern" <<<"$out" || fail "$*: expected /$pattern/, got: $out"
}

# wait_for SECONDS command...: polls until the command succeeds.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 0.05
  done
}

# start NAME command...: in the background, output in $work/NAME.log, its pid in $pid.
start() {
  local name=$1
  shift
  rm -f "$work/$name.log" # Who waits for a line must not see that of the one before.
  "$@" >"$work/$name.log" 2>&1 </dev/null &
  pid=$!
  pids+=("$pid")
}

# start_server ARGS...: sets $server_pid, $port and $uri ($IBNBD_E2E_LISTEN:PORT).
: "${IBNBD_E2E_LISTEN:=tcp://127.0.0.1}"  # tests/vm runs the same scripts over rdma://.
start_server() {
  local name="server${#pids[@]}"
  start "$name" ibnbd-server --listen "$IBNBD_E2E_LISTEN:${port_wanted:-0}" "$@"
  server_pid=$pid server_log="$work/$name.log"
  wait_for 20 grep -q '^listening on ' "$server_log" || fail "the server did not start: $(cat "$server_log")"
  uri=$(sed -n 's/^listening on //p' "$server_log" | head -n 1)
  port=${uri##*:}
}

# start_bridge ARGS...: an nbd-bridge on a unix socket; sets $bridge_pid, $socket.
start_bridge() {
  local name="bridge${#pids[@]}"
  socket="$work/$name.sock"
  start "$name" nbd-bridge --socket "$socket" "$@"
  bridge_pid=$pid
  # The socket is there earlier, but a bridge that cannot open its volumes takes it away again.
  wait_for 20 grep -q '^listening on ' "$work/$name.log" || fail "the bridge did not start: $(cat "$work/$name.log")"
}

# nbd_uri [EXPORT]: of the bridge started last.
nbd_uri() { echo "nbd+unix:///${1:-}?socket=$socket"; }

# require_fio_engine: sets $engine, to say --ioengine=external:$engine.  Built once per build directory.
require_fio_engine() {
  requires fio flock
  : "${IBNBD_BUILD:=$IBNBD_BIN/..}"
  engine=$IBNBD_BUILD/ibnbd_fio.so
  local build="$here/../bench/fio/build.sh"
  flock "$IBNBD_BUILD/.ibnbd_fio.lock" bash -c '[ "$1" -nt "$2" ] || timeout 150 "$3" "$4"' - \
    "$engine" "$here/../bench/fio/ibnbd_fio_engine.c" "$build" "$IBNBD_BUILD" >"$work/fio-engine.log" 2>&1 ||
    skip "the fio engine cannot be built: $(tail -n 1 "$work/fio-engine.log")"
}

# run_fio NAME args...: fio whose litter stays in $work, output in $work/NAME.log.
run_fio() {
  start_fio "$@"
  wait "$pid"
}
# start_fio NAME args...: the same in the background, its pid in $pid.
start_fio() {
  local name=$1
  shift
  start "$name" env -C "$work" fio --name="$name" --verify_state_save=0 --verify_fatal=1 "$@"
}

alive() { kill -0 "$1" 2>/dev/null; }
# stop PID: SIGTERM, and it must end by itself with exit code 0.
stop() {
  kill -TERM "$1" || fail "process $1 was not there to stop"
  local rc=0
  wait "$1" || rc=$?
  [ "$rc" -eq 0 ] || fail "process $1 ended with code $rc after SIGTERM"
}

# rewrite_through_bridge SIZES: fio on the bridge, until there is $work/enough.  The same blocks again and again: an old write that
# comes late is found.
rewrite_through_bridge() {
  local i
  for ((i = 1;; i++)); do
    env -C "$work" fio --name=verify --verify_state_save=0 --verify_fatal=1 --ioengine=nbd --uri="$(nbd_uri)" --rw=randwrite \
      --norandommap --randseed=$i --bsrange="$1" --bs_unaligned=0 --iodepth=16 --serialize_overlap=1 --size=8M --io_size=32M \
      --fsync=50 --verify=crc32c --do_verify=1 >"$work/verify.log" 2>&1 </dev/null || return 1
    [ ! -e "$work/enough" ] || break
  done
  echo "$i rounds of fio"
}
# has_changed FILE WHEN: it was written to since then, which `stat -c %y` said.
has_changed() { [ "$(stat -c %y "$1")" != "$2" ]; }
