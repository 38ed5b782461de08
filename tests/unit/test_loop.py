"""The loop: a network is announced before it is read, and applied up to its last revision, whatever that changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from agent.compile import FEATURES
from agent.compile.engine import Engine
from agent.facts.model import HostFacts, Interface
from agent.mirror.state import State
from agent.model.flow import Group
from agent.model.pipeline import Table
from agent.reconcile.lane import Lane
from agent.reconcile.loop import Loop
from agent.reconcile.status import Status
from controlplane.store import keys
from controlplane.store.client import Entry, Written
from controlplane.store.feed import Changed, Listed, Notice
from kumihimo.v1 import network_pb2, node_pb2, port_pb2, store_pb2
from tests.fakes.driver import FakeDriver
from tests.unit.test_engine import NETWORKS, PORTS, port
from tests.waiting import until

NET = NETWORKS[0]
PORT = PORTS[1]


class Cloud:
    """A store, a feed and a host for one loop; what the loop asked for and said is in `asked` and `said`."""

    def __init__(self) -> None:
        self.revision = 1
        self.entries: dict[str, Entry] = {}
        self.interfaces: dict[str, Interface] = {}
        self.notices: asyncio.Queue[Notice] = asyncio.Queue()
        self.watched: set[str] = set()
        self.asked: list[str] = []
        self.said: dict[str, bytes] = {}
        self._changed: Callable[[], None] = lambda: None
        self.loop: Any = None

    # The store, as Status needs it.
    async def transact(self, _: Any, operations: list[Any]) -> Written:
        for operation in operations:
            if put := operation.get("request_put"):
                key = put["key"].decode()
                self.said[key] = put["value"]
                self.asked.append(f"say {key}")
            else:
                self.said.pop(operation["request_delete_range"]["key"].decode(), None)
        return Written(True, 1)

    # The feed.
    def watch(self, prefix: str) -> None:
        self.watched.add(prefix)
        self.asked.append(f"watch {prefix}")
        mine = {key: entry for key, entry in self.entries.items() if key.startswith(prefix)}
        self.notices.put_nowait(Listed(prefix, self.revision, mine))

    def forget(self, prefix: str) -> None:
        self.watched.discard(prefix)

    # The host.
    def on_change(self, callback: Callable[[], None]) -> None:
        self._changed = callback

    async def host_facts(self) -> HostFacts:
        return HostFacts(dict(self.interfaces), ("netdev",), "3.1.0", ())

    def plug(self, name: str, ofport: int, port_id: str | None) -> None:
        self.interfaces[name] = Interface(name, "br-int", ofport, port_id, "", "")
        self._changed()

    def unplug(self, name: str) -> None:
        del self.interfaces[name]
        self._changed()

    def write(self, **messages: Any) -> int:
        """Put messages (keys without the root, "_" for "/") in one transaction; its revision."""
        self.revision += 1
        changes = []
        for key, message in messages.items():
            entry = Entry(message.SerializeToString(), 1, self.revision)
            self.entries[key] = entry
            changes.append((key, entry))
        for prefix in self.watched:
            mine = [change for change in changes if change[0].startswith(prefix)]
            if mine:
                self.notices.put_nowait(Changed(prefix, self.revision, mine))
        return self.revision

    def applied(self) -> int:
        return store_pb2.Applied.FromString(self.said.get(keys.scope_status("h1", keys.scope(NET)), b"")).revision


@asynccontextmanager
async def running(refuse: bool = False) -> AsyncIterator[tuple[Cloud, FakeDriver]]:
    """A loop over fakes, with one network of one port in the store."""
    cloud = Cloud()
    driver = FakeDriver(frozenset({"flow", "group", "bridge", "ovs-port", "namespace", "dhcp", "name", "peer"}))
    network = network_pb2.Network(id=NET, key=1, segmentation_id=100, admin_state_up=True)
    cloud.write(
        **{
            keys.node("h1"): node_pb2.Node(id="h1", key=1),
            keys.network(NET): network,
            keys.ports(NET) + PORT: port(1, 0, 3),
            keys.index("Port", PORT): store_pb2.Index(parent_id=NET),
        }
    )
    state = State("h1")
    status = Status(cloud, "h1")  # type: ignore[arg-type]
    loop = Loop(state, Engine(state, FEATURES), cloud, cloud, status)  # type: ignore[arg-type]
    lane = Lane("all", [driver], loop.wake)
    loop.use(lane)
    cloud.loop = loop
    tasks = [asyncio.create_task(work) for work in (status.run(), lane.run(), loop.run())]
    try:
        yield cloud, driver
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_c_06_a_network_is_announced_before_it_is_read_and_let_go_after_it_is_removed() -> None:
    async with running() as (cloud, driver):
        cloud.plug("tap1", 11, PORT)
        await until(lambda: cloud.applied() == cloud.revision)
        say, watch = f"say {keys.scope_status('h1', keys.scope(NET))}", f"watch {keys.scope(NET)}"
        assert cloud.asked.index(say) < cloud.asked.index(watch)
        assert store_pb2.PortStatus.FromString(cloud.said[keys.port_status("h1", PORT)]).wired
        assert any(key[0] == "group" for key in driver.there)
        cloud.unplug("tap1")
        await until(lambda: keys.scope_status("h1", keys.scope(NET)) not in cloud.said)
        assert not any(key[0] == "group" for key in driver.there)
        assert keys.port_status("h1", PORT) not in cloud.said


async def test_c_06_a_revision_that_changes_nothing_here_is_applied_too() -> None:
    async with running() as (cloud, _):
        cloud.plug("tap1", 11, PORT)
        await until(lambda: cloud.applied() == cloud.revision)
        for interface in ("tap1", "tap1-renamed"):
            binding = port_pb2.Binding(node="h1", interface=interface)
            revision = cloud.write(
                **{keys.bindings(NET) + PORT: binding, keys.change_of(keys.scope(NET)): store_pb2.ChangeRecord()}
            )
            await until(lambda revision=revision: cloud.applied() == revision, "the revision is applied")


async def test_c_06_a_network_is_not_applied_while_its_tunnel_port_has_no_number() -> None:
    async with running() as (cloud, driver):
        network = network_pb2.Network(id=NET, key=1, segmentation_id=100, network_type=network_pb2.NETWORK_TYPE_GENEVE)
        cloud.write(
            **{
                keys.node("h1"): node_pb2.Node(id="h1", key=1, tunnel_ip="192.0.2.1"),
                keys.node("h2"): node_pb2.Node(id="h2", key=2, tunnel_ip="192.0.2.2"),
                keys.network(NET): network,
            }
        )
        cloud.plug("tap1", 11, PORT)
        await until(lambda: ("ovs-port", "br-int", "kumi-geneve") in driver.there, "the tunnel port is made")
        await until(lambda: any(key[:2] == ("flow", Table.NODE) and key[3] for key in driver.there), "what can be, is applied")
        cloud.plug("tap9", 19, PORTS[9])
        await until(
            lambda: b"PORT_UNKNOWN" in cloud.said.get(keys.port_status("h1", PORTS[9]), b""), "status is said after that"
        )
        assert cloud.applied() == 0
        cloud.plug("kumi-geneve", 12, None)
        await until(lambda: cloud.applied() == cloud.revision, "it is applied")
        assert any(key[:2] == ("flow", Table.GENEVE) and key[3] for key in driver.there)


async def test_c_06_what_fails_is_said_and_the_revision_does_not_count() -> None:
    async with running() as (cloud, driver):
        cloud.plug("tap1", 11, PORT)
        await until(lambda: cloud.applied() == cloud.revision)
        before = cloud.applied()
        group = next(key for key in driver.there if key[0] == "group")
        driver.refuse.add(group)
        cloud.write(
            **{
                keys.ports(NET) + PORTS[2]: port(2, 0, 4),
                keys.index("Port", PORTS[2]): store_pb2.Index(parent_id=NET),
            }
        )
        cloud.plug("tap2", 12, PORTS[2])

        def errors() -> list[str]:
            said = store_pb2.Applied.FromString(cloud.said[keys.scope_status("h1", keys.scope(NET))])
            return [error.reason for error in said.errors]

        await until(lambda: errors() == ["REFUSED"], "the failure is said")
        assert cloud.applied() <= cloud.revision
        assert before <= cloud.applied()
        driver.refuse.clear()
        await until(lambda: not errors() and cloud.applied() == cloud.revision, "it is applied in the end")


async def test_c_08_a_node_says_what_its_lanes_found_and_does_as_its_drift_policy_says() -> None:
    async with running() as (cloud, _):
        cloud.plug("tap1", 11, PORT)
        await until(lambda: cloud.applied() == cloud.revision)
        group = Group(1, ())
        assert cloud.loop.drifts.found(group, None)
        key = keys.drift_status("h1")
        await until(lambda: key in cloud.said, "it is said")
        await until(lambda: len(store_pb2.DriftReport.FromString(cloud.said[key]).items) == 1, "what was found is said")
        (item,) = store_pb2.DriftReport.FromString(cloud.said[key]).items
        assert (item.object, item.owner, item.outcome) == ("group_id=1", f"Network {NET}", node_pb2.DRIFT_OUTCOME_REPAIRED)
        only = node_pb2.Node(id="h1", key=1, drift_policy=node_pb2.DRIFT_POLICY_REPORT)
        cloud.write(**{keys.node("h1"): only, keys.NODES_CHANGE: store_pb2.ChangeRecord()})
        await until(lambda: not cloud.loop.drifts.repairs, "from now on it only reports")
        assert not cloud.loop.drifts.found(group, None)


def test_a_port_keeps_its_time_until_it_is_wired_or_no_longer() -> None:
    status = Status(Cloud(), "h1")  # type: ignore[arg-type]

    def said(wired: bool, message: str = "") -> int:
        status.set_port(PORT, store_pb2.PortStatus(wired=wired, message=message))
        stored = status.get(keys.port_status("h1", PORT))
        return store_pb2.PortStatus.FromString(stored or b"").since.ToNanoseconds()

    first, same, wired, still, off = said(False), said(False, "another reason"), said(True), said(True), said(False)
    assert 0 < first == same < wired == still < off
    status.remove(keys.port_status("h1", PORT))
    assert said(False) > off
