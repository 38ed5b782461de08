"""Watches, the cache and the commit on a real etcd that is compacted, frozen, killed, and cut off."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aetcd.rpc import rpc_pb2 as pb

from controlplane.admin.authority import Authority, Use
from controlplane.errors import ApiError, Code, StoreUnavailable
from controlplane.store import client, keys
from controlplane.store.cache import NOT_KEPT, Cache
from controlplane.store.client import Entry, Store
from controlplane.store.commit import LONGEST_TRANSACTION, Committer, Repeat
from controlplane.store.feed import Changed, Feed, Listed, Lost
from controlplane.store.leases import RollingLease
from controlplane.store.txn import Origin, Transaction
from controlplane.tls import ETCD_NAME
from kumihimo.v1 import store_pb2
from tests.component.cloud import Cloud, Etcd, consistent, everything, freeze
from tests.component.test_store_client import Oracle
from tests.waiting import DEADLINE, running, until

PLACE = "/kumihimo/status/"
ORIGIN = Origin(actor="test", project_id="", method="test")


@contextlib.asynccontextmanager
async def followed(store: Store) -> AsyncIterator[tuple[Cache, dict[str, Entry]]]:
    """A cache that runs, and what its observers were told, folded: every step must follow from the one before."""
    cache = Cache(store)
    told: dict[str, Entry] = {}

    def observe(key: str, old: Entry | None, new: Entry | None) -> None:
        assert told.get(key) == old
        if new is None:
            del told[key]
        else:
            told[key] = new

    cache.observe(observe)
    async with running(cache.run()):
        await asyncio.wait_for(cache.ready.wait(), DEADLINE)
        yield cache, told


async def same(store: Store, cache: Cache, told: dict[str, Entry]) -> None:
    """The cache holds what a full read shows: no ghost, no gap."""

    async def caught_up() -> bool:
        try:
            await cache.sync()
        except StoreUnavailable:
            return False
        return True

    await until(caught_up, "the cache has caught up")
    expected = {key: item for key, item in (await everything(store)).items() if not key.startswith(NOT_KEPT)}
    assert {key: cache.get(key) for key in cache.keys()} == expected  # noqa: SIM118 - not a dict
    assert told == expected
    assert cache.revision == await store.revision()


async def churn(store: Store, turns: int, start: int = 0) -> None:
    """Changes and deletions."""
    for turn in range(start, start + turns):
        operations = [client.put(f"{PLACE}{turn % 7}/x", str(turn).encode()), client.delete(f"{PLACE}{(turn + 3) % 7}/x")]
        await store.transact([], operations)


async def notice(feed: Feed, wanted: Callable[[Any], bool]) -> Any:
    """The next notice of a sort; others before it are passed over."""
    async with asyncio.timeout(DEADLINE):
        while True:
            found = await feed.notices.get()
            if wanted(found):
                return found


async def test_a_watch_delivers_each_change_once_and_in_order_as_the_oracle_says(etcd: Etcd, store: Store) -> None:
    feed = Feed(store)
    feed.watch(PLACE)
    oracle = Oracle(etcd.endpoint)
    try:
        async with running(feed.run()):
            writer = asyncio.create_task(churn(store, 150))
            listed = await notice(feed, lambda item: isinstance(item, Listed))
            await writer
            last = (await store.transact([], [client.put(f"{PLACE}end", b"end")])).revision
            ours: list[list[Any]] = []
            while not ours or ours[-1][2] < last:
                batch = await notice(feed, lambda item: isinstance(item, Changed))
                changed = [(key, item) for key, item in batch.changes]
                ours += [
                    [key, item.value.decode() if item else None, item.mod_revision if item else 0] for key, item in changed
                ]
            theirs = await oracle.ask("events", prefix=PLACE, since=listed.revision + 1, until=last)
            assert [(key, value) for key, value, _ in ours] == [(key, value) for key, value, _ in theirs]
            assert [at for _, value, at in ours if value] == [at for _, value, at in theirs if value]
            assert batch.revision == last
            assert feed.notices.empty()
    finally:
        oracle.close()


async def test_changes_of_one_revision_come_in_one_batch(store: Store) -> None:
    feed = Feed(store)
    feed.watch(PLACE)
    async with running(feed.run()):
        await notice(feed, lambda item: isinstance(item, Listed))
        many = [client.put(f"{PLACE}{number}/x", b"") for number in range(500)]
        revision = (await store.transact([], many)).revision
        batch = await notice(feed, lambda item: True)
        assert isinstance(batch, Changed)
        assert (len(batch.changes), batch.revision) == (500, revision)


async def test_prefixes_come_and_go(store: Store) -> None:
    await store.transact([], [client.put(f"{PLACE}{name}/x", b"") for name in "ab"])
    feed = Feed(store)
    feed.watch(f"{PLACE}a/")
    async with running(feed.run()):
        first = await notice(feed, lambda item: True)
        feed.watch(f"{PLACE}b/")
        feed.watch(f"{PLACE}b/")
        second = await notice(feed, lambda item: True)
        assert [set(item.entries) for item in (first, second)] == [{f"{PLACE}a/x"}, {f"{PLACE}b/x"}]
        feed.forget(f"{PLACE}a/")
        await store.transact([], [client.put(f"{PLACE}a/y", b""), client.put(f"{PLACE}b/y", b"")])
        await store.transact([], [client.put(f"{PLACE}b/z", b"")])
        seen: list[str] = []
        while f"{PLACE}b/z" not in seen:
            seen += [key for key, _ in (await notice(feed, lambda item: isinstance(item, Changed))).changes]
        assert [key for key in seen if key.startswith(f"{PLACE}b/")] == [f"{PLACE}b/y", f"{PLACE}b/z"]


async def test_the_cache_is_the_store_while_it_changes(store: Store) -> None:
    async with followed(store) as (cache, told):
        await asyncio.gather(*(churn(store, 60, start) for start in (0, 100, 200)))
        await same(store, cache, told)
        # Who wrote sees it, whoever else asks at the same time.
        for turn in range(20):
            revision = (await store.transact([], [client.put(f"{PLACE}mine", str(turn).encode())])).revision
            results = await asyncio.gather(*(cache.sync() for _ in range(10)))
            assert min(results) >= revision
            found = cache.get(f"{PLACE}mine")
            assert found is not None
            assert found.value == str(turn).encode()


async def test_compaction_under_a_watch_leaves_no_gap(store: Store) -> None:
    async with followed(store) as (cache, told):
        for _ in range(3):
            await churn(store, 30)
            await store.call(store.kv.Compact, pb.CompactionRequest(revision=await store.revision(), physical=True))
        await same(store, cache, told)


class CancelledOnce:
    """A store's watches whose first stream is cancelled as etcd does for a revision that is compacted: then it is silent."""

    def __init__(self, store: Store) -> None:
        self._stream = store.stream
        self.streams = 0

    def stream(self) -> tuple[Any, Any]:
        channel, self._inner = self._stream()
        return channel, self

    def Watch(self, requests: Any, **rest: Any) -> Any:
        self.streams += 1
        return self._inner.Watch(requests, **rest) if self.streams > 1 else _Cancelled(requests)


class _Cancelled:
    def __init__(self, requests: Any) -> None:
        self._replies = self._answer(requests)

    async def _answer(self, requests: Any) -> AsyncIterator[Any]:
        while (request := (await anext(requests)).create_request).key != b"\0":
            pass  # the one that asks for progress notes only
        number = request.watch_id
        yield pb.WatchResponse(watch_id=number, created=True)
        yield pb.WatchResponse(watch_id=number, canceled=True, compact_revision=7)
        await asyncio.Event().wait()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._replies

    def cancel(self) -> None:
        pass


async def test_a_cancelled_watch_lists_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await churn(store, 10)
    stub = CancelledOnce(store)
    monkeypatch.setattr(store, "stream", stub.stream)
    async with followed(store) as (cache, told):
        await until(lambda: stub.streams == 2, "a second stream")
        await churn(store, 10, 10)
        await same(store, cache, told)


async def test_etcd_killed_and_started_leaves_neither_ghost_nor_gap(etcd: Etcd, store: Store) -> None:
    async with followed(store) as (cache, told):
        writer = asyncio.create_task(_stubborn(store, 200))
        await until(lambda: cache.get(f"{PLACE}3/x"), "the writer writes")
        etcd.kill()
        with pytest.raises(StoreUnavailable):
            await cache.sync()
        await etcd.begin()
        await writer
        await same(store, cache, told)
        assert cache.lost == ""


async def _stubborn(store: Store, turns: int) -> None:
    for turn in range(turns):

        async def written(turn: int = turn) -> bool:
            try:
                await churn(store, 1, turn)
            except StoreUnavailable:
                return False
            return True

        await until(written, "the store takes a write")


async def test_what_was_deleted_and_compacted_while_cut_off_is_found_missing(etcd: Etcd, store: Store) -> None:
    async with Proxy(etcd.endpoint) as proxy:
        behind = Store([proxy.endpoint])
        try:
            async with followed(behind) as (cache, told):
                await store.transact([], [client.put(f"{PLACE}ghost", b""), client.put(f"{PLACE}stays", b"")])
                await until(lambda: cache.get(f"{PLACE}ghost"), "the cache has it")
                proxy.closed = True
                proxy.cut()
                await store.transact([], [client.delete(f"{PLACE}ghost"), client.put(f"{PLACE}new", b"")])
                await churn(store, 20)
                await store.call(store.kv.Compact, pb.CompactionRequest(revision=await store.revision(), physical=True))
                assert cache.get(f"{PLACE}ghost")
                proxy.closed = False
                await same(store, cache, told)
                assert cache.get(f"{PLACE}ghost") is None
        finally:
            await behind.close()


async def test_a_silent_stream_is_noticed(etcd: Etcd, store: Store) -> None:
    """Progress notes come every 2 s from an etcd that lives; without them the stream is dead, open or not."""
    feed = Feed(store, silence=3.0)
    feed.watch(PLACE)
    async with running(feed.run()):
        await notice(feed, lambda item: isinstance(item, Listed))
        with freeze(etcd):
            lost = await notice(feed, lambda item: True)
            assert isinstance(lost, Lost)
            assert "nothing was heard" in lost.detail
        await notice(feed, lambda item: isinstance(item, Listed))
        await churn(store, 1)
        await notice(feed, lambda item: isinstance(item, Changed))


# -- unknown outcomes -------------------------------------------------------------------------------------------------


_numbers = itertools.count(1)


def _contexts(authority: Authority) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For the side of those who connect, and for the side of etcd."""
    found = []
    for use, protocol in ((Use.ETCD, ssl.PROTOCOL_TLS_SERVER), (Use.API, ssl.PROTOCOL_TLS_CLIENT)):
        held = authority.issue(f"proxy{next(_numbers)}", use)
        context = ssl.SSLContext(protocol)
        context.load_verify_locations(authority.certificate())
        context.load_cert_chain(held.certificate, held.key)
        context.set_alpn_protocols(["h2"])
        found.append(context)
    return found[0], found[1]


class Proxy:
    """Forwards to etcd, and cuts the connection at a request that holds some bytes.

    after: the request has been forwarded and etcd has acted on it, its answer is lost. before: it never arrives.
    authority: vouches for the proxy as etcd to those who connect, and as an API to etcd, so that it can read what passes.
    """

    def __init__(self, endpoint: str, authority: Authority | None = None) -> None:
        self._inner, self._outer = _contexts(authority) if authority else (None, None)
        self._target = endpoint.removeprefix("unix:")
        self._folder = tempfile.TemporaryDirectory(prefix="kumi-test-")
        self.endpoint = f"unix:{self._folder.name}/proxy"
        self.closed = False
        self.cuts = 0
        self._marker = b""
        self._after = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_unix_server(self._serve, self.endpoint.removeprefix("unix:"), ssl=self._inner)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._folder.cleanup()

    def arm(self, marker: bytes, *, after: bool) -> None:
        self._marker, self._after = marker, after

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        there = None
        try:
            if self.closed:
                return
            name = ETCD_NAME if self._outer else None
            back, there = await asyncio.open_unix_connection(self._target, ssl=self._outer, server_hostname=name)
            self._writers.add(there)
            lost = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._requests(reader, there, lost))
                group.create_task(self._replies(back, writer, lost))
        except* (OSError, EOFError):
            pass
        finally:
            for end in (writer, there):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()
            self._tasks.discard(task)

    async def _requests(self, reader: asyncio.StreamReader, there: asyncio.StreamWriter, lost: asyncio.Event) -> None:
        while data := await reader.read(1 << 20):
            if self._marker and self._marker in data:
                self._marker = b""
                self.cuts += 1
                if not self._after:
                    raise EOFError
                lost.set()
            there.write(data)
            await there.drain()
        raise EOFError

    async def _replies(self, back: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event) -> None:
        while data := await back.read(1 << 20):
            if lost.is_set() and len(data) > SMALL:
                raise EOFError
            if not lost.is_set():
                writer.write(data)
                await writer.drain()
        raise EOFError


SMALL = 40
"""Bytes of an HTTP/2 acknowledgement at most; an answer has more."""


@pytest.mark.parametrize("after", [True, False], ids=["answer-lost", "request-lost"])
async def test_c_13_a_commit_whose_outcome_is_unknown_happens_once(etcd: Etcd, store: Store, after: bool) -> None:
    counter = f"{PLACE}counter"

    def add_one(transaction: Transaction) -> int:
        entry = transaction.read(counter)
        count = int(store_pb2.Claim.FromString(entry.value).owner) if entry else 0
        transaction.put(counter, store_pb2.Claim(owner=str(count + 1)))
        transaction.record("Counter", "counter")
        return count + 1

    async with Proxy(etcd.endpoint) as proxy, followed(store) as (cache, told):
        behind = Store([proxy.endpoint])
        committer = Committer(behind, cache)
        running = asyncio.create_task(committer.run())
        try:
            await behind.revision()
            for turn in range(1, 21):
                proxy.arm(keys.CHANGES.encode(), after=after)
                count, revision = await committer.commit(add_one, ORIGIN)
                assert count == turn
                await cache.reach(revision)
                found = cache.get(counter)
                assert found is not None
                assert found.mod_revision == revision
            assert proxy.cuts == 20
        finally:
            running.cancel()
            await behind.close()
        await same(store, cache, told)
        assert len(await store.newest(keys.change("counter"), 100)) == 20
        # etcd counts how often a key was written.
        reply = await store.call(store.kv.Range, pb.RangeRequest(key=counter.encode()))
        assert reply.kvs[0].version == 20


@pytest.mark.parametrize("after", [True, False], ids=["answer-lost", "request-lost"])
async def test_c_13_a_request_that_changes_nothing_is_carried_out_once_when_answers_are_lost(cloud: Cloud, after: bool) -> None:
    """It writes its request record and no change record."""
    network = await cloud.api.create("Network", name="as it is")
    async with Proxy(cloud.etcd.endpoint, cloud.authority) as proxy:
        api = await cloud.replica(proxy.endpoint)
        try:
            for turn in range(10):
                proxy.arm(keys.REQUESTS.encode(), after=after)
                request = {"request_id": f"same-{after}-{turn}"}
                same = await api.update("Network", network.id, name="as it is", request=request)
                assert same.revision == network.revision
                assert await cloud.api.update("Network", network.id, name="as it is", request=request) == same
            assert proxy.cuts == 10
        finally:
            cloud.replicas[-1].stop()


async def test_b_api_09_a_repetition_that_is_overtaken_by_its_first_time_gets_its_result(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are under way at once, as when a client gave up waiting: what the first makes is no obstacle to the second."""
    thing = f"{PLACE}thing"
    tried = False

    def make_later(transaction: Transaction) -> bytes:
        """Refused by a cache that lags, so it runs again by itself."""
        nonlocal tried
        if not tried:
            tried = True
            raise ApiError(Code.NOT_FOUND, "RESOURCE_NOT_FOUND", "the parent is not there yet")
        return make(transaction)

    def make(transaction: Transaction) -> bytes:
        if transaction.read(thing) is not None:
            raise ApiError(Code.ALREADY_EXISTS, "ID_TAKEN", "thing exists")
        transaction.put(thing, store_pb2.Claim(owner="x"))
        transaction.record("Thing", "thing")
        return b"made"

    request: Repeat[bytes] = Repeat("r", f"{keys.REQUESTS}r", b"same", lambda result: result, lambda stored, _: stored)
    current = RollingLease.current
    async with followed(store) as (cache, _):
        first, second = Committer(store, cache), Committer(store, cache)

        async def overtaken(lease: RollingLease) -> int:
            if lease is second._requests and tried:
                _, revision = await first.commit(make, ORIGIN, request)
                await cache.reach(revision)
            return await current(lease)

        monkeypatch.setattr(RollingLease, "current", overtaken)
        async with running(first.run()), running(second.run()):
            result, revision = await second.commit(make_later, ORIGIN, request)
            assert result == b"made"
            found = await store.get(thing)
            assert found is not None
            assert found.create_revision == found.mod_revision == revision


@pytest.mark.parametrize("after", [True, False], ids=["answer-lost", "request-lost"])
async def test_c_13_a_statement_without_a_record_is_unavailable_when_its_outcome_is_unknown(
    etcd: Etcd, store: Store, after: bool
) -> None:
    """As a controller writes: it looks again and says it again."""
    async with Proxy(etcd.endpoint) as proxy, followed(store) as (cache, _):
        behind = Store([proxy.endpoint])
        committer = Committer(behind, cache)
        running = asyncio.create_task(committer.run())
        try:
            await behind.revision()
            proxy.arm(f"{PLACE}statement".encode(), after=after)
            with pytest.raises(ApiError, match="store does not answer"):
                await committer.commit(lambda t: t.put(f"{PLACE}statement", store_pb2.Claim(owner="x")), ORIGIN)
            assert proxy.cuts == 1

            async def said_again() -> bool:
                """The connection that broke may take the next call with it."""
                try:
                    await committer.commit(lambda t: t.put(f"{PLACE}statement", store_pb2.Claim(owner="y")), ORIGIN)
                except ApiError as error:
                    if "store does not answer" not in error.message:
                        raise
                    return False
                return True

            await until(said_again, "it is said again")
        finally:
            running.cancel()
            await behind.close()


async def test_writes_that_wait_together_share_no_more_than_a_request_to_etcd_holds(store: Store) -> None:
    """Eighty of 0.2 MB at once go in several; one that is too long for any is refused, and no other with it."""
    large = bytes(200_000)
    async with followed(store) as (cache, _):
        committer = Committer(store, cache)

        def write(number: int, times: int = 1) -> asyncio.Task[Any]:
            def attempt(transaction: Transaction) -> None:
                for part in range(times):
                    transaction.put_bytes(f"{PLACE}large/{number}/{part}", large)

            return asyncio.create_task(committer.commit(attempt, ORIGIN))

        written = [write(number) for number in range(80)]
        too_long = write(80, LONGEST_TRANSACTION // len(large))
        await until(lambda: len(committer._waiting) == 81, "all of them wait")
        async with running(committer.run()):
            revisions = {revision for _, revision in await asyncio.gather(*written)}
            with pytest.raises(ApiError, match=f"bytes of a request to the store; {LONGEST_TRANSACTION} are accepted"):
                await too_long
    assert 80 * len(large) / LONGEST_TRANSACTION < len(revisions) < 80


async def test_c_13_clients_of_an_api_that_loses_answers_get_one_object_each(cloud: Cloud) -> None:
    async with Proxy(cloud.etcd.endpoint, cloud.authority) as proxy:
        api = await cloud.replica(proxy.endpoint)
        try:
            for turn in range(10):
                proxy.arm(b"kumihimo.v1.Networks/Create", after=turn % 2 == 0)
                made = await _persistent(
                    lambda turn=turn: api.create("Network", name=f"cut-{turn}", request={"request_id": f"cut-{turn}"})
                )
                named = (await cloud.api.list("Network", filter=f'name = "cut-{turn}"')).items
                assert [item.id for item in named] == [made.id]
            assert proxy.cuts == 10
        finally:
            cloud.replicas[-1].stop()
    await consistent(cloud.store)


async def _persistent(call: Callable[[], Any]) -> Any:
    """A client that asks again, with the same request id, when it is told that it may."""
    for _ in range(20):
        try:
            return await call()
        except Exception as error:
            if getattr(error, "reason", "") != "STORE_UNAVAILABLE":
                raise
    raise AssertionError("never available")
