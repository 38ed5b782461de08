"""A TCP stream, as a script in a workload: what came of it is printed as JSON. Standard library alone.

`stream.py serve PORT` takes one connection and counts until it is closed. `stream.py send ADDRESS PORT` sends a piece every
`PERIOD` until it is told to stop; `stream.py send ADDRESS PORT SECONDS` as much as it can in so long.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import sys
import time

PIECE = 1 << 10  # bytes
PERIOD = 0.005  # seconds; a segment each time, so that a switch that waits for the processor need not drop any
CHUNK = bytes(1 << 18)
PATIENCE = 60  # seconds for what the other end does not take
RETRANSMITTED = 100  # place of tcpi_total_retrans in struct tcp_info (linux/tcp.h)


def serve(port: int) -> dict[str, float]:
    """Count what arrives, the time from the first to the last of it, and the longest time in which nothing did."""
    count, longest = 0, 0.0
    with socket.create_server(("", port)) as listener:
        print("ready", flush=True)
        connection, _ = listener.accept()
        with connection:
            began = last = 0.0
            while data := connection.recv(1 << 20):
                now = time.monotonic()
                began, last = began or now, last or now
                count, longest, last = count + len(data), max(longest, now - last), now
    return {"bytes": count, "longest": longest, "seconds": last - began}


def send(address: str, port: int, seconds: float | None) -> dict[str, float]:
    """Send; how much, and how many segments had to be sent again."""
    count = 0
    with socket.create_connection((address, port), timeout=PATIENCE) as connection:
        print("ready", flush=True)
        if seconds is None:
            ticks = {signal.SIGALRM, signal.SIGTERM}
            signal.pthread_sigmask(signal.SIG_BLOCK, ticks)
            signal.setitimer(signal.ITIMER_REAL, PERIOD, PERIOD)
            while signal.sigwait(ticks) == signal.SIGALRM:
                connection.sendall(bytes(PIECE))
                count += PIECE
        else:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                connection.sendall(CHUNK)
                count += len(CHUNK)
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return {"bytes": count, "retransmitted": struct.unpack_from("I", info, RETRANSMITTED)[0]}


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        result = serve(int(sys.argv[2]))
    else:
        result = send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]) if len(sys.argv) > 4 else None)
    print(json.dumps(result), flush=True)
