"""What this node says of itself in etcd: only below `status/{node}/`, only what changed, at most once in 20 ms unless
somebody waits for it."""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from google.protobuf.message import Message

from controlplane.errors import StoreUnavailable
from controlplane.store import client, keys
from controlplane.store.client import Store
from kumihimo.v1 import store_pb2

PAUSE = 0.02  # seconds between two writes
RETRY = 0.5
BATCH = 1000  # operations of one transaction

_log = structlog.get_logger("kumihimo.agent")


class Status:
    """The node's status as it should be (`set`, `remove`), and the writer that makes etcd equal to it."""

    def __init__(self, store: Store, node_id: str) -> None:
        self._store = store
        self._node_id = node_id
        self._prefix = keys.status(node_id)
        self._wanted: dict[str, bytes] = {}
        # What etcd holds, as far as we know; None: unknown, to be written or removed in any case.
        self._written: dict[str, bytes | None] = {}
        # The etcd cluster that _written is about, and whether it has yet to be read.
        self._cluster = 0
        self._unread = False
        self._changed = asyncio.Event()
        self._flushed = asyncio.Event()
        self._urgent = asyncio.Event()

    async def read(self) -> None:
        """Take over what a former process has written. Raises StoreUnavailable."""
        await self._read()
        self._cluster = self._store.cluster
        for key, value in self._written.items():
            if value is not None:
                self._wanted.setdefault(key, value)

    async def _read(self) -> None:
        held: dict[str, bytes | None] = {}
        async for _, kvs in self._store.pages(self._prefix):
            held.update((kv.key.decode(), kv.value) for kv in kvs)
        self._written = held

    def follow(self, cluster: int) -> None:
        """Something was read from this etcd cluster: another one (restored from a backup) holds something else of us."""
        if cluster != self._cluster:
            self._cluster = cluster
            self._unread = True
            self._changed.set()

    def known(self) -> set[str]:
        return set(self._wanted)

    def get(self, key: str) -> bytes | None:
        return self._wanted.get(key)

    def set(self, key: str, message: Message) -> None:
        value = message.SerializeToString(deterministic=True)
        if self._wanted.get(key) != value:
            self._wanted[key] = value
            self._changed.set()

    def set_port(self, port: str, message: store_pb2.PortStatus) -> None:
        """What is to be said of a port, with since when it is wired, or is not."""
        key = keys.port_status(self._node_id, port)
        former = store_pb2.PortStatus.FromString(self._wanted.get(key, b""))
        if former.HasField("since") and former.wired == message.wired:
            message.since.CopyFrom(former.since)
        else:
            message.since.GetCurrentTime()
        self.set(key, message)

    def remove(self, key: str) -> None:
        if self._wanted.pop(key, None) is not None or key in self._written:
            self._changed.set()

    def hurry(self) -> None:
        """What was set is waited for: write it without the pause between two writes."""
        self._changed.set()
        self._urgent.set()

    async def flushed(self) -> None:
        """Wait until everything set so far is in etcd."""
        while self._unread or self._pending():
            self._flushed.clear()
            self.hurry()
            await self._flushed.wait()

    def _pending(self) -> dict[str, bytes | None]:
        pending: dict[str, bytes | None] = {
            key: value for key, value in self._wanted.items() if self._written.get(key) != value
        }
        pending.update((key, None) for key in self._written if key not in self._wanted)
        # Says "this node has spoken" after a restoration: nothing may come after it that was due before.
        last = keys.scope_status(self._node_id, "")
        if last in pending:
            pending[last] = pending.pop(last)
        return pending

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._urgent.clear()
            try:
                await self._write()
            except StoreUnavailable as error:
                _log.warning("status not written", detail=str(error))
                await asyncio.sleep(max(RETRY, error.pause))
                self._changed.set()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PAUSE):
                        await self._urgent.wait()

    async def _write(self) -> None:
        if self._unread:
            self._unread = False
            try:
                await self._read()
            except StoreUnavailable:
                self._unread = True
                raise
        pending = list(self._pending().items())[:BATCH]
        if pending:
            operations = [client.delete(key) if value is None else client.put(key, value) for key, value in pending]
            self._written.update((key, None) for key, _ in pending)
            await self._store.transact([], operations)
            for key, value in pending:
                if value is None:
                    self._written.pop(key, None)
                else:
                    self._written[key] = value
        if self._pending():
            self._changed.set()
        self._flushed.set()
