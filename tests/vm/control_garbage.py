#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# control_garbage.py SOCKET: says nonsense to the daemon of ibnbd-client.  Each is answered with one line of JSON that
# has an "error", or the connection is closed, in time; and the daemon still answers a good request afterwards.
import json
import random
import socket
import sys

NONSENSE = [
    b"",
    b"\n",
    b"garbage\n",
    b"\x00\xff\xfe" * 100 + b"\n",
    b"[]\n",
    b"42\n",
    b"{}\n",
    b'{"command": 1}\n',
    b'{"command": "format"}\n',
    b'{"command": "map"}\n',
    b'{"command": "map", "uri": 7}\n',
    b'{"command": "map", "uri": "ftp://x/y"}\n',
    b'{"command": "map", "uri": "tcp://h/v", "as": "floppy"}\n',
    b'{"command": "map", "uri": "tcp://h/v", "queue_depth": 99999999999999999999}\n',
    b'{"command": "map", "uri": "tcp://h/v", "queue_depth": -1}\n',
    b'{"command": "map", "uri": "tcp://h/v", "index": 1e300}\n',
    b'{"command": "list", "timeout_ms": "soon"}\n',
    b'{"command": "unmap", "device": ["/dev/ublkb0"]}\n',
    b'{"command": "unmap", "device": "../../../etc/passwd"}\n',
    b'{"command": "unmap", "device": "/dev/ublkb0", "force": "yes"}\n',
    b"[" * 15000 + b"\n",
    b"x" * 100000,
    b'{"command": "list"',  # Never finished.
]


def ask(path, data):
    """The answer, or b"" if there was none; the deadline is generous, what matters is that there is one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(30)
        client.connect(path)
        answer = b""
        try:
            client.sendall(data)
            while not answer.endswith(b"\n"):
                piece = client.recv(65536)
                if not piece:
                    break
                answer += piece
        except (BrokenPipeError, ConnectionResetError):
            pass
        return answer


def main(path):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    noise = random.Random(seed)
    cases = NONSENSE + [bytes(noise.randrange(256) for _ in range(200)) + b"\n" for _ in range(50)]
    for case in cases:
        answer = ask(path, case)
        if answer and "error" not in json.loads(answer):
            sys.exit(f"{case[:60]!r}: was answered {answer!r}")
    answer = json.loads(ask(path, b'{"command": "list"}\n'))
    if "devices" not in answer:
        sys.exit(f"no good answer afterwards: {answer}")


main(sys.argv[1])
