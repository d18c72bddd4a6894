#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# libnbd's tools, which nobody here wrote, see the right sizes and flags, copy data in and out unchanged,
# and leave holes holes: on a volume of 4 GiB and on one larger than 4 TiB.
. "$(dirname "$0")/functions.sh"
requires nbdinfo nbdcopy nbdsh python3 qemu-img

# cmp would read 4 GiB of holes.
same() { qemu-img compare -q -U -f raw -F raw "$1" "$2"; }

# The file system must carry a sparse file that large; say so when it does not.
truncate -s 5T "$work/huge.img" 2>/dev/null || skip "the file system of $work has no files of 5 TiB"
truncate -s 4G "$work/big.img"
start_server --export "big=$work/big.img" --export "huge=$work/huge.img" --export "ro=$work/big.img,ro"
start_bridge "big=$uri/big" "huge=$uri/huge"

for name in big huge; do
  size=$(stat -c %s "$work/$name.img")
  [ "$(nbdinfo --size "$(nbd_uri $name)")" = "$size" ] || fail "$name: wrong size"
  for flag in flush fua trim zero multi-conn; do
    nbdinfo --can "$flag" "$(nbd_uri $name)" || fail "$name: cannot $flag"
  done
  nbdinfo --is read-only "$(nbd_uri $name)" && fail "$name: is read-only"
done
nbdinfo --list "$(nbd_uri)" >"$work/list.txt" || fail "list"
grep -q 'export="big"' "$work/list.txt" && grep -q 'export="huge"' "$work/list.txt" || fail "list: $(cat "$work/list.txt")"

# A sparse image with data at both ends and on both sides of 4 TiB goes in, comes out, and compares.
python3 - "$work/source.img" <<'PY'
import os, random, sys
random.seed(20)
size = 4 << 30
with open(sys.argv[1], "wb") as image:
    image.truncate(size)
    for offset in [0, 1 << 20, (2 << 30) - 512, 3 << 30, size - (1 << 20)]:
        image.seek(offset)
        image.write(random.randbytes(1 << 20)[: size - offset])
PY
nbdcopy "$work/source.img" "$(nbd_uri big)" || fail "copy in"
nbdcopy "$(nbd_uri big)" "$work/back.img" || fail "copy out"
same "$work/source.img" "$work/back.img" || fail "what came back differs"
same "$work/source.img" "$work/big.img" || fail "what the server stored differs"
used=$(du -k "$work/big.img" | cut -f1)
[ "$used" -lt 65536 ] || fail "5 MiB of data in a sparse image became $used KiB"

nbdsh -u "$(nbd_uri huge)" -c - <<'PY' || fail "nbdsh beyond 4 TiB"
far = (4 << 40) + 4096
pattern = bytes(range(256)) * 16
h.pwrite(pattern, far)
h.pwrite(pattern[::-1], 0, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(4096, far) == pattern
assert h.pread(4096, 0) == pattern[::-1]
assert h.pread(4096, far - 4096) == bytes(4096)
h.zero(4096, far)
assert h.pread(4096, far) == bytes(4096)
h.trim(4096, 0)
h.pwrite(pattern[:512], (5 << 40) - 512)
assert h.pread(512, (5 << 40) - 512) == pattern[:512]
try:
    h.set_strict_mode(0)
    h.pread(512, 5 << 40)
    raise SystemExit("a read past the end succeeded")
except nbd.Error as error:
    assert error.errno == "EINVAL", error
PY
[ "$(du -k "$work/huge.img" | cut -f1)" -lt 1024 ] || fail "the huge image is no longer sparse"
stop "$bridge_pid"
stop "$server_pid"
