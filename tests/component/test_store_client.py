"""The thin etcd client against `python3-etcd3` as oracle: what one writes the other reads, and both decide alike."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.errors import StoreUnavailable
from controlplane.store import client, keys
from controlplane.store.client import Entry, Store
from controlplane.store.maintenance import alarms
from controlplane.tls import Tls
from tests.component.cloud import Cloud, entry, everything
from tests.waiting import DEADLINE, until

PLACE = "/conformance/"


class Oracle:
    """One question and its answer at a time."""

    def __init__(self, endpoint: str, tls: Tls | None = None) -> None:
        host, _, port = endpoint.rpartition(":")
        files = [tls.ca, tls.certificate, tls.key] if tls else []
        argv = [sys.executable, str(Path(__file__).with_name("etcd3_oracle.py")), host, port, *map(str, files)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    async def ask(self, op: str, **request: Any) -> Any:
        return await asyncio.wait_for(asyncio.to_thread(self._ask, {"op": op, **request}), DEADLINE)

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=DEADLINE)


@pytest.fixture(scope="module")
def oracle(shared_cloud: Cloud) -> Iterator[Oracle]:
    made = Oracle(shared_cloud.etcd.endpoint, shared_cloud.root)
    yield made
    made.close()


@pytest.fixture
async def store(shared_cloud: Cloud) -> Any:
    yield shared_cloud.store
    await shared_cloud.write(client.delete(PLACE, prefix=True))


async def read(store: Store, prefix: str = PLACE, limit: int = client.PAGE) -> list[list[Any]]:
    found: list[list[Any]] = []
    async for _, kvs in store.pages(prefix, limit):
        found += [[kv.key.decode(), kv.value.decode(), kv.create_revision, kv.mod_revision] for kv in kvs]
    return found


async def test_same_reads_after_same_writes(store: Store, oracle: Oracle) -> None:
    chance = random.Random(1)
    for turn in range(120):
        key, value = f"{PLACE}{chance.randrange(12)}", str(turn)
        if chance.random() < 0.25:
            await (store.transact([], [client.delete(key)]) if turn % 2 else oracle.ask("delete", key=key))
        elif turn % 2:
            written = await store.transact([], [client.put(key, value.encode())])
            assert written.succeeded
            assert written.revision == await store.revision()
        else:
            assert await oracle.ask("put", key=key, value=value) == await store.revision()
        if turn % 5 == 0:
            theirs = await oracle.ask("read", prefix=PLACE)
            assert await read(store) == theirs
            found = await store.get(key)
            assert ([key, found.value.decode(), found.create_revision, found.mod_revision] in theirs) if found else True
            assert (found is not None) == (key in [item[0] for item in theirs])


async def test_guards_decide_as_the_oracles_do(store: Store, oracle: Oracle) -> None:
    """created_at, modified_at, empty and unchanged_since, true and false, over keys and ranges that come and go."""
    chance = random.Random(2)
    seen: set[tuple[int, bool]] = set()
    for turn in range(150):
        key, folder = f"{PLACE}{chance.randrange(3)}/{chance.randrange(3)}", f"{PLACE}{chance.randrange(4)}/"
        entry = await store.get(key)
        created, modified = (entry.create_revision, entry.mod_revision) if entry else (0, 0)
        off = chance.choice((0, 0, 1))
        since = await store.revision() - chance.randrange(4)
        end = keys.end_of(folder).decode("latin-1")
        number, ours, theirs = chance.choice(
            [
                (0, client.created_at(key, created + off), ["create", key, None, "==", created + off]),
                (1, client.modified_at(key, modified + off), ["mod", key, None, "==", modified + off]),
                (2, client.empty(folder), ["create", folder, end, "==", 0]),
                (3, client.unchanged_since(folder, since), ["mod", folder, end, "<", since + 1]),
            ]
        )
        # The oracle decides with nothing to write, ours after it at the same revision.
        expected = await oracle.ask("transact", compare=[theirs], puts=[])
        written = await store.transact([ours], [client.put(key, b"x")] if chance.random() < 0.6 else [client.delete(key)])
        assert written.succeeded == expected, (number, turn)
        if not written.succeeded:
            assert await store.get(key) == entry
        seen.add((number, expected))
    assert len(seen) == 8  # each guard was seen to hold and to fail


async def test_all_guards_must_hold_and_nothing_is_done_otherwise(store: Store) -> None:
    await store.transact([], [client.put(f"{PLACE}a", b"1")])
    before = await read(store)
    guards = [client.created_at(f"{PLACE}b", 0), client.created_at(f"{PLACE}a", 0)]
    written = await store.transact(guards, [client.put(f"{PLACE}b", b"1"), client.delete(f"{PLACE}a")])
    assert not written.succeeded
    assert await read(store) == before
    assert (await store.transact(guards[:1], [client.put(f"{PLACE}b", b"1"), client.delete(f"{PLACE}a")])).succeeded
    assert [item[0] for item in await read(store)] == [f"{PLACE}b"]


async def test_pages_are_of_one_snapshot(store: Store, oracle: Oracle) -> None:
    await store.transact([], [client.put(f"{PLACE}{number:03}", b"old") for number in range(50)])
    theirs = await oracle.ask("read", prefix=PLACE)
    found, revisions = [], set()
    async for revision, kvs in store.pages(PLACE, 7):
        revisions.add(revision)
        found += [[kv.key.decode(), kv.value.decode(), kv.create_revision, kv.mod_revision] for kv in kvs]
        await store.transact([], [client.put(f"{PLACE}{number:03}", b"new") for number in range(0, 60, 3)])
        await oracle.ask("delete", key=f"{PLACE}{len(found) + 1:03}")
    assert found == theirs
    assert len(revisions) == 1
    assert [list(kvs) async for _, kvs in store.pages("/nothing/")] == [[]]


async def test_a_prefix_reads_its_own_keys_only(store: Store) -> None:
    for name in ("a", "a/", "a/1", "a/\x7f", "a0", "b"):
        await store.transact([], [client.put(PLACE + name, b"")])
    assert [item[0] for item in await read(store, PLACE + "a/")] == [PLACE + "a/", PLACE + "a/1", PLACE + "a/\x7f"]
    assert keys.end_of("") == b"\0"
    await store.transact([], [client.delete(PLACE + "a/", prefix=True)])
    assert [item[0] for item in await read(store)] == [PLACE + "a", PLACE + "a0", PLACE + "b"]


async def test_a_lease_ends_and_its_keys_with_it(store: Store, oracle: Oracle) -> None:
    short, kept = await store.grant(1), await store.grant(600)
    await store.transact([], [client.put(f"{PLACE}short", b"", lease=short), client.put(f"{PLACE}kept", b"", lease=kept)])
    assert 0 < await oracle.ask("remaining", lease=kept) <= 600
    assert await store.keep_alive(kept) == 600

    async def gone() -> bool:
        return await store.get(f"{PLACE}short") is None

    await until(gone, "the short lease ended")
    assert await store.keep_alive(short) == 0
    assert await store.get(f"{PLACE}kept") is not None
    await store.revoke(kept)
    assert await store.get(f"{PLACE}kept") is None
    theirs = await oracle.ask("lease", ttl=300)
    assert await store.keep_alive(theirs) == 300
    await store.revoke(theirs)


async def test_a_store_that_is_not_there_is_unavailable() -> None:
    store = Store(["unix:/nowhere/etcd"])
    try:
        for call in (store.revision(), store.get("/a"), store.transact([], []), store.grant(1), store.keep_alive(1)):
            with pytest.raises(StoreUnavailable, match="/nowhere/etcd"):
                await call
    finally:
        await store.close()


async def test_everything_is_everything(store: Store, oracle: Oracle) -> None:
    theirs = {item[0] for item in await oracle.ask("read", prefix=PLACE)}
    ours = await everything(store)
    assert {key for key in ours if key.startswith(PLACE)} == theirs
    assert all(isinstance(item, Entry) for item in ours.values())
    assert entry is client.entry


async def test_every_answer_leaves_the_cluster_known(store: Store) -> None:
    """Of alarms etcd 3.4 gives an empty header: a read that took it for another cluster waited for the next change."""
    await store.revision()
    cluster = store.cluster
    assert cluster
    assert await alarms(store) == set()
    assert store.cluster == cluster
