"""Asks by DHCPv6 on eth0 of this namespace, as MAC (argument 1): to be given an address (argument 2: 1), or options alone (0).

Prints the options of the answer, a line each: code, and its bytes as hex.
"""

from __future__ import annotations

import socket
import sys
from struct import pack, unpack_from

SOLICIT, INFORMATION_REQUEST = 1, 11  # RFC 8415
CLIENT_ID, IA_NA, ORO = 1, 3, 6
SECONDS = 2.0
TRIES = 5


def option(code: int, value: bytes) -> bytes:
    return pack("!HH", code, len(value)) + value


def main(mac: str, stateful: bool) -> None:
    question = bytes([SOLICIT if stateful else INFORMATION_REQUEST, 0, 0, 7])
    question += option(CLIENT_ID, pack("!HH", 3, 1) + bytes.fromhex(mac.replace(":", "")))
    question += option(ORO, pack("!H", 23))
    question += option(IA_NA, pack("!III", 1, 0, 0)) if stateful else b""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asked:
        asked.bind(("::", 546))
        asked.settimeout(SECONDS)
        for _ in range(TRIES):
            asked.sendto(question, ("ff02::1:2", 547, 0, socket.if_nametoindex("eth0")))
            try:
                answer = asked.recv(4096)
                break
            except TimeoutError:
                continue
        else:
            sys.exit("nobody answers")
    place = 4
    while place < len(answer):
        code, size = unpack_from("!HH", answer, place)
        print(code, answer[place + 4 : place + 4 + size].hex())
        place += 4 + size


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "1")
