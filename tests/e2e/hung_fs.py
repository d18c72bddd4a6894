# SPDX-License-Identifier: Apache-2.0
"""A file system with one file, "vol.img" in memory, that stops answering: hung_fs.py DIRECTORY HANG_FILE SIZE.

Mounts itself on DIRECTORY (FUSE, by hand: no library), says "mounted", and answers until there is a file HANG_FILE; then nothing,
until that is gone.  A HANG_FILE that says "locks" is about these only.
While there is HANG_FILE.half the file has half its size, of which the kernel is not told.  Exit code 77: it may not mount here.
"""
import ctypes
import errno
import os
import struct
import sys
import time

LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE = 1, 2, 3, 4, 14, 15, 16, 17, 18
FSYNC, FLUSH, INIT, INTERRUPT, BATCH_FORGET = 20, 25, 26, 36, 42
SETLK, SETLKW = 32, 33
ROOT, FILE = 1, 2
FLOCK_LOCKS = 1 << 10  # Whoever locks the file asks us.
DIRECT_IO = 1


def attributes(node, size):
    mode = 0o40755 if node == ROOT else 0o100644
    return struct.pack("<6Q10I", node, 0 if node == ROOT else size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode, node, body, content, size):
    """The body of the answer, or an errno."""
    if opcode == INIT:
        return struct.pack("<4I2H2I2HI7I", 7, 31, 65536, FLOCK_LOCKS, 16, 12, 131072, 1, 32, 0, 0, *[0] * 7)
    if opcode == LOOKUP:
        if body.rstrip(b"\0") != b"vol.img":
            return errno.ENOENT
        return struct.pack("<4Q2I", FILE, 1, 0, 0, 0, 0) + attributes(FILE, size)
    if opcode in (GETATTR, SETATTR):
        return struct.pack("<Q2I", 0, 0, 0) + attributes(node, size)
    if opcode == OPEN:
        return struct.pack("<Q2I", 1, DIRECT_IO, 0)
    if opcode == READ:
        offset, length = struct.unpack_from("<QI", body, 8)
        return bytes(content[offset : offset + length])
    if opcode == WRITE:
        offset, length = struct.unpack_from("<QI", body, 8)
        content[offset : offset + length] = body[40 : 40 + length]
        return struct.pack("<2I", length, 0)
    if opcode == STATFS:
        return struct.pack("<5Q4I6I", 0, 0, 0, 0, 0, 4096, 255, 4096, 0, *[0] * 6)
    if opcode in (RELEASE, FLUSH, FSYNC, SETLK, SETLKW):
        return b""
    return errno.ENOSYS


def hangs(hang_file, opcode):
    try:
        with open(hang_file) as file:
            return "locks" not in file.read() or opcode in (SETLK, SETLKW)
    except FileNotFoundError:
        return False


def main():
    directory, hang_file, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"hung_fs", directory.encode(), b"fuse", 6, options) != 0:
        print("mount:", os.strerror(ctypes.get_errno()))
        sys.exit(77)
    print("mounted", flush=True)
    content = bytearray(size)  # Stays, whatever the size is said to be.
    while True:
        request = os.read(device, 1 << 20)
        _, opcode, unique, node = struct.unpack_from("<2I2Q", request)
        while hangs(hang_file, opcode):
            time.sleep(0.05)
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            continue
        size = len(content) // (2 if os.path.exists(hang_file + ".half") else 1)
        result = answer(opcode, node, request[40:], content, size)
        error, body = (-result, b"") if isinstance(result, int) else (0, result)
        os.write(device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)


main()
