#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records what RTRS sends over one Soft-RoCE device, as text: messages, not packets.

    roce_recorder.py DEVICE SERVER_IP >FILE        until SIGTERM

Listens to the network device with a packet socket, puts the packets of a message together, and names queue pairs by
the cid of the connect request that made them.  Acknowledgements and retransmissions are left out.
One line per message: direction (> to the server), connection, what, and its bytes:

    > 0 conn_req 0000bd1b...
    > 1 write_imm addr=0x... rkey=0x... imm=0x00181020 11*4096 0400...
"""
import signal
import socket
import struct
import sys

UDP_ROCE = 4791
FIRST, MIDDLE, LAST, ONLY = "first", "middle", "last", "only"
# Reliable connected opcodes: what, place in the message, extensions.
OPCODES = {
    0x00: ("send", FIRST, ""), 0x01: ("send", MIDDLE, ""), 0x02: ("send", LAST, ""), 0x03: ("send_imm", LAST, "i"),
    0x04: ("send", ONLY, ""), 0x05: ("send_imm", ONLY, "i"),
    0x06: ("write", FIRST, "r"), 0x07: ("write", MIDDLE, ""), 0x08: ("write", LAST, ""), 0x09: ("write_imm", LAST, "i"),
    0x0A: ("write", ONLY, "r"), 0x0B: ("write_imm", ONLY, "ri"),
    0x16: ("send_inv", LAST, "v"), 0x17: ("send_inv", ONLY, "v"),
}
CM_REQ, CM_REJ, CM_REP = 0x10, 0x12, 0x13


def text_of(data):
    """Hexadecimal, runs of 16 and more as byte*count."""
    words, start = [], 0
    plain = ""
    while start < len(data):
        end = start
        while end < len(data) and data[end] == data[start]:
            end += 1
        if end - start >= 16:
            if plain:
                words.append(plain)
                plain = ""
            words.append(f"{data[start]:02x}*{end - start}")
        else:
            plain += data[start:end].hex()
        start = end
    if plain:
        words.append(plain)
    return " ".join(words)


class Recorder:
    def __init__(self, server):
        self.server = server
        self.cid_of_comm = {}  # The client's communication id.
        self.cid_of_qpn = {}
        self.parts = {}  # (direction, qpn): extensions and bytes so far.
        self.seen = set()

    def say(self, to_server, cid, what, data):
        print(">" if to_server else "<", cid, what, text_of(data), flush=True)

    def on_packet(self, packet):
        if packet[12:14] != b"\x08\x00" or packet[23] != 17:
            return
        ip = 14
        header = (packet[ip] & 15) * 4
        length = struct.unpack_from(">H", packet, ip + 2)[0]
        udp = ip + header
        if struct.unpack_from(">H", packet, udp + 2)[0] != UDP_ROCE:
            return
        to_server = socket.inet_ntoa(packet[ip + 16:ip + 20]) == self.server
        bth = packet[udp + 8:ip + length - 4]  # Without the ICRC.
        pad = bth[1] >> 4 & 3
        self.on_bth(to_server, bth[0], int.from_bytes(bth[5:8], "big"), int.from_bytes(bth[9:12], "big"),
                    bth[12:len(bth) - pad])

    def on_bth(self, to_server, opcode, qpn, psn, rest):
        if opcode == 0x64 and len(rest) >= 8 + 256:
            return self.on_mad(to_server, rest[8:])
        if opcode not in OPCODES or qpn not in self.cid_of_qpn or (to_server, qpn, psn) in self.seen:
            return
        self.seen.add((to_server, qpn, psn))
        what, place, extensions = OPCODES[opcode]
        key = (to_server, qpn)
        if place in (FIRST, ONLY):
            self.parts[key] = ["", b""]
        part = self.parts[key]
        for extension in extensions:
            if extension == "r":
                addr, rkey, _ = struct.unpack_from(">QII", rest)
                part[0] += f" addr={addr:#x} rkey={rkey:#x}"
                rest = rest[16:]
            elif extension == "i":
                part[0] += f" imm={struct.unpack_from('>I', rest)[0]:#010x}"
                rest = rest[4:]
            else:
                part[0] += f" invalidate={struct.unpack_from('>I', rest)[0]:#x}"
                rest = rest[4:]
        part[1] += rest
        if place in (LAST, ONLY):
            self.say(to_server, self.cid_of_qpn[qpn], what + part[0], part[1])

    def on_mad(self, to_server, mad):
        attribute = struct.unpack_from(">H", mad, 16)[0]
        if mad[1] != 7 or attribute not in (CM_REQ, CM_REJ, CM_REP):
            return
        local, remote = struct.unpack_from(">II", mad, 24)
        message = mad[24:]
        if (to_server, attribute, local) in self.seen:
            return
        self.seen.add((to_server, attribute, local))
        if attribute == CM_REQ:
            data = message[140 + 36:140 + 92]  # Behind the header for IP addresses.
            cid = struct.unpack_from("<H", data, 6)[0]
            self.cid_of_comm[local] = cid
            self.cid_of_qpn[int.from_bytes(message[32:35], "big")] = cid
            self.say(to_server, cid, "conn_req", data)
        elif attribute == CM_REP and remote in self.cid_of_comm:
            cid = self.cid_of_comm[remote]
            self.cid_of_qpn[int.from_bytes(message[12:15], "big")] = cid
            self.say(to_server, cid, "conn_rsp", message[36:36 + 56])
        elif attribute == CM_REJ and remote in self.cid_of_comm:
            self.say(to_server, self.cid_of_comm[remote], "conn_reject", message[84:84 + 56])


def main():
    device, server = sys.argv[1:]
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sniffer.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE: nothing may be lost.
    sniffer.bind((device, 0))
    sniffer.settimeout(0.2)
    ending = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
    recorder = Recorder(server)
    print("# recording", file=sys.stderr, flush=True)
    while True:
        try:
            recorder.on_packet(sniffer.recv(65536))
        except socket.timeout:
            if ending:
                return


if __name__ == "__main__":
    main()
