"""One TCP stream, as a program inside a workload: `serve` prints what each connection got, `send` sends for some seconds.

python3 stream.py serve PORT · python3 stream.py send ADDRESS PORT SECONDS
"""

from __future__ import annotations

import socket
import sys
import time

CHUNK = bytes(1 << 18)


def serve(port: int) -> None:
    """Take connections one after the other; megabits per second of each, from its first byte to its last, a line each."""
    with socket.create_server(("0.0.0.0", port)) as server:  # noqa: S104 – a workload's own namespace
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                began = got = 0.0
                while data := connection.recv(1 << 20):
                    began = began or time.monotonic()
                    got += len(data)
                print(got * 8 / 1e6 / (time.monotonic() - began), flush=True)


def send(address: str, port: int, seconds: float) -> None:
    """Send for so long."""
    with socket.create_connection((address, port), timeout=60) as connection:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            connection.sendall(CHUNK)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
