#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Hostile peers for test-hostile.sh: a TCP port of ibnbd-server and a unix socket of nbd-bridge.

usage: hostile.py PORT SOCKET warm|storm
Every attack is bounded in count and time; seeds are fixed, so that a failure repeats.
"""
import random
import select
import socket
import struct
import sys

from rtrs_hello import ACCEPT, conn_req, greeting

NBD_MAGIC, OPTION_MAGIC, REQUEST_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x25609513

OWN_EXPORT = b"noise"  # Some of what it asks for is legal, and done: not to what others look at.


def connect(address):
    peer = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    peer.settimeout(3)
    peer.connect(address)
    return peer


def send_all(peer, data):
    try:
        peer.sendall(data)
    except OSError:
        return False  # It hung up on us: exactly what it should do.
    return True


def random_bytes(address, rng):
    with connect(address) as peer:
        send_all(peer, rng.randbytes(rng.choice([1, 7, 28, 32, 56, 200, 4096, 70000])))
        if rng.random() < 0.5:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # Leave with a reset.


def connect_and_leave(address, _rng):
    connect(address).close()


def truncated_hello(address, rng):
    """Real first bytes, then nothing, or garbage."""
    with connect(address) as peer:
        if isinstance(address, str):
            peer.recv(18)
            send_all(peer, struct.pack(">I", 3)[: rng.randrange(5)])
        else:
            send_all(peer, greeting(conn_req())[: rng.randrange(72)] + rng.randbytes(rng.choice([0, 0, 64])))


def read_exactly(peer, size):
    data = b""
    while len(data) < size:
        piece = peer.recv(size - len(data))
        if not piece:
            raise ConnectionError("hung up")
        data += piece
    return data


class Rtrs:
    """A client of the server that knows the words (proto/tcp_framing.md) and means no good."""

    def __init__(self, peer):
        self.peer, self.sent = peer, 0

    def hello(self, **fields):
        self.peer.sendall(greeting(conn_req(**fields)))
        head = read_exactly(self.peer, 16)
        read_exactly(self.peer, struct.unpack("<H", head[12:14])[0])
        return head[10] == ACCEPT

    def frame(self, opcode, payload=b"", imm=0, rkey=0, addr=0, length=None, flags=0, ack=0):
        length = len(payload) if length is None else length
        self.peer.sendall(struct.pack("<BBHIIIQII", opcode, flags, 0x1BBD, length, imm, rkey, addr, ack, self.sent) + payload)
        self.sent += 1

    def info(self, name):
        """The INFO exchange: (address, key, length) of the chunks' memory."""
        self.frame(1, struct.pack("<H255s15x", 0, name), flags=1)
        while True:
            head = read_exactly(self.peer, 32)
            payload = read_exactly(self.peer, struct.unpack("<I", head[4:8])[0])
            if head[0] == 1 and payload[:2] == b"\x01\x00":
                return struct.unpack("<QII", payload[8:24])


def hostile_frames(address, rng):
    """Accepted, and then headers in which nothing fits."""
    with connect(address) as peer:
        client = Rtrs(peer)
        if not client.hello():
            return
        for _ in range(8):
            size = rng.choice([0, 1, 272, 4096])
            client.frame(rng.choice([1, 2, 3, 4, 5, 16, 17, 99]), rng.randbytes(size), imm=rng.getrandbits(32), rkey=rng.getrandbits(32),
                         addr=rng.getrandbits(64), length=rng.choice([size, size, 0xFFFFFFFF]), flags=rng.choice([0, 0, 1, 3, 255]),
                         ack=rng.choice([0, 0, 7]))


def hostile_info(address, rng):
    with connect(address) as peer:
        client = Rtrs(peer)
        if client.hello(cid_num=rng.choice([1, 1, 4096])):
            client.frame(1, struct.pack("<H", rng.choice([0, 0, 1, 77])) + rng.randbytes(rng.choice([0, 255, 270, 4000])))
            peer.recv(4096)


def hostile_session(address, rng):
    """A whole session with a real key: requests that are noise, or nearly right, and heartbeats whose answers nobody reads."""
    with connect(address) as peer:
        client = Rtrs(peer)
        if not client.hello():
            return
        base, key, size = client.info(b"hostile-%d" % rng.getrandbits(60))
        for _ in range(40):
            offset = rng.choice([0, 0, rng.randrange(size), size - 1, size])
            payload = rng.choice([rng.randbytes(rng.choice([0, 4, 64, 300])),
                                  struct.pack("<HHHH", rng.randrange(4), rng.getrandbits(16), rng.choice([0, 32, 288, 0xFFFF]), 0)])
            imm = rng.choice([rng.getrandbits(28), rng.getrandbits(10), 0x80000000, 0x90000000, rng.getrandbits(32)])
            client.frame(rng.choice([4, 5, 5, 5]), payload, imm=imm if payload else 0x80000000, rkey=key, addr=base + offset)


def handshake(peer):
    hello = b""
    while len(hello) < 18:
        hello += peer.recv(18 - len(hello))
    assert struct.unpack(">Q", hello[:8])[0] == NBD_MAGIC
    send_all(peer, struct.pack(">I", 3))


def oversized_option(address, rng):
    with connect(address) as peer:
        handshake(peer)
        length = rng.choice([0xFFFFFFFF, 1 << 30, 70000])
        send_all(peer, struct.pack(">QII", OPTION_MAGIC, rng.choice([1, 3, 6, 7, 99]), length) + rng.randbytes(4096))


def lying_go(address, rng):
    """GO whose inner lengths and counts do not fit."""
    with connect(address) as peer:
        handshake(peer)
        payload = struct.pack(">I", rng.choice([0, 5, 0xFFFFFFFF, 100000])) + rng.randbytes(rng.randrange(40))
        send_all(peer, struct.pack(">QII", OPTION_MAGIC, 7, len(payload)) + payload)


def enter_transmission(peer):
    handshake(peer)
    send_all(peer, struct.pack(">QII", OPTION_MAGIC, 7, 6 + len(OWN_EXPORT)) +
             struct.pack(">I", len(OWN_EXPORT)) + OWN_EXPORT + struct.pack(">H", 0))
    while True:  # Replies to GO: read until the ACK.
        header = b""
        while len(header) < 20:
            piece = peer.recv(20 - len(header))
            if not piece:
                return False
            header += piece
        kind, length = struct.unpack(">II", header[12:])
        while length:
            length -= len(peer.recv(length))
        if kind == 1:
            return True
        if kind & 0x80000000:
            return False


def bad_requests(address, rng):
    with connect(address) as peer:
        if not enter_transmission(peer):
            return
        for _ in range(20):
            magic = REQUEST_MAGIC if rng.random() < 0.9 else rng.getrandbits(32)
            request = struct.pack(">IHHQQI", magic, rng.getrandbits(6), rng.choice([0, 1, 3, 4, 6, 77]), rng.getrandbits(64),
                                  rng.choice([0, 512, 1 << 40, (1 << 64) - 512, 100]),
                                  rng.choice([0, 1, 512, 4096, 1 << 25, 0xFFFFFFFF]))
            if not send_all(peer, request + rng.randbytes(rng.choice([0, 512]))):
                return


def stop_reading(address, _rng):
    """Asks for much more than it reads."""
    with connect(address) as peer:
        if not enter_transmission(peer):
            return
        peer.setblocking(False)
        request = b"".join(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, 0, i, 0, 1 << 20) for i in range(256))
        while request:
            try:
                request = request[peer.send(request):]
            except BlockingIOError:
                break
            except OSError:
                return
        select.select([], [], [], 1.0)


def main():
    port, path, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    server = ("127.0.0.1", port)
    rng = random.Random(20)
    both = [random_bytes, connect_and_leave, truncated_hello]
    bridge_only = [oversized_option, lying_go, bad_requests]
    server_only = [hostile_frames, hostile_info, hostile_session]
    reached = 0
    rounds = 20 if mode == "warm" else 400
    done = 0
    for number in range(rounds):
        attacks = [(a, address) for a in both for address in (server, path)]
        attacks += [(a, path) for a in bridge_only] + [(a, server) for a in server_only]
        for attack, address in attacks:
            try:
                attack(address, rng)
                reached += 1
            except OSError:
                pass  # It hung up while we were talking.
            done += 1
        if number % 100 == 10:
            try:
                stop_reading(path, rng)
            except OSError:
                pass
    assert reached > 7 * rounds  # They are not all turned away at the door.
    print(f"{done} attacks, {reached} to their end")


if __name__ == "__main__":
    main()
