"""A large cloud on the agent's pure part: 10,000 ports on 1,000 networks, and 50 nodes that each take in what concerns them.

A node must hold exactly its closure, and a change must compile what it concerns and nothing else, however large the cloud is.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from uuid import UUID

import pytest
from google.protobuf.message import Message

from agent.compile import FEATURES
from agent.compile.engine import Changes, Engine
from agent.compile.tunnel import TUNNELS
from agent.facts.model import HostFacts, Interface
from agent.mirror.state import State
from agent.model.pipeline import CookieKind, cookie
from controlplane.registry import KINDS
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.feed import Changed, Listed
from kumihimo.v1 import network_pb2, node_pb2, port_pb2, store_pb2

SEED = 20261125
VXLAN_PORT = TUNNELS[network_pb2.NETWORK_TYPE_VXLAN].port
NETWORKS, PORTS, NODES = 1_000, 10_000, 51
AWAY = 50  # the number of a node that nobody simulates
SOME = AWAY if os.environ.get("KUMI_FULL") else 3  # nodes that are made whole: all of them take a minute


def name(kind: int, number: int) -> str:
    """An id: version 7, made of a kind of our own and a number."""
    return str(UUID(int=kind << 112 | 7 << 76 | 2 << 62 | number))


class World:
    """What etcd holds, by the prefixes that agents ask for; a port is at `home`, and its network is `net`."""

    def __init__(self) -> None:
        chance = random.Random(SEED)
        self.revision = 1
        self.entries: dict[str, dict[str, Entry]] = defaultdict(dict)
        self.agents: list[Agent] = []
        self.net = {name(3, number): name(1, chance.randrange(NETWORKS)) for number in range(PORTS)}
        self.home = {port: f"h{chance.randrange(NODES)}" for port in self.net}
        for number in range(NODES):
            self.put_node(number, f"192.0.2.{number + 1}")
        for number in range(NETWORKS):
            self.put_network(number)
        for number, port in enumerate(self.net):
            self.put_port(number)
            self.bind(port, self.home[port])
            self._put(keys.index("Port", port), keys.index("Port", port), store_pb2.Index(parent_id=self.net[port]))

    def put_node(self, number: int, tunnel_ip: str) -> None:
        node = node_pb2.Node(id=f"h{number}", key=number + 1, tunnel_ip=tunnel_ip)
        self._put(keys.NODES, keys.node(node.id), node)

    def put_network(self, number: int, mtu: int = 1450) -> None:
        net = name(1, number)
        network = network_pb2.Network(id=net, key=number + 1, segmentation_id=number + 1, mtu=mtu)
        network.network_type = network_pb2.NETWORK_TYPE_VXLAN
        self._put(keys.scope(net), keys.network(net), network)
        subnet = network_pb2.Subnet(id=name(2, number), network_id=net, cidr="10.0.0.0/16", dhcp_server_ip="10.0.0.2")
        subnet.ip_version, subnet.enable_dhcp, subnet.gateway_ip = network_pb2.IP_VERSION_IPV4, True, "10.0.0.1"
        subnet.dhcp_lease_duration.seconds = 3600
        self._put(keys.scope(net), keys.place(KINDS["Subnet"], subnet.id, net), subnet)

    def put_port(self, number: int, pair: str = "") -> None:
        port = port_pb2.Port(id=name(3, number), network_id=self.net[name(3, number)])
        port.mac_address = f"fa:16:3e:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        port.fixed_ips.add(
            subnet_id=port.network_id.replace("0001-", "0002-"), ip_address=f"10.0.{1 + number // 250}.{1 + number % 250}"
        )
        if pair:
            port.allowed_address_pairs.add(ip_address=pair)
        self._put(keys.scope(port.network_id), keys.place(KINDS["Port"], port.id, port.network_id), port)

    def bind(self, port: str, node: str) -> None:
        self._put(keys.scope(self.net[port]), keys.bindings(self.net[port]) + port, port_pb2.Binding(node=node))

    def _put(self, prefix: str, key: str, message: Message) -> None:
        self.revision += 1
        entry = Entry(message.SerializeToString(), self.revision, self.revision)
        self.entries[prefix][key] = entry
        for agent in self.agents:
            agent.hear(prefix, Changed(prefix, self.revision, [(key, entry)], [self.revision]))

    def members(self, node: str) -> set[str]:
        """The networks with a port on a node."""
        return {self.net[port] for port, home in self.home.items() if home == node}


class Agent:
    """One node: its mirror and its engine, fed with what they ask for."""

    def __init__(self, world: World, node: str) -> None:
        self.world, self.node = world, node
        self.state = State(node)
        self.engine = Engine(self.state, FEATURES)
        self.watched: set[str] = set()
        self.interfaces = {VXLAN_PORT: Interface(VXLAN_PORT, "br-int", 1, None, "vxlan", "")}
        for port in [port for port, home in world.home.items() if home == node]:
            number = len(self.interfaces) + 1
            self.interfaces[f"tap{number}"] = Interface(f"tap{number}", "br-int", number, port, "", "")
        self.look()
        self.engine.run()
        world.agents.append(self)

    def look(self) -> None:
        """The host's interfaces have changed."""
        facts = HostFacts(dict(self.interfaces), ("netdev",), "3.1.0", ("192.0.2.1",))
        self.engine.touch(self.state.take_facts(facts))
        self.follow()

    def follow(self) -> None:
        while wanted := self.state.interest() - self.watched:
            for prefix in wanted:
                entries = dict(self.world.entries[prefix])
                self.engine.touch(self.state.take(Listed(prefix, self.world.revision, entries, 1)))
            self.watched |= wanted
        self.watched &= self.state.interest()

    def hear(self, prefix: str, notice: Changed) -> None:
        if prefix in self.watched:
            self.engine.touch(self.state.take(notice))
            self.follow()

    def run(self) -> Changes:
        return self.engine.run()


@pytest.fixture(scope="module")
def world() -> World:
    made = World()
    for number in range(SOME):
        Agent(made, f"h{number}")
    return made


def compiled(world: World) -> dict[str, int]:
    """Units that each node compiled since it was last asked; nodes without any are left out."""
    runs = {agent.node: agent.run() for agent in world.agents}
    assert not any(changes.failed for changes in runs.values())
    return {node: changes.compiled for node, changes in runs.items() if changes.compiled}


def concerned(world: World, net: str) -> set[str]:
    """The nodes that were made and have a port of a network."""
    return {agent.node for agent in world.agents if net in world.members(agent.node)}


def test_a_node_holds_exactly_what_concerns_it(world: World) -> None:
    for agent in world.agents:
        mine = world.members(agent.node)
        assert set(agent.state.networks) == mine
        for net in mine:
            assert set(agent.state.networks[net].keys) == set(world.entries[keys.scope(net)])
        marks = {cookie(CookieKind.NETWORK, net) for net in mine}
        marks |= {cookie(CookieKind.PORT, port) for port, net in world.net.items() if net in mine}
        kinds = {CookieKind.NETWORK, CookieKind.PORT}
        found = {item.cookie for item in agent.engine.items().values() if hasattr(item, "cookie")}
        assert {mark for mark in found if mark >> 56 in kinds} == marks


def test_what_is_compiled_by_and_by_is_what_is_compiled_at_once(world: World) -> None:
    for agent in world.agents[:3]:
        assert agent.engine.items() == agent.engine.full()


def test_a_change_compiles_what_it_concerns_and_no_more(world: World) -> None:
    compiled(world)
    home = world.agents[0].node
    number, port = next((number, port) for number, port in enumerate(world.net) if world.home[port] == home)
    net = world.net[port]
    others = concerned(world, net) - {home}
    # A port's guards: its own unit; at home its filter, its network's DHCP and group look at it too.
    world.put_port(number, pair="10.1.0.0/24")
    assert compiled(world) == {home: 4} | dict.fromkeys(others, 1)
    # A network's own values: network, DHCP and each of its ports, those at home with their filter.
    ports = [port for port, where in world.net.items() if where == net]
    world.put_network(int(net[-6:], 16), mtu=1400)
    assert compiled(world) == {
        node: 2 + len(ports) + sum(world.home[port] == node for port in ports) for node in concerned(world, net)
    }
    # A port elsewhere, of a network that nobody here has.
    here = set().union(*(world.members(agent.node) for agent in world.agents))
    if far := next((number for number, net in enumerate(world.net.values()) if net not in here), None):
        world.put_port(far, pair="10.1.0.0/24")
        assert compiled(world) == {}


def test_a_port_that_moves_costs_its_own_network(world: World) -> None:
    compiled(world)
    home = world.agents[0].node
    port = next(
        port for port, net in world.net.items() if world.home[port] not in (home, f"h{AWAY}") and net in world.members(home)
    )
    for agent in world.agents:
        if agent.node == world.home[port]:
            del agent.interfaces[next(name for name, found in agent.interfaces.items() if found.iface_id == port)]
            agent.look()
            agent.run()
    world.home[port] = f"h{AWAY}"
    world.bind(port, f"h{AWAY}")
    found = compiled(world)
    assert set(found) == concerned(world, world.net[port])
    # The port; and when the set of nodes of the network has changed, the network's group.
    assert set(found.values()) <= {1, 2}


def test_a_node_that_moves_costs_the_ways_to_it(world: World) -> None:
    """Its tunnel address: the flow that leads to it, and the networks that have it as member or its ports' way."""
    compiled(world)
    mine = {agent.node: world.members(agent.node) for agent in world.agents}
    there = world.members(f"h{AWAY}")
    world.put_node(AWAY, "198.51.100.50")
    for agent in world.agents:
        changes = agent.run()
        ports = sum(1 for port, home in world.home.items() if home == f"h{AWAY}" and world.net[port] in mine[agent.node])
        assert changes.compiled <= 1 + len(mine[agent.node] & there) + ports
        # All that changes in the switch is one flow; the rest is the neighbour to keep resolved.
        assert {key[0] for key in changes.put} == {"flow", "peer"}
        assert sum(key[0] == "flow" for key in changes.put) == 1
