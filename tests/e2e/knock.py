#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Connects to a port of this host again and again, until a file appears; ends with 1 at the first refusal.

usage: knock.py PORT FILE
"""
import os
import socket
import sys

count = 0
while not os.path.exists(sys.argv[2]):
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=60).close()
    except ConnectionRefusedError:
        sys.exit("refused after %d times" % count)
    except OSError:  # Let in, and dropped as a server ends.
        pass
    count += 1
    if count == 1:
        print("knocking", flush=True)
print("let in", count, "times")
