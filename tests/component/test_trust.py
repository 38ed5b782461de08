"""Who may do what in etcd: root of one host, with that host's credentials, tries everything (issue: trust, part 3)."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from aetcd.rpc import auth_pb2
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as rpc

from agent.reconcile.status import Status
from controlplane.admin.authority import Authority, Use
from controlplane.errors import StoreRefused, StoreUnavailable
from controlplane.registry import KINDS
from controlplane.store import client, keys
from controlplane.store.access import ELECTIONS, SECRETS, Access, CannotProtect, weakness
from controlplane.store.client import Store
from controlplane.store.feed import Feed, Listed, Lost
from kumihimo.v1 import store_pb2
from tests.component.certificates import issue
from tests.component.cloud import Cloud, Etcd, everything
from tests.waiting import DEADLINE, running, until

OTHER, FAR = "0198c0de-0000-7000-8000-000000000001", "0198c0de-0000-7000-8000-000000000002"

# family (first element below the root) → keys of it that h1 must not write
FORBIDDEN: Mapping[str, tuple[str, ...]] = {
    "net": (
        f"{keys.scope(OTHER)}network",
        f"{keys.subnets(OTHER)}{FAR}",
        f"{keys.ports(OTHER)}{FAR}",
        f"{keys.bindings(OTHER)}{FAR}",
        keys.change_of(keys.scope(OTHER)),
    ),
    "secgroup": (keys.members(OTHER) + FAR, keys.rules(OTHER) + FAR, keys.cut_of(keys.scope(OTHER, "secgroup"))),
    "node": (keys.node("h1"), keys.node("h10"), keys.NODES_CHANGE),
    "status": (
        keys.STATUS,
        keys.STATUS + "h1",
        keys.STATUS + "h1.x/agent",
        keys.agent_status("h10"),
        keys.port_status("h10", OTHER),
        keys.scope_status("h2", keys.scope(OTHER)),
        keys.scope_status("h", ""),
    ),
    "alive": (keys.alive("h10"), keys.alive("h"), keys.alive("h1") + "/x", keys.ALIVE),
    "index": (keys.index("Port", OTHER), keys.bound_to("h1", OTHER)),
    "claim": (keys.claim("vxlan", 1), keys.claim("node-key", 1), keys.claim(keys.mac_pool(OTHER), "x")),
    "request": (keys.request("node-h1", "demo", "x"),),
    "forming": (keys.forming(OTHER),),
    "apply": (keys.apply("demo"),),
    "change": (keys.change(OTHER, FAR),),
    "controller": (keys.controller("binder"),),
    "meta": (keys.FORMAT, keys.ROOT + "meta/heartbeat"),
    "secret": (f"{SECRETS}h1/key", f"{SECRETS}h10/key", SECRETS),
    "": (keys.ROOT, "/", "/kumihimo", "/kumihimo0", "\0", "\xff"),
}
ALLOWED = (
    keys.agent_status("h1"),
    keys.port_status("h1", OTHER),
    keys.scope_status("h1", keys.scope(OTHER)),
    keys.scope_status("h1", ""),
    keys.scope_status("h1", keys.scope(OTHER, "secgroup")),
    keys.rule_counters("h1"),
    keys.alive("h1"),
    ELECTIONS + "router-1",
)
# Where an object of each kind stands, those of later releases included.
PLACES = [keys.place(kind, FAR, OTHER) for kind in KINDS.values()]
KEYS = list(dict.fromkeys([*(key for found in FORBIDDEN.values() for key in found), *PLACES]))


@pytest.fixture(scope="module")
async def guarded(etcd_release: None) -> AsyncIterator[Guarded]:
    with tempfile.TemporaryDirectory(prefix="kumi-test-") as folder:
        made = Guarded(Path(folder))
        try:
            await made.begin()
            yield made
        finally:
            await made.end()


class Guarded:
    """An etcd with users. `root` is the API's way to it, `h1` that of a node, as is `h10`."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "ca")
        self.authority.init()
        self.etcd = Etcd(folder, self.authority)
        self._stores: list[Store] = []

    async def begin(self) -> None:
        await self.etcd.begin()
        self.root = self.store("api", Use.API)
        self.h1, self.h10 = self.store("h1", Use.NODE), self.store("h10", Use.NODE)
        self.access = Access(self.root)
        await self.access.protect()
        for node in ("h1", "h10"):
            assert await self.access.admit(node)

    async def end(self) -> None:
        for store in self._stores:
            await store.close()
        self.etcd.kill()

    def store(self, name: str, use: Use) -> Store:
        made = Store([self.etcd.endpoint], issue(self.authority, name, use))
        self._stores.append(made)
        return made


def attempts(store: Store, key: str) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Every way to change a key, by name."""
    raw = key.encode()
    put, delete = client.put(key, b"forged"), client.delete(key)
    mine = client.put(keys.alive("h1"), b"")
    return {
        "put": lambda: store.call(store.kv.Put, pb.PutRequest(key=raw, value=b"forged")),
        "delete": lambda: store.call(store.kv.DeleteRange, pb.DeleteRangeRequest(key=raw)),
        "delete range": lambda: store.call(store.kv.DeleteRange, pb.DeleteRangeRequest(key=raw, range_end=b"\0")),
        "delete prefix": lambda: store.call(
            store.kv.DeleteRange, pb.DeleteRangeRequest(key=raw, range_end=keys.end_of(key.rstrip("\0")))
        ),
        "transaction": lambda: store.transact([], [put]),
        "transaction with something allowed": lambda: store.transact([], [mine, put]),
        "transaction that deletes": lambda: store.transact([], [delete]),
        "transaction's other branch": lambda: store.call(store.kv.Txn, pb.TxnRequest(success=[mine], failure=[put])),
    }


async def refused(attempt: Awaitable[Any]) -> bool:
    try:
        await attempt
    except StoreRefused:
        return True
    return False


def test_every_family_of_keys_is_in_the_table() -> None:
    layout = (keys.__doc__ or "").split("\n\n")[1]
    families = set(re.findall(r"^    ([a-z]+)/", layout, re.MULTILINE))
    assert len(families) > 8
    assert families - set(FORBIDDEN) == set()


@pytest.mark.parametrize("key", KEYS)
async def test_root_on_a_host_writes_nothing_that_is_not_its_own(guarded: Guarded, key: str) -> None:
    before = await everything(guarded.root)
    for name, attempt in attempts(guarded.h1, key).items():
        assert await refused(attempt()), f"{name} of {key!r} was let through"
    assert await everything(guarded.root) == before


@pytest.mark.parametrize("key", ALLOWED)
async def test_its_own_status_and_elections_succeed(guarded: Guarded, key: str) -> None:
    ways = attempts(guarded.h1, key)
    for name in ("put", "transaction", "delete"):
        await ways[name]()
    lease = await guarded.h1.grant(60)
    await guarded.h1.transact([client.created_at(key, 0)], [client.put(key, b"", lease=lease)])
    assert await guarded.h1.keep_alive(lease)
    await guarded.h1.revoke(lease)
    assert await guarded.root.get(key) is None


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (keys.status("h1"), keys.status("h2")),
        (keys.status("h1"), keys.status("h10") + "x"),
        (keys.STATUS, "\0"),
        ("\0", "\0"),
        (keys.alive("h1"), keys.alive("h2")),
        (ELECTIONS, keys.NODES),
    ],
)
async def test_a_range_that_is_its_own_in_part_is_refused(guarded: Guarded, start: str, end: str) -> None:
    await guarded.root.transact([], [client.put(keys.agent_status("h10"), b"true"), client.put(keys.agent_status("h1"), b"")])
    request = pb.DeleteRangeRequest(key=start.encode(), range_end=end.encode())
    with pytest.raises(StoreRefused):
        await guarded.h1.call(guarded.h1.kv.DeleteRange, request)
    assert await guarded.root.get(keys.agent_status("h10"))
    assert await guarded.root.get(keys.agent_status("h1"))


async def test_nothing_is_hung_on_or_off_a_lease_of_others(guarded: Guarded) -> None:
    lease = await guarded.root.grant(60)
    await guarded.root.transact([], [client.put(keys.alive("h10"), b"", lease=lease)])
    with pytest.raises(StoreRefused):
        await guarded.h1.call(guarded.h1.kv.Put, pb.PutRequest(key=keys.alive("h1").encode(), lease=lease))
    with pytest.raises(StoreRefused):
        await guarded.h1.revoke(lease)
    assert await guarded.root.get(keys.alive("h10"))


async def test_it_reads_all_but_the_secrets_of_others(guarded: Guarded) -> None:
    theirs, own = f"{SECRETS}h10/key", f"{SECRETS}h1/key"
    await guarded.root.transact([], [client.put(key, b"s") for key in (theirs, own, keys.FORMAT, keys.node("h10"))])
    for key in (own, keys.FORMAT, keys.node("h10")):
        assert await guarded.h1.get(key), key
    assert [kv.key.decode() async for _, kvs in guarded.h1.pages(f"{SECRETS}h1/") for kv in kvs] == [own]

    async def compared() -> None:
        await guarded.h1.transact([client.created_at(theirs, 0)], [])

    async def previous() -> None:
        read = pb.RequestOp(request_range=pb.RangeRequest(key=theirs.encode()))
        await guarded.h1.transact([], [read])

    async def counted() -> None:
        request = pb.RangeRequest(key=SECRETS.encode(), range_end=keys.end_of(SECRETS), count_only=True)
        await guarded.h1.call(guarded.h1.kv.Range, request)

    for attempt in (guarded.h1.get(theirs), compared(), previous(), counted(), _listed(guarded.h1, keys.ROOT)):
        with pytest.raises(StoreRefused):
            await attempt


async def _listed(store: Store, prefix: str) -> None:
    async for _ in store.pages(prefix):
        pass


@pytest.mark.parametrize("prefix", [f"{SECRETS}h10/", SECRETS, keys.ROOT, ""])
async def test_a_watch_of_others_secrets_is_refused_and_said(guarded: Guarded, prefix: str) -> None:
    feed = Feed(guarded.h1)
    feed.watch(prefix)
    async with running(feed.run()):
        notice = await asyncio.wait_for(feed.notices.get(), DEADLINE)
    assert isinstance(notice, Lost)
    assert "permission denied" in notice.detail.lower() or "PermissionDenied" in notice.detail


P = auth_pb2.Permission
# No password of anybody: words of requests that must be refused.
NONE, SOME = "", "x"
ADMINISTRATION: Mapping[str, Any] = {
    "AuthEnable": pb.AuthEnableRequest(),
    "AuthDisable": pb.AuthDisableRequest(),
    "Authenticate": pb.AuthenticateRequest(name="root", password=NONE),
    "UserAdd": pb.AuthUserAddRequest(name="x", password=SOME),
    "UserGet": pb.AuthUserGetRequest(name="kumi-api"),
    "UserList": pb.AuthUserListRequest(),
    "UserDelete": pb.AuthUserDeleteRequest(name="node-h10"),
    "UserChangePassword": pb.AuthUserChangePasswordRequest(name="node-h1", password=SOME),
    "UserGrantRole": pb.AuthUserGrantRoleRequest(user="node-h1", role="root"),
    "UserRevokeRole": pb.AuthUserRevokeRoleRequest(name="node-h10", role="node-h10"),
    "RoleAdd": pb.AuthRoleAddRequest(name="x"),
    "RoleGet": pb.AuthRoleGetRequest(role="node-h10"),
    "RoleList": pb.AuthRoleListRequest(),
    "RoleDelete": pb.AuthRoleDeleteRequest(role="node-h10"),
    "RoleGrantPermission": pb.AuthRoleGrantPermissionRequest(
        name="node-h1", perm=P(permType=P.READWRITE, key=b"\0", range_end=b"\0")
    ),
    "RoleRevokePermission": pb.AuthRoleRevokePermissionRequest(role="node-h10", key=b"/"),
}


async def test_users_and_roles_are_not_its_business(guarded: Guarded) -> None:
    methods = {item.name for item in pb.DESCRIPTOR.services_by_name["Auth"].methods} - {"AuthStatus"}  # not in etcd 3.4
    assert methods == set(ADMINISTRATION)
    for name, request in ADMINISTRATION.items():
        with pytest.raises((StoreUnavailable, grpc.aio.AioRpcError)) as refusal:
            await guarded.h1.call(getattr(guarded.h1.auth, name), request)
        assert re.search("permission denied|authentication failed", str(refusal.value)), name
    assert await guarded.access.nodes() == {"h1", "h10"}
    assert not await guarded.access.admit("h1"), "its permissions are what they were"


async def test_maintenance_is_not_its_business(guarded: Guarded) -> None:
    store = guarded.h1
    cluster = rpc.ClusterStub(store._channel)
    for method, request in (
        (store.maintenance.Defragment, pb.DefragmentRequest()),
        (store.maintenance.Hash, pb.HashRequest()),
        (store.maintenance.HashKV, pb.HashKVRequest()),
        (cluster.MemberAdd, pb.MemberAddRequest(peerURLs=["http://h1:2380"])),
        (cluster.MemberRemove, pb.MemberRemoveRequest(ID=1)),
        (cluster.MemberUpdate, pb.MemberUpdateRequest(ID=1, peerURLs=["http://h1:2380"])),
    ):
        assert await refused(store.call(method, request)), request
    with pytest.raises(grpc.aio.AioRpcError, match="permission denied"):
        async for _ in store.maintenance.Snapshot(pb.SnapshotRequest(), timeout=5):
            pass


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("3.3.27", "write and read"),
        ("3.4.43", "write and read"),
        ("3.5.29", "write and read"),
        ("3.6.11", "can read"),
        ("3.4.44", "can read"),
        ("3.5.30", "can read"),
        ("3.7.0", "can read"),
        ("3.5.33", ""),
        ("3.6.14", ""),
        ("3.7.1", ""),
        ("4.0.0-rc.1", ""),
    ],
)
def test_what_a_version_leaves_open(version: str, told: str) -> None:
    said = weakness(version)
    assert told in said
    assert bool(said) == bool(told)


async def test_what_etcd_leaves_open_is_said_at_the_start(guarded: Guarded) -> None:
    """The limits of etcd's users depend on its version; the warning must be true of the one that runs here."""
    store, lease = guarded.h1, await guarded.root.grant(60)
    theirs = f"{SECRETS}h10/key"
    written = await guarded.root.transact([], [client.put(keys.alive("h10"), b"", lease=lease), client.put(theirs, b"s")])
    read = pb.RequestOp(request_range=pb.RangeRequest(key=theirs.encode()))
    inside = pb.RequestOp(request_txn=pb.TxnRequest(success=[client.put(keys.node("h1"), b"forged"), read]))
    space = {"alarm": pb.NOSPACE}
    attempts = {
        "a transaction inside a transaction": lambda: store.transact([], [inside]),
        "a lease of others in a transaction": lambda: store.transact([], [client.put(keys.alive("h1"), b"", lease=lease)]),
        "compaction": lambda: store.call(store.kv.Compact, pb.CompactionRequest(revision=written.revision)),
        "an alarm": lambda: store.call(store.maintenance.Alarm, pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, **space)),
        "its end": lambda: store.call(store.maintenance.Alarm, pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, **space)),
        "the list of leases": lambda: store.call(store.leases.LeaseLeases, pb.LeaseLeasesRequest()),
        "the members": lambda: store.call(rpc.ClusterStub(store._channel).MemberList, pb.MemberListRequest()),
    }
    attempts["a watch without an end"] = lambda: _watched(store, keys.alive("h1"))
    open_ = {name for name, attempt in attempts.items() if not await refused(attempt())}
    said = await guarded.access.weakness()
    if "a transaction inside a transaction" in open_:
        assert "can write and read everything (" in said
        assert open_ == set(attempts)
    else:
        assert not open_ & {"a lease of others in a transaction", "compaction", "an alarm", "its end"}
        assert ("can read everything that changes (" in said) == ("a watch without an end" in open_), said


async def _watched(store: Store, key: str) -> None:
    """Watch a key and all that follow it."""

    async def asked() -> AsyncIterator[Any]:
        yield pb.WatchRequest(create_request=pb.WatchCreateRequest(key=key.encode(), range_end=b"\0"))
        await asyncio.Event().wait()

    channel, watches = store.stream()
    call = watches.Watch(asked())
    try:
        if (await asyncio.wait_for(anext(aiter(call)), DEADLINE)).canceled:
            raise StoreRefused
    finally:
        call.cancel()
        await channel.close()


async def test_users_are_switched_on_once_by_any_number_of_replicas() -> None:
    with tempfile.TemporaryDirectory(prefix="kumi-test-") as folder:
        made = Guarded(Path(folder))
        try:
            await made.etcd.begin()
            stores = [made.store(f"api{number}", Use.API) for number in range(4)]
            outsider = made.store("x", Use.CLIENT)
            await outsider.transact([], [client.put("/x", b"")])
            await asyncio.gather(*(Access(store).protect() for store in stores))
            for store in stores:
                await store.transact([], [client.put(keys.FORMAT, b"")])
                await Access(store).protect()
            with pytest.raises(StoreRefused, match="refuses user x"):
                await outsider.transact([], [client.put("/x", b"")])
            for store, said in ((outsider, "that of 'x', but the API is 'kumi-api'"),):
                with pytest.raises(CannotProtect, match=said):
                    await Access(store).protect()
            made.etcd.kill()
            await made.etcd.begin()
            await Access(stores[0]).protect()
        finally:
            await made.end()


async def test_an_etcd_that_does_not_know_its_clients_is_not_locked() -> None:
    with tempfile.TemporaryDirectory(prefix="kumi-test-") as folder:
        made = Guarded(Path(folder))
        made.etcd._argv.remove("--client-cert-auth=true")
        try:
            await made.etcd.begin()
            store = made.store("api", Use.API)
            with pytest.raises(CannotProtect, match="start it with --client-cert-auth"):
                await Access(store).protect()
            await store.transact([], [client.put("/x", b"")])
        finally:
            await made.end()


async def test_what_others_did_to_a_nodes_role_is_put_right(guarded: Guarded) -> None:
    root = guarded.root
    everything_ = P(permType=P.READWRITE, key=b"\0", range_end=b"\0")
    await guarded.access.admit("h5")
    h5 = guarded.store("h5", Use.NODE)
    await root.call(root.auth.RoleGrantPermission, pb.AuthRoleGrantPermissionRequest(name="node-h5", perm=everything_))
    await root.call(root.auth.UserGrantRole, pb.AuthUserGrantRoleRequest(user="node-h5", role="node-h10"))
    await h5.transact([], [client.put(keys.agent_status("h10"), b"")])
    assert await guarded.access.admit("h5")
    with pytest.raises(StoreRefused):
        await h5.transact([], [client.put(keys.agent_status("h10"), b"")])
    await h5.transact([], [client.put(keys.agent_status("h5"), b"")])
    assert not await guarded.access.admit("h5")
    await guarded.access.dismiss("h5")
    await guarded.access.dismiss("h5")
    with pytest.raises(StoreRefused):
        await h5.get(keys.FORMAT)


async def test_no_call_fails_while_users_come_and_go(guarded: Guarded) -> None:
    """Each change of users makes requests under way stale; they are asked again, unseen."""
    done = asyncio.Event()
    counts = [0, 0]

    async def traffic(number: int, store: Store, key: str) -> None:
        while not done.is_set():
            await store.transact([], [client.put(key, b"")])
            await store.get(key)
            counts[number] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(traffic(0, guarded.root, keys.change(OTHER, FAR)))
            group.create_task(traffic(1, guarded.h1, keys.agent_status("h1")))
        for number in range(12):
            await guarded.access.admit(f"m{number}")
            await guarded.access.dismiss(f"m{number}")
        done.set()
    assert min(counts) > 20


async def test_the_api_lets_a_node_in_when_it_is_created_and_out_when_it_is_deleted(cloud: Cloud) -> None:
    """B-NET-03: a host whose Node does not exist yet is refused, and served without a restart once it does."""
    stores = {name: Store([cloud.etcd.endpoint], issue(cloud.authority, name, Use.NODE)) for name in ("n1", "n10")}

    async def served(name: str) -> bool:
        try:
            await stores[name].transact([], [client.put(keys.agent_status(name), b"")])
        except StoreRefused:
            return False
        return True

    try:
        assert not await served("n1")
        await cloud.api.create("Node", id="n1")
        await until(lambda: served("n1"), "n1 is let in")
        assert not await served("n10")
        with pytest.raises(StoreRefused):
            await stores["n1"].transact([], [client.put(keys.agent_status("n10"), b"")])
        await cloud.api.delete("Node", "n1")

        async def out() -> bool:
            return not await served("n1")

        await until(out, "n1 is out")
        assert "n1" not in await Access(cloud.store).nodes()
    finally:
        for store in stores.values():
            await store.close()


async def test_a_user_whose_node_went_while_nobody_looked_is_removed(cloud: Cloud) -> None:
    await cloud.settled()
    await Access(cloud.store).admit("ghost")
    api = cloud.replicas[0]
    api.stop()
    await api.begin()

    async def gone() -> bool:
        return "ghost" not in await Access(cloud.store).nodes()

    await until(gone, "the ghost is gone")
    await cloud.settled()


async def test_what_is_refused_is_asked_again_after_a_pause(guarded: Guarded) -> None:
    """Neither status nor watches of a node that etcd refuses keep it busy."""

    class Counted(Store):
        asked: list[float]
        streams: list[float]

        async def transact(self, compare: Any, operations: Any) -> Any:
            self.asked.append(time.monotonic())
            return await super().transact(compare, operations)

        def stream(self) -> Any:
            self.streams.append(time.monotonic())
            return super().stream()

    store = Counted([guarded.etcd.endpoint], issue(guarded.authority, "nobody", Use.NODE))
    store.asked, store.streams = [], []
    status, feed = Status(store, "nobody"), Feed(store)
    status.set(keys.agent_status("nobody"), store_pb2.AgentStatus(version="1"))
    feed.watch(keys.NODES)
    try:
        async with running(status.run()), running(feed.run()):
            await until(lambda: min(len(store.asked), len(store.streams)) >= 2, "both have asked twice")
            for times in (store.asked, store.streams):
                assert times[1] - times[0] >= StoreRefused.pause
            await guarded.access.admit("nobody")
            await until(lambda: not status._pending(), "it is served once it is known")
            async with asyncio.timeout(DEADLINE):
                while not isinstance(await feed.notices.get(), Listed):
                    pass
    finally:
        await store.close()
        await guarded.access.dismiss("nobody")
