"""A DNS client made by hand, so that a test sees each code and flag; run inside a namespace by a test.

    resolver.py SERVER NAME [TYPE] [--tcp] [--edns]

Prints one JSON object: {"code": "NOERROR", "answers": ["10.0.0.5"], "edns": true, "seconds": 0.001}, or {"code": "TIMEOUT"}.
Only the standard library: it is started without the environment of the tests.
"""

import json
import socket
import struct
import sys
import time

TYPES = {"A": 1, "PTR": 12, "AAAA": 28}
CODES = {0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED"}
OPT, NUMBER, SIZE = 41, 0x4B55, 1232
TIMEOUT = 3.0


def encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def question(name: str, kind: str, edns: bool) -> bytes:
    extra = b"\0" + struct.pack("!HHIH", OPT, SIZE, 0, 0) if edns else b""
    return struct.pack("!6H", NUMBER, 0x0100, 1, 0, 0, int(edns)) + encoded(name) + struct.pack("!HH", TYPES[kind], 1) + extra


def read_name(data: bytes, at: int) -> tuple[str, int]:
    """The name that stands there, and where it ends."""
    labels, end = [], 0
    while data[at]:
        if data[at] >= 0xC0:
            end = end or at + 2
            at = (data[at] & 0x3F) << 8 | data[at + 1]
        else:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
    return ".".join(labels), end or at + 1


def taken_apart(data: bytes) -> dict[str, object]:
    number, flags, questions, answers, others, extra = struct.unpack("!6H", data[:12])
    assert number == NUMBER, "an answer to something else"
    at = 12
    for _ in range(questions):
        at = read_name(data, at)[1] + 4
    found, edns = [], False
    for place in range(answers + others + extra):
        _, at = read_name(data, at)
        kind, _, _, size = struct.unpack("!HHIH", data[at : at + 10])
        at += 10
        edns |= kind == OPT
        if place < answers:
            if kind == TYPES["A"]:
                found.append(socket.inet_ntop(socket.AF_INET, data[at : at + size]))
            elif kind == TYPES["AAAA"]:
                found.append(socket.inet_ntop(socket.AF_INET6, data[at : at + size]))
            elif kind == TYPES["PTR"]:
                found.append(read_name(data, at)[0])
        at += size
    return {"code": CODES.get(flags & 15, str(flags & 15)), "answers": sorted(found), "edns": edns}


def ask(server: str, name: str, kind: str, tcp: bool, edns: bool) -> dict[str, object]:
    sent, begun = question(name, kind, edns), time.monotonic()
    try:
        if tcp:
            with socket.create_connection((server, 53), TIMEOUT) as link:
                link.sendall(struct.pack("!H", len(sent)) + sent)
                stream = link.makefile("rb")
                reply = stream.read(struct.unpack("!H", stream.read(2))[0])
        else:
            with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as link:
                link.settimeout(TIMEOUT)
                link.connect((server, 53))
                link.send(sent)
                reply = link.recv(65536)
    except TimeoutError:
        return {"code": "TIMEOUT"}
    except ConnectionRefusedError:
        return {"code": "UNREACHABLE"}
    return {**taken_apart(reply), "seconds": round(time.monotonic() - begun, 4)}


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    kind = words[2] if len(words) > 2 else "A"
    print(json.dumps(ask(words[0], words[1], kind, "--tcp" in sys.argv, "--edns" in sys.argv)))
