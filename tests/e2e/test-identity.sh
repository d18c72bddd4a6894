#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A volume is known by its id and size, not by its name: another file under the same name, a restored backup, also in the
# same file, a smaller file are never written to.  The client holds its IO, says why, and goes on when the right one is back.  A file that is
# replaced under the running server is noticed, refused to whoever comes, and exchanged by a reload when nobody has it.
. "$(dirname "$0")/functions.sh"
requires qemu-io nbdinfo

size=$((8 << 20))
truncate -s $size "$work/vol.img"
cat >"$work/server.toml" <<CONFIG
[export.vol]
path = "$work/vol.img"
CONFIG
start_server --config "$work/server.toml"
port_wanted=$port
start_bridge "$uri/vol"
bridge_log="$work/bridge1.log"
[ -e "$bridge_log" ] || bridge_log=$(ls "$work"/bridge*.log)
volume_id() { ibnbd-client show "$uri/vol" --json | sed -n 's/.*"volume_id": "\(.*\)".*/\1/p'; }
first_id=$(volume_id)
[ -n "$first_id" ] || fail "show says no volume id"
# pattern BYTE FILE: the first MiB of the file is all that byte.
pattern() { cmp -s -n $((1 << 20)) "$2" <(head -c $((1 << 20)) /dev/zero | tr '\0' "\\$(printf %03o "$1")"); }
write() { qemu-io -f raw -c "write -P $1 0 1M" -c flush "$(nbd_uri)" >"$work/write.log" 2>&1; }
# swap_while_down HOW REASON BYTE PUT_BACK: the server is killed, the file is changed, a write is held with the reason
# in the log, and lands in the right file when that is back.
swap_while_down() {
  local reason=$2 byte=$3 before
  kill -KILL "$server_pid"
  wait "$server_pid" 2>/dev/null
  eval "$1"
  before=$(md5sum <"$work/vol.img")
  said=$(grep -c "$reason" "$bridge_log")
  start_server --config "$work/server.toml"
  write "$byte" &
  writer=$!
  wait_for 30 eval "[ \$(grep -c '$reason' '$bridge_log') -gt $said ]" || fail "$1: not held for /$reason/: $(cat "$bridge_log")"
  # It is asked again, and again refused.
  wait_for 30 eval "[ \$(grep -c 'device vol open' '$server_log') -ge 2 ]" || fail "$1: the client does not ask again"
  alive "$writer" || fail "$1: the write was not held: $(cat "$work/write.log")"
  stop "$server_pid"
  [ "$(md5sum <"$work/vol.img")" = "$before" ] || fail "$1: what is not our volume was written to"
  eval "$4"
  start_server --config "$work/server.toml"
  wait "$writer" || fail "$1: the held write failed: $(cat "$work/write.log")"
  pattern "$byte" "$work/vol.img" || fail "$1: the write is not in the volume"
}

write 1 || fail "write: $(cat "$work/write.log")"
pattern 1 "$work/vol.img" || fail "the write is not in the volume"
swap_while_down 'mv "$work/vol.img" "$work/aside.img"; truncate -s $size "$work/vol.img"' "another volume as vol: its volume id" 2 \
  'mv "$work/aside.img" "$work/vol.img"'
# A backup of the same name, size, content and times.
swap_while_down 'mv "$work/vol.img" "$work/aside.img"; cp -a "$work/aside.img" "$work/vol.img"' \
  "another volume as vol: its volume id" 3 'mv "$work/aside.img" "$work/vol.img"'
# (What the server leaves with the file when it ends is true again, too: nothing was cut off but zeroes.)
swap_while_down 'truncate -s $((4 << 20)) "$work/vol.img"' "another volume as vol: its size was" 4 \
  'touch -r "$work/vol.img" "$work/times"; truncate -s $size "$work/vol.img"; touch -r "$work/times" "$work/vol.img"'
[ "$(volume_id)" = "$first_id" ] || fail "the id of the volume has changed: $(volume_id)"

# A backup that is restored into the same file, after the server was stopped: not the volume that clients knew, whatever
# is done to it now.  They go on with it when they are told to; here by a new bridge.
if python3 -c 'import os, sys; os.setxattr(sys.argv[1], "user.test", b"x")' "$work/vol.img"; then
  cp "$work/vol.img" "$work/backup.img"
  write 7 || fail "write: $(cat "$work/write.log")"
  stop "$server_pid"
  dd if="$work/backup.img" of="$work/vol.img" bs=1M conv=notrunc status=none || fail "dd"
  start_server --config "$work/server.toml"
  grep -q "somebody has written to it while no server had it: this is generation 1" "$server_log" || fail "the server does not say so"
  write 8 &
  writer=$!
  wait_for 30 grep -q "its content was changed by somebody else" "$bridge_log" || fail "not held: $(cat "$bridge_log")"
  alive "$writer" || fail "the write was not held: $(cat "$work/write.log")"
  [ "$(volume_id)" != "$first_id" ] || fail "the id is what it was"
  restored_id=$(volume_id)
  kill -KILL "$server_pid" "$bridge_pid"
  wait "$server_pid" "$bridge_pid" "$writer" 2>/dev/null
  cmp "$work/backup.img" "$work/vol.img" || fail "the restored volume was written to"
  start_server --config "$work/server.toml"
  start_bridge "$uri/vol"
  [ "$(volume_id)" = "$restored_id" ] || fail "the id has changed again: $(volume_id)"
  first_id=$restored_id
  write 8 || fail "write: $(cat "$work/write.log")"
  pattern 8 "$work/vol.img" || fail "the write is not in the restored volume"
else
  echo "no user.* attributes here: restored content is not noticed"
fi

# Another client has the volume while ours is away (it is stopped, and what the server knew of it is gone): what ours holds then does
# not go over what the other one has written.
held_pid=$bridge_pid held_socket=$socket held_log=${socket%.sock}.log
kill -STOP "$held_pid"
kill -KILL "$server_pid"
wait "$server_pid" 2>/dev/null
start_server --config "$work/server.toml"
start_bridge "$uri/vol"
write 9 || fail "the other client: write: $(cat "$work/write.log")"
stop "$bridge_pid"
kill -CONT "$held_pid"
bridge_pid=$held_pid socket=$held_socket
write 10 &
writer=$!
wait_for 30 grep -q "another client has had it open for writing" "$held_log" || fail "not held: $(cat "$held_log")"
wait_for 30 grep -q "refused: somebody else has had it open for writing since" "$server_log" || fail "the server does not say so"
alive "$writer" || fail "the write was not held: $(cat "$work/write.log")"
pattern 9 "$work/vol.img" || fail "what was held went over what the other client has written"
kill -KILL "$held_pid"
wait "$held_pid" "$writer" 2>/dev/null
start_bridge "$uri/vol"
write 10 || fail "write: $(cat "$work/write.log")"
pattern 10 "$work/vol.img" || fail "the write is not in the volume"

# Under the running server.  Who has it open goes on with the old file; the new one is not touched.
truncate -s $size "$work/new.img"
ln "$work/vol.img" "$work/old.img"
mv "$work/new.img" "$work/vol.img"
write 5 || fail "IO of an open device: $(cat "$work/write.log")"
pattern 5 "$work/old.img" || fail "the write is not in the old file"
pattern 0 "$work/vol.img" || fail "the new file was written to"
expect_fail "replaced, moved or removed" ibnbd-client show "$uri/vol"
grep -q "vol.img was replaced by another file" "$server_log" || fail "the server does not say so"
kill -HUP "$server_pid"
wait_for 20 grep -q "export vol: in use: stays as it was" "$server_log" || fail "reload: $(tail -n 3 "$server_log")"
# When nobody has it open a reload exchanges it.
stop "$bridge_pid"
wait_for 20 grep -q "session .* closed" "$server_log" || fail "the session stays"
reloaded() { kill -HUP "$server_pid" && ibnbd-client show "$uri/vol"; }
wait_for 20 reloaded || fail "the new file is not served: $(tail -n 5 "$server_log")"
[ "$(volume_id)" != "$first_id" ] || fail "another file has the same id"
start_bridge "$uri/vol"
write 6 || fail "write: $(cat "$work/write.log")"
pattern 6 "$work/vol.img" || fail "the write is not in the new file"
pattern 5 "$work/old.img" || fail "the old file was written to"
stop "$bridge_pid"
stop "$server_pid"
