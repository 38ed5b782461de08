"""Runtime commands of an Open vSwitch daemon: what ovs-appctl(8) does, in process.

The daemon listens on RUNDIR/NAME.PID.ctl; PID stands in RUNDIR/NAME.pid. The protocol is JSON-RPC 1.0: a command's
name is the method, its arguments are strings, its output is a string (Open vSwitch, lib/unixctl.c).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

_DECODER = json.JSONDecoder()


class UnixctlError(ConnectionError):
    """The daemon could not be talked to, or refused the command."""


class Control:
    """A connection to one daemon. Commands on it are answered one after the other."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._timeout = timeout
        self._received = b""

    async def call(self, command: str, *arguments: str) -> str:
        """Run a command; its output."""
        self.send(command, *arguments)
        return await self.receive()

    def send(self, command: str, *arguments: str) -> None:
        """Issue a command. When this returns the request lies in the daemon's socket, as far as it has room."""
        self._writer.write(json.dumps({"id": 0, "method": command, "params": arguments}).encode())

    async def receive(self) -> str:
        """The output of the oldest command not yet received. UnixctlError when it failed, or after the timeout."""
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._next()
        except TimeoutError:
            raise UnixctlError(f"{self._name}: no answer within {self._timeout} s") from None
        except OSError as wrong:
            raise UnixctlError(f"{self._name}: connection lost: {wrong}") from wrong
        if reply.get("error") is not None:
            raise UnixctlError(f"{self._name}: {str(reply['error']).strip()}")
        return str(reply.get("result") or "")

    async def _next(self) -> dict[str, object]:
        """The next JSON object. Nothing marks its end but its own closing brace."""
        while True:
            try:
                reply, end = _DECODER.raw_decode(self._received.decode())
            except ValueError:  # incomplete, perhaps in the middle of a character
                data = await self._reader.read(1 << 16)
                if not data:
                    raise OSError("closed by the daemon") from None
                self._received += data
                continue
            self._received = self._received.decode()[end:].encode()
            if not isinstance(reply, dict):
                raise OSError("not a JSON-RPC reply")
            return reply


@contextlib.asynccontextmanager
async def connect(
    rundir: Path = Path("/var/run/openvswitch"), daemon: str = "ovs-vswitchd", timeout: float = 10.0
) -> AsyncIterator[Control]:
    """A connection to the daemon that runs now; timeout in seconds for each answer. UnixctlError: none runs."""
    try:
        pid = (rundir / f"{daemon}.pid").read_text().strip()
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(rundir / f"{daemon}.{pid}.ctl")
    except (OSError, TimeoutError) as wrong:
        raise UnixctlError(f"no control connection to {daemon}: {wrong or 'timeout'}") from wrong
    try:
        yield Control(daemon, reader, writer, timeout)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
