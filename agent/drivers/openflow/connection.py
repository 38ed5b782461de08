"""One OpenFlow 1.5 connection to a bridge's management socket (RUNDIR/BRIDGE.mgmt, ovs-ofctl(8)).

A connection is opened once and not repaired: after any OpenFlowError it is closed, and what was under way is unknown.
Every message has an xid of its own, so that an error finds the message it is about.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from struct import error, unpack_from
from typing import Self

from agent.drivers.openflow import codec

_CHUNK = 256 * 1024  # bytes collected before they are written, to save system calls
_EACH = 0.002  # seconds granted for each message: a hundred times what a flow takes, so that a busy host is no broken one


class OpenFlowError(ConnectionError):
    """The switch could not be talked to, or did not answer as it should: the outcome is unknown."""


# 1.5.1, section 7.5.4: the errors that flow, group and bundle messages can meet.
_TYPES = {
    0: "hello failed",
    1: "bad request",
    2: "bad action",
    3: "bad instruction",
    4: "bad match",
    5: "flow mod failed",
    6: "group mod failed",
    12: "meter mod failed",
    17: "bundle failed",
}
_CODES: dict[int, tuple[str, ...]] = {
    0: ("incompatible", "permission"),
    1: (
        *("bad version", "bad type", "bad multipart", "bad experimenter", "bad experimenter type", "permission"),
        *("bad length", "buffer empty", "buffer unknown", "bad table", "is slave", "bad port", "bad packet"),
        *("multipart buffer overflow", "multipart request timeout", "multipart reply timeout", "unknown"),
    ),
    2: (
        *("bad type", "bad length", "bad experimenter", "bad experimenter type", "bad out port", "bad argument"),
        *("permission", "too many", "bad queue", "bad out group", "inconsistent with the match"),
        *("unsupported order", "bad tag", "bad set type", "bad set length", "bad set argument", "bad set mask"),
    ),
    3: (
        *("unknown instruction", "unsupported instruction", "bad table", "unsupported metadata"),
        *("unsupported metadata mask", "bad experimenter", "bad experimenter type", "bad length", "permission"),
        "duplicate instruction",
    ),
    4: (
        *("bad type", "bad length", "bad tag", "bad data link mask", "bad network mask", "bad wildcards"),
        *("bad field", "bad value", "bad mask", "bad prerequisite", "duplicate field", "permission"),
    ),
    5: (
        *("unknown", "table full", "bad table", "overlap", "permission", "bad timeout", "bad command"),
        *("bad flags", "cannot synchronise", "bad priority", "is synchronised"),
    ),
    6: (
        *("group exists", "invalid group", "weight unsupported", "out of groups", "out of buckets"),
        *("chaining unsupported", "watch unsupported", "loop", "unknown group", "chained group", "bad type"),
        *("bad command", "bad bucket", "bad watch", "permission", "unknown bucket", "bucket exists"),
    ),
    12: (
        *("unknown", "meter exists", "invalid meter", "unknown meter", "bad command", "bad flags", "bad rate", "bad burst"),
        *("bad band", "bad band value", "out of meters", "out of bands"),
    ),
    17: (
        *("unknown", "permission", "bad id", "bundle exists", "bundle closed", "out of bundles", "bad type"),
        *("bad flags", "message bad length", "message bad xid", "message unsupported", "message conflict"),
        *("message too many", "message failed", "timeout", "bundle in progress"),
    ),
}


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An OpenFlow error, about the message whose xid it bears."""

    type: int
    code: int

    def __str__(self) -> str:
        codes = _CODES.get(self.type, ())
        code = codes[self.code] if self.code < len(codes) else "code"
        return f"{_TYPES.get(self.type, 'error')}: {code} ({self.type}/{self.code})"


NO_SUCH_GROUP = ErrorReply(2, 9)
METER_EXISTS = ErrorReply(12, 1)


class Connection:
    """Messages to and from one switch."""

    def __init__(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sampled: Callable[[bytes], None]
    ) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._sampled = sampled
        self._xids = count(1)
        self._exchanges: dict[int, Exchange] = {}
        self._broken: OpenFlowError | None = None
        self._changed = asyncio.Event()
        self._receiver: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, path: Path, timeout: float, sampled: Callable[[bytes], None] = lambda _: None) -> Self:
        """Connect and agree on version 1.5; timeout in seconds. OpenFlowError when the switch is not there.

        sampled: called with the body of each packet that a flow sends here.
        """
        with contextlib.ExitStack() as undo:
            try:
                async with asyncio.timeout(timeout):
                    reader, writer = await asyncio.open_unix_connection(path)
                    undo.callback(writer.close)
                    writer.write(codec.message(codec.HELLO, 0, codec.hello_body()))
                    version, kind, _, body = await _receive(reader)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as wrong:
                raise OpenFlowError(f"no OpenFlow connection to {path}: {wrong or 'timeout'}") from wrong
            if kind != codec.HELLO or not codec.hello_offers(version, body):
                raise OpenFlowError(f"{path.name} does not offer OpenFlow 1.5: see the bridge's column protocols")
            undo.pop_all()
        connection = cls(path.name, reader, writer, sampled)
        connection._receiver = asyncio.create_task(connection._receive_all(), name=f"openflow {path.name}")
        return connection

    @property
    def usable(self) -> bool:
        """False once the connection is lost or closed."""
        return self._broken is None

    async def ended(self) -> None:
        """Return when the connection is lost or closed."""
        if self._receiver is not None:
            await asyncio.wait([self._receiver])

    async def changed(self) -> None:
        """Return when somebody else has changed a flow since the last call; `codec.monitor_request` asks to be told."""
        await self._changed.wait()
        self._changed.clear()

    async def close(self) -> None:
        """Close; exchanges under way raise OpenFlowError. Idempotent."""
        self._break(OpenFlowError(f"{self._name}: connection closed"))
        if self._receiver is not None:
            self._receiver.cancel()
            await asyncio.wait([self._receiver])
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def exchange(self) -> Exchange:
        """A context in which messages are sent and their answers collected."""
        return Exchange(self)

    def _break(self, reason: OpenFlowError) -> None:
        if self._broken is None:
            self._broken = reason
        self._writer.close()
        for exchange in set(self._exchanges.values()):
            exchange._wake(self._broken)

    async def _receive_all(self) -> None:
        """Hand every message to the exchange that its xid belongs to, until the connection ends."""
        try:
            while True:
                _, kind, xid, body = await _receive(self._reader)
                if kind == codec.ECHO_REQUEST:
                    self._writer.write(codec.message(codec.ECHO_REPLY, xid, body))
                elif kind == codec.PACKET_IN:
                    self._sampled(body)
                elif exchange := self._exchanges.get(xid):
                    exchange._receive(kind, xid, body)
                elif kind == codec.MULTIPART_REPLY and codec.tells_of_others(body):
                    self._changed.set()
        except (OSError, asyncio.IncompleteReadError, error) as wrong:
            self._break(OpenFlowError(f"{self._name}: connection lost: {wrong}"))


class Exchange:
    """Messages sent, and the errors and replies that came for them, by xid.

    Used with `with`; what arrives after its end is dropped. `barrier` is the point at which everything sent before has
    been answered: a switch works through the messages of one connection in order (1.5.1, section 7.3.8).
    """

    def __init__(self, connection: Connection) -> None:
        self.errors: dict[int, ErrorReply] = {}
        self.replies: dict[int, list[bytes]] = {}
        self._connection = connection
        self._pending = bytearray()
        self._xids: list[int] = []
        self._barriers: dict[int, asyncio.Future[None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for xid in self._xids:
            self._connection._exchanges.pop(xid, None)

    def xid(self) -> int:
        """A new xid whose answers come to this exchange."""
        xid = next(self._connection._xids) & 0xFFFF_FFFF
        self._connection._exchanges[xid] = self
        self._xids.append(xid)
        return xid

    def send(self, kind: int, body: bytes = b"") -> int:
        """Write a message; the xid it bears."""
        xid = self.xid()
        self.write(codec.message(kind, xid, body))
        return xid

    def write(self, message: bytes) -> None:
        """Write a message that bears an xid of `xid()`. It leaves when enough is collected, or at the next barrier."""
        self._pending += message
        if len(self._pending) >= _CHUNK:
            self._flush()

    async def barrier(self, timeout: float) -> None:
        """Wait until everything sent is answered; timeout in seconds, and more for much. OpenFlowError closes the connection.

        Who gave up on a large bundle would send it again, to a switch that is then busier still.
        """
        xid = self.xid()
        timeout += len(self._xids) * _EACH
        self._barriers[xid] = asyncio.get_running_loop().create_future()
        self.write(codec.message(codec.BARRIER_REQUEST, xid))
        self._flush()
        try:
            async with asyncio.timeout(timeout):
                await self._barriers[xid]
        except TimeoutError:
            wrong = OpenFlowError(f"{self._connection._name}: no answer within {timeout:g} s")
            self._connection._break(wrong)
            raise wrong from None
        finally:
            self._barriers.pop(xid).cancel()

    def _flush(self) -> None:
        if self._connection._broken is not None:
            raise OpenFlowError(str(self._connection._broken))
        self._connection._writer.write(bytes(self._pending))
        self._pending.clear()

    def _receive(self, kind: int, xid: int, body: bytes) -> None:
        if kind == codec.ERROR:
            self.errors[xid] = ErrorReply(*unpack_from("!HH", body))
        elif kind == codec.BARRIER_REPLY:
            if (barrier := self._barriers.get(xid)) and not barrier.done():
                barrier.set_result(None)
        else:
            self.replies.setdefault(xid, []).append(body)

    def _wake(self, wrong: OpenFlowError) -> None:
        for barrier in self._barriers.values():
            if not barrier.done():
                barrier.set_exception(OpenFlowError(str(wrong)))


async def _receive(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    """Version, type, xid and body of the next message."""
    version, kind, length, xid = codec.parse_header(await reader.readexactly(8))
    if length < 8:
        raise OSError(f"a message of {length} bytes")
    return version, kind, xid, await reader.readexactly(length - 8)
