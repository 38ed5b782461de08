"""A TCP stream at a steady rate, as a script: what came of it is printed as JSON when it is told to stop.

`stream.py serve PORT` takes one connection and counts; `stream.py send ADDRESS PORT` sends a piece every `PERIOD` seconds.
Standard library alone: it runs in workloads.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import sys
import time

PIECE = 1 << 10  # bytes
PERIOD = 0.005  # seconds; a segment each time, so that a switch that waits for the processor need not drop any
RETRANSMITTED = 100  # place of tcpi_total_retrans in struct tcp_info (linux/tcp.h)


class Stop(Exception):
    """Told to end."""


def serve(port: int) -> dict[str, float]:
    """Count what arrives, and the longest time in which nothing did."""
    count, longest = 0, 0.0
    with socket.create_server(("", port)) as listener:
        print("ready", flush=True)
        connection, _ = listener.accept()
        last = time.monotonic()
        with connection, contextlib.suppress(Stop):
            while data := connection.recv(1 << 16):
                now = time.monotonic()
                count, longest, last = count + len(data), max(longest, now - last), now
    return {"bytes": count, "longest": longest}


def send(address: str, port: int) -> dict[str, float]:
    """Send until told to stop; how much, and how many segments had to be sent again."""
    count = 0
    with socket.create_connection((address, port), timeout=10) as connection:
        print("ready", flush=True)
        with contextlib.suppress(Stop):
            while True:
                connection.sendall(b"x" * PIECE)
                count += PIECE
                time.sleep(PERIOD)
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return {"bytes": count, "retransmitted": struct.unpack_from("I", info, RETRANSMITTED)[0]}


def stop(*_: object) -> None:
    raise Stop


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    result = serve(int(sys.argv[2])) if sys.argv[1] == "serve" else send(sys.argv[2], int(sys.argv[3]))
    print(json.dumps(result), flush=True)
