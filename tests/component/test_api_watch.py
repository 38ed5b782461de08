"""Watch: each change once, in order, over restarts, compaction and slow clients (B-API-10, C-12)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from aetcd.rpc import rpc_pb2

from controlplane.registry import KINDS
from kumihimo.v1 import network_pb2, operations_pb2
from kumihimo.v1 import resource_pb2 as pb
from tests.component.cloud import Client, Cloud, Refused, freeze
from tests.waiting import DEADLINE

INITIAL, ADDED, UPDATED, DELETED, BOOKMARK = (
    pb.EVENT_TYPE_INITIAL,
    pb.EVENT_TYPE_ADDED,
    pb.EVENT_TYPE_UPDATED,
    pb.EVENT_TYPE_DELETED,
    pb.EVENT_TYPE_BOOKMARK,
)


class Watched:
    """One watch: its events are taken one by one; `refused` gives how it ended."""

    def __init__(self, client: Client, kind: str, by: str, **request: Any) -> None:
        event = KINDS[kind].reply("Watch")
        invoke = client.channel.unary_stream(
            f"/{KINDS[kind].service.full_name}/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=event.FromString,
        )
        self.call = invoke(pb.WatchRequest(**request), metadata=(("authorization", f"Bearer {by}-token"),))

    async def next(self) -> Any:
        async with asyncio.timeout(DEADLINE):
            try:
                event = await self.call.read()
            except grpc.aio.AioRpcError as error:
                raise Refused.of(error) from None
        assert event is not grpc.aio.EOF
        return event

    async def take(self, count: int) -> list[tuple[int, str]]:
        """(type, name) of the next events."""
        return [(event.type, event.resource.name) for event in [await self.next() for _ in range(count)]]

    async def refused(self) -> Refused:
        try:
            while True:
                await self.next()
        except Refused as error:
            return error


@contextlib.asynccontextmanager
async def watching(client: Client, kind: str = "Network", by: str = "root", **request: Any) -> AsyncIterator[Watched]:
    """A watch that has begun: it tells first what is there."""
    fresh = not request.keys() & {"start_revision", "include_initial"}
    watch = Watched(client, kind, by, **request, **({"include_initial": True} if fresh else {}))
    try:
        if fresh:
            while (await watch.next()).type != BOOKMARK:
                pass
        yield watch
    finally:
        watch.call.cancel()


@pytest_asyncio.fixture
async def alone() -> AsyncIterator[Cloud]:
    """A control plane that may be ill-treated."""
    async with Cloud() as cloud:
        yield cloud


async def test_every_kind_of_event_with_revision_and_previous(cloud: Cloud) -> None:
    there = await cloud.api.create("Network", name="there")
    async with watching(cloud.api, include_initial=True, include_previous=True) as watch:
        first = await watch.next()
        assert (first.type, first.resource.id) == (INITIAL, there.id)
        assert (await watch.next()).type == BOOKMARK
        made = await cloud.api.create("Network", name="made")
        event = await watch.next()
        assert (event.type, event.revision, event.resource) == (ADDED, made.revision, made)
        assert not event.HasField("previous")
        changed = await cloud.api.update("Network", made.id, name="changed")
        event = await watch.next()
        assert (event.type, event.revision, event.resource.name) == (UPDATED, changed.revision, "changed")
        assert event.previous.name == "made"
        gone = await cloud.api.delete("Network", made.id)
        event = await watch.next()
        assert (event.type, event.revision, event.resource.name) == (DELETED, gone.revision, "changed")


async def test_filters_turn_changes_into_coming_and_going(cloud: Cloud) -> None:
    async with watching(cloud.api, filter='tags:"red"') as watch:
        network = await cloud.api.create("Network", name="one")
        await cloud.api.update("Network", network.id, tags=["red"])
        await cloud.api.update("Network", network.id, name="two")
        await cloud.api.update("Network", network.id, mask=["tags"])
        await cloud.api.update("Network", network.id, name="three")
        assert await watch.take(3) == [(ADDED, "one"), (UPDATED, "two"), (DELETED, "two")]


async def test_a_07_a_tenant_hears_of_his_own_project_only(cloud: Cloud) -> None:
    async with watching(cloud.api, by="alice") as mine, watching(cloud.api) as all_of_them:
        await cloud.api.create("Network", by="bob", name="theirs")
        await cloud.api.create("Network", by="alice", name="ours")
        assert await mine.take(1) == [(ADDED, "ours")]
        assert await all_of_them.take(2) == [(ADDED, "theirs"), (ADDED, "ours")]
    async with watching(cloud.api, by="alice", start_revision=1, project_id="other") as watch:
        (await watch.refused()).must_be("FIELD_FORBIDDEN")


async def test_b_api_10_a_watch_resumes_without_gap_or_duplicate_on_another_replica(cloud: Cloud, second_api: Client) -> None:
    """From any revision that was told, on a server that kept nothing of it."""
    begin = await cloud.settled()
    made = [await cloud.api.create("Network", name=f"n{number}") for number in range(8)]
    for network in made[:4]:
        await cloud.api.delete("Network", network.id)
    expected = [(ADDED, f"n{number}") for number in range(8)] + [(DELETED, f"n{number}") for number in range(4)]
    for client in (cloud.api, second_api, await cloud.replica()):
        async with watching(client, start_revision=begin) as watch:
            events = [await watch.next() for _ in expected]
        assert [(event.type, event.resource.name) for event in events] == expected
        assert [event.revision for event in events] == sorted({event.revision for event in events})
        for number in (0, 3, 7, 9):
            async with watching(client, start_revision=events[number].revision) as watch:
                assert await watch.take(len(expected) - number - 1) == expected[number + 1 :]
    cloud.replicas.pop().stop()


async def test_b_api_10_over_a_killed_server_nothing_is_missed(alone: Cloud) -> None:
    """The client goes on from its last event; what happened meanwhile comes first."""
    second = await alone.replica()
    told: list[tuple[int, str]] = []
    position = (await alone.api.create("Network", name="first")).revision
    for turn in range(3):
        async with watching(alone.api, start_revision=position) as watch:
            await second.create("Network", name=f"a{turn}")
            event = await watch.next()
            told.append((event.type, event.resource.name))
            position = event.revision
            alone.replicas[0].kill()
            (await watch.refused()).must_be("")
        await second.create("Network", name=f"b{turn}")
        await alone.replicas[0].begin()
        async with watching(alone.api, start_revision=position) as watch:
            event = await watch.next()
            told.append((event.type, event.resource.name))
            position = event.revision
    assert told == [(ADDED, f"{letter}{turn}") for turn in range(3) for letter in "ab"]


async def test_bookmarks_come_when_nothing_happens_and_can_be_resumed_from(cloud: Cloud) -> None:
    network = await cloud.api.create("Network", name="one")
    request: dict[str, Any] = {"bookmark_interval": {"seconds": 1}}
    async with watching(cloud.api, start_revision=network.revision, **request) as watch:
        event = await watch.next()
        assert event.type == BOOKMARK
        assert event.revision >= network.revision
        assert not event.HasField("resource")
    await cloud.api.create("Network", name="two")
    async with watching(cloud.api, start_revision=event.revision) as watch:
        assert await watch.take(1) == [(ADDED, "two")]


async def test_revisions_that_are_forgotten_or_have_not_been(alone: Cloud) -> None:
    old = await alone.api.create("Network", name="old")
    new = await alone.api.create("Network", name="new")
    await alone.store.call(alone.store.kv.Compact, rpc_pb2.CompactionRequest(revision=new.revision))
    fresh = await alone.replica()
    async with watching(fresh, start_revision=old.revision - 1) as watch:
        error = await watch.refused()
        assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED")
    async with watching(fresh, start_revision=new.revision + 10_000) as watch:
        error = await watch.refused()
        assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_IN_FUTURE")
    async with watching(fresh, start_revision=new.revision) as watch:
        await alone.api.create("Network", name="newest")
        assert await watch.take(1) == [(ADDED, "newest")]


async def test_a_watch_ends_when_its_token_is_withdrawn(alone: Cloud) -> None:
    """Every bookmark asks again, so a silent watch ends as well."""
    tokens = alone.folder / "tokens.toml"
    lines = tokens.read_text()
    async with watching(alone.api, by="anna", start_revision=1, bookmark_interval={"seconds": 1}) as watch:
        await watch.next()
        head, _, rest = lines.partition('identity = "anna"')
        tokens.write_text(head[: head.rindex("[[tokens]]")] + rest[rest.index("[[tokens]]") :])
        (await watch.refused()).must_be("TOKEN_INVALID")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"filter": "name ="}, "FILTER_INVALID"),
        ({"start_revision": -1}, "VALUE_OUT_OF_RANGE"),
        ({"start_revision": 1, "include_initial": True}, "FIELDS_EXCLUSIVE"),
        ({"start_revision": 1, "bookmark_interval": {"nanos": 5_000_000}}, "VALUE_OUT_OF_RANGE"),
        ({"start_revision": 1, "bookmark_interval": {"seconds": -(1 << 62)}}, "VALUE_OUT_OF_RANGE"),
    ],
)
async def test_bad_input(cloud: Cloud, request_: dict[str, Any], reason: str) -> None:
    async with watching(cloud.api, **{"start_revision": 0, **request_}) as watch:
        (await watch.refused()).must_be(reason)


async def test_a_hundred_watches_of_one_caller_and_no_more(cloud: Cloud) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(watching(cloud.api, by="anna"))
        async with watching(cloud.api, by="anna", include_initial=True) as watch:
            (await watch.refused()).must_be("RATE_LIMITED")
        async with watching(cloud.api, by="alice"):
            pass


async def test_a_slow_client_is_told_where_to_resume_and_nobody_waits_for_him(alone: Cloud) -> None:
    """He reads nothing until his queue is full: the others hear everything, and he goes on where he was."""
    network = await alone.api.create("Network", name="n0", description="d" * 1000)
    async with watching(alone.api) as slow, watching(alone.api) as quick:
        told = 0

        async def read() -> None:
            nonlocal told
            while told < 6000:
                await quick.next()
                told += 1

        async def write(number: int) -> None:
            for step in range(200):
                await alone.api.update("Network", ids[number], name=f"s{step}")

        ids = [network.id, *[(await alone.api.create("Network", description="d" * 1000)).id for _ in range(29)]]
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            for number in range(30):
                group.create_task(write(number))
        error = await slow.refused()
        error.must_be("WATCH_TOO_SLOW")
        revision = int(error.metadata["revision"])
    async with watching(alone.api, start_revision=revision) as watch:
        assert (await watch.next()).revision > revision


async def test_a_watch_outlives_the_loss_of_the_caches_own_stream(alone: Cloud) -> None:
    """etcd freezes and comes back, and the cache lists anew: the watch tells every change all the same."""
    names = [f"n{number}" for number in range(12)]
    second = await alone.replica()
    async with watching(alone.api) as watch:
        await alone.api.create("Network", name="n0")
        assert await watch.take(1) == [(ADDED, "n0")]
        # The first replica stands still, so that its stream is cut behind its back while the second writes.
        with freeze(alone.replicas[0]):
            for name in names[1:]:
                network = await second.create("Network", name=name)
            await second.delete("Network", network.id)
            alone.etcd.kill()
        await alone.etcd.begin()
        assert await watch.take(12) == [(ADDED, name) for name in names[1:]] + [(DELETED, "n11")]


async def test_lists_and_first_events_show_what_was_at_the_revision_they_name(alone: Cloud) -> None:
    """What is long gives way to others; what they write meanwhile is not in it."""
    api = alone.api
    request = operations_pb2.ApplyRequest()
    for number in range(500):
        request.objects.add().resource.Pack(network_pb2.Network(name=f"n{number}"))
    await api.call("Operations", "Apply", request)
    (last,) = (await api.list("Network", order_by="id desc", page_size=1)).items
    finished = False

    async def keep_changing() -> None:
        while not finished:
            await api.update("Network", last.id, mask=["description"], description=uuid4().hex)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(keep_changing())
        for turn in range(15):
            question = ({}, {"filter": 'name = "n*"'}, {"order_by": "name"})[turn % 3]
            page = await api.list("Network", page_size=1000, **question)
            assert max(item.revision for item in page.items) <= page.revision
            async with watching(api, include_initial=True) as watch:
                while (event := await watch.next()).type == INITIAL:
                    assert event.resource.revision <= event.revision
        finished = True
