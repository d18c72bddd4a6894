#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The file system of one volume stops answering, and has more to answer than the kernel has threads for by default.  The one reactor is
# every client's: others still come in, open, and do IO, flushes too, for which the kernel needs a thread.  Who has the volume open waits,
# and is answered later; who wants it is told to wait, and gets it when the file system answers again.
[ -n "${IBNBD_IN_NAMESPACE:-}" ] || IBNBD_IN_NAMESPACE=1 exec unshare -rm "$0" "$@"
. "$(dirname "$0")/functions.sh"
requires nbdsh python3
[ -w /dev/fuse ] || skip "no /dev/fuse"

mkdir "$work/place"
start fs python3 "$here/hung_fs.py" "$work/place" "$work/hang" 1048576
fs_pid=$pid
wait_for 20 grep -q mount "$work/fs.log" || fail "no file system: $(cat "$work/fs.log")"
grep -q mounted "$work/fs.log" || skip "FUSE cannot be mounted here: $(cat "$work/fs.log")"
truncate -s 1M "$work/good.img"
cleanup_fn umount -l "$work/place"
many=() # So many that a moment for each would be too long for those who come in.
for i in {1..40}; do many+=(--export "many$i=$work/place/vol.img,ro"); done
start_server "${many[@]}" --threads 1 --search-path "$work/place" --export "slow=$work/place/vol.img" --export "good=$work/good.img"
start_bridge "$uri/slow"
slow=$socket slow_pid=$bridge_pid
read_block() { timeout "$1" nbdsh -u "nbd+unix:///?socket=$2" -c "h.pread(4096, 0)"; }
read_block 20 "$slow" || fail "the volume cannot be read before its file system hangs"
start_bridge "$uri/good"
good=$socket good_pid=$bridge_pid
use_block() { timeout "$1" nbdsh -u "nbd+unix:///?socket=$2" -c "h.pwrite(bytes([$3]) * 4096, 0); h.flush(); assert h.pread(4096, 0)[0] == $3"; }
use_block 20 "$good" 1 || fail "the other volume cannot be used before the file system of the first hangs"

: >"$work/hang"
# IO of who has it open, on the thread that carries the others', and goes on looking whether the file is whole: 40 flushes, of which the
# kernel by default lets fewer wait at once, and 80 reads.
start waits timeout 120 nbdsh -u "nbd+unix:///?socket=$slow" -c "
buffers = [nbd.Buffer(4096) for _ in range(80)]
waiting = {h.aio_flush() for _ in range(40)} | {h.aio_pread(buffer, i * 4096) for i, buffer in enumerate(buffers)}
while waiting:
    h.poll(-1)
    waiting -= {cookie for cookie in waiting if h.aio_command_completed(cookie)}
print('answered')"
waits_pid=$pid
workers() { grep -l -s '^iou-wrk' /proc/"$server_pid"/task/*/comm | wc -l; }
many_workers() { [ "$(workers)" -ge "$1" ]; }
wait_for 20 many_workers 60 || fail "$(workers) threads wait for the file system, and 120 requests"
for i in 2 3 4; do
  use_block 20 "$good" "$i" || fail "round $i: the other volume, which was open, does not answer"
done
stop "$good_pid"
# One that asks for it, and goes on asking, and one that asks for a name below the directory that hangs.
start asks timeout 120 nbd-bridge --socket "$work/asks.sock" "$uri/slow"
asks_pid=$pid
start finds timeout 120 nbd-bridge --socket "$work/finds.sock" "$uri/vol.img"
finds_pid=$pid
wait_for 20 grep -q "open slow: .*does not answer" "$server_log" || fail "nobody says that the place does not answer: $(cat "$server_log")"
wait_for 20 grep -q "open vol.img: .*does not answer" "$server_log" || fail "nobody says that the search path does not answer"
timeout 40 ibnbd-client list "$uri" >"$work/list.log" 2>&1 || fail "the exports cannot be listed: $(cat "$work/list.log")"
grep -q '^many40 ' "$work/list.log" || fail "not all exports are listed: $(cat "$work/list.log")"
for i in 1 2 3; do
  start_bridge "$uri/good"
  read_block 20 "$socket" || fail "round $i: the other volume does not answer"
  stop "$bridge_pid"
done
alive "$fs_pid" || fail "the file system has ended"

! grep -q answered "$work/waits.log" || fail "the file system has answered"
rm "$work/hang"
wait "$waits_pid" || fail "IO that waited for the file system: $(cat "$work/waits.log")"
stop "$slow_pid"
kill "$asks_pid" "$finds_pid" 2>/dev/null
opens() { start again nbd-bridge --socket "$work/again$1.sock" "$uri/slow" && wait_for 5 grep -q '^listening on ' "$work/again.log"; }
for i in 1 2 3 4 5 6; do opens "$i" && break; done
again=$work/again$i.sock
read_block 20 "$again" || fail "the volume is not served when its file system answers again"
# What the kernel is not told of a file that got smaller elsewhere is asked for: IO within what is left goes on.
: >"$work/hang.half"
looks() { read_block 20 "$again" && grep -q "volume .*: shrunk to 524288 bytes" "$server_log"; }
wait_for 20 looks || fail "a file that was shrunk elsewhere is not noticed"
! timeout 20 nbdsh -u "nbd+unix:///?socket=$again" -c "h.pread(4096, 1024 * 1024 - 4096)" || fail "what was cut off is still read"
stop "$server_pid"
