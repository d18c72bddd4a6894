#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An NBD client that counts answers, for test-answered-once.sh.

usage: answered_once.py SOCKET EXPORT REQUESTS
Keeps 64 requests in flight (writes, reads, flushes, zeroes), each with a cookie that is never used again; every reply must
name a cookie that is waiting.  Prints "at N" as it goes on, so that somebody can pull plugs meanwhile; reads all it wrote
back at the end.
"""
import random
import socket
import struct
import sys

REQUEST_MAGIC, REPLY_MAGIC, OPTION_MAGIC = 0x25609513, 0x67446698, 0x49484156454F5054
READ, WRITE, FLUSH, ZEROES = 0, 1, 3, 6
BLOCK, SLOTS, DEPTH = 4096, 1024, 64


def receive(peer, size):
    data = bytearray()
    while len(data) < size:
        piece = peer.recv(size - len(data))
        assert piece, "the bridge hung up"
        data += piece
    return bytes(data)


def attach(path, name):
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(120)
    peer.connect(path)
    receive(peer, 18)
    peer.sendall(struct.pack(">IQII", 3, OPTION_MAGIC, 1, len(name)) + name)  # EXPORT_NAME: simple replies.
    receive(peer, 10)
    return peer


class Client:
    def __init__(self, peer, seed):
        self.peer, self.rng = peer, random.Random(seed)
        self.waiting = {}  # cookie -> (command, slot, what a read must bring)
        self.busy = set()  # Slots with a request in flight: their contents are in doubt.
        self.contents = {}  # slot -> block
        self.cookie = 0
        self.answered = 0

    def issue(self, command, slot=0):
        self.cookie += 1
        block = b""
        if command == WRITE:
            block = struct.pack(">Q", self.cookie) * (BLOCK // 8)
        length = 0 if command == FLUSH else BLOCK
        expected = self.contents.get(slot, bytes(BLOCK)) if command == READ else None
        self.peer.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, command, self.cookie, slot * BLOCK if length else 0, length) + block)
        self.waiting[self.cookie] = (command, slot, expected)
        if command != FLUSH:
            self.busy.add(slot)
        if command == WRITE:
            self.contents[slot] = block
        if command == ZEROES:
            self.contents[slot] = bytes(BLOCK)

    def issue_something(self):
        command = self.rng.choice([WRITE, WRITE, WRITE, READ, READ, FLUSH, ZEROES])
        slot = self.rng.randrange(SLOTS)
        while slot in self.busy:
            slot = self.rng.randrange(SLOTS)
        self.issue(command, slot)

    def collect(self):
        magic, error, cookie = struct.unpack(">IIQ", receive(self.peer, 16))
        assert magic == REPLY_MAGIC, hex(magic)
        assert error == 0, f"request {cookie} failed with {error}"
        assert cookie in self.waiting, f"{cookie} was answered twice, or never asked"
        command, slot, expected = self.waiting.pop(cookie)
        if command == READ:
            assert receive(self.peer, BLOCK) == expected, f"slot {slot} does not hold what was written last"
        if command != FLUSH:
            self.busy.remove(slot)
        self.answered += 1


def main():
    path, name, wanted = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
    client = Client(attach(path, name), seed=20)
    while client.cookie < wanted:
        while len(client.waiting) < DEPTH and client.cookie < wanted:
            client.issue_something()
        client.collect()
        if client.answered % 500 == 0:
            print(f"at {client.answered}", flush=True)
    while client.waiting:
        client.collect()
    for slot in range(SLOTS):
        client.issue(READ, slot)
        client.collect()
    assert client.answered == client.cookie == wanted + SLOTS
    # A second answer to anything above would come before the answer to this.
    client.peer.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, 2, 0, 0, 0))
    client.peer.settimeout(30)
    assert client.peer.recv(1) == b"", "something was left to be said after the last answer"
    print(f"{client.answered} requests, each answered once")


if __name__ == "__main__":
    main()
