"""The elected compactor on a real etcd with a history of a second or two: what is too old goes, nobody loses anything."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from aetcd.rpc import rpc_pb2 as pb

from controlplane.controllers import runner
from controlplane.controllers.compactor import Compactor, kept, taken_stock
from controlplane.errors import StoreUnavailable
from controlplane.store import client, keys
from controlplane.store.cache import Cache
from controlplane.store.client import Store
from controlplane.store.feed import Changed, Feed, Listed
from kumihimo.v1 import store_pb2
from tests.component.cloud import Etcd, everything
from tests.component.test_store_feed import PLACE, Proxy, churn, followed, same
from tests.waiting import running, until

HISTORY = 1.2  # seconds


async def readable(store: Store, revision: int) -> bool:
    """Whether the store can be read as it was at a revision."""
    try:
        await store.call(store.kv.Range, pb.RangeRequest(key=b"\0", revision=revision))
    except grpc.aio.AioRpcError as error:
        if "compacted" not in (error.details() or ""):
            raise
        return False
    return True


@contextlib.asynccontextmanager
async def elected(store: Store, cache: Cache, history: float = HISTORY, name: str = "one") -> AsyncIterator[None]:
    async with running(runner.run(Compactor(store, cache, history), name)):
        await until(lambda: cache.get(keys.controller("compactor")), "it is held")
        yield


class Past:
    """Revisions and when the store was at them; none may go before its time."""

    def __init__(self, store: Store, history: float = HISTORY) -> None:
        self._store = store
        self._history = history
        self.known: list[tuple[int, float]] = []
        self.gone = 0

    async def look(self) -> None:
        """Make a revision, and look which of the former are there."""
        revision = (await self._store.transact([], [client.put(f"{PLACE}tick", b"")])).revision
        self.known.append((revision, time.monotonic()))
        while self.known and not await readable(self._store, self.known[0][0]):
            revision, made = self.known.pop(0)
            assert time.monotonic() - made >= self._history, f"revision {revision} went too soon"
            self.gone += 1

    async def until_gone(self, count: int) -> None:
        async def enough() -> bool:
            await self.look()
            return self.gone >= count

        await until(enough, "the past is forgotten")


async def test_what_is_older_than_the_history_goes_and_what_is_younger_stays(store: Store) -> None:
    past = Past(store)
    async with followed(store) as (cache, told):
        async with elected(store, cache):
            await past.until_gone(1)
            gone = past.gone
            await past.until_gone(gone + 1)
            assert await readable(store, past.known[-1][0])
            oldest = time.monotonic() - past.known[0][1]
            assert oldest < 2 * HISTORY, "and not much more is kept"
        await same(store, cache, told)


async def test_another_holder_goes_on_with_the_notes_and_forgets_nothing_too_soon(store: Store) -> None:
    past = Past(store)
    async with followed(store) as (cache, _):
        for number in range(3):
            async with elected(store, cache, name=str(number)):
                await past.until_gone(past.gone + 1)
            notes = noted(cache)
            assert kept(notes) >= HISTORY
        # One whose history is longer does not take the shorter one's word.
        long = Past(store, 2 * HISTORY)
        before = noted(cache).notes[0].revision
        async with elected(store, cache, 2 * HISTORY):
            await long.until_gone(1)
        assert noted(cache).notes[0].revision > before


def noted(cache: Cache) -> store_pb2.CompactionNotes:
    entry = cache.get(keys.COMPACTION)
    assert entry is not None
    return store_pb2.CompactionNotes.FromString(entry.value)


async def test_a_late_write_of_a_former_holder_changes_nothing(store: Store) -> None:
    """It has lost the place and does not know, and its cache stands still: it would forget everything."""
    async with followed(store) as (cache, _):
        one = Compactor(store, cache, HISTORY)
        await one.tick(0.1)
        await cache.sync()
        async with followed(store) as (behind, _):
            former = Compactor(store, behind, HISTORY)
        oldest = cache.revision
        for _ in range(3):
            await one.tick(0.1)
            await cache.sync()
        before = noted(cache)
        await former.tick(1000.0)
        await cache.sync()
        assert noted(cache) == before
        assert await readable(store, oldest)


async def test_watchers_of_api_and_agents_lose_nothing(etcd: Etcd, store: Store) -> None:
    """A cache, an agent's feed and a cache that is cut off for longer than the history: all end as the store is."""
    feed, mirror = Feed(store), dict[str, bytes]()

    async def fold() -> None:
        while True:
            match await feed.notices.get():
                case Listed(_, _, entries):
                    mirror.clear()
                    mirror.update((key, item.value) for key, item in entries.items())
                case Changed(_, _, changes):
                    for key, item in changes:
                        if item is None:
                            mirror.pop(key, None)
                        else:
                            mirror[key] = item.value

    feed.watch(PLACE)
    async with (
        followed(store) as (cache, told),
        running(feed.run()),
        running(fold()),
        Proxy(etcd.endpoint) as proxy,
    ):
        behind = Store([proxy.endpoint])
        past = Past(store)
        try:
            async with followed(behind) as (late, late_told):
                proxy.closed = True
                proxy.cut()
                cut_at = late.revision
                async with elected(store, cache):
                    turn = 0
                    while await readable(store, cut_at):
                        await churn(store, 10, turn)
                        turn += 10
                        await past.look()
                await same(store, cache, told)
                with pytest.raises(StoreUnavailable):
                    await late.sync()
                proxy.closed = False
                await same(behind, late, late_told)
                expected = {key: item.value for key, item in (await everything(store)).items() if key.startswith(PLACE)}
                await until(lambda: mirror == expected, "the agent's mirror is the store")
        finally:
            await behind.close()


@pytest.mark.parametrize(
    ("elapsed", "due", "left"),
    [
        ([], 0, 0),
        ([9000], 0, 1),
        ([9000, 500, 499], 0, 3),  # the first is 999 ms old
        ([9000, 500, 500], 1, 3),
        ([9000, 9000, 500, 500, 1], 2, 4),
        ([0, 0, 0, 5000], 3, 2),
    ],
)
def test_taking_stock(elapsed: list[int], due: int, left: int) -> None:
    notes = store_pb2.CompactionNotes()
    for number, milliseconds in enumerate(elapsed, 1):
        notes.notes.add(revision=number, elapsed_ms=milliseconds)
    revision, rest = taken_stock(notes, history=1.0)
    assert (revision, len(rest.notes)) == (due, left)
