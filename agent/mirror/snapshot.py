"""The mirror on disk: what the store said last, for a start while the store is away.

It holds the store's own bytes, prefix by prefix as the feed told them, so nothing here knows what they mean. A file is a line
with the format's number, the SHA-256 of all that follows, and a `MirrorSnapshot`. It is replaced as a whole (written beside it,
synced, renamed), at most once in `PAUSE` and so seldom that writing takes a twentieth of the time; readable by root alone.
What is known is kept packed, a prefix in up to `PARTS` parts by key, so that a change costs packing one of them.
What is lost with the power is what changed within that time: the store tells it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.message import DecodeError

from agent.faults import point
from controlplane.store.client import Entry
from controlplane.store.feed import Changed, Listed
from kumihimo.v1 import store_pb2

MAGIC = b"kumihimo mirror "
FORMAT = 1
PAUSE = 0.5  # seconds
SHARE = 20
RETRY = 30.0  # seconds after a write that failed
DIGEST = 32  # bytes
PARTS = 256

_log = structlog.get_logger("kumihimo.agent")


class Unusable(Exception):
    """A file that is not to be started from; str() is why."""


def load(path: Path, node: str, endpoints: Sequence[str]) -> dict[str, Listed]:
    """What was known, by prefix; nothing, with one line in the log, when the file cannot be used."""
    try:
        return _parse(path.read_bytes(), node, endpoints)
    except FileNotFoundError:
        _log.warning("there is no snapshot to start from", path=str(path))
    except (OSError, Unusable) as error:
        _log.warning("snapshot ignored", path=str(path), detail=str(error))
    return {}


def _parse(data: bytes, node: str, endpoints: Sequence[str]) -> dict[str, Listed]:
    head, line, rest = data.partition(b"\n")
    number = head.removeprefix(MAGIC)
    if not head.startswith(MAGIC) or not line or not number.isdigit():
        raise Unusable("it is damaged: it does not begin as one")
    if int(number) != FORMAT:
        raise Unusable(f"it is of format {int(number)}; this release reads format {FORMAT}")
    if hashlib.sha256(rest[DIGEST:]).digest() != rest[:DIGEST]:
        raise Unusable("it is damaged or cut off: its checksum is that of something else")
    try:
        stored = store_pb2.MirrorSnapshot.FromString(rest[DIGEST:])
    except DecodeError as error:
        raise Unusable(f"it cannot be parsed: {error}") from None
    if stored.node != node:
        raise Unusable(f"it is that of node {stored.node}, and this is {node}")
    if not set(stored.etcd) & set(endpoints):
        raise Unusable(f"it was made from etcd at {', '.join(stored.etcd)}; configured is {', '.join(endpoints)}")
    found: dict[str, Listed] = {}
    for part in stored.prefixes:
        # A prefix may come in parts, which follow each other.
        listed = found.setdefault(part.prefix, Listed(part.prefix, part.revision, {}, part.cluster))
        listed.entries.update((entry.key, Entry(entry.value, 0, entry.mod_revision or part.revision)) for entry in part.entries)
    return found


@dataclass(slots=True)
class _Known:
    """What is known of a prefix: parts by number, each a compressed `MirrorSnapshot`, and what has changed since they were
    packed. They belong to whoever writes."""

    revision: int
    cluster: int
    changes: dict[str, Entry | None]
    parts: dict[int, bytes] = field(default_factory=dict)


class Recorder:
    """Takes in what the feed tells, and keeps the file equal to it. path: its folder is made."""

    def __init__(self, path: Path, node: str, endpoints: Sequence[str]) -> None:
        self._path = path
        self._head = store_pb2.MirrorSnapshot(node=node, etcd=endpoints).SerializeToString()
        self._known: dict[str, _Known] = {}  # by prefix
        self._writing = threading.Lock()
        self._changed = asyncio.Event()
        self._told = ""

    def begin(self, known: Mapping[str, Listed]) -> None:
        """What the file holds already."""
        for listed in known.values():
            self._take_list(listed)

    def take(self, notice: Listed | Changed) -> None:
        if isinstance(notice, Listed):
            self._take_list(notice)
        elif (known := self._known.get(notice.prefix)) is not None:
            known.changes.update(notice.changes)
            known.revision = notice.revision
        self._changed.set()

    def _take_list(self, listed: Listed) -> None:
        self._known[listed.prefix] = _Known(listed.revision, listed.cluster, dict(listed.entries))

    def keep(self, prefixes: set[str]) -> None:
        """Forget all others."""
        for prefix in self._known.keys() - prefixes:
            del self._known[prefix]
            self._changed.set()

    async def run(self) -> None:
        """Write until cancelled, and then once more if there is anything to write."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._changed.wait()
                await asyncio.sleep(PAUSE)
                began = loop.time()
                wrote = await self._write()
                await asyncio.sleep(max(0.0, SHARE * (loop.time() - began) - PAUSE) if wrote else RETRY)
        finally:
            if self._changed.is_set():
                self._put(self._copy())

    async def _write(self) -> bool:
        self._changed.clear()
        failed = await asyncio.to_thread(self._put, self._copy())
        if failed and failed != self._told:
            _log.warning("snapshot not written; a boot while the store is away would begin from an older one", detail=failed)
        elif self._told and not failed:
            _log.info("snapshot written again")
        self._told = failed
        if failed:
            self._changed.set()
        return not failed

    def _copy(self) -> dict[str, _Known]:
        """What is known now, to be written beside what is learned next."""
        copies: dict[str, _Known] = {}
        for prefix, known in sorted(self._known.items()):
            copies[prefix], known.changes = replace(known), {}
        return copies

    def _put(self, known: Mapping[str, _Known]) -> str:
        with self._writing:  # the last write may come while another is under way
            return _write(self._path, self._head, known)


def _pack(prefix: str, known: _Known) -> None:
    """Take what has changed into the parts."""
    changed: dict[int, dict[str, Entry | None]] = {}
    for key, entry in known.changes.items():
        changed.setdefault(zlib.crc32(key.encode()) % PARTS, {})[key] = entry
    for number, changes in changed.items():
        entries: dict[str, store_pb2.SnapshotEntry] = {}
        if number in known.parts:
            part = store_pb2.MirrorSnapshot.FromString(zlib.decompress(known.parts[number])).prefixes[0]
            entries = {entry.key: entry for entry in part.entries if entry.key not in changes}
        for key, entry in changes.items():
            if entry is not None:
                entries[key] = store_pb2.SnapshotEntry(key=key, value=entry.value, mod_revision=entry.mod_revision)
        if entries:
            known.parts[number] = zlib.compress(_message(prefix, entries=[entries[key] for key in sorted(entries)]), 1)
        else:
            known.parts.pop(number, None)


def _message(prefix: str, **fields: Any) -> bytes:
    """A part of the file: messages end to end are one message."""
    return store_pb2.MirrorSnapshot(prefixes=[store_pb2.SnapshotPrefix(prefix=prefix, **fields)]).SerializeToString()


def _messages(head: bytes, known: Mapping[str, _Known]) -> Iterator[bytes]:
    """What the file says."""
    yield head
    for prefix, state in known.items():
        yield _message(prefix, revision=state.revision, cluster=state.cluster)
        yield from (zlib.decompress(state.parts[number]) for number in sorted(state.parts))


def _write(path: Path, head: bytes, known: Mapping[str, _Known]) -> str:
    """Replace the file; why not, when it fails."""
    for prefix, state in known.items():
        _pack(prefix, state)
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            point("snapshot: begun")
            os.fchmod(file, 0o600)
            first, digest = MAGIC + str(FORMAT).encode() + b"\n", hashlib.sha256()
            _write_all(file, first + bytes(DIGEST))
            for part in _messages(head, known):
                digest.update(part)
                _write_all(file, part)
            os.pwrite(file, digest.digest(), len(first))
            os.fsync(file)
        finally:
            os.close(file)
        point("snapshot: written")
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        beside.unlink(missing_ok=True)
        return f"{path}: {error.strerror or error}"
    return ""


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
