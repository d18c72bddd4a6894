#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A buffered export whose disk fails for a moment: what was acknowledged is lost while it is written back, and the kernel says so to
# the first who asks. That is a FUA write of something else, which is repeated, or the flush of somebody who only reads: the
# writer's next flush fails all the same, once.
. "$(dirname "$0")/functions.sh"
requires dmsetup nbdsh
modprobe -a loop dm-mod || fail "a module is missing"
truncate -s 16M "$work/disk"
loop=$(losetup --show -f "$work/disk") || fail "no loop device"
cleanup_fn 'losetup -d "$loop"'
dmsetup --noudevsync create frail --table "0 32768 linear $loop 0" || fail "no device mapper"
cleanup_fn 'dmsetup --noudevsync remove -f frail'
dmsetup mknodes
start_server --export vol=/dev/mapper/frail,buffered
start_bridge "$uri/vol"
writer=$socket
start_bridge --readonly "$uri/vol"
reader=$socket

cat >"$work/steps.py" <<'PY'
import errno, subprocess
def table(target):
    for command in ("suspend --noflush --nolockfs frail", "load frail --table '0 32768 %s'" % target, "resume frail"):
        subprocess.run("dmsetup --noudevsync " + command, shell=True, check=True)
def outcome(call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        return error.errno
    return "done"
def lose(byte):
    h.pwrite(bytes([byte]) * 4096, 0)
    table("error")
    subprocess.run(["sync", "/dev/mapper/frail"], stderr=subprocess.DEVNULL)  # It is told, and forgets.
    table("linear " + loop + " 0")
other = nbd.NBD()
other.connect_uri("nbd+unix:///?socket=" + reader)
assert outcome(h.flush) == "done"
lose(1)
first = outcome(h.pwrite, bytes(4096), 65536, nbd.CMD_FLAG_FUA)
assert first == "EIO", "the kernel tells somebody else: this test shows nothing (%s)" % first
assert outcome(h.pwrite, bytes(4096), 65536, nbd.CMD_FLAG_FUA) == "done", "a FUA write that is repeated"
assert outcome(h.flush) == "EIO", "a flush succeeded over what was lost, which a FUA write was told"
assert outcome(h.flush) == "done", "a flush fails twice"
lose(2)
first = outcome(other.flush)
assert first == "EIO", "the reader is not told: this test shows nothing (%s)" % first
assert outcome(h.flush) == "EIO", "a flush succeeded over what was lost, which a reader was told"
assert outcome(h.flush) == "done", "a flush fails twice"
PY
timeout 60 nbdsh -u "nbd+unix:///?socket=$writer" -c "loop, reader = '$loop', '$reader'" -c "exec(open('$work/steps.py').read())" ||
  fail "see above"
