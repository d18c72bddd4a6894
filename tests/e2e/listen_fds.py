#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Socket activation without systemd: binds, hands over, executes.

usage: listen_fds.py SOCKET... -- COMMAND...
"""
import os
import socket
import sys

split = sys.argv.index("--")
listeners = []
for path in sys.argv[1:split]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    listeners.append(listener)
moved = [os.dup2(listener.fileno(), 100 + i) for i, listener in enumerate(listeners)]  # Out of the way of 3, 4, ...
for i, fd in enumerate(moved):
    os.dup2(fd, 3 + i, inheritable=True)
    os.close(fd)
os.environ["LISTEN_FDS"] = str(len(listeners))
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[split + 1], sys.argv[split + 1:])
