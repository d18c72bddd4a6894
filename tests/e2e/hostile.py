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

NBD_MAGIC, OPTION_MAGIC, REQUEST_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x25609513


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
            greeting = peer.recv(18)
            send_all(peer, struct.pack(">I", 3)[: rng.randrange(5)])
        else:
            send_all(peer, b"IBNBDTCP"[: rng.randrange(9)] + rng.randbytes(rng.randrange(64)))


def handshake(peer):
    greeting = b""
    while len(greeting) < 18:
        greeting += peer.recv(18 - len(greeting))
    assert struct.unpack(">Q", greeting[:8])[0] == NBD_MAGIC
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
    send_all(peer, struct.pack(">QII", OPTION_MAGIC, 7, 6) + struct.pack(">IH", 0, 0))
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
    rounds = 20 if mode == "warm" else 400
    done = 0
    for number in range(rounds):
        for attack in both:
            for address in (server, path):
                attack(address, rng)
                done += 1
        for attack in bridge_only:
            try:
                attack(path, rng)
            except OSError:
                pass  # It hung up while we were talking.
            done += 1
        if number % 100 == 10:
            stop_reading(path, rng)
    print(f"{done} attacks")


if __name__ == "__main__":
    main()
