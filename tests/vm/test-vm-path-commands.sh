#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ibnbd-client path and set, on a session whose device is in use: paths come and go under verified IO; what cannot be is refused in
# words; a daemon that was killed goes on with the paths, weights, policy and patience that its predecessor had.
. "$(dirname "$0")/functions.sh"
. "$(dirname "$0")/map-functions.sh"
requires fio jq
modprobe nbd nbds_max=0 && modprobe ublk_drv || fail "no nbd, or no ublk"
export IBNBD_E2E_LISTEN=tcp://0.0.0.0
truncate -s 16M "$work/other.img"
start_server --export "vol=$work/other.img"
stranger=$port
truncate -s 128M "$work/vol.img"
truncate -s 16M "$work/small.img"
start_server --export "vol=$work/vol.img" --export "small=$work/small.img"
server=tcp://127.0.0.1:$port
start_daemon
client() { ibnbd-client "$@" 2>"$work/client.log" || fail "$*: $(cat "$work/client.log")"; }
paths() { client path list --json "$@" | jq -c '[.sessions[].paths[] | {path, weight}]'; }
path_is() { # path_is PATH JQ: of one path.
  [ "$(ibnbd-client path list --json | jq "[.sessions[].paths[] | select(.path == \"$1\")][0] | $2")" = true ]
}
session_is() { # session_is JQ
  [ "$(ibnbd-client show --json "$node" | jq ".session | $1")" = true ] || fail "not $1: $(ibnbd-client show --json "$node")"
}

[ -z "$(client path list)" ] || fail "there are paths"
expect_fail '^ibnbd-client: session hostA: there is none, because nothing is mapped$' ibnbd-client path add hostA 127.0.0.2
map "$server/vol" --as ublk --dead-after 5s
name=$(client show --json "$node" | jq -r .session.name)
session_is '.dead_after_ms == 5000 and .policy == "adaptive" and (.paths | length) == 1'
[ "$(client path list --json | jq -c '[.sessions[] | {name, server, devices}]')" = "[{\"name\":\"$name\",\"server\":\"$server\",\"devices\":[\"$node\"]}]" ] ||
  fail "the session: $(client path list --json)"

# By a device, the server, and the name; up when the command returns.
client path add "$node" "127.0.0.2:$port"
client path add "$server" 127.0.0.3
client path add "$name" "127.0.0.9@127.0.0.1:$port" --weight 50
for path in 127.0.0.1 127.0.0.2 127.0.0.3 127.0.0.9@127.0.0.1; do
  path_is "$path:$port" '.state == "up"' || fail "$path is not up: $(ibnbd-client path list)"
done
client path list
client show "$name" | grep -q "127.0.0.9@127.0.0.1:$port *up *50" || fail "show: $(ibnbd-client show "$name")"

before=$(paths)
expect_fail "^ibnbd-client: add path 127.0.0.2 to session $name: path 127.0.0.2:$port is there already: its number is 1$" \
  ibnbd-client path add "$name" 127.0.0.2
expect_fail "^ibnbd-client: add path 127.0.0.4:$stranger to session $name: .*not the server that the session is with" \
  ibnbd-client path add "$name" "127.0.0.4:$stranger"
expect_fail "add path 127.0.0.4:1 .*Connection refused" ibnbd-client path add "$name" 127.0.0.4:1
expect_fail 'SRC@' ibnbd-client path add "$name" '@1'
expect_fail "session nobody: neither a session nor a device; there is $name" ibnbd-client path remove nobody 127.0.0.2
expect_fail "has no path 127.0.0.77; it has .*127.0.0.3" ibnbd-client path remove "$name" 127.0.0.77
expect_fail 'has no path 17;' ibnbd-client path weight "$name" 17 100
expect_fail '1001' ibnbd-client path weight "$name" 127.0.0.2 1001
expect_fail 'path policy best' ibnbd-client set --path-policy best "$node"
expect_fail 'dead-after 500ms: say a time from 1s' ibnbd-client set --dead-after 500ms "$node"
expect_fail 'not mapped' ibnbd-client set --on-loss hold "$name"
[ "$(paths)" = "$before" ] || fail "a refusal left something: $(paths), it was $before"

# Live, under IO that is verified: the first path goes, another one is for emergencies.
[ "$(client set --policy round-robin --dead-after 7s "$name")" = "$name" ] || fail "set does not say what it set"
session_is '.policy == "round-robin" and .dead_after_ms == 7000'
start_fio live --filename="$node" --ioengine=libaio --direct=1 --rw=randwrite --bsrange=4k-64k --iodepth=16 --size=100M \
  --io_size=2G --time_based --runtime=10 --rate=30m --verify=crc32c --verify_backlog=128
fio_pid=$pid
client path weight "$name" "127.0.0.2:$port" 0
wait_for 20 path_is "127.0.0.3:$port" '.writes > 100' || fail "127.0.0.3 is not used: $(ibnbd-client path list)"
client path remove "$node" 127.0.0.1
client path remove "$node" "127.0.0.9@127.0.0.1:$port"
client path add "$node" 127.0.0.5:1 --no-wait --weight 7
wait_for 20 path_is 127.0.0.5:1 '.last_error != ""' || fail "a path that leads nowhere does not say so"
client path remove "$node" 127.0.0.2
expect_fail 'no other one is up: .*--force' ibnbd-client path remove "$name" 127.0.0.3
client path add "$node" 127.0.0.2 --weight 0
client path remove "$node" "$(client path list --json | jq '.sessions[0].paths[] | select(.path == "127.0.0.5:1") | .id')"
map "$server/small" --as nbd --path 127.0.0.6
small=$node
node=$(client list --json | jq -r ".devices[] | select(.uri == \"$server/vol\") | .device")

# The next daemon.
before=$(paths)
[ "$before" = "[{\"path\":\"127.0.0.3:$port\",\"weight\":100},{\"path\":\"127.0.0.2:$port\",\"weight\":0},{\"path\":\"127.0.0.6:$port\",\"weight\":100}]" ] ||
  fail "paths: $before"
wait "$fio_pid" || fail "fio: $(tail -n 20 "$work/live.log")"
writes=$(client path list --json | jq ".sessions[0].paths[] | select(.path == \"127.0.0.3:$port\") | .writes")
start_fio restart --filename="$node" --ioengine=libaio --direct=1 --rw=randwrite --bsrange=4k-64k --iodepth=16 --size=100M \
  --io_size=24M --rate=3m --verify=crc32c --do_verify=1
fio_pid=$pid
wait_for 20 path_is "127.0.0.3:$port" ".writes > $writes" || fail "no IO before the restart: $(ibnbd-client path list)"
alive "$fio_pid" || fail "fio ended before the restart"
kill -KILL "$daemon_pid"
wait "$daemon_pid" 2>/dev/null
# Of one path the name cannot be looked up, and a record of a session cannot be read: the others are what counts.
state=/run/ibnbd/devices.json
jq '.sessions[0].paths |= [.[0], {"path": "gone.invalid", "weight": 50}] + .[1:] | .sessions += [{"server": "tcp://h", "paths": []}]' \
  "$state" >"$work/state" && cat "$work/state" >"$state"
start_daemon
served() { [ "$(ibnbd-client list --json | jq '[.devices[] | select(.state == "open")] | length')" = 2 ]; }
wait_for 30 served || fail "not taken over: $(ibnbd-client list)"
[ "$(paths | jq -c 'map(select(.weight != 50))')" = "$before" ] || fail "the next daemon has the paths $(paths), they were $before"
session_is '.policy == "round-robin" and .dead_after_ms == 7000'
path_is "gone.invalid:$port" '.weight == 50 and .state != "up" and (.last_error | test("resolve gone.invalid: "))' ||
  fail "the name that is gone: $(ibnbd-client path list)"
grep -q 'settings of a session are lost' "$work/daemon.log" || fail "nothing is said about the session that cannot be read"
wait_for 20 path_is "127.0.0.6:$port" '.state == "up"' || fail "a path is not up: $(ibnbd-client path list)"
wait "$fio_pid" || fail "fio over a restart: $(tail -n 20 "$work/restart.log")"
grep -E 'WRITE:|READ:' "$work/live.log" "$work/restart.log"

# The name is there again: its path comes up by itself, and is called by its address then.
client path list | grep -q "gone.invalid:$port *\(pausing\|connecting\) *50 .*resolve gone.invalid: " || fail "the name that is gone: $(client path list)"
echo "127.0.0.7 gone.invalid" >>/etc/hosts
wait_for 20 path_is "127.0.0.7:$port" '.weight == 50 and .state == "up"' || fail "the name that is there again: $(client path list)"
expect_fail "path 127.0.0.7:$port is there already" ibnbd-client path add "$name" gone.invalid
client path remove "$name" gone.invalid
[ "$(paths)" = "$before" ] || fail "the paths are $(paths), they were $before"
# A name that nobody knows is added only if that is meant.
expect_fail 'resolve none.invalid: ' ibnbd-client path add "$name" none.invalid
[ "$(paths)" = "$before" ] || fail "a path that was refused is there: $(paths)"
client path add "$name" none.invalid --no-wait
path_is "none.invalid:$port" 'true' || fail "not added: $(client path list)"
client path weight "$name" none.invalid 3
expect_fail 'is there already' ibnbd-client path add "$name" none.invalid --no-wait
client path remove "$name" none.invalid

# A map that fails leaves the session as it was, also for the next daemon.
told() { ibnbd-client path list --json | jq -c '.sessions[0] | [.policy, .dead_after_ms, [.paths[] | {path, weight}]]' && jq -c .sessions "$state"; }
before_map=$(told)
expect_fail "map $server/none: " ibnbd-client map "$server/none" --as ublk --path 127.0.0.8 --path 127.0.0.6 --path-policy min-latency --dead-after 9s
[ "$(told)" = "$before_map" ] || fail "a map that failed left $(told), it was $before_map"
expect_fail 'its port is 0' ibnbd-client map "$server/none" --as ublk --path 127.0.0.8 --path 127.0.0.4:0
[ "$(told)" = "$before_map" ] || fail "a path that cannot be left $(told), it was $before_map"
expect_fail 'more are not possible' ibnbd-client map "$server/none" --as ublk --path 127.0.0.10 --path 127.0.0.11 --path 127.0.0.12 \
  --path 127.0.0.13 --path 127.0.0.14 --path 127.0.0.15
[ "$(told)" = "$before_map" ] || fail "too many paths left $(told), it was $before_map"

# A session that is told what it has keeps it as long as a volume wants it.
client unmap "$small"
client remap "$node" >"$work/remap.log"
[ "$(paths)" = "$before" ] || fail "after remap the paths are $(paths), they were $before"
client path remove "$name" 127.0.0.6
client path remove "$name" 127.0.0.2
expect_fail "remove path 0 of session $name: it is the last one" ibnbd-client path remove "$name" 0
unmap "$node"
[ -z "$(client path list)" ] || fail "a session is left: $(client path list)"
expect_fail "map $server/none: " ibnbd-client map "$server/none" --as ublk --path 127.0.0.8 --path-policy round-robin --dead-after 9s
[ -z "$(client path list)" ] || fail "a session is left of a map that failed: $(client path list)"
map "$server/vol" --as ublk
[ "$(paths)" = "[{\"path\":\"127.0.0.1:$port\",\"weight\":100}]" ] || fail "it begins with $(paths)"
session_is '.policy == "adaptive" and .dead_after_ms == 10000'
unmap "$node"

# A volume is mapped over what can be reached: of the first path nobody knows the name, and nobody listens at the second; two
# names of one address are one path.
map "tcp://none.invalid:$port/vol" --as ublk --path 127.0.0.2:1 --path 127.0.0.3 --path gone.invalid --path 127.0.0.7
[ "$(paths | jq -c 'map(.path)')" = "[\"none.invalid:$port\",\"127.0.0.2:1\",\"127.0.0.3:$port\",\"127.0.0.7:$port\"]" ] || fail "the paths are $(paths)"
for path in "none.invalid:$port" 127.0.0.2:1; do
  wait_for 20 path_is "$path" '.state != "up" and .last_error != ""' || fail "$path: $(ibnbd-client path list)"
done
for path in 127.0.0.3 127.0.0.7; do
  wait_for 20 path_is "$path:$port" '.state == "up"' || fail "$path: $(ibnbd-client path list)"
done
client path list
unmap "$node"
expect_fail 'map tcp://none.invalid:.*resolve none.invalid: ' ibnbd-client map "tcp://none.invalid:$port/vol" --as ublk
! stuck_tasks || fail "tasks are stuck"
stop "$daemon_pid"
stop "$server_pid"
