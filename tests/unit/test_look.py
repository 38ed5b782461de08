"""`Inspect` of an agent: bounded, in turns, and whole except for what cannot be looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from agent.facts.model import HostFacts, Interface
from agent.facts.ovsdb import OvsdbError
from agent.inspection import look
from agent.inspection.look import Look
from agent.inspection.service import source_address
from agent.mirror.state import NetworkState, State
from agent.model.host import NOT_RUNNING, DhcpServer, OvsPort, Peer
from agent.model.item import Failure, Item, Key
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import network_pb2, node_pb2, port_pb2, store_pb2
from tests.waiting import until

NET, PORT = "0192f0c4-7a3e-7c1d-8f2a-00000000000a", "0192f0c4-7a3e-7c1d-8f2a-00000000000b"


class Held:
    """A driver that has these items, once it is let."""

    def __init__(self, *items: Item, kinds: Sequence[str] = ("held",), held: bool = False) -> None:
        self.kinds = frozenset(kinds)
        self.items = items
        self.asked = 0
        self.let = asyncio.Event()
        if not held:
            self.let.set()

    async def read_owned(self) -> Mapping[Key, Item]:
        self.asked += 1
        await self.let.wait()
        return {item.key: item for item in self.items}

    async def apply(self, put: Sequence[Item], delete: Sequence[Item]) -> Mapping[Key, Failure]:
        raise AssertionError("who only looks changes nothing")


class Switch:
    """Open vSwitch's database with these interfaces on br-int, or away."""

    def __init__(self, *interfaces: Interface, away: bool = False) -> None:
        self._interfaces = {interface.name: interface for interface in interfaces}
        self._away = away

    def facts(self) -> Mapping[str, Interface]:
        return self._interfaces

    async def read(self, work: Callable[[Any], Any]) -> Any:
        if self._away:
            raise OvsdbError("not connected")
        return [look._Bridge("br-phy", "netdev", False, {}), look._Bridge("br-int", "netdev", True, {})]


def state(*interfaces: Interface) -> State:
    made = State("h1")
    made.nodes["h2"] = node_pb2.Node(id="h2", tunnel_ip="192.0.2.2")
    made.take_facts(HostFacts({interface.name: interface for interface in interfaces}, (), "", ()))
    made.located[PORT] = NET
    network = made.networks[NET] = NetworkState(listed=True, members={"h1": 1, "h2": 3})
    vxlan = network_pb2.NETWORK_TYPE_VXLAN
    network.network = network_pb2.Network(id=NET, name="web", network_type=vxlan, segmentation_id=100)
    network.ports[PORT] = port_pb2.Port(id=PORT, name="web1").SerializeToString()
    return made


def looking(switch: Any, *drivers: Any, of: State | None = None) -> Look:
    said = store_pb2.PortStatus(wired=True).SerializeToString()
    return Look(of or state(TAP), switch, drivers, {PORT: said}.get)


TAP = Interface("tap1", "br-int", 5, PORT, "", "")
REQUEST = pb.InspectNodeRequest()


async def test_a_62_everything_is_named_by_what_it_belongs_to() -> None:
    tunnel = OvsPort("br-int", "kumi-vxlan", "vxlan", (("local_ip", "192.0.2.1"),), (("kumihimo", "tunnel"),))
    ids = (("kumihimo", "provider"), ("kumihimo-network", NET), ("kumihimo-physical-network", "physnet1"))
    patch = OvsPort("br-int", "int-phy", "patch", (("peer", "phy-int"),), ids)
    switch = Switch(
        TAP,
        Interface("kumi-vxlan", "br-int", 1, None, "vxlan", ""),
        Interface("int-phy", "br-int", 2, None, "patch", ""),
        Interface("br-int", "br-int", None, None, "internal", ""),
        Interface("phy0", "br-phy", 1, None, "", "no such device"),
        Interface("odd", "br-phy", 3, "what-others-call-so", "", ""),
    )
    served = DhcpServer(NET, f"kumi-{NET}", "port=0\n", ())
    dead = DhcpServer("n2", "kumi-n2", "port=0\n", (), NOT_RUNNING)
    found = await looking(switch, Held(tunnel, patch), Held(served, dead), Held(Peer("192.0.2.2"))).inspect(REQUEST)
    assert (found.node, found.live, list(found.notes)) == ("h1", True, [])
    assert [bridge.name for bridge in found.bridges] == ["br-int", "br-phy"]
    ports = {port.name: port for bridge in found.bridges for port in bridge.ports}
    assert list(ports) == ["kumi-vxlan", "int-phy", "tap1", "phy0", "odd"]
    assert [(item.kind, item.name) for item in ports["tap1"].objects] == [("Port", "web1"), ("Network", "web")]
    assert (ports["tap1"].wired, ports["tap1"].segment) == (True, "vxlan 100")
    assert (ports["kumi-vxlan"].purpose, ports["kumi-vxlan"].options["local_ip"]) == ("tunnel", "192.0.2.1")
    assert [(item.kind, item.id) for item in ports["int-phy"].objects] == [("Network", NET), ("PhysicalNetwork", "physnet1")]
    assert (ports["phy0"].error, list(ports["odd"].objects)) == ("no such device", [])
    space, other = found.namespaces
    assert (other.name, other.running) == ("kumi-n2", False)
    assert (space.service, space.running, space.objects[0].name) == ("dhcp", True, "web")
    (peer,) = found.peers
    assert (peer.node, peer.address, peer.resolved, peer.objects[0].name) == ("h2", "192.0.2.2", True, "web")


async def test_what_cannot_be_looked_at_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "SECONDS", 0.05)
    found = await looking(Switch(away=True), Held(kinds=["dhcp"], held=True)).inspect(REQUEST)
    assert list(found.notes) == ["dhcp: not read within 0.05 s", "bridge: not connected"]
    assert found.peers[0].node == "h2", "the rest is told"


async def test_one_look_serves_all_who_ask_while_it_lasts_and_outlives_who_goes() -> None:
    driver = Held(held=True)
    asked = looking(Switch(TAP), driver)
    first, second = (asyncio.create_task(asked.inspect(REQUEST)) for _ in range(2))
    await until(lambda: driver.asked == 1, "it is looked")
    first.cancel()
    driver.let.set()
    assert (await second).bridges
    assert driver.asked == 1
    await asked.inspect(REQUEST)
    assert driver.asked == 2, "the next one looks anew"


async def test_many_ports_are_bounded_and_leave_the_loop_its_turns() -> None:
    many = [Interface(f"tap{number}", "br-int", number, None, "", "") for number in range(1, 5001)]
    turns = 0

    loop, found = asyncio.get_running_loop(), None

    def turn() -> None:
        nonlocal turns
        turns += 1
        if found is None:
            loop.call_soon(turn)

    turn()
    found = await looking(Switch(*many)).inspect(REQUEST)
    assert (sum(len(bridge.ports) for bridge in found.bridges), found.left_out) == (look.MOST, 5000 - look.MOST)
    assert turns >= look.MOST / look.TURN
    assert found.ByteSize() < 1 << 20


def test_the_address_towards_etcd_is_that_of_the_route() -> None:
    assert source_address(["127.0.0.1:2379"]) == "127.0.0.1"
    assert source_address(["unix:/run/etcd.sock", "no.such.host.invalid:1", "[::1]:2379"]) in ("::1", "")
    assert source_address(["unix:/run/etcd.sock"]) == ""
