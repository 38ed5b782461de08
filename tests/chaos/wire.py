"""Connections that behave badly below gRPC: noise instead of TLS, halves of handshakes, HTTP/2 as nobody should speak it.

Owns: the bytes, and for how long each connection is held. Each attack ends by itself within `Attack.patience` seconds, whether
or not the server has hung up.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header without Huffman code and index."""

    def text(content: bytes) -> bytes:
        if len(content) < 127:
            return bytes([len(content)]) + content
        rest, found = len(content) - 127, b"\x7f"
        while rest > 127:
            found, rest = found + bytes([rest & 127 | 128]), rest >> 7
        return found + bytes([rest]) + content

    return b"\x00" + text(name) + text(value)


def call(path: str, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a gRPC call."""
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", path.encode()),
        (b":authority", b"kumi-api"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *more,
    ]
    return b"".join(_literal(name, value) for name, value in headers)


@dataclass
class Attack:
    """Attacks on a server that listens on a unix socket. patience: seconds that one holds its connection."""

    path: str
    chance: random.Random
    method: str
    patience: float = 3.0

    async def one(self) -> str:
        """Any of them; its name."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            self.noise,
            self.half_handshake,
            self.plain_http,
            self.bad_frames,
            self.slow_headers,
            self.slow_body,
            self.resets,
            self.pings_and_settings,
            self.endless_headers,
            self.never_reads,
        ]
        kind = self.chance.choice(kinds)
        # A server that hangs up in the middle does what it should.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError, ssl.SSLError):
            async with asyncio.timeout(self.patience):
                await kind()
        return kind.__name__

    @contextlib.asynccontextmanager
    async def _connected(self, tls: bool) -> AsyncIterator[Streams]:
        streams = await (connect_tls(self.path) if tls else asyncio.open_unix_connection(self.path))
        try:
            yield streams
        finally:
            streams[1].transport.abort()

    @contextlib.asynccontextmanager
    async def _http2(self) -> AsyncIterator[Streams]:
        async with self._connected(True) as (reader, writer):
            writer.write(PREFACE + frame(SETTINGS, 0, 0))
            yield reader, writer

    async def noise(self) -> None:
        async with self._connected(False) as (reader, writer):
            writer.write(self.chance.randbytes(self.chance.choice((1, 100, 100_000))))
            await _flush(writer)
            await reader.read()

    async def plain_http(self) -> None:
        async with self._connected(False) as (reader, writer):
            writer.write(self.chance.choice((b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", PREFACE, b"\x16\x03\x01" + b"\xff" * 500)))
            await reader.read()

    async def half_handshake(self) -> None:
        """The first bytes of a TLS hello, and then nothing."""
        async with self._connected(False) as (reader, writer):
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + self.chance.randbytes(self.chance.randrange(40)))
            await reader.read()

    async def bad_frames(self) -> None:
        async with self._http2() as (reader, writer):
            for _ in range(self.chance.randrange(1, 20)):
                kind, stream = (
                    self.chance.choice((*range(10), 77, 255)),
                    self.chance.choice((0, 1, 2, 3, 0x7FFFFFFF, 0xFFFFFFFF)),
                )
                writer.write(frame(kind, self.chance.randrange(256), stream, self.chance.randbytes(self.chance.randrange(64))))
            await _flush(writer)
            await reader.read()

    async def slow_headers(self) -> None:
        """A header block that comes byte by byte and never ends."""
        async with self._http2() as (reader, writer):
            block = call(self.method)
            writer.write(frame(HEADERS, 0, 1, block[:1]))
            for at in range(1, len(block) - 1):
                writer.write(frame(CONTINUATION, 0, 1, block[at : at + 1]))
                await _flush(writer)
                await _pause(reader, 0.05)

    async def slow_body(self) -> None:
        """A message of 8 MiB, of which a few bytes come at a time."""
        async with self._http2() as (reader, writer):
            writer.write(frame(HEADERS, END_HEADERS, 1, call(self.method)))
            writer.write(frame(DATA, 0, 1, b"\x00" + struct.pack(">I", (8 << 20) - 100)))
            while True:
                writer.write(frame(DATA, 0, 1, b"a" * 10))
                await _flush(writer)
                await _pause(reader, 0.05)

    async def resets(self) -> None:
        """Streams that are opened and reset at once, 500 of them."""
        async with self._http2() as (reader, writer):
            block = call(self.method, (b"authorization", b"Bearer root-token"))
            for stream in range(1, 1001, 2):
                writer.write(frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08"))
                await _flush(writer)
                await _breathe(reader, stream - 1)
            await _pause(reader, 0.5)

    async def pings_and_settings(self) -> None:
        async with self._http2() as (reader, writer):
            for number in range(500):
                writer.write(frame(PING, 0, 0, struct.pack(">Q", number)))
                writer.write(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, self.chance.randrange(1 << 31))))
                await _flush(writer)
                await _breathe(reader, number)
            await _pause(reader, 0.5)

    async def endless_headers(self) -> None:
        """Headers of some MB, in continuations."""
        async with self._http2() as (reader, writer):
            writer.write(frame(HEADERS, 0, 1, call(self.method)))
            piece = _literal(b"x-more", b"y" * 8000)
            for number in range(300):
                writer.write(frame(CONTINUATION, 0, 1, piece))
                await _flush(writer)
                await _breathe(reader, number)

    async def never_reads(self) -> None:
        """Calls with large answers, and a window that never opens."""
        async with self._connected(True) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1)))
            block = call(self.method, (b"authorization", b"Bearer root-token"))
            for stream in range(1, 41, 2):
                writer.write(frame(HEADERS, END_HEADERS, stream, block))
                writer.write(frame(DATA, END_STREAM, stream, b"\0\0\0\0\3\x10\xe8\x07"))  # page_size: 1000
            await _flush(writer)
            await asyncio.Event().wait()


async def connect_tls(path: str) -> Streams:
    """A TLS connection that offers HTTP/2 and has said nothing yet."""
    return await asyncio.open_unix_connection(path, ssl=_context(), server_hostname="kumi-api", ssl_handshake_timeout=20)


@functools.cache
def _context() -> ssl.SSLContext:
    """One for all: it takes most of a megabyte."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


async def _flush(writer: asyncio.StreamWriter) -> None:
    if writer.is_closing():
        raise ConnectionResetError
    await writer.drain()


async def _breathe(reader: asyncio.StreamReader, number: int) -> None:
    """Once in a while, hear whether the server has hung up."""
    if number % 10 == 0:
        await _pause(reader, 0.001)


async def _pause(reader: asyncio.StreamReader, seconds: float) -> None:
    """Read for so long; EOFError-like silence of a closed connection ends the attack."""
    with contextlib.suppress(TimeoutError):
        if not await asyncio.wait_for(reader.read(65536), seconds):
            raise ConnectionResetError


class Idle:
    """Connections that do nothing: some with TLS done, some not even begun."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._held: list[Streams] = []

    async def hold(self, number: int) -> None:
        """That many more; every fourth with TLS."""
        for turn in range(0, number, 20):
            kinds = [place % 4 == 0 for place in range(turn, min(turn + 20, number))]
            opened = [connect_tls(self._path) if tls else asyncio.open_unix_connection(self._path) for tls in kinds]
            self._held += await asyncio.gather(*opened)

    def __len__(self) -> int:
        return len(self._held)

    def drop(self) -> None:
        for _, writer in self._held:
            writer.transport.abort()
        self._held.clear()
