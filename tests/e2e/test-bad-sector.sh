#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# EIO of a medium that has gone bad arrives as EIO, for the sectors it is true of, and the rest goes on.  The medium is a
# file that somebody cut short, and, where the kernel has a device-mapper, a disk with a bad sector.
. "$(dirname "$0")/functions.sh"
requires nbdsh python3

cat >"$work/bad.py" <<'PY'
import os
bad, size = int(os.environ["bad"]), h.get_size()
good = bytes(range(256)) * 16
def expect_eio(call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errno == "EIO", error
        return
    raise SystemExit("%s of a bad sector succeeded" % call)
h.pwrite(good, 0)
expect_eio(h.pread, 4096, bad)
expect_eio(h.pwrite, good, bad)
expect_eio(h.pread, 65536, bad - 32768)  # It is somewhere in the middle.
assert h.pread(4096, 0) == good, "a good sector"
h.pwrite(good, bad - 4096)
h.flush()
assert h.pread(4096, bad - 4096) == good, "the sector before the bad one"
PY
export bad=$((32 << 20))

truncate -s 64M "$work/cut.img"
start_server --export "vol=$work/cut.img"
start_bridge "$uri/vol"
truncate -s 32M "$work/cut.img"
nbdsh -u "$(nbd_uri)" -c "exec(open('$work/bad.py').read())" || fail "a file that was cut short"
expect_fail 'Input/output error' ibnbd-client copy "$uri/vol" "$work/out"
stop "$bridge_pid"
stop "$server_pid"

note() { echo "note: no disk with a bad sector here, only the file that was cut short: $*"; exit 0; }
[ "$(id -u)" -eq 0 ] || note "making one needs root"
command -v dmsetup >/dev/null && command -v losetup >/dev/null || note "dmsetup or losetup is not installed"
dmsetup targets 2>/dev/null | grep -q '^error' || note "the kernel has no device-mapper"
truncate -s 64M "$work/disk.img"
loop=$(losetup -f --show "$work/disk.img" 2>/dev/null) || note "no loop device is free"
cleanup_fn "losetup -d '$loop'"
name=ibnbd-e2e-$$
dmsetup create "$name" <<EOF_TABLE || note "dmsetup failed"
0 65536 linear $loop 0
65536 8 error
65544 65528 linear $loop 65544
EOF_TABLE
cleanup_fn "dmsetup remove '$name'"
start_server --export "disk=/dev/mapper/$name"
start_bridge "$uri/disk"
nbdsh -u "$(nbd_uri)" -c "exec(open('$work/bad.py').read())" || fail "a disk with a bad sector"
nbdsh -u "$(nbd_uri)" -c 'h.pwrite(b"a" * 4096, (32 << 20) + 4096); h.flush()' || fail "the sector behind the bad one"
stop "$bridge_pid"
stop "$server_pid"
