"""One write: what it has read, and what it wants written.

An *attempt* is a function that reads through a `Transaction`, decides, and states what it wants written. It may run several
times, so it has no effect but on its transaction. `commit.py` runs attempts and writes what they want.

Attempts of several requests share a `Batch`, which becomes one etcd transaction. They are as good as one after the other,
because an attempt that would touch what an earlier one of the batch has written, or write what an earlier one has read, is
`Deferred` to the next batch. What is shared on purpose: values chosen from a pool (`holds` sees what others of the batch
have taken), and the change and cut keys of a scope. One attempt (an Apply) sees its own writes.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from google.protobuf.message import Message

from controlplane.registry import Kind
from controlplane.store import client, keys
from controlplane.store.cache import NOT_KEPT, Cache
from controlplane.store.client import Entry
from kumihimo.v1 import store_pb2

PART = 16  # bytes that an operation or a comparison takes beside its key and value


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks for a change, and in which request and trace."""

    actor: str
    project_id: str
    method: str
    request_id: str = ""
    trace_context: str = ""


class Deferred(Exception):
    """The attempt and an earlier one of its batch touch the same: it has to run after that one is written."""


class Batch:
    """What the attempts so far have read and want written, together.

    history_lease, request_lease: what history and request records are put under.
    """

    def __init__(self, cache: Cache, history_lease: int = 0, request_lease: int = 0) -> None:
        self.cache = cache
        self.revision = cache.revision
        self.history_lease = history_lease
        self.request_lease = request_lease
        self.record_key = ""
        self.length = 0  # bytes of the request to etcd
        self._compare: dict[tuple[str, str], int] = {}
        self._put: dict[str, tuple[bytes, int]] = {}
        self._deleted: dict[str, bool] = {}
        self._shared: dict[str, bytes] = {}
        # Keys and prefixes that attempts depend on; how many keys are put in each folder that somebody may depend on.
        self._read: set[str] = set()
        self._prefixes: tuple[str, ...] = ()
        self._puts: dict[str, int] = {}
        if cache.newest is not None:
            # A restored etcd does not hold it: what was read of the former one decides nothing there.
            key, revision = cache.newest
            self._compare[key, "create"] = revision

    @property
    def is_empty(self) -> bool:
        return not self._put and not self._deleted

    @property
    def size(self) -> int:
        """Operations or comparisons, whichever are more: what etcd limits."""
        return max(len(self._put) + len(self._deleted) + len(self._shared), len(self._compare))

    def include(self, transaction: Transaction) -> None:
        """Take over what an attempt wants."""
        self._compare.update(transaction.compare)
        self._put.update(transaction.puts)
        self._deleted.update(transaction.deleted)
        self._shared.update(transaction.shared)
        self.length += transaction.length
        self.record_key = self.record_key or transaction.record_key
        for name, mode in transaction.compare:
            if mode not in _OF_PREFIX:
                self._read.add(name)
            elif name not in self._prefixes:
                self._prefixes += (name,)
        for key in transaction.puts:
            if not key.startswith(NOT_KEPT):
                folder = keys.folder(key)
                self._puts[folder] = self._puts.get(folder, 0) + 1

    def puts(self, key: str) -> bool:
        return key in self._put

    def is_record(self, entry: Entry) -> bool:
        """Whether what stands at `record_key` is what this batch wanted to put there."""
        return entry.value == self._put[self.record_key][0]

    def puts_in(self, folder: str) -> int:
        return self._puts.get(folder, 0)

    def wrote(self, key: str) -> bool:
        """Whether an attempt has put or deleted the key."""
        if key in self._put:
            return True
        if not self._deleted:
            return False
        return key in self._deleted or any(whole and key.startswith(prefix) for prefix, whole in self._deleted.items())

    def wrote_below(self, prefix: str) -> bool:
        """Whether an attempt has put or deleted a key with this prefix."""
        if not prefix.endswith("/"):
            return any(key.startswith(prefix) for key in (*self._put, *self._deleted))
        return any(folder.startswith(prefix) for folder in self._puts) or any(key.startswith(prefix) for key in self._deleted)

    def minds(self, key: str) -> bool:
        """Whether an attempt has written the key, or depends on nobody's writing it."""
        return self.wrote(key) or key in self._read or key.startswith(self._prefixes)

    def compare(self) -> list[Any]:
        return [_COMPARE[mode](name, revision) for (name, mode), revision in self._compare.items()]

    def operations(self) -> list[Any]:
        puts = [client.put(key, value, lease) for key, (value, lease) in self._put.items()]
        puts += [client.put(key, value) for key, value in self._shared.items()]
        return puts + [client.delete(key, prefix) for key, prefix in self._deleted.items()]


_COMPARE = {
    "mod": client.modified_at,
    "create": client.created_at,
    "empty": lambda prefix, _: client.empty(prefix),
    "unchanged": client.unchanged_since,
}
_OF_PREFIX = ("empty", "unchanged")


class Transaction:
    """What one attempt has read and wants written. Reads show its own writes."""

    def __init__(self, batch: Batch, origin: Origin) -> None:
        self.cache = batch.cache
        self.revision = batch.revision
        self.origin = origin
        self.promised: set[tuple[str, str]] = set()
        # (key or prefix, what is compared) → the revision that must be
        self.compare: dict[tuple[str, str], int] = {}
        self.puts: dict[str, tuple[bytes, int]] = {}
        self.deleted: dict[str, bool] = {}
        self.shared: dict[str, bytes] = {}
        self.record_key = ""  # of something that nobody else creates: if it is there, this was carried out
        # Keys put, and deleted, by folder; prefixes deleted whole.
        self._puts_in: dict[str, set[str]] = defaultdict(set)
        self._deleted_in: dict[str, set[str]] = defaultdict(set)
        self._deleted_below: list[str] = []
        self.request_lease = batch.request_lease
        self._batch = batch

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Entry | None:
        """What is at a key; nothing is compared at commit."""
        written = self.puts.get(key)
        if written is not None:
            return Entry(written[0], 0, 0)
        return None if self._is_deleted(key) else self.cache.get(key)

    def read(self, key: str) -> Entry | None:
        """What is at a key; the commit happens only if that is still so."""
        return self._compared(key, "mod")

    def require(self, key: str) -> Entry | None:
        """What is at a key; the commit happens only if the same object is still there, changed or not."""
        return self._compared(key, "create")

    def _compared(self, key: str, mode: str) -> Entry | None:
        if key in self.puts or self._is_deleted(key):
            return self.get(key)
        if self._batch.wrote(key):
            raise Deferred
        seen = self.cache.get(key)
        if mode == "mod":
            self.compare[key, mode] = seen.mod_revision if seen else 0
        else:
            self.compare.setdefault((key, mode), seen.create_revision if seen else 0)
        return seen

    def require_empty(self, prefix: str) -> None:
        """The commit happens only if no key has this prefix (but for those that it deletes itself)."""
        self._of_prefix(prefix, "empty")

    def require_unchanged(self, prefix: str) -> None:
        """The commit happens only if no key with this prefix was added or changed since the cache was read."""
        self._of_prefix(prefix, "unchanged")

    def _of_prefix(self, prefix: str, mode: str) -> None:
        if self._batch.wrote_below(prefix):
            raise Deferred
        self.compare[prefix, mode] = self.revision

    def folder(self, folder: str) -> Mapping[str, Entry]:
        """All keys directly in a folder, by key; in no order. What others of the batch do is not among them."""
        there = self.cache.folder(folder)
        mine = self._puts_in.get(folder)
        if not mine and folder not in self._deleted_in and not self._deleted_below:
            return there
        found = {key: entry for key, entry in there.items() if not self._is_deleted(key)}
        found.update((key, Entry(self.puts[key][0], 0, 0)) for key in mine or ())
        return found

    def holds(self, key: str) -> bool:
        """Whether anybody has the key, others of the batch included."""
        if key in self.puts or self._batch.puts(key):
            return True
        return self.cache.get(key) is not None and not self._is_deleted(key)

    def count(self, folder: str) -> int:
        """How many keys stand directly in a folder, at the least those of the batch included."""
        there = self.cache.folder(folder)
        mine = sum(key not in there for key in self._puts_in.get(folder, ()))
        gone = sum(key in there for key in self._deleted_in.get(folder, ()))
        return len(there) + mine - gone + self._batch.puts_in(folder)

    def has_fewer(self, folder: str, limit: int) -> bool:
        """Whether `count` is below a limit. Who asks for each of many seldom needs it counted."""
        most = len(self.cache.folder(folder)) + len(self._puts_in.get(folder, ())) + self._batch.puts_in(folder)
        return most < limit or self.count(folder) < limit

    def locate(self, kind: Kind, object_id: str) -> str | None:
        """The key of an object; None when there is none."""
        parent_id = ""
        if kind.parent:
            index = self.get(keys.index(kind.name, object_id))
            if index is None:
                return None
            parent_id = store_pb2.Index.FromString(index.value).parent_id
        key = keys.place(kind, object_id, parent_id)
        return key if self.get(key) and keys.names_object(object_id) else None

    def message(self, kind: Kind, key: str) -> Any | None:
        """The object at a key, not to be changed; nothing is compared. None when there is none."""
        entry = self.get(key)
        return self.cache.parsed(kind, key, entry) if entry else None

    def object(self, kind: Kind, object_id: str) -> Any | None:
        """The object of an id, not to be changed; nothing is compared. None when there is none."""
        key = self.locate(kind, object_id)
        return self.message(kind, key) if key else None

    def _is_deleted(self, key: str) -> bool:
        return key in self.deleted or (bool(self._deleted_below) and key.startswith(tuple(self._deleted_below)))

    # -- writing ------------------------------------------------------------------------------------------------------

    def put(self, key: str, message: Message, lease: int = 0) -> None:
        self.put_bytes(key, message.SerializeToString(), lease)

    def put_bytes(self, key: str, value: bytes, lease: int = 0) -> None:
        if self._batch.minds(key):
            raise Deferred
        self.puts[key] = (value, lease)
        folder = keys.folder(key)
        self._puts_in[folder].add(key)
        if self.deleted.pop(key, None) is not None:
            self._deleted_in[folder].discard(key)

    def create(self, key: str, message: Message, lease: int = 0) -> None:
        """Put a key that nobody has; the commit happens only if that is so, but for a key that is deleted here as well."""
        if not self._is_deleted(key):
            self.compare[key, "create"] = 0
        self.put(key, message, lease)

    def delete(self, key: str) -> None:
        if self._batch.minds(key):
            raise Deferred
        folder = keys.folder(key)
        if self.puts.pop(key, None) is not None:
            self._puts_in[folder].discard(key)
        self.deleted[key] = False
        self._deleted_in[folder].add(key)

    def delete_prefix(self, prefix: str) -> None:
        """Delete every key with a prefix, which ends with "/"."""
        if not self._batch.is_empty:
            raise Deferred
        for folder in [folder for folder in self._puts_in if folder.startswith(prefix)]:
            for key in self._puts_in.pop(folder):
                del self.puts[key]
        for folder in [folder for folder in self._deleted_in if folder.startswith(prefix)]:
            for key in self._deleted_in.pop(folder):
                del self.deleted[key]
        self.deleted[prefix] = True
        self._deleted_below.append(prefix)

    @property
    def is_empty(self) -> bool:
        return not self.puts and not self.deleted

    @property
    def size(self) -> int:
        """Operations or comparisons, whichever are more: what etcd limits."""
        return max(len(self.puts) + len(self.deleted) + len(self.shared), len(self.compare))

    @cached_property
    def length(self) -> int:
        """Bytes that it takes of a request to etcd, within a few for each record; asked for after `close`."""
        parts = len(self.puts) + len(self.deleted) + len(self.shared) + len(self.compare)
        names = chain(self.puts, self.deleted, self.shared, (name for name, _ in self.compare))
        values = chain((value for value, _ in self.puts.values()), self.shared.values())
        return parts * PART + sum(map(len, names)) + sum(map(len, values))

    def record(
        self, kind: str, object_id: str, *, project: str = "", name: str = "", before: bytes = b"", after: bytes = b""
    ) -> None:
        """Note a change of an object in its history, and in the scope that it belongs to."""
        record = store_pb2.ChangeRecord(
            actor=self.origin.actor,
            project_id=project,
            request_id=self.origin.request_id,
            method=self.origin.method,
            trace_context=self.origin.trace_context,
            kind=kind,
            id=object_id,
            name=name,
            before=before,
            after=after,
        )
        stamp(record.time)
        key = keys.change(object_id, time_ordered_id())
        # Nobody reads it here: it goes past the folders.
        self.puts[key] = (record.SerializeToString(), self._batch.history_lease)
        self.record_key = self.record_key or key
        self.compare[key, "create"] = 0

    def cut(self, scope: str, cause: str) -> None:
        """Something is taken away from a group: what it has let through so far is judged anew. Many may do so at once."""
        self.shared[keys.cut_of(scope)] = store_pb2.Cut(cause=cause).SerializeToString()

    def close(self) -> None:
        """After the attempt: the change key of every scope that is written."""
        self.shared = {key: value for key, value in self.shared.items() if not self.deleted.get(keys.scope_of(key))}
        scopes = set()
        for key in (*self.puts, *self.deleted):
            if scope := keys.scope_of(key):
                if not self.deleted.get(scope):
                    scopes.add(keys.change_of(scope))
            elif key.startswith(keys.NODES):
                scopes.add(keys.NODES_CHANGE)
        if not scopes:
            return
        record = store_pb2.ChangeRecord(
            actor=self.origin.actor,
            request_id=self.origin.request_id,
            method=self.origin.method,
            trace_context=self.origin.trace_context,
        )
        stamp(record.time)
        value = record.SerializeToString()
        self.shared.update((key, value) for key in scopes)


def time_ordered_id() -> str:
    """A version 7 UUID (RFC 9562): the order of ids is the order of their making."""
    digits = f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-7{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def stamp(timestamp: Any) -> None:
    """Set a google.protobuf.Timestamp to now."""
    timestamp.seconds, timestamp.nanos = divmod(time.time_ns(), 1_000_000_000)
