#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Errors arrive as themselves, and bad input gets one line that names what and why.
. "$(dirname "$0")/functions.sh"
requires nbdsh python3

truncate -s 64M "$work/vol.img"
: >"$work/empty.img"
head -c 1000 /dev/zero >"$work/odd.img"
mkdir "$work/dir"

# What cannot be exported is refused at the start, by name.
for case in "missing.img|No such file" "empty.img|empty" "odd.img|multiple|whole number" "dir|directory"; do
  expect_fail "${case%%|*}.*(${case#*|})" ibnbd-server --listen tcp://127.0.0.1:0 --export "v=$work/${case%%|*}"
done
expect_fail 'sizeless|size' ibnbd-server --listen tcp://127.0.0.1:0 --export v=mem:sizeless
expect_fail 'vnope|=' ibnbd-server --listen tcp://127.0.0.1:0 --export vnope
expect_fail 'carrier|scheme' ibnbd-server --listen carrier://pigeon --export "v=$work/vol.img"

start_server --export "vol=$work/vol.img" --export "ro=$work/vol.img,ro" --export big=mem:64M
# A port in use, an image in use.
expect_fail "$port.*(in use|Address already)" ibnbd-server --listen "tcp://127.0.0.1:$port" --export m=mem:1M
start locked ibnbd-server --listen tcp://127.0.0.1:0 --export "v=$work/vol.img"
wait_for 15 bash -c "! kill -0 $pid 2>/dev/null" || fail "a second server took a locked image"
grep -Eq 'vol.img.*(in use|lock)' "$work/locked.log" || fail "locked: $(cat "$work/locked.log")"

# Unknown export, nobody there, bad URI.
expect_fail 'nosuch' ibnbd-client show "$uri/nosuch"
expect_fail 'nosuch' nbd-bridge --socket "$work/x.sock" "$uri/nosuch"
expect_fail '127.0.0.1:1.*(refused|Connection)' ibnbd-client list tcp://127.0.0.1:1
expect_fail 'pigeon|scheme' ibnbd-client list pigeon://x

# Read-only, misaligned, out of range: through NBD, as a stranger sees them.
start_bridge "vol=$uri/vol" "ro=$uri/ro"
cat >"$work/errors.py" <<'PY'
import sys
def expect(errno, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errno == errno, (error.errno, errno, str(error))
        return
    raise SystemExit("%s should have failed with %s" % (call, errno))
h.set_strict_mode(0)
if sys.argv[-1] == "ro":
    assert h.is_read_only()
    expect("EPERM", h.pwrite, b"x" * 512, 0)
    expect("EPERM", h.zero, 512, 0)
    expect("EPERM", h.trim, 512, 0)
else:
    size = h.get_size()
    expect("EINVAL", h.pread, 512, size)
    expect("EINVAL", h.pread, 512, 1 << 62)
    expect("ENOSPC", h.pwrite, b"x" * 512, size)
    expect("EINVAL", h.pread, 100, 0)
    expect("EINVAL", h.pread, 512, 100)
    h.pwrite(b"x" * 512, size - 512)
PY
nbdsh -u "$(nbd_uri ro)" -c "import sys; sys.argv.append('ro'); exec(open('$work/errors.py').read())" || fail "read-only errors"
nbdsh -u "$(nbd_uri vol)" -c "import sys; sys.argv.append('rw'); exec(open('$work/errors.py').read())" || fail "range errors"

# The server itself refuses writes to a read-only export, whatever a client believes.
expect_fail 'read-only|Read-only|not permitted|permission' ibnbd-client copy "$work/vol.img" "$uri/ro"

# A disk that is full says so.
if [ "$(id -u)" -eq 0 ] && mkdir "$work/small" && mount -t tmpfs -o size=4M tmpfs "$work/small" 2>/dev/null; then
  cleanup_fn "umount '$work/small'"
  truncate -s 64M "$work/small/full.img"
  start_server --export "full=$work/small/full.img"
  start_bridge "$uri/full"
  nbdsh -u "$(nbd_uri)" -c '
try:
    for i in range(16):
        h.pwrite(b"f" * 1048576, i << 20)
    h.flush()
    raise SystemExit("16 MiB fit on a disk of 4 MiB")
except nbd.Error as error:
    assert error.errno == "ENOSPC", error.errno' || fail "ENOSPC"
else
  echo "note: no tmpfs can be mounted here; ENOSPC is left to the backend's unit test"
fi
