"""The whole store in memory, as of one revision. Every read of the API and of the controllers comes from here.

Invariants:
- `revision` is that of the last event (or list) taken in; everything up to it is here, nothing after it.
- A read that must see all that was acknowledged before it calls `sync()` first: one coalesced linearizable read of etcd's
  revision, then a wait until the cache has come that far. The watch covers the whole key space, so every revision arrives.
- A restored etcd is another store, told by its cluster id: revisions go back, and nothing of the former one is taken over.
  Until it has been listed no read is current, and no commit succeeds: each compares the newest change record seen.
- Values stay bytes and are parsed on use: a parsed message holds five times as much. The last ones parsed are kept, so what
  `message` gives must not be changed.
- What is only ever looked up in etcd itself (request records, the history) passes by and is not kept.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from controlplane.errors import StoreUnavailable
from controlplane.registry import KINDS, Kind
from controlplane.store import keys
from controlplane.store.client import Entry, Store
from controlplane.store.feed import Changed, Feed, Listed, Lost, Notice
from kumihimo.v1 import store_pb2

# An observer is told (key, old entry, new entry) for each change, in order, and must not raise.
Observer = Callable[[str, Entry | None, Entry | None], None]

CATCH_UP = 5.0  # seconds a read waits for the watch before the store counts as unavailable
PARSED = 4096  # messages kept parsed
NOT_KEPT = (keys.REQUESTS, keys.CHANGES)


class Cache:
    """See the module. `run()` keeps it current; `ready` is set once it was complete for the first time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folders: dict[str, dict[str, Entry]] = {}
        # By (kind, project): what is listed is looked for among one project's objects; "" has those of all.
        self._ids: dict[tuple[str, str], list[str]] = {}
        self._names: dict[tuple[str, str, str], set[str]] = {}
        self._parsed: OrderedDict[str, tuple[Entry, Any]] = OrderedDict()
        self._observers: list[Observer] = []
        self._moved = asyncio.Event()
        self._sync: asyncio.Task[int] | None = None
        self._next_sync: asyncio.Task[int] | None = None
        self.revision = 0
        self.cluster = 0
        self.newest: tuple[str, int] | None = None  # key and create revision of the last change record
        # The revision of the change that observers are told of; and whether it is a list, which shows what is and not what was.
        self.changing = 0
        self.listing = True
        # Called with the revision of each list after the first.
        self.relisted: list[Callable[[int], None]] = []
        self.ready = asyncio.Event()
        self.lost: str = ""

    # -- reading ----------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Entry | None:
        inside = self._folders.get(keys.folder(key))
        return inside.get(key) if inside else None

    def folder(self, folder: str) -> Mapping[str, Entry]:
        """All keys directly in a folder (which ends with "/"), by key; in no order."""
        return self._folders.get(folder, {})

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
        """The object at a key, with its revision and etag; not to be changed. None when there is none."""
        entry = self.get(key)
        return self.parsed(kind, key, entry) if entry else None

    def parsed(self, kind: Kind, key: str, entry: Entry) -> Any:
        """An entry's message, which is not to be changed."""
        kept = self._parsed.get(key)
        if kept is not None and kept[0] is entry:
            self._parsed.move_to_end(key)
            return kept[1]
        found = parse(kind, entry)
        self._parsed[key] = entry, found
        if len(self._parsed) > PARSED:
            self._parsed.popitem(last=False)
        return found

    def named(self, kind: Kind, project: str, name: str, parent_id: str = "") -> list[str]:
        """Ids of the objects of a kind that have a name in a project ("" for kinds that belong to none), sorted.

        parent_id: of this parent's alone. A project may have one name in each of thousands of networks, and a network
        thousands of names: what is less is gone through.
        """
        ids = self._names.get((kind.name, project, name), set())
        if not parent_id:
            return sorted(ids)
        place = keys.place(kind, "", parent_id)
        children = self.folder(place)
        if len(ids) <= len(children):
            return sorted(each for each in ids if place + each in children)
        return sorted(ids.intersection(key.removeprefix(place) for key in children))

    def ids(self, kind: Kind, project: str = "") -> list[str]:
        """Ids of the objects of a kind, of one project or of all, sorted. Not to be changed."""
        return self._ids.get((kind.name, project), [])

    def entries(self, kind: Kind, project: str = "") -> list[tuple[str, Entry]]:
        """(key, entry) of the objects of a kind, of one project or of all, by id, as they are at this moment."""
        if not kind.parent:
            found = (self.located(kind, object_id) for object_id in self.ids(kind, project))
            return [pair for pair in found if pair]
        # Children are of their parent's project: whole folders, which is much faster than one look-up for each.
        parents = self.ids(KINDS[kind.parent_kind], project)
        folders = (self.folder(keys.place(kind, "", parent)) for parent in parents)
        here = {key.rpartition("/")[2]: (key, entry) for folder in folders for key, entry in folder.items()}
        return [here[object_id] for object_id in self.ids(kind, project) if object_id in here]

    def located(self, kind: Kind, object_id: str) -> tuple[str, Entry] | None:
        """(key, entry) of an object."""
        key = self.locate(kind, object_id)
        entry = self.get(key) if key else None
        return (key, entry) if key and entry else None

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
        try:
            async with asyncio.timeout(timeout):
                while self.revision < revision or self.cluster != self._store.cluster:
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
            case Listed(_, revision, entries, cluster):
                self._list(revision, entries, cluster)
            case Changed(_, revision, changes, revisions):
                for (key, new), self.changing in zip(changes, revisions, strict=True):
                    self._change(key, new)
                self.revision = revision
        self.lost = ""
        self._moved.set()
        self._moved = asyncio.Event()

    def _list(self, revision: int, entries: Mapping[str, Entry], cluster: int) -> None:
        self.listing = True
        self.changing = revision
        restored = cluster != self.cluster
        self.cluster, self.newest = cluster, None  # the list says which change record is the newest
        for key in [key for key in self.keys() if restored or key not in entries]:
            self._change(key, None)
        for key, entry in entries.items():
            if self.get(key) != entry:
                self._change(key, entry)
        self.listing = False
        self.revision = revision
        if self.ready.is_set():
            for told in self.relisted:
                told(revision)
        self.ready.set()

    def _change(self, key: str, new: Entry | None) -> None:
        if key.startswith(NOT_KEPT):
            if key.startswith(keys.CHANGES):
                self._note_change(key, new)
            return
        folder = keys.folder(key) if "/" in key else ""
        inside = self._folders.setdefault(folder, {})
        old = inside.get(key)
        if new is None:
            inside.pop(key, None)
            if not inside:
                del self._folders[folder]
        else:
            inside[key] = new
        found = keys.resource(key)
        if found is not None:
            self._file(*found, old, new)
            if (old is None) != (new is None):
                self._parsed.pop(key, None)
        for observer in self._observers:
            observer(key, old, new)

    def _note_change(self, key: str, new: Entry | None) -> None:
        if new is None:
            self.newest = None if self.newest and self.newest[0] == key else self.newest
        elif self.newest is None or new.create_revision > self.newest[1]:
            self.newest = key, new.create_revision

    def _file(self, kind: Kind, object_id: str, old: Entry | None, new: Entry | None) -> None:
        """Keep ids by project, and by name."""
        was, is_ = _labels(kind, old), _labels(kind, new)
        if was == is_:
            return
        for labels, present in ((was, False), (is_, True)):
            if labels is not None and labels[1]:
                ids_of_name = self._names.setdefault((kind.name, *labels), set())
                (ids_of_name.add if present else ids_of_name.discard)(object_id)
                if not ids_of_name:
                    del self._names[kind.name, *labels]
        if (was is None) == (is_ is None):
            return
        # The project of an object never changes.
        project = (is_ or was or ("", ""))[0]
        for name in {"", project}:
            ids = self._ids.setdefault((kind.name, name), [])
            place = bisect.bisect_left(ids, object_id)
            if is_ is not None:
                ids.insert(place, object_id)
            elif place < len(ids) and ids[place] == object_id:
                del ids[place]
                if not ids:
                    del self._ids[kind.name, name]


def _labels(kind: Kind, entry: Entry | None) -> tuple[str, str] | None:
    """(project, name) of what an entry holds; None: it holds nothing."""
    if entry is None:
        return None
    try:
        message = kind.new(entry.value)
    except DecodeError:
        return "", ""  # whatever stands there: `kumi doctor` names it
    return (str(message.project_id) if kind.owned else ""), str(message.name)


def parse(kind: Kind, entry: Entry) -> Any:
    """The stored message, with the fields that follow from its place in the store: revision and etag."""
    message = kind.new(entry.value)
    message.revision = entry.mod_revision
    message.etag = format(entry.mod_revision, "x")
    return message
