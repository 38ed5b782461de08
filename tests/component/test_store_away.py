"""The agent's upper half on a real etcd that goes away: compacted meanwhile, restored from memory on disk, found again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aetcd.rpc import rpc_pb2 as pb

from agent.compile import FEATURES
from agent.compile.engine import Engine
from agent.facts.model import HostFacts, Interface
from agent.main import _until_status_is_read
from agent.mirror.snapshot import Recorder, load
from agent.mirror.state import State
from agent.model.flow import Flow, Output, match
from agent.model.item import Item, Key
from agent.model.pipeline import CookieKind, cookie
from agent.reconcile.lane import Lane
from agent.reconcile.loop import Loop
from agent.reconcile.status import Status
from controlplane.store import client, keys
from controlplane.store.client import Store
from controlplane.store.feed import Feed
from kumihimo.v1 import network_pb2, node_pb2, port_pb2, store_pb2
from tests.chaos.proxy import Proxy
from tests.component.cloud import Etcd
from tests.fakes.driver import FakeDriver
from tests.unit.test_engine import NETWORKS, PORTS, port
from tests.waiting import running, until

NET = NETWORKS[0]
KINDS = frozenset({"flow", "group", "bridge", "ovs-port", "namespace", "dhcp", "name", "peer"})


async def write(store: Store, **messages: Any) -> None:
    """Put messages, or delete (None), in one transaction; the scope's change with them."""
    operations = [
        client.delete(key) if message is None else client.put(key, message.SerializeToString())
        for key, message in messages.items()
    ]
    for key in (keys.change_of(keys.scope(NET)), keys.NODES_CHANGE):
        operations.append(client.put(key, store_pb2.ChangeRecord().SerializeToString()))
    await store.transact([], operations)


async def populate(store: Store) -> None:
    """One network with port 1, which is here, and port 2, on h2."""
    network = network_pb2.Network(
        id=NET, key=1, segmentation_id=100, network_type=network_pb2.NETWORK_TYPE_VXLAN, admin_state_up=True
    )
    await write(
        store,
        **{
            keys.node("h1"): node_pb2.Node(id="h1", key=1, tunnel_ip="192.0.2.1"),
            keys.node("h2"): node_pb2.Node(id="h2", key=2, tunnel_ip="192.0.2.2"),
            keys.network(NET): network,
            keys.ports(NET) + PORTS[1]: port(1, 0, 3),
            keys.ports(NET) + PORTS[2]: port(2, 0, 4),
            keys.index("Port", PORTS[1]): store_pb2.Index(parent_id=NET),
            keys.index("Port", PORTS[2]): store_pb2.Index(parent_id=NET),
            keys.bindings(NET) + PORTS[1]: port_pb2.Binding(node="h1"),
            keys.bindings(NET) + PORTS[2]: port_pb2.Binding(node="h2"),
        },
    )


class Host:
    """What the loop asks the host."""

    def __init__(self) -> None:
        self.interfaces = {
            "kumi-vxlan": Interface("kumi-vxlan", "br-int", 1, None, "vxlan", ""),
            "tap1": Interface("tap1", "br-int", 11, PORTS[1], "", ""),
        }
        self.changed: Callable[[], None] = lambda: None

    def on_change(self, callback: Callable[[], None]) -> None:
        self.changed = callback

    async def host_facts(self) -> HostFacts:
        return HostFacts(dict(self.interfaces), ("netdev",), "3.1.0", ("192.0.2.1",))


class Agent:
    """An upper half over a fake data plane."""

    def __init__(self, target: str, driver: FakeDriver, path: Path) -> None:
        self.driver = driver
        self.store = Store([target])
        self.status = Status(self.store, "h1")
        self.state = State("h1")
        self.engine = Engine(self.state, FEATURES)
        self.feed = Feed(self.store, silence=3.0)
        self.path, self.endpoints = path, [target]
        self.recorder = Recorder(path, "h1", self.endpoints)
        self.loop = Loop(self.state, self.engine, self.feed, Host(), self.status, self.recorder)  # type: ignore[arg-type]
        self.lane = Lane("all", [driver], self.loop.wake)
        self.loop.use(self.lane)

    def recall(self) -> None:
        known = load(self.path, "h1", self.endpoints)
        assert known
        self.recorder.begin(known)
        self.loop.recall(known)

    async def follow(self) -> None:
        await _until_status_is_read(self.store, self.status, "h1", lambda: None)
        self.loop.follow()
        await asyncio.gather(self.feed.run(), self.status.run())

    def is_whole(self) -> bool:
        """Everything is known and applied, and nothing else is there."""
        desired = {key: item for key, item in self.engine.full().items() if key[0] in KINDS}
        return self.state.is_complete and not self.loop._sparing and self.driver.there == desired


@contextlib.asynccontextmanager
async def at_work(agent: Agent) -> AsyncIterator[Agent]:
    try:
        async with running(agent.follow(), agent.lane.run(), agent.loop.run(), agent.recorder.run()):
            yield agent
    finally:
        await agent.store.close()


async def compact(store: Store) -> None:
    await store.transact([], [client.put(keys.ROOT + "meta/x", b"1")])
    request = pb.CompactionRequest(revision=await store.revision(), physical=True)
    await store.call(store.kv.Compact, request)


def flows_to(there: dict[Key, Item], mac: int) -> list[Key]:
    return [key for key in there if key[0] == "flow" and any(field[0] == "eth_dst" and field[1] == mac for field in key[3])]


async def test_c_07_etcd_is_compacted_while_the_agent_is_away(etcd: Etcd, store: Store, tmp_path: Path) -> None:
    await populate(store)
    async with Proxy(etcd.endpoint) as proxy, at_work(Agent(proxy.target, FakeDriver(KINDS), tmp_path / "mirror")) as agent:
        await until(agent.is_whole, "it is whole")
        ghost = flows_to(agent.driver.there, _mac(2))
        assert ghost
        proxy.begin(cut_up=0)
        proxy.cut()
        # What goes, comes and changes is told by no event any more.
        await write(
            store,
            **{
                keys.ports(NET) + PORTS[2]: None,
                keys.bindings(NET) + PORTS[2]: None,
                keys.index("Port", PORTS[2]): None,
                keys.node("h2"): None,
                keys.node("h3"): node_pb2.Node(id="h3", key=3, tunnel_ip="192.0.2.3"),
                keys.ports(NET) + PORTS[3]: port(3, 0, 5),
                keys.bindings(NET) + PORTS[3]: port_pb2.Binding(node="h3"),
            },
        )
        await compact(store)
        kept = {key: item for key, item in agent.driver.there.items() if key[0] == "bridge"}
        agent.driver.log.clear()
        proxy.begin()
        await until(lambda: bool(flows_to(agent.driver.there, _mac(3))) and agent.is_whole(), "it has caught up")
        assert flows_to(agent.driver.there, _mac(2)) == [], "no ghost"
        assert ("peer", "192.0.2.2") not in agent.driver.there
        assert ("peer", "192.0.2.3") in agent.driver.there
        assert not {("put", key) for key in kept} & set(agent.driver.log), "what is right is not touched"


def _mac(number: int) -> int:
    return int(str(port(number, 0, number + 2).mac_address).replace(":", ""), 16)


async def test_b_ops_13_a_start_without_etcd_puts_what_was_known_and_removes_nothing(
    etcd: Etcd, store: Store, tmp_path: Path
) -> None:
    await populate(store)
    path = tmp_path / "mirror"
    async with Proxy(etcd.endpoint) as proxy:
        async with at_work(Agent(proxy.target, FakeDriver(KINDS), path)) as first:
            await until(first.is_whole, "it is whole")
            whole = dict(first.driver.there)
        assert path.exists(), "an agent that stops has written what it knew"
        said = await store.get(keys.scope_status("h1", keys.scope(NET)))
        assert said is not None

        proxy.begin(cut_up=0)
        stranger = Flow(0, 100, match(in_port=77), (Output(7),), cookie(CookieKind.PORT, PORTS[3]))
        part = [item for number, item in enumerate(whole.values()) if number % 2]
        agent = Agent(proxy.target, FakeDriver(KINDS, [*part, stranger]), path)
        agent.recall()
        async with at_work(agent):
            await until(lambda: whole.items() <= agent.driver.there.items(), "what was known is there")
            assert stranger.key in agent.driver.there, "what is not known stays: it may be newer than the file"
            puts = {key for verb, key in agent.driver.log if verb == "put"}
            assert not puts & {item.key for item in part}, "what is right is not touched"
            assert not [key for verb, key in agent.driver.log if verb == "delete"]
            # The port that was on h2 goes, and etcd forgets that it was there.
            gone = {keys.ports(NET) + PORTS[2]: None, keys.bindings(NET) + PORTS[2]: None}
            await write(store, **gone)
            await compact(store)
            agent.driver.log.clear()
            proxy.begin()
            await until(agent.is_whole, "the store's lists are the truth")
            assert stranger.key not in agent.driver.there
            assert flows_to(agent.driver.there, _mac(2)) == []
            touched = {key for _, key in agent.driver.log}
            stays = {key for key, item in whole.items() if agent.driver.there.get(key) == item}
            assert len(stays) > 20
            assert not touched & stays, "nothing that stays was touched"
            applied = store_pb2.Applied()

            async def said_again() -> bool:
                entry = await store.get(keys.scope_status("h1", keys.scope(NET)))
                applied.ParseFromString(entry.value if entry else b"")
                change = await store.get(keys.change_of(keys.scope(NET)))
                return change is not None and applied.revision >= change.mod_revision

            await until(said_again, "and status says how far it is")


async def test_a_start_from_disk_on_another_etcd_follows_that(etcd: Etcd, store: Store, tmp_path: Path) -> None:
    await populate(store)
    path = tmp_path / "mirror"
    async with Proxy(etcd.endpoint) as proxy:
        async with at_work(Agent(proxy.target, FakeDriver(KINDS), path)) as first:
            await until(first.is_whole)
        # As if the file came from another cluster: it holds a node and a port that this one has never had.
        known = load(path, "h1", [proxy.target])
        foreign = known[keys.NODES].entries | {keys.node("h9"): known[keys.NODES].entries[keys.node("h2")]}
        recorder = Recorder(path, "h1", [proxy.target])
        recorder.begin(known)
        recorder.take(type(known[keys.NODES])(keys.NODES, 5, foreign, 12345))
        await recorder._write()
        agent = Agent(proxy.target, FakeDriver(KINDS), path)
        agent.recall()
        async with at_work(agent):
            await until(agent.is_whole, "the store's lists are the truth")
            assert "h9" not in agent.state.nodes
