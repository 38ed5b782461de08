"""What the API asks of etcd before it serves, and what becomes of requests when etcd is full."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aetcd.rpc import rpc_pb2

from controlplane.errors import StoreFull
from controlplane.store import client, health, keys, maintenance
from controlplane.store.client import Store
from controlplane.store.health import LARGEST_REQUEST, OPERATIONS, Unfit
from controlplane.store.maintenance import Member
from kumihimo.v1 import store_pb2
from tests.component.cloud import Cloud, Etcd, consistent, refused
from tests.waiting import DEADLINE, until

FILLER = keys.request("filler", "", "1")

pytestmark = pytest.mark.usefixtures("etcd_release")


@pytest.fixture
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An etcd with the options that the test is parametrized with."""
    with tempfile.TemporaryDirectory(prefix="kumi-test-") as folder:
        etcd = Etcd(Path(folder), options=getattr(request, "param", None))
        made = Store([etcd.endpoint])
        try:
            await etcd.begin()
            yield made
        finally:
            await made.close()
            etcd.kill()


async def test_what_is_asked_leaves_nothing(store: Store) -> None:
    before = await store.revision()
    assert await maintenance.takes_operations(store, OPERATIONS)
    assert await maintenance.takes_bytes(store, LARGEST_REQUEST)
    assert await store.revision() == before
    await health.check(store)
    # The marks of an empty store are all that the check writes, and only once.
    assert [kv.key.decode() async for _, kvs in store.pages("") for kv in kvs] == [keys.CLUSTER, keys.FORMAT]
    marked = await store.revision()
    await health.check(store)
    assert await store.revision() == marked
    # By far less than a request: nothing of that length has come to etcd's database.
    assert (await maintenance.member(store)).size < LARGEST_REQUEST / 8


@pytest.mark.parametrize(
    ("store", "told"),
    [
        ({"max-txn-ops": str(OPERATIONS - 1)}, "--max-txn-ops 40000"),
        ({"max-request-bytes": str(LARGEST_REQUEST - 1)}, "--max-request-bytes 10485760"),
    ],
    indirect=["store"],
)
async def test_limits_that_are_too_low_by_one_are_refused(store: Store, told: str) -> None:
    with pytest.raises(Unfit, match=told):
        await health.check(store)


async def test_another_format_is_refused(store: Store) -> None:
    other = store_pb2.StoreFormat(version=keys.FORMAT_VERSION + 1).SerializeToString()
    await store.transact([], [client.put(keys.FORMAT, other)])
    with pytest.raises(Unfit, match=r"holds format 2; this release reads format 1: run the release that wrote it"):
        await health.check(store)


@pytest.mark.parametrize(
    ("version", "enough"), [("3.4.0", True), ("3.5.17", True), ("4.0.0-rc.1", True), ("3.3.25", False), ("2.3.8", False)]
)
def test_versions(version: str, enough: bool) -> None:
    assert health.is_new_enough(version) == enough


def test_troubles() -> None:
    def member(size: int) -> Member:
        return Member(1, "3.4.23", size, size // 2, 1, 2, ())

    def names(alarms: set[str], size: int) -> list[str]:
        return [trouble.name for trouble in health.troubles(alarms, member(size), quota=1000)]

    assert names(set(), 800) == []
    assert names(set(), 801) == ["SIZE"]
    assert names({"NOSPACE"}, 1001) == ["NOSPACE"]
    assert names({"CORRUPT", "NOSPACE"}, 0) == ["CORRUPT", "NOSPACE"]


async def test_nospace_refuses_writes_in_one_clear_line_and_reads_go_on() -> None:
    """RESOURCES, errors: UNAVAILABLE with STORE_UNAVAILABLE and what to do; and back again when space was made."""
    async with Cloud(etcd={"quota-backend-bytes": str(4 << 20)}) as cloud:
        network = await cloud.api.create("Network", name="before")
        await cloud.api.create("Subnet", network_id=network.id, cidr="10.0.0.0/24")
        port = await cloud.api.create("Port", network_id=network.id, request={"request_id": "one"})
        await fill(cloud.store)
        for call in (
            cloud.api.create("Network", name="after"),
            cloud.api.create("Port", network_id=network.id, request={"request_id": "two"}),
            cloud.api.update("Port", port.id, mask=["description"], description="x"),
        ):
            error = await refused(call)
            assert (error.code.name, error.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
            assert error.message == client.FULL
            assert error.message.startswith("etcd is out of space; ")
        assert (await cloud.api.get("Port", port.id)).id == port.id
        assert [item.name for item in (await cloud.api.list("Network")).items] == ["before"]
        await cloud.api.wait(ids=[port.id])
        # A replica that starts now serves reads as well, and says in its log what is wrong.
        second = await cloud.replica()
        assert (await second.get("Network", network.id)).name == "before"
        log = cloud.replicas[-1].log
        await until(lambda: "etcd has raised the alarm NOSPACE" in log.read_text(), "the log says so")

        await maintenance.compact(cloud.store, await cloud.store.revision())
        for words in ("defrag", "alarm disarm"):
            await etcdctl(cloud, *words.split())
        made = await cloud.api.create("Network", name="after")
        assert (await second.get("Network", made.id)).name == "after"
        await consistent(cloud.store)


async def fill(store: Store) -> None:
    """Write until etcd is full, and says so again when it is asked again."""
    filler = client.put(FILLER, bytes(200_000))
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(StoreFull):
            while True:
                await store.transact([], [filler])
    with pytest.raises(StoreFull):
        await store.transact([], [filler])
    # By itself: in a transaction etcd 3.5 refuses it as well.
    await store.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=FILLER.encode()), timeout=20)


async def etcdctl(cloud: Cloud, *words: str) -> None:
    """What the command of that name would ask of etcd."""
    store = cloud.store
    if words[0] == "compact":
        await store.kv.Compact(rpc_pb2.CompactionRequest(revision=int(words[1])), timeout=20)
    elif words[0] == "defrag":
        await store.maintenance.Defragment(rpc_pb2.DefragmentRequest(), timeout=20)
    else:
        raised = await store.maintenance.Alarm(rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET), timeout=20)
        for alarm in raised.alarms:
            request = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
            await store.maintenance.Alarm(request, timeout=20)
