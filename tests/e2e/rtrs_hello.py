#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Knocks at ibnbd-server by hand, from proto/tcp_framing.md and proto/README.md section 4 alone.

usage: rtrs_hello.py PORT
Right and wrong greetings; says what each was answered with, and fails if it was not what the documents say.
"""
import errno
import os
import socket
import struct
import sys

CONNECT, ACCEPT, REJECT = 1, 2, 3
RTRS_MAGIC, RTRS_VERSION = 0x1BBD, 0x0200


def conn_req(magic=RTRS_MAGIC, version=RTRS_VERSION, cid=0, cid_num=1, first_conn=1):
    return struct.pack("<HHHHHH16s16sB11x", 0, magic, version, cid, cid_num, 1, os.urandom(16), os.urandom(16), first_conn)


def greeting(private, magic=b"ibnbdtcp", version=1, kind=CONNECT):
    return struct.pack("<8sHBBHH", magic, version, kind, 0, len(private), 0) + private


def receive(peer, size):
    data = b""
    while len(data) < size:
        piece = peer.recv(size - len(data))
        if not piece:
            break
        data += piece
    return data


def knock(port, hello):
    """(kind, conn_rsp), or None if the server hung up without a word."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as peer:
        try:
            peer.sendall(hello)
            head = receive(peer, 16)
        except ConnectionError:
            return None
        if not head:
            return None
        magic, version, kind, _, size, _ = struct.unpack("<8sHBBHH", head)
        assert (magic, version) == (b"ibnbdtcp", 1), head
        private = receive(peer, size)
        assert len(private) == size
        if kind == REJECT:
            assert peer.recv(1) == b"", "a server that rejects closes"
        return kind, private


def expect_reject(port, what, error, **fields):
    answer = knock(port, greeting(conn_req(**fields)))
    assert answer is not None, f"{what}: hung up without a reason"
    kind, private = answer
    assert kind == REJECT, f"{what}: answered with kind {kind}"
    magic, version, code = struct.unpack("<HHh", private[:6])
    assert magic == RTRS_MAGIC and version >> 8 == 2, private
    assert code == -error, f"{what}: errno {code}, not {-error}"
    print(f"{what}: rejected with {errno.errorcode[error]}")


def expect_silence(port, what, hello):
    answer = knock(port, hello)
    assert answer is None, f"{what}: answered {answer}"
    print(f"{what}: connection ended")


def expect_accept(port, what, **fields):
    kind, private = knock(port, greeting(conn_req(**fields)))
    assert kind == ACCEPT, f"{what}: kind {kind}, {private}"
    magic, version, code, depth, io_size, header_size = struct.unpack("<HHhHII", private[:16])
    assert (magic, version >> 8, code) == (RTRS_MAGIC, 2, 0), private
    assert depth >= 1 and io_size >= 4096 and header_size >= 288, private
    print(f"{what}: accepted, depth {depth}")


def main():
    port = int(sys.argv[1])
    expect_accept(port, "right")
    expect_accept(port, "later minor version", version=0x02FF)
    expect_reject(port, "wrong RTRS magic", errno.ECONNRESET, magic=0x1BBE)
    expect_reject(port, "RTRS version 1", errno.ECONNRESET, version=0x0100)
    expect_reject(port, "RTRS version 3", errno.ECONNRESET, version=0x0300)
    expect_reject(port, "cid beyond cid_num", errno.ECONNRESET, cid=1, cid_num=1)
    expect_reject(port, "no connections", errno.ECONNRESET, cid_num=0)
    expect_reject(port, "unknown session", errno.ENXIO, first_conn=0)
    expect_silence(port, "wrong framing magic", greeting(conn_req(), magic=b"ibnbdudp"))
    expect_silence(port, "wrong framing version", greeting(conn_req(), version=2))
    expect_silence(port, "wrong kind", greeting(conn_req(), kind=ACCEPT))
    expect_silence(port, "too much private data", greeting(bytes(257)))
    expect_accept(port, "right again")


if __name__ == "__main__":
    main()
