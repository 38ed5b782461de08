"""A proxy between a client and a server that counts bytes: it cuts the connection after so many, or swallows or delays them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from types import TracebackType
from typing import Any, Self

BLOCK = 1 << 16


class Proxy:
    """Listens on a unix socket of its own and forwards to `target`, a `unix:path` or `host:port`.

    cut_up, cut_down: how many bytes of all that clients (up) or the server (down) send are forwarded before everything is
    cut off; None: all. swallows: bytes are taken and go nowhere, and nobody is told. late: seconds that each piece takes.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._folder = tempfile.TemporaryDirectory(prefix="kumi-test-")
        self.target = f"unix:{self._folder.name}/proxy"
        self.cut_up: int | None = None
        self.cut_down: int | None = None
        self.swallows = False
        self.late = 0.0
        self._ended = asyncio.Event()
        self.up = self.down = self.cuts = 0
        self._ends: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.target.removeprefix("unix:"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self._ended.set()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._folder.cleanup()

    def begin(self, *, cut_up: int | None = None, cut_down: int | None = None) -> None:
        """Count anew."""
        self.up = self.down = 0
        self.cut_up, self.cut_down = cut_up, cut_down

    def cut(self) -> None:
        """Cut off everybody now."""
        for end in list(self._ends):
            end.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = [writer]
        self._ends.add(writer)
        try:
            if self._target.startswith("unix:"):
                back, there = await asyncio.open_unix_connection(self._target.removeprefix("unix:"))
            else:
                host, _, port = self._target.rpartition(":")
                back, there = await asyncio.open_connection(host, int(port))
            ends.append(there)
            self._ends.add(there)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, there, "up"))
                group.create_task(self._forward(back, writer, "down"))
        except* (OSError, EOFError):
            pass
        finally:
            for end in ends:
                self._ends.discard(end)
                end.transport.abort()
            self._tasks.discard(task)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: str) -> None:
        while data := await source.read(BLOCK):
            if self.swallows:
                continue
            if self.late:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), self.late)
            sent, limit = getattr(self, way), getattr(self, f"cut_{way}")
            room = len(data) if limit is None else limit - sent
            sink.write(data[: max(0, room)])
            await sink.drain()
            setattr(self, way, sent + min(len(data), max(0, room)))
            if room < len(data):
                self.cuts += 1
                await _flushed(sink)
                raise EOFError
        raise EOFError


async def _flushed(sink: asyncio.StreamWriter) -> None:
    """Wait until the kernel has all that was written: what is aborted is lost."""
    sink.transport.set_write_buffer_limits(0)
    await sink.drain()
