#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzzers, corpus/<target>/seed-*, from proto/testdata and by hand.

Run it after a golden message, or the input format of a target, has changed; commit what it wrote.
Files with other names (crash-*, found-*) are left alone.
"""
import pathlib
import random
import struct

HERE = pathlib.Path(__file__).resolve().parent
TESTDATA = HERE.parent.parent / "proto" / "testdata"


def golden(name):
    """The bytes of a golden message; the format is told in proto/golden.h."""
    out = bytearray()
    for line in (TESTDATA / f"{name}.hex").read_text().splitlines():
        for word in line.split("#")[0].split():
            byte, _, count = word.partition("*")
            out += bytes([int(byte, 16)]) * int(count or 1)
    return bytes(out)


def rtrs_seeds():
    def seed(message, off=0, io_size=4096, number=0, depth=0):
        return struct.pack("<IIIH", off, io_size, number, depth) + message

    for name in ("conn_req_cid0", "conn_rsp_kernel", "conn_rsp_reject_enxio", "conn_rsp_user",
                 "info_req"):
        yield name, seed(golden(name))
    yield "info_rsp", seed(golden("info_rsp"), number=0x21000, depth=512)
    yield "rkey_rsp", seed(golden("rkey_rsp"), number=3)
    # Requests as they lie in a chunk, in front of them the data they speak of.
    for name, data_len, usr_len in (("close_request", 0, 8), ("discard_request", 0, 32),
                                    ("flush_request", 0, 32), ("open_request", 56, 264),
                                    ("sess_info_request", 36, 36), ("read_request", 4096, 32),
                                    ("write_request", 4096, 32)):
        message = golden(name)[-(usr_len + 24):] if data_len else golden(name)
        if name == "write_request":
            message = golden(name)[-36:]
        yield name, seed(bytes(data_len) + message, off=data_len + usr_len)


def rnbd_seeds():
    def seed(message, number=0, is_read=1):
        return struct.pack("<IB", number, is_read) + message

    yield "sess_info", seed(golden("sess_info_request")[:36])
    yield "sess_info_rsp", seed(golden("sess_info_rsp"))
    yield "sess_info_rsp_instance", seed(golden("sess_info_rsp_instance"))
    yield "open", seed(golden("open_request")[:264])
    yield "open_rsp", seed(golden("open_rsp"))
    yield "close", seed(golden("close_request")[:8])
    yield "list", seed(struct.pack("<HHI", 64, 0, 0))
    yield "list_rsp", seed(golden("list_rsp"))
    yield "flush", seed(golden("flush_request")[:32])
    yield "discard", seed(golden("discard_request")[:32], is_read=0)
    yield "read", seed(golden("read_request")[-56:-24], 4096)
    yield "write", seed(golden("write_request")[-36:-4], 4096, 0)


def nbd_seeds():
    limits = struct.pack("<QIHB", 1 << 30, 1 << 20, 0xfff & ~2, 9)
    for name in ("nbd_go", "nbd_request"):
        yield name, limits + golden(name)
    for command in range(8):
        request = struct.pack(">IHHQQI", 0x25609513, 0, command, 7, 4096, 8192)
        yield f"command{command}", limits + request
    yield "flags", limits + struct.pack(">I", 3)
    yield "option", limits + struct.pack(">QII", 0x49484156454f5054, 7, 4)
    yield "go", limits + struct.pack(">I4sHHH", 4, b"vol0", 2, 3, 1)


def handshake_seeds():
    def option(number, payload=b""):
        return struct.pack(">QII", 0x49484156454f5054, number, len(payload)) + payload

    flags = struct.pack(">I", 3)
    go = struct.pack(">I4sHH", 4, b"vol0", 1, 3)
    yield "go", b"\1" + flags + option(7, go)
    yield "info_then_go", b"\2" + flags + option(8) + option(6, go) + option(7, go)
    yield "export_name", b"\3" + struct.pack(">I", 1) + option(1, b"vol1")
    yield "unknown_name", b"\4" + flags + option(7, struct.pack(">I3sH", 3, b"vol", 0))
    yield "list_abort", b"\5" + flags + option(3) + option(2)
    yield "meta", b"\6" + flags + option(8) + option(
        10, struct.pack(">I4sII15s", 4, b"vol0", 1, 15, b"base:allocation"))
    yield "tls_and_unknown", b"\7" + flags + option(5) + option(77, b"xyz")
    yield "too_long", b"\0" + flags + struct.pack(">QII", 0x49484156454f5054, 3, 9000) + bytes(9100)


def tcp_seeds():
    def frame(opcode, payload=b"", flags=0, imm=0, rkey=0, addr=0, acks=0, sequence=0):
        return struct.pack("<BBHIIIQII", opcode, flags, 0x1bbd, len(payload), imm, rkey, addr,
                           acks, sequence) + payload

    yield "greeting", b"\0" + struct.pack("<8sHBBHH", b"ibnbdtcp", 1, 1, 0, 56, 0)
    yield "frames", b"\3" + frame(1, b"send") + frame(5, bytes(600), 1, 7, 9, 4096, 0, 1) + frame(
        4, b"", 0, 0, 9, 4096, 0, 2) + frame(3, b"x" * 8, 0, 0, 5, 0, 0, 3) + frame(16, sequence=4)
    yield "large", b"\5" + frame(5, bytes(20000), 3, 1, 2, 3) + frame(
        2, b"imm", 0, 5, sequence=1) + frame(17, imm=2, sequence=2)
    yield "wrong_sequence", b"\1" + frame(1, b"a") + frame(1, b"b")


def uri_seeds():
    for i, text in enumerate(("tcp://host/vol0", "rdma://[fe80::1%25eth0]:1234/a%20b", "host:99/x",
                              "sim://host:1/v", "TCP://h", "tcp://h:65536/", "tcp://u@h/?q#f")):
        yield str(i), text.encode()


def options_seeds():
    for i, text in enumerate(("4K", "9223372036854775807", "1T")):
        yield f"size{i}", b"\0" + text.encode()
    for i, text in enumerate(("vol0=/dev/sdb", "r=/srv/a.img,ro,buffered", "n=null:1G",
                              "m=mem:256M,block-size=4K")):
        yield f"export{i}", b"\1" + text.encode()
    yield "config", b"\2" + (
        'listen = ["tcp://0.0.0.0:1234"]\nthreads = 2\nqueue-depth = 64\nio_size = "128K"\n'
        'sessions_max = 9\nmemory_max = "1G"\nsearch_path = "/srv/%SESSNAME%"\n'
        '[export.vol0]\npath = "/dev/sdb"\nread_only = true\n'
        '[export."a b"]\npath = "mem:1M"\nblock-size = "4K"\nbuffered = false\n').encode()
    yield "line", b"\3" + b"--listen\ntcp://0.0.0.0\n--export\nv=mem:1M\n--threads\n2\n--io-size=64K"
    yield "help", b"\3--help"


def fault_seeds():
    for i, text in enumerate(("cut-every=500ms,cut-post=100ppm", "refuse=10%,delay=1ms..5ms,seed=7",
                              "delay=2us", "cut-post=0.5%")):
        yield str(i), text.encode()


NO_CHANGE = b"\0"  # Of Mutate().


def client_seeds():
    """Programs of hostile_client_fuzz: {opcode, slot, operands}."""
    def step(opcode, slot, *operands):
        return bytes([opcode, slot]) + b"".join(
            bytes([o]) if isinstance(o, int) else o for o in operands)

    def connect(slot, cid, path=0, connections=2, recon=1):
        return step(0, slot, path, cid, connections - 1, recon, NO_CHANGE, 0)

    def request(chunk):
        return bytes([chunk]) + NO_CHANGE + NO_CHANGE + b"\0"

    def wait(milliseconds):
        return step(10, 0, struct.pack("<H", milliseconds * 20))

    def io(slot, op, chunk, sector=0, sectors=8, device=0, flags=0):
        return step(3, slot, op, device, sector, sectors, flags, request(chunk))

    introduce = step(1, 0, 0, NO_CHANGE, 0)
    up = b"\1" + connect(0, 0) + wait(5) + connect(1, 1) + wait(5) + introduce + wait(5)
    sess_info = step(2, 0, 0, 0, request(0))
    open0 = step(2, 0, 1, 0, request(1))
    open1 = step(2, 0, 1, 5, request(2))
    neighbour = step(11, 0)
    opened = up + sess_info + wait(2) + open0 + wait(2) + open1 + wait(5)
    yield "connect_only", b"\1" + connect(0, 0) + wait(5)
    yield "up", up
    yield "open", opened
    yield "io", opened + b"".join(
        io(1, op, 3 + op, device=d) + wait(1) for op in range(6) for d in (0, 1, 9))
    yield "io_then_gone", opened + io(1, 1, 3, device=1) + io(1, 0, 4) + step(9, 1) + neighbour
    yield "same_chunk", opened + io(1, 0, 3) + step(8, 0) + step(8, 0) + wait(3)
    yield "heartbeats", up + step(2, 0, 4, 0) + step(2, 0, 4, 1) + wait(1000) + step(2, 1, 4, 0)
    yield "list_close", opened + step(2, 0, 3, 0, request(3)) + wait(2) + step(
        2, 0, 2, 0, request(4)) + wait(2) + io(1, 0, 5)
    yield "beyond", up + step(5, 1, 15, struct.pack("<iBIH", 12280, 0, 0, 64), bytes(64)) + neighbour
    yield "wrong_key", up + step(4, 1, 3, struct.pack("<iBIH", 0, 7, 99, 8), bytes(8)) + neighbour
    yield "raw_sends", up + step(6, 0, struct.pack("<IH", 0, 300), bytes(300)) + step(
        7, 1, struct.pack("<IH", 1 << 28, 0)) + neighbour
    yield "honest_name", b"\1" + connect(0, 0, connections=1) + wait(5) + step(
        1, 0, 2, NO_CHANGE, 0) + wait(5) + neighbour
    yield "reconnect", opened + io(1, 1, 3, device=1) + connect(2, 0, recon=2) + wait(50) + connect(
        3, 1, recon=2) + wait(5) + step(1, 2, 0, NO_CHANGE, 0) + wait(5) + neighbour
    yield "many_sessions", b"\1" + b"".join(
        connect(slot, 0, path=4 * slot, connections=1) + wait(2) + step(1, slot, slot, NO_CHANGE, 0)
        + wait(2) for slot in range(4)) + neighbour


def server_seeds():
    """What hostile_server_fuzz's server changes: mostly nothing, now and then something."""
    yield "honest", b"\1\x0f"
    dice = random.Random(7)
    for i in range(24):
        rate = (0.01, 0.03, 0.1, 0.3)[i % 4]
        yield f"dice{i}", bytes([i, 15]) + bytes(
            dice.randrange(1, 256) if dice.random() < rate else 0 for _ in range(300))


TARGETS = {
    "rtrs_message_fuzz": rtrs_seeds,
    "rnbd_message_fuzz": rnbd_seeds,
    "nbd_message_fuzz": nbd_seeds,
    "nbd_handshake_fuzz": handshake_seeds,
    "tcp_frame_fuzz": tcp_seeds,
    "uri_fuzz": uri_seeds,
    "options_fuzz": options_seeds,
    "fault_spec_fuzz": fault_seeds,
    "hostile_client_fuzz": client_seeds,
    "hostile_server_fuzz": server_seeds,
}


def main():
    for target, seeds in TARGETS.items():
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seed-*"):
            old.unlink()
        for name, data in seeds():
            (folder / f"seed-{name}").write_bytes(data)


main()
