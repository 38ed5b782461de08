"""The whole store in memory, as of one revision. Every read of the API and of the controllers comes from here.

Invariants:
- `revision` is that of the last event (or list) taken in; everything up to it is here, nothing after it.
- A read that must see all that was acknowledged before it calls `sync()` first: one coalesced linearizable read of etcd's
  revision, then a wait until the cache has come that far. The watch covers the whole key space, so every revision arrives.
- Values stay bytes and are parsed on use: a parsed message holds five times as much.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from controlplane.errors import StoreUnavailable
from controlplane.registry import KINDS, Kind
from controlplane.store import keys
from controlplane.store.client import Entry, Store
from controlplane.store.feed import Changed, Feed, Listed, Lost, Notice
from kumihimo.v1 import store_pb2

# An observer is told (key, old entry, new entry) for each change, in order, and must not raise.
Observer = Callable[[str, Entry | None, Entry | None], None]

CATCH_UP = 5.0  # seconds a read waits for the watch before the store counts as unavailable


class Cache:
    """See the module. `run()` keeps it current; `ready` is set once it was complete for the first time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folders: dict[str, dict[str, Entry]] = {}
        self._ids: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self._observers: list[Observer] = []
        self._moved = asyncio.Event()
        self._sync: asyncio.Task[int] | None = None
        self._next_sync: asyncio.Task[int] | None = None
        self.revision = 0
        self.ready = asyncio.Event()
        self.lost: str = ""

    # -- reading ----------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Entry | None:
        return self._folders.get(keys.folder(key), {}).get(key)

    def folder(self, folder: str) -> Mapping[str, Entry]:
        """All keys directly in a folder (which ends with "/"), by key; in no order."""
        return self._folders.get(folder, {})

    def locate(self, kind: Kind, object_id: str) -> str | None:
        """The key of an object; None when there is none."""
        network_id = ""
        if kind.options.parent:
            index = self.get(keys.index(kind.name, object_id))
            if index is None:
                return None
            network_id = store_pb2.Index.FromString(index.value).network_id
        key = keys.place(kind, object_id, network_id)
        # Keys that hold something else (node/.change) must not be found by an id that spells them.
        return key if self.get(key) and kind_of(key) == (kind.name, object_id) else None

    def ids(self, kind: Kind) -> list[str]:
        """Ids of all objects of a kind, sorted. Not to be changed."""
        return self._ids[kind.name]

    def keys(self) -> Iterable[str]:
        for folder in self._folders.values():
            yield from folder

    # -- being current ----------------------------------------------------------------------------------------------

    async def sync(self) -> int:
        """Wait until all that was written before this call is here; the store's revision. Raises StoreUnavailable."""
        # A read that is under way may have looked before our caller's write: the next one serves us, and all who wait.
        if self._sync is None or self._sync.done():
            self._sync = asyncio.create_task(self._read_revision(None))
            task = self._sync
        else:
            if self._next_sync is None or self._next_sync.done() or self._next_sync is self._sync:
                self._next_sync = asyncio.create_task(self._read_revision(self._sync))
            task = self._next_sync
        revision = await asyncio.shield(task)
        await self.reach(revision)
        return revision

    async def _read_revision(self, before: asyncio.Task[int] | None) -> int:
        if before is not None:
            await asyncio.wait([before])
            self._sync = asyncio.current_task()
        return await self._store.revision()

    async def reach(self, revision: int, timeout: float = CATCH_UP) -> None:
        """Wait until the cache holds everything up to a revision. Raises StoreUnavailable after `timeout` seconds."""
        if self.revision >= revision:
            return
        try:
            async with asyncio.timeout(timeout):
                while self.revision < revision:
                    await self.moved()
        except TimeoutError:
            detail = self.lost or f"the watch stands at revision {self.revision} of {revision}"
            raise StoreUnavailable(f"etcd at {self._store.endpoints}: {detail}") from None

    async def moved(self) -> None:
        """Wait for the next change of anything."""
        await self._moved.wait()

    def observe(self, observer: Observer) -> None:
        """Tell of every change from now on, and first of everything that is here."""
        self._observers.append(observer)
        for folder in list(self._folders.values()):
            for key, entry in folder.items():
                observer(key, None, entry)

    def forget(self, observer: Observer) -> None:
        self._observers.remove(observer)

    async def run(self) -> None:
        """Follow etcd until cancelled."""
        feed = Feed(self._store)
        feed.watch("")
        async with asyncio.TaskGroup() as group:
            group.create_task(feed.run())
            while True:
                self.take(await feed.notices.get())

    def take(self, notice: Notice) -> None:
        """Take in one notice."""
        match notice:
            case Lost(detail):
                self.lost = detail
                return
            case Listed(_, revision, entries):
                gone = [key for key in self.keys() if key not in entries]
                for key in gone:
                    self._change(key, None)
                for key, entry in entries.items():
                    if self.get(key) != entry:
                        self._change(key, entry)
                self.revision = revision
                self.ready.set()
            case Changed(_, revision, changes):
                for key, new in changes:
                    self._change(key, new)
                self.revision = revision
        self.lost = ""
        self._moved.set()
        self._moved = asyncio.Event()

    def _change(self, key: str, new: Entry | None) -> None:
        folder = keys.folder(key) if "/" in key else ""
        inside = self._folders.setdefault(folder, {})
        old = inside.get(key)
        if new is None:
            inside.pop(key, None)
            if not inside:
                del self._folders[folder]
        else:
            inside[key] = new
        if (old is None) != (new is None):
            self._count(key, present=new is not None)
        for observer in self._observers:
            observer(key, old, new)

    def _count(self, key: str, present: bool) -> None:
        kind, object_id = kind_of(key)
        if kind is None:
            return
        ids = self._ids[kind]
        place = bisect.bisect_left(ids, object_id)
        if present:
            ids.insert(place, object_id)
        elif place < len(ids) and ids[place] == object_id:
            del ids[place]


def kind_of(key: str) -> tuple[str | None, str]:
    """(kind, id) of a key that holds a resource, else (None, "")."""
    match keys.split(key):
        case ["net", network_id, "network"]:
            return "Network", network_id
        case ["net", _, "subnet", subnet_id]:
            return "Subnet", subnet_id
        case ["net", _, "port", port_id]:
            return "Port", port_id
        case ["node", node_id] if node_id != ".change":
            return "Node", node_id
    return None, ""


def parse(kind: Kind, entry: Entry) -> Any:
    """The stored message, with the fields that follow from its place in the store: revision and etag."""
    message = kind.new(entry.value)
    message.revision = entry.mod_revision
    message.etag = format(entry.mod_revision, "x")
    return message
