"""New TCP connections, as a script in a workload: how many can be made one after the other. Standard library alone.

`connect.py serve PORT` accepts and closes until it is told to stop; `connect.py call ADDRESS PORT SECONDS [PERIOD]` prints how
many connections it has made in a second: as many as it can, or one each period.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import sys
import time

PATIENCE = 10  # seconds for one connection
# Closed at once by a reset: no side keeps the ports of thousands in TIME_WAIT.
AT_ONCE = struct.pack("ii", 1, 0)


def serve(port: int) -> None:
    with socket.create_server(("", port), backlog=1024) as listener:
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionResetError):
                connection.recv(1)  # until the other side closes


def call(address: str, port: int, seconds: float, period: float = 0.0) -> float:
    count = 0
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, period, period)
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        with socket.create_connection((address, port), timeout=PATIENCE) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        count += 1
        if period:
            signal.sigwait({signal.SIGALRM})
    return count / (time.monotonic() - began)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    print(call(sys.argv[2], int(sys.argv[3]), *map(float, sys.argv[4:])), flush=True)
