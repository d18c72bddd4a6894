#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Soft-RoCE from nothing: `ibnbd-client softroce add` loads the modules and makes a device that carries a session;
# every set-up that cannot work is refused in one line.  Before, between and after, `ibnbd-client doctor` is asked.
. "$(dirname "$0")/functions.sh"
requires setpriv python3
[ ! -e /sys/module/rdma_rxe ] || fail "this kernel has Soft-RoCE loaded: the test could not see it happen"
# doctor_says RESULT CHECK FIX-PATTERN command...: the table of `doctor` has that line, and that fix below it.
doctor_says() {
  local result=$1 check=$2 fix=$3 out rc=0
  shift 3
  out=$("$@" 2>&1 </dev/null) || rc=$?
  grep -A 1 -E "^$result +$check( |\$)" <<<"$out" | grep -Eq -- "$fix" || fail "$*: expected $result for $check, /$fix/, got: $out"
  [ "$result" != problem ] || { [ $rc = 1 ] && grep -Eq '^ibnbd-client: doctor: [0-9]+ problem' <<<"$out"; } || fail "$*: exit code $rc: $out"
}
nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }

[ "$(ibnbd-client softroce show)" = "no RDMA device; to add a soft one: ibnbd-client softroce add" ] || fail "show sees a device"
doctor_says warning rdma 'fix: sudo ibnbd-client softroce add' ibnbd-client doctor
ibnbd-client doctor >"$work/before.log" || fail "a machine without RDMA is a problem"
doctor_says problem rdma 'fix: sudo ibnbd-client softroce add' ibnbd-client doctor rdma://10.77.0.1
modprobe dummy numdummies=0
ip link add rdma0 type dummy
ip link set rdma0 mtu 9000
ip addr add 10.77.0.1/24 dev rdma0
ip -6 addr add fd77::1/64 dev rdma0 nodad

echo "--- what cannot work"
expect_fail '^ibnbd-client: softroce add: there is no default route' ibnbd-client softroce add
expect_fail 'softroce add: eth77: no such network device$' ibnbd-client softroce add eth77
expect_fail 'no such network device$' ibnbd-client softroce add ../class
expect_fail 'rxe_lo on lo: lo is the loopback device, .*connection manager' ibnbd-client softroce add lo
expect_fail 'rdma0 is down: ip link set rdma0 up$' ibnbd-client softroce add rdma0
ip link set rdma0 up
expect_fail 'only root may' nobody "$IBNBD_BIN/ibnbd-client" softroce add rdma0
expect_fail 'a name has 1 to 63' ibnbd-client softroce add rdma0 --name a%d
expect_fail 'no Soft-RoCE device' ibnbd-client softroce remove rdma0
mkdir "$work/empty" && mount --bind "$work/empty" /lib/modules || fail "cannot hide the modules"
expect_fail 'kernel [^ ]+ has no module ib_uverbs \(modprobe ib_uverbs: FATAL: .*not found' ibnbd-client softroce add rdma0
doctor_says warning 'module rdma_rxe' 'fix: apt-get install' ibnbd-client doctor
umount /lib/modules
[ ! -e /sys/module/rdma_rxe ] || fail "a refused command loaded rdma_rxe"

echo "--- the default route's device"
ip route add default via 10.77.0.2 dev rdma0
out=$(ibnbd-client softroce add) || fail "softroce add"
echo "$out"
grep -Eq '^rxe_rdma0 on rdma0 \(the default route.s\): ACTIVE, .*10\.77\.0\.1' <<<"$out" || fail "add says something else"
ip route del default
for module in ib_uverbs rdma_ucm rdma_rxe; do [ -d "/sys/module/$module" ] || fail "$module is not loaded"; done

echo "--- twice, and beside it"
expect_fail 'rdma0 has one already: rxe_rdma0' ibnbd-client softroce add rdma0
expect_fail 'rdma0 has one already: rxe_rdma0' ibnbd-client softroce add rdma0 --name other
ip link add rdma1 type dummy
ip link set rdma1 up
expect_fail 'an RDMA device of that name exists, on rdma0' ibnbd-client softroce add rdma1 --name rxe_rdma0
out=$(ibnbd-client softroce add rdma1 --name second) || fail "softroce add --name"
echo "$out"
grep -q 'rdma1 has no IP address' <<<"$out" || fail "add says nothing of the address that is missing"
ibnbd-client softroce remove second || fail "softroce remove, by name"
ip link add link rdma1 name rdma1.7 type vlan id 7 2>/dev/null && { # Without the module 8021q there is none.
  echo "on a VLAN"
  ip link set rdma1.7 up
  expect_fail 'rdma1.7 is a VLAN' ibnbd-client softroce add rdma1.7
}

echo "--- show"
ibnbd-client softroce show || fail "softroce show"
nobody "$IBNBD_BIN/ibnbd-client" softroce show --json >"$work/show.json" || fail "an ordinary user cannot look"
python3 - "$work/show.json" <<'END' || fail "show --json: $(cat "$work/show.json")"
import json, sys
links = json.load(open(sys.argv[1]))["links"]
assert len(links) == 1, links
assert (links[0]["device"], links[0]["netdev"], links[0]["state"], links[0]["soft"]) == ("rxe_rdma0", "rdma0", "ACTIVE", True)
assert {"10.77.0.1", "fd77::1"} <= {gid["address"] for gid in links[0]["gids"] if gid["type"] == "RoCE v2"}, links
END
expect_fail 'softroce show: rdma7: no RDMA device' ibnbd-client softroce show rdma7

echo "--- a session over it"
truncate -s 16M "$work/vol.img"
IBNBD_E2E_LISTEN=rdma://10.77.0.1
start_server --export "vol=$work/vol.img"
ibnbd-client ping --timeout 20 -c 1 "$uri" || fail "no session over rxe_rdma0"
ibnbd-client list --timeout 20 "$uri" | grep -q '^vol' || fail "list over rxe_rdma0"
(ulimit -l 1024 && expect_fail 'not allowed to lock so much memory.*ulimit -l' nobody "$IBNBD_BIN/ibnbd-client" ping "$uri") || exit 1

echo "--- the doctor"
ibnbd-client doctor --timeout 20 "$uri/vol" || fail "the doctor finds something wrong"
doctor_says ok 'port rxe_rdma0/1' 'ACTIVE, on rdma0' ibnbd-client doctor
doctor_says ok 'address rxe_rdma0/1' '10\.77\.0\.1' ibnbd-client doctor
doctor_says ok 'mtu rxe_rdma0/1' '4096; rdma0 has 9000' ibnbd-client doctor
doctor_says ok 'route 10.77.0.1' 'from 10.77.0.1, by rxe_rdma0/1' ibnbd-client doctor --timeout 20 "$uri"
ibnbd-client doctor --json --timeout 20 "$uri/vol" >"$work/doctor.json" || fail "doctor --json"
python3 - "$work/doctor.json" <<'END' || fail "doctor --json: $(cat "$work/doctor.json")"
import json, sys
answer = json.load(open(sys.argv[1]))
assert answer["ok"] and answer["problems"] == 0, answer
results = {check["check"]: check["result"] for check in answer["checks"]}
for check in "io_uring", "rdma", "rdma_cm", "uverbs", "driver", "port", "address", "mtu", "name", "route", "session":
    assert results[check] == "ok", check
END
expect_fail 'unknown scheme' ibnbd-client doctor udp://10.77.0.1
(ulimit -l 1024 && doctor_says problem memlock 'fix: ulimit -l' nobody "$IBNBD_BIN/ibnbd-client" doctor) || exit 1
doctor_says problem 'route 127.0.0.1' 'use an address of an RDMA device: 10.77.0.1' ibnbd-client doctor rdma://127.0.0.1
doctor_says problem "session $uri/nothing" 'fix: ibnbd-client list' ibnbd-client doctor --timeout 20 "$uri/nothing"
chmod 0600 /dev/infiniband/uverbs0
doctor_says problem 'uverbs rxe_rdma0' 'fix: sudo chmod 0666' nobody "$IBNBD_BIN/ibnbd-client" doctor
chmod 0666 /dev/infiniband/uverbs0
echo 2 >/proc/sys/kernel/io_uring_disabled
doctor_says problem io_uring 'fix: sysctl kernel.io_uring_disabled=0' ibnbd-client doctor
echo 0 >/proc/sys/kernel/io_uring_disabled
doctor_says warning nbd 'fix: modprobe nbd' ibnbd-client doctor
modprobe -a nbd ublk_drv
for check in nbd ublk; do doctor_says ok $check loaded ibnbd-client doctor; done

doctor_says problem 'session rdma://10.77.0.9' 'fix: ping 10.77.0.9; .*UDP port 4791' ibnbd-client doctor --timeout 2 rdma://10.77.0.9

echo "--- remove"
expect_fail "rxe_rdma0 is in use by ibnbd-server \(pid $server_pid\), which must end first" ibnbd-client softroce remove rdma0
kill -TERM "$server_pid" && wait "$server_pid" || fail "the server did not end well"
doctor_says problem "session $uri" "fix: on the server: ibnbd-server --listen $uri" ibnbd-client doctor --timeout 20 "$uri"
ip link set rdma0 down
doctor_says problem 'port rxe_rdma0/1' 'fix: ip link set rdma0 up' ibnbd-client doctor
ip link set rdma0 up
expect_fail 'only root may' nobody "$IBNBD_BIN/ibnbd-client" softroce remove rdma0
ip addr add 10.79.0.1/24 dev rdma1
doctor_says problem 'route 10.79.0.9' 'fix: sudo ibnbd-client softroce add rdma1' ibnbd-client doctor rdma://10.79.0.9
ibnbd-client softroce remove rdma0 || fail "softroce remove, by network device"
[ ! -e /sys/class/infiniband/rxe_rdma0 ] || fail "the device is still there"
expect_fail 'softroce remove: rxe_rdma0: no Soft-RoCE device' ibnbd-client softroce remove rxe_rdma0
