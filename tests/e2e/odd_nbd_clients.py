# SPDX-License-Identifier: Apache-2.0
# NBD clients that are in the middle of something whenever the bridge is handed over: one says its requests a byte at a
# time, one the payloads of its writes in pieces, one always has many requests waiting.  Each looks at every answer.
#   odd_nbd_clients.py SOCKET PREFIX    PREFIX.ready appears when all are served; they end when PREFIX.enough does
import os
import socket
import struct
import sys
import threading
import time

path, prefix = sys.argv[1:]
problems = []
rounds = [0, 0, 0]
MAGIC, REPLY = 0x25609513, 0x67446698
READ, WRITE = 0, 1


def receive(s, size):
    data = b""
    while len(data) < size:
        piece = s.recv(size - len(data))
        if not piece:
            raise EOFError("the connection ended")
        data += piece
    return data


def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    assert receive(s, 18)[:16] == b"NBDMAGICIHAVEOPT"
    s.sendall(struct.pack(">I", 3))
    s.sendall(b"IHAVEOPT" + struct.pack(">II", 1, 3) + b"vol")  # EXPORT_NAME, no zeroes.
    receive(s, 10)
    return s


def request(kind, cookie, offset, length):
    return struct.pack(">IHHQQI", MAGIC, 0, kind, cookie, offset, length)


def answer(s, length):
    magic, error, cookie = struct.unpack(">IIQ", receive(s, 16))
    assert (magic, error) == (REPLY, 0), (magic, error)
    return cookie, receive(s, length)


def dribble(number):  # A write and a read back, their headers byte by byte, the payload in pieces.
    s = connect()
    size = 64 << 10
    while not os.path.exists(prefix + ".enough"):
        rounds[number] += 1
        data = os.urandom(512) * (size // 512)
        offset = (40 << 20) + number * size
        for byte in request(WRITE, 7, offset, size):
            s.sendall(bytes([byte]))
            time.sleep(0.002)
        for at in range(0, size, 4096):
            s.sendall(data[at:at + 4096])
            time.sleep(0.005 * number)
        assert answer(s, 0) == (7, b"")
        header = request(READ, 8, offset, size)
        s.sendall(header[:13])
        time.sleep(0.01)
        s.sendall(header[13:])
        assert answer(s, size) == (8, data)


def crowd(number):  # Many requests in one go, all answered, in whatever order.
    s = connect()
    cookie = 0
    while not os.path.exists(prefix + ".enough"):
        rounds[number] += 1
        first = cookie
        burst = b""
        for i in range(400):
            cookie += 1
            burst += request(READ, cookie, (50 << 20) + i * 512, 512)
        sender = threading.Thread(target=s.sendall, args=(burst,))
        sender.start()
        seen = {answer(s, 512)[0] for _ in range(400)}
        sender.join()
        assert seen == set(range(first + 1, cookie + 1)), "an answer is missing, or comes twice"


def run(what, number):
    try:
        what(number)
    except Exception as problem:
        problems.append(f"{what.__name__} {number}: {problem!r}")


threads = [threading.Thread(target=run, args=job, daemon=True) for job in ((dribble, 0), (dribble, 1), (crowd, 2))]
for thread in threads:
    thread.start()
while not all(rounds) and not problems:
    time.sleep(0.01)
open(prefix + ".ready", "w").close()
for thread in threads:
    while thread.is_alive() and not problems:
        thread.join(0.1)
for problem in problems:
    print(problem, file=sys.stderr)
if problems:
    os._exit(1)
print(f"{sum(rounds)} rounds of odd clients")
