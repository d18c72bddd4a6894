#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a disk may hold after a power cut, from a log of dm-log-writes.

  replay_log.py LOG entries                        how many entries there are, and how many of them are flushes
  replay_log.py LOG cut IMAGE ENTRY SEED           IMAGE as it may be if the power is cut before ENTRY

dm-log-writes logs a write when it can no longer be lost: with the flush that covers it, or at once if it is FUA.  So
what stands before a flush is on the disk when that flush is acknowledged, in any order before; a cut between two flushes
leaves all that the first one covered, what was FUA, and any part of the rest: SEED draws which 4 KiB.  Prints the last
mark (`dmsetup message DEVICE 0 mark TEXT`) before the cut.

The format (kernel, Documentation/admin-guide/device-mapper/log-writes.rst): a super block, then entries; each is a
sector with sector, count, flags and length of a mark's text, little endian, and that text; then the data.
"""
import os
import random
import struct
import sys

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
PIECE = 4096  # What a disk is thought to write whole.


class Log:
    def __init__(self, path):
        self.file = open(path, "rb")
        magic, version, self.count, self.sector = struct.unpack("<QQQI", self.file.read(28))
        if magic != MAGIC or version != 1:
            raise SystemExit(f"{path}: no log of dm-log-writes (magic {magic:#x}, version {version})")

    def entries(self):
        """(flags, offset on the disk, bytes, offset of the data in the log, a mark's text)"""
        at = self.sector
        for _ in range(self.count):
            self.file.seek(at)
            first, count, flags, length = struct.unpack("<QQQQ", self.file.read(32))
            text = self.file.read(length).rstrip(b"\0").decode() if flags & MARK else ""
            at += self.sector
            yield flags, first * self.sector, count * self.sector, at, text
            if not flags & DISCARD:
                at += count * self.sector

    def data(self, at, length):
        self.file.seek(at)
        return self.file.read(length)


def cut(log, image, until, seed):
    """Writes what is certain, and a random part of what is not."""
    draw = random.Random(seed)
    before = list(log.entries())[:until]
    certain = max((i for i, entry in enumerate(before) if entry[0] & FLUSH), default=-1)
    mark = ""
    for i, (flags, disk_at, length, at, text) in enumerate(before):
        mark = text or mark
        for done in range(0, length, PIECE):
            if i > certain and not flags & FUA and draw.random() < 0.5:
                continue
            size = min(PIECE, length - done)
            os.pwrite(image, bytes(size) if flags & DISCARD else log.data(at + done, size), disk_at + done)
    return mark


def main():
    log = Log(sys.argv[1])
    if sys.argv[2] == "entries":
        flags = [entry[0] for entry in log.entries()]
        print(len(flags), sum(1 for flag in flags if flag & FLUSH), sum(1 for flag in flags if flag & FUA))
        return
    image = os.open(sys.argv[3], os.O_RDWR)
    print(cut(log, image, int(sys.argv[4]), int(sys.argv[5])))
    os.close(image)


main()
