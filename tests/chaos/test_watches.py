"""Watches under compaction, lost leaders and silence: nothing is missed, nothing is seen that was not."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from aetcd.rpc import rpc_pb2 as pb

from controlplane.errors import StoreUnavailable
from controlplane.store import client, keys
from controlplane.store.client import Entry, Store
from controlplane.store.feed import SILENCE, Changed, Feed, Listed, Lost
from tests.chaos.cluster import Cluster, Insistent, answers
from tests.chaos.proxy import Proxy
from tests.component import cloud as agent
from tests.component.cloud import consistent, everything, freeze, refused
from tests.component.test_store_feed import followed, notice, same
from tests.seeds import FULL, seed
from tests.waiting import DEADLINE, running, until

PLACE = keys.STATUS
ROUNDS = 40 if FULL else 3  # of a compaction and the death of a leader each
AGAIN = 12  # times that each watch is begun anew in a round: what happens while a list is under way is easily lost
WRITERS = 4
FOLDERS = 5  # of each writer


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(replicas=2) as made:
        yield made


class Writer:
    """Changes and deletes keys that are its own, and knows every revision at which it did.

    Each write is guarded by the one before it. So one whose outcome is unknown can be repeated: only one of the two is done,
    and what stands there afterwards says which.
    """

    def __init__(self, store: Store, name: str, chance: random.Random) -> None:
        self._store = store
        self._chance = chance
        self._keys = [f"{PLACE}{name}/{number}" for number in range(FOLDERS)]
        self._at = dict.fromkeys(self._keys, 0)
        self.written: dict[tuple[str, int], bytes | None] = {}  # (key, revision) → value; None: deleted
        self.count = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop; the last write is settled then as well."""
        while not stop.is_set():
            key = self._chance.choice(self._keys)
            deletes = self._at[key] > 0 and self._chance.random() < 0.3
            await self._write(key, None if deletes else f"{key} {self.count}".encode())
            self.count += 1

    async def _write(self, key: str, value: bytes | None) -> None:
        operation = client.delete(key) if value is None else client.put(key, value)
        before = self._at[key]
        marker = f"{key}.last"  # tells at which revision the write happened, deletions included
        operations = [operation, client.put(marker, str(self.count).encode())]

        async def settled() -> int:
            try:
                written = await self._store.transact([client.modified_at(key, before)], operations)
                if written.succeeded:
                    return written.revision
                mark = await self._store.get(marker)
            except StoreUnavailable:
                return 0
            assert mark is not None
            assert mark.value == str(self.count).encode(), "nobody else writes this key"
            return mark.mod_revision

        revision = await until(settled, "a write is settled", 60.0)
        self._at[key] = 0 if value is None else revision
        self.written[key, revision] = value
        self.written[marker, revision] = operations[1]["request_put"]["value"]


class Log:
    """All that a Feed says of PLACE, and the view that follows from it."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        feed.watch(PLACE)
        self.view: dict[str, Entry] = {}
        self.spans: list[tuple[int, list[tuple[str, int, bytes | None]], int]] = []  # (listed at, events, last revision)
        self.losses = 0

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._feed.run())
            while True:
                self.take(await self._feed.notices.get())

    def again(self) -> None:
        """Forget the prefix and watch it anew."""
        self._feed.forget(PLACE)
        self._feed.watch(PLACE)

    def take(self, item: Any) -> None:
        match item:
            case Lost():
                self.losses += 1
            case Listed(_, revision, entries):
                self.view = dict(entries)
                self.spans.append((revision, [], revision))
            case Changed(_, revision, changes):
                start, events, last = self.spans[-1]
                assert revision > last, "a batch came twice, or out of order"
                for key, entry in changes:
                    if entry is None:
                        del self.view[key]  # KeyError: a deletion of what was not there
                    else:
                        self.view[key] = entry
                    events.append((key, entry.mod_revision if entry else 0, entry.value if entry else None))
                self.spans[-1] = (start, events, revision)

    def faults(self, written: Mapping[tuple[str, int], bytes | None]) -> list[str]:
        """Where it differs from what was written."""
        found = []
        in_order = sorted((revision, key, value) for (key, revision), value in written.items() if value is not None)
        deleted = sorted((revision, key) for (key, revision), value in written.items() if value is None)
        for start, events, end in self.spans:
            told = [(revision, key, value) for key, revision, value in events if value is not None]
            due = [item for item in in_order if start < item[0] <= end]
            if sorted(told) != due:
                found.append(f"({start}, {end}]: missed {set(due) - set(told)}, ghosts {set(told) - set(due)}")
            if [item[0] for item in told] != sorted(item[0] for item in told):
                found.append(f"({start}, {end}]: not in order of revision")
            gone = [key for key, _, value in events if value is None]
            expected = [key for revision, key in deleted if start < revision <= end]
            if gone != expected:
                found.append(f"({start}, {end}]: deletions told {gone}, done {expected}")
        return found


async def compact(store: Store) -> None:
    """Forget all but the present; whoever is behind is cancelled."""
    with contextlib.suppress(StoreUnavailable):
        await store.call(store.kv.Compact, pb.CompactionRequest(revision=await store.revision(), physical=True))


async def test_the_log_sees_what_is_missing_twice_late_or_never_written() -> None:
    """The check itself: of three writes and a deletion, each way in which a feed may err."""
    one, other = f"{PLACE}x/1", f"{PLACE}x/2"
    written = {(one, 5): b"a", (other, 6): b"b", (one, 7): None, (one, 8): b"c"}
    good = [(one, 5, b"a"), (other, 6, b"b"), (one, 0, None), (one, 8, b"c")]

    store = Store(["unix:/nowhere"])
    log = Log(Feed(store))

    def faults(start: int, events: list[tuple[str, int, bytes | None]], end: int = 8) -> list[str]:
        log.spans = [(start, events, end)]
        return log.faults(written)

    assert faults(4, good) == []
    assert faults(6, good[2:]) == []
    for turn in range(4):
        assert faults(4, good[:turn] + good[turn + 1 :])  # missed
        assert faults(4, good[: turn + 1] + good[turn:])  # twice
    assert faults(4, [good[1], good[0], *good[2:]])
    assert faults(4, [*good, (one, 9, b"ghost")], 9)
    assert faults(4, [(one, 5, b"z"), *good[1:]])
    await store.close()


@pytest.mark.timeout(1200)
async def test_c_12_compaction_and_lost_leaders_under_load_lose_no_change_and_show_no_ghost(cluster: Cluster) -> None:
    """Feeds as agents have them, one of each member, and a cache as the API has it."""
    number = seed()
    chance = random.Random(number)
    writers = [Writer(cluster.store, f"w{turn}", random.Random(f"{number}/{turn}")) for turn in range(WRITERS)]
    stores = [Store([member.endpoint]) for member in cluster.members]
    logs = [Log(Feed(store)) for store in stores]
    stores.append(Store(cluster.etcd.endpoint.split(",")))
    try:
        async with contextlib.AsyncExitStack() as stack:
            cache, told = await stack.enter_async_context(followed(stores[-1]))
            for log in logs:
                await stack.enter_async_context(running(log.run()))
            stop = asyncio.Event()
            tasks = [asyncio.create_task(writer.run(stop)) for writer in writers]
            for _ in range(ROUNDS):
                for _ in range(AGAIN):
                    goal = sum(writer.count for writer in writers) + chance.randint(1, 20)
                    await until(lambda goal=goal: sum(writer.count for writer in writers) >= goal, "the writers write", 60.0)
                    for log in logs:
                        log.again()
                await compact(cluster.store)
                leader = await cluster.etcd.leader()
                if chance.random() < 0.3:
                    with freeze(leader):
                        await cluster.etcd.leader(but=leader)
                else:
                    leader.kill()
                    await compact(cluster.store)
                    leader.start()
                await answers(leader)
            stop.set()
            await asyncio.gather(*tasks)
            await cluster.whole()
            await same(stores[-1], cache, told)
            stored = {key: entry for key, entry in (await everything(cluster.store)).items() if key.startswith(PLACE)}
            for log in logs:
                await until(lambda log=log: log.view == stored, "a feed has come to the same", SILENCE * 2)
    finally:
        for store in stores:
            await store.close()
    print(f"{sum(writer.count for writer in writers)} writes, {[log.losses for log in logs]} losses")
    written = {key: value for writer in writers for key, value in writer.written.items()}
    for log in logs:
        assert log.faults(written) == [], number
    assert sum(log.losses for log in logs) >= ROUNDS / 2


async def test_a_watch_of_a_member_that_is_cut_off_from_the_others_is_noticed(cluster: Cluster) -> None:
    """It lives and sends progress notes, and hears of no change any more."""
    one, *others = cluster.members
    store = Store([one.endpoint])
    feed = Feed(store)
    feed.watch(PLACE)
    try:
        async with running(feed.run()):
            await notice(feed, lambda item: isinstance(item, Listed))
            with freeze(others[0]), freeze(others[1]):
                began = time.monotonic()
                await asyncio.wait_for(notice(feed, lambda item: isinstance(item, Lost)), SILENCE + DEADLINE)
                print(f"noticed after {time.monotonic() - began:.1f} s")
            await cluster.etcd.leader()
            await notice(feed, lambda item: isinstance(item, Listed))
    finally:
        await store.close()


async def test_a_silent_watch_is_noticed_in_time_and_what_was_missed_is_found(cluster: Cluster) -> None:
    """Everything that goes to and fro is swallowed, and no connection breaks."""
    await cluster.write(client.put(f"{PLACE}silent/gone", b""))
    async with Proxy(cluster.members[0].endpoint) as proxy:
        store = Store([proxy.target])
        try:
            async with followed(store) as (cache, told):
                assert cache.get(f"{PLACE}silent/gone")
                proxy.swallows = True
                began = time.monotonic()
                await cluster.write(client.delete(f"{PLACE}silent/gone"), client.put(f"{PLACE}silent/new", b""))
                await until(lambda: cache.lost, "the silence is noticed", SILENCE + DEADLINE)
                print(f"noticed after {time.monotonic() - began:.1f} s")
                proxy.swallows = False
                proxy.cut()
                await same(store, cache, told)
                assert cache.get(f"{PLACE}silent/new")
                assert not cache.get(f"{PLACE}silent/gone")
        finally:
            await store.close()


async def test_an_api_whose_watch_is_silent_shows_nothing_old(cluster: Cluster) -> None:
    """It says that it cannot tell, and is current again when it can."""
    async with Proxy(cluster.members[0].endpoint) as proxy:
        api = await cluster.replica(proxy.target)
        try:
            network = await api.create("Network", name="before")
            proxy.swallows = True
            await cluster.api.update("Network", network.id, mask=["name"], name="after")
            for call in (api.get("Network", network.id), api.list("Network")):
                (await refused(call)).must_be("STORE_UNAVAILABLE")
            proxy.swallows = False
            proxy.cut()
            answer = await Insistent([api], random.Random(0)).ask(lambda api: api.get("Network", network.id))
            assert answer.reply.name == "after"
        finally:
            cluster.replicas.pop().stop()


async def test_b_prt_03_deleted_and_made_again_with_the_same_address_at_once(cluster: Cluster) -> None:
    """By another replica, while a live node still has the old one and others write."""
    network = (await cluster.api.create("Network")).id
    await cluster.api.create("Subnet", network_id=network, cidr="10.0.0.0/24")
    fixed, mac = [{"ip_address": "10.0.0.9"}], "fa:16:3e:00:00:09"
    port = await cluster.api.create("Port", network_id=network, fixed_ips=fixed, mac_address=mac)
    await cluster.write(agent.alive("h1"), agent.applied("h1", network, port.revision))
    stop = asyncio.Event()
    writers = [Writer(cluster.store, f"beside{turn}", random.Random(turn)) for turn in range(WRITERS)]
    tasks = [asyncio.create_task(writer.run(stop)) for writer in writers]
    try:
        for turn in range(200 if FULL else 40):
            one, other = cluster.clients[turn % 2], cluster.clients[(turn // 2) % 2]
            if turn % 5 == 4:  # the node catches up, and its value comes free in the very moment it is asked for
                await cluster.write(agent.applied("h1", network, await cluster.store.revision()))
            await one.delete("Port", port.id)
            port = await other.create("Port", network_id=network, fixed_ips=fixed, mac_address=mac)
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    # What the writers of this module have said is no agent's.
    await cluster.write(client.delete(PLACE, prefix=True))
    await consistent(cluster.store)
    await cluster.write(agent.dead("h1"))
    await cluster.settled()
    await consistent(cluster.store)
