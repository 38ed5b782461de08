"""Forgets the past of the store that is older than the history to be kept (`[store] history`).

A dozen times in that span it notes the revision that the cache has come to, with the time that has passed *since the note
before while somebody was looking*, by a clock that cannot be set. A note's age is the sum of what was noted after it. So
clocks of replicas are never compared, and whoever takes over goes on with the notes in `meta/compaction`: changes of holders
make the history longer, never shorter. Compacted is only to a note that has been written, by whoever still holds the place.

Nobody loses a change by it: a watch that is behind lists again (store/feed.py), at once or after `history`.
"""

from __future__ import annotations

import asyncio
import time
from typing import NoReturn

import structlog

from controlplane.store import client, keys, maintenance
from controlplane.store.cache import Cache
from controlplane.store.client import Store
from kumihimo.v1 import store_pb2

NOTES = 12  # in the span of the history

_log = structlog.get_logger("kumihimo.compactor")


class Compactor:
    """See the module. history: seconds."""

    name = "compactor"

    def __init__(self, store: Store, cache: Cache, history: float) -> None:
        self.store = store
        self.cache = cache
        self._history = history

    async def run(self) -> NoReturn:
        """Work until cancelled."""
        looked = time.monotonic()
        while True:
            await asyncio.sleep(self._history / NOTES)
            now = time.monotonic()
            await self.tick(now - looked)
            looked = now

    async def tick(self, elapsed: float) -> None:
        """Note where the store is, and forget what is old enough. May raise StoreUnavailable."""
        entry = self.cache.get(keys.COMPACTION)
        before = store_pb2.CompactionNotes.FromString(entry.value) if entry else store_pb2.CompactionNotes()
        before.notes.add(revision=self.cache.revision, elapsed_ms=int(elapsed * 1000))
        due, notes = taken_stock(before, self._history)
        guard = client.modified_at(keys.COMPACTION, entry.mod_revision if entry else 0)
        written = await self.store.transact([guard], [client.put(keys.COMPACTION, notes.SerializeToString())])
        if written.succeeded and due:
            await maintenance.compact(self.store, due)
            _log.info("compacted", revision=due)


def taken_stock(notes: store_pb2.CompactionNotes, history: float) -> tuple[int, store_pb2.CompactionNotes]:
    """(revision of the last note that is as old as the history, or 0; the notes from that one on)."""
    age = 0.0
    for number in range(len(notes.notes) - 1, -1, -1):
        if age >= history * 1000:
            return notes.notes[number].revision, store_pb2.CompactionNotes(notes=notes.notes[number:])
        age += notes.notes[number].elapsed_ms
    return 0, notes


def kept(notes: store_pb2.CompactionNotes) -> float:
    """Seconds of history that are there at least."""
    return sum(note.elapsed_ms for note in notes.notes[1:]) / 1000
