"""UDP, as a script in a workload. Standard library alone.

`datagram.py serve PORT` sends back what it is sent, until it is stopped. `datagram.py ask ADDRESS PORT BYTES SECONDS` sends so
much and prints what comes of it within so long: `answered`, `refused` (an error of ICMP has come back) or `silence`.
"""

from __future__ import annotations

import socket
import sys

MOST = 1 << 16


def serve(port: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as place:
        place.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        place.bind(("", port))
        print("ready", flush=True)
        while True:
            data, asker = place.recvfrom(MOST)
            place.sendto(data, asker)


def ask(address: str, port: int, size: int, seconds: float) -> str:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as place:
        place.settimeout(seconds)
        place.connect((address, port))
        try:
            place.send(bytes(size))
            return "answered" if len(place.recv(MOST)) == size else "cut off"
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silence"


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        print(ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])), flush=True)
