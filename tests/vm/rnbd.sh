# SPDX-License-Identifier: Apache-2.0
# For tests with the kernel's own RNBD as the peer: builds its modules on the host first, then everything of
# functions.sh, and in the guest the client's and the server's sysfs as functions.  RNBD_TEST_NEEDS=fio-engine has that
# built on the host, too.
# shellcheck shell=bash
if [ "${IBNBD_IN_GUEST:-}" != 1 ]; then
  if ! modules=$("$(dirname "${BASH_SOURCE[0]}")/../../ci/vm/build-rnbd"); then
    echo "$modules"
    case $modules in SKIP*) exit 77 ;; *) exit 1 ;; esac
  fi
  if [ "${RNBD_TEST_NEEDS:-}" = fio-engine ]; then  # A failure is seen in the guest, as a skip.
    "$(dirname "${BASH_SOURCE[0]}")/../bench/fio/build.sh" "${IBNBD_BUILD:-$IBNBD_BIN/..}" >/dev/null 2>&1 || true
  fi
fi
. "$(dirname "${BASH_SOURCE[0]}")/functions.sh"
[ -x "$IBNBD_BIN/verbs_conformance_test" ] || skip "this build has no verbs fabric"

rnbd_ctl=/sys/class/rnbd-client/ctl rtrs_clients=/sys/class/rtrs-client

# map SESSION OPTION...: the kernel's client maps a device; sets $disk (rnbd0).  Fails as the kernel does.
map() {
  local session=$1 option name
  shift
  echo "sessname=$session $*" >"$rnbd_ctl/map_device" || return 1
  for option in "$@"; do [[ $option != device_path=* ]] || name=${option#*=}; done
  disk=$(basename "$(readlink "$rnbd_ctl/devices/${name//\//!}@$session")")
  [ -b "/dev/$disk" ]
}
# expect_map ERROR SESSION OPTION...: mapping fails with this text of an errno.
expect_map() {
  local error=$1 out
  shift
  if out=$(map "$@" 2>&1); then fail "mapped, but should not have been: $*"; fi
  grep -q -- "$error" <<<"$out" || fail "map $*: expected '$error', got: $out"
}
unmap() { echo "${2:-normal}" >"/sys/block/$1/rnbd/unmap_device"; }
state_is() { [ "$(cat "/sys/block/$1/rnbd/state" 2>/dev/null)" = "$2" ]; }
path_state_is() { # path_state_is SESSION STATE: of the only path.
  [ "$(cat "$rtrs_clients/$1/paths/"*/state 2>/dev/null)" = "$2" ]
}
paths_of() { find "$rtrs_clients/$1/paths" -mindepth 1 -maxdepth 1 -type d; }
no_session() { [ ! -e "$rtrs_clients/$1" ]; }
queue_is() { # queue_is DISK ATTRIBUTE VALUE
  local value
  value=$(cat "/sys/block/$1/queue/$2")
  [ "$value" = "$3" ] || fail "/sys/block/$1/queue/$2 is $value, not $3"
}

# server_stat NAME, session_line SESSION: what our server's statistics say now.
server_stat() { fresh_stats | grep ' stats rdma ' | grep -o " $1 [0-9]*" | cut -d' ' -f3; }
session_line() { fresh_stats | grep " stats session $1 "; }
fresh_stats() {
  local size
  size=$(stat -c %s "$server_log")
  kill -USR1 "$server_pid"
  wait_for 10 stats_after "$size" || fail "the server does not log its statistics"
  sleep 0.2  # The sessions follow in the same breath.
  tail -c +$((size + 1)) "$server_log"
}
stats_after() { tail -c +$(($1 + 1)) "$server_log" | grep -q ' stats rdma reads '; }
server_stat_is() { [ "$(server_stat "$1")" = "$2" ]; }

# kernel_server INVALIDATE [PARAMETER...]: the kernel's server, with rtrs-server's parameters.
kernel_server() {
  modprobe rtrs-server "always_invalidate=$1" "${@:2}" && modprobe rnbd-server
}
stop_kernel_server() { modprobe -r rnbd-server && modprobe -r rtrs-server; }
rnbd_served=/sys/class/rnbd-server/ctl/devices
# sessions_on DEVICE: how many sessions have it open at the kernel's server.
sessions_on() { find "$rnbd_served/$1/sessions" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l; }

# The kernel has not complained of what we sent it: called at the end of every test.  An oops ends the guest by itself.
kernel_is_well() {
  local lines
  lines=$(dmesg | grep -E 'WARNING: CPU|BUG: |Call Trace|general protection|hung_task|blocked for more') || true
  [ -z "$lines" ] || { dmesg | tail -n 80 >&2; fail "the kernel complained: $lines"; }
  ! stuck_tasks || fail "tasks are stuck"
}
