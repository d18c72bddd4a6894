#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What can befall the sockets between a daemon and the kernel's NBD client.

nbd_sockets.py shut PID: they are shut down under the daemon.
nbd_sockets.py hold PID: they stay open although the daemon dies, for as long as this process lives.
"""
import os
import signal
import socket
import sys


def sockets_of(pid):
    """Duplicates of the process's unnamed stream sockets whose other end is unnamed, too."""
    libc = __import__("ctypes").CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        if not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:"):
            continue
        pidfd_getfd = 438
        copy = libc.syscall(pidfd_getfd, pidfd, int(fd), 0)
        if copy < 0:
            raise OSError("pidfd_getfd")
        sock = socket.socket(fileno=copy)
        stream = (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if stream and not sock.getsockname() and not sock.getpeername():
                found.append(sock)
        except OSError:  # It listens.
            pass
    return found


deed, target = sys.argv[1], int(sys.argv[2])
sockets = sockets_of(target)
if not sockets:
    sys.exit("the process has no such socket")
if deed == "shut":
    for one in sockets:
        one.shutdown(socket.SHUT_RDWR)
else:
    print("holding", flush=True)
    signal.pause()
