"""The one commit. Every write, of one object or of many, goes through `commit`.

An *attempt* is a function that reads from the cache through a `Transaction`, decides, and states what it wants written.
The transaction remembers what was read and compares exactly that in etcd:
- comparisons fail: someone was faster. The cache is brought up to date and the attempt runs again, a bounded number of
  times. Attempts must therefore have no effect but on the transaction.
- the attempt refuses (ApiError): that may be the fault of a cache that lags another replica. The refusal stands when the
  attempt saw all that was written before the call; else the cache is synced and the attempt runs again. (Not "until
  nobody writes any more": on a busy store that never comes.)
- etcd's answer was lost: the outcome is unknown. Each commit creates a change record under an id of its own, so a look at
  that key tells whether it happened, and the same transaction sent twice cannot happen twice.

Contributors: the scope contributor puts `net/{net}/change` for each network whose scope is written (see keys), so agents
find the request and trace that caused a change beside the change, and the scope's revision outlives deletions.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from controlplane.errors import ApiError, StoreUnavailable, conflict, unavailable
from controlplane.store import client, keys
from controlplane.store.cache import Cache
from controlplane.store.client import Entry, Store
from kumihimo.v1 import store_pb2

T = TypeVar("T")

ATTEMPTS = 16
UNKNOWN_ATTEMPTS = 4
UNKNOWN_PAUSE = 0.1  # seconds


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks for a change, and in which request and trace."""

    actor: str
    project_id: str
    method: str
    request_id: str = ""
    trace_context: str = ""


class Transaction:
    """What one attempt has read and wants written."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.revision = cache.revision
        self.resources: list[str] = []
        self._compare: dict[tuple[str, str], Any] = {}
        self._put: dict[str, tuple[bytes, int]] = {}
        self._delete: dict[str, bool] = {}

    def read(self, key: str) -> Entry | None:
        """What is at a key; the commit happens only if that is still so."""
        seen = self.cache.get(key)
        self._compare[key, "mod"] = client.modified_at(key, seen.mod_revision if seen else 0)
        return seen

    def require(self, key: str) -> Entry | None:
        """What is at a key; the commit happens only if the same object is still there, changed or not."""
        seen = self.cache.get(key)
        self._compare.setdefault((key, "create"), client.created_at(key, seen.create_revision if seen else 0))
        return seen

    def require_empty(self, prefix: str) -> None:
        """The commit happens only if no key has this prefix."""
        self._compare[prefix, "empty"] = client.empty(prefix)

    def require_unchanged(self, prefix: str) -> None:
        """The commit happens only if no key with this prefix was added or changed since the cache was read."""
        self._compare[prefix, "unchanged"] = client.unchanged_since(prefix, self.revision)

    def put(self, key: str, message: Message, lease: int = 0) -> None:
        self._put[key] = (message.SerializeToString(), lease)
        self._delete.pop(key, None)

    def delete(self, key: str) -> None:
        self._put.pop(key, None)
        self._delete[key] = False

    def delete_prefix(self, prefix: str) -> None:
        for key in [key for key in self._put if key.startswith(prefix)]:
            del self._put[key]
        for key in [key for key in self._delete if key.startswith(prefix)]:
            del self._delete[key]
        self._delete[prefix] = True

    def planned(self, key: str) -> bool:
        """Whether this transaction already puts the key."""
        return key in self._put

    @property
    def is_empty(self) -> bool:
        return not self._put and not self._delete

    def contribute(self, change_id: str, origin: Origin) -> None:
        """Add the change record, and the change key of every scope that is written."""
        record = store_pb2.ChangeRecord(
            actor=origin.actor,
            project_id=origin.project_id,
            request_id=origin.request_id,
            method=origin.method,
            resources=self.resources,
            trace_context=origin.trace_context,
        )
        record.time.GetCurrentTime()
        for key in [*self._put, *self._delete]:
            match keys.split(key):
                case ["net", network_id, leaf, *_] if leaf and not self._delete.get(keys.scope(network_id)):
                    self.put(keys.change_of_network(network_id), record)
                case ["node", _]:
                    self.put(keys.NODES_CHANGE, record)
        self.put(keys.change(change_id), record)
        self._compare[keys.change(change_id), "create"] = client.created_at(keys.change(change_id), 0)

    def compare(self) -> list[Any]:
        return list(self._compare.values())

    def operations(self) -> list[Any]:
        puts = [client.put(key, value, lease) for key, (value, lease) in self._put.items()]
        return puts + [client.delete(key, prefix) for key, prefix in self._delete.items()]


async def commit(
    store: Store, cache: Cache, attempt: Callable[[Transaction], T], origin: Origin, *, dry_run: bool = False
) -> tuple[T, int]:
    """Run an attempt until it is written or refused; (its result, the revision written at or read at).

    dry_run: everything but the write. Raises what the attempt raises, ABORTED after too many conflicts, UNAVAILABLE.
    """
    fresh: int | None = None  # a revision the store had during this call
    try:
        for _ in range(ATTEMPTS):
            transaction = Transaction(cache)
            try:
                result = attempt(transaction)
            except ApiError:
                if fresh is None:
                    fresh = await cache.sync()
                if transaction.revision < fresh:
                    continue
                raise
            if dry_run or transaction.is_empty:
                await cache.sync()
                return result, cache.revision
            change_id = time_ordered_id()
            transaction.contribute(change_id, origin)
            revision = await _write(store, transaction, keys.change(change_id))
            if revision:
                return result, revision
            fresh = await cache.sync()
        raise conflict()
    except StoreUnavailable as error:
        raise unavailable(str(error)) from error


async def _write(store: Store, transaction: Transaction, record_key: str) -> int:
    """The revision written at; 0 when a comparison failed."""
    compare, operations = transaction.compare(), transaction.operations()
    for turn in range(UNKNOWN_ATTEMPTS):
        try:
            # The one before may have happened, or happen while we look: then ours fails its comparison.
            record = await store.get(record_key) if turn else None
            if record is None:
                written = await store.transact(compare, operations)
                if written.succeeded:
                    return written.revision
                record = await store.get(record_key) if turn else None
            return record.mod_revision if record else 0
        except StoreUnavailable:
            if turn == UNKNOWN_ATTEMPTS - 1:
                raise
            # A connection that broke takes more than one call with it.
            await asyncio.sleep(UNKNOWN_PAUSE)
    return 0


def time_ordered_id() -> str:
    """A version 7 UUID (RFC 9562): the order of ids is the order of their making."""
    milliseconds = time.time_ns() // 1_000_000
    number = (milliseconds << 80) | secrets.randbits(80)
    number = number & ~(0xF << 76) | (0x7 << 76)
    number = number & ~(0x3 << 62) | (0x2 << 62)
    return str(uuid.UUID(int=number))
