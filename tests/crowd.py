"""An agent in memory that knows many ports: one plugged here, all others on another node, all in one security group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.message import Message

from agent.compile import FEATURES
from agent.compile.engine import Changes, Engine
from agent.facts.model import HostFacts, Interface
from agent.mirror.state import State
from agent.model.item import Failure, Item, Key
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.feed import Changed, Listed
from kumihimo.v1 import network_pb2, node_pb2, port_pb2, security_pb2, store_pb2

NET, SUBNET, GROUP = (f"00000000-0000-7000-8000-00000000000{number}" for number in (1, 2, 3))
MEMBERS = keys.scope(GROUP, keys.SECURITY)


class Crowd:
    """The pure part of an agent that knows so many ports."""

    def __init__(self, known: int) -> None:
        self.state = State("h1")
        self.engine = Engine(self.state, FEATURES)
        self.revision = 1
        taps = {"tap": Interface("tap", "br-int", 2, _id(0), "", "")}
        self.engine.touch(self.state.take_facts(HostFacts(taps, ("netdev",), "3.1.0", ())))
        for notice in _lists(known):
            self.engine.touch(self.state.take(notice))

    def change(self, number: int, address: str) -> Changes:
        """One port gets an address pair, and its group another member's address."""
        self.revision += 1
        port = _port(number)
        port.allowed_address_pairs.add(ip_address=address)
        member = store_pb2.Member(addresses=[port.fixed_ips[0].ip_address, address])
        for prefix, key, message in (
            (keys.scope(NET), keys.ports(NET) + port.id, port),
            (MEMBERS, keys.members(GROUP) + port.id, member),
        ):
            self.engine.touch(self.state.take(Changed(prefix, self.revision, [(key, _entry(message))], [self.revision])))
        return self.engine.run()


class Forgetful:
    """A driver (agent.model.item) that does as it is told and keeps nothing."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = frozenset(kinds)

    async def read_owned(self) -> Mapping[Key, Item]:
        return {}

    async def apply(self, put: Sequence[Item], delete: Sequence[Item]) -> Mapping[Key, Failure]:
        return {}


def _lists(known: int) -> Iterator[Listed]:
    nodes = {"h1": 1, "h2": 2}
    found = {name: node_pb2.Node(id=name, key=key, tunnel_ip=f"192.0.2.{key}") for name, key in nodes.items()}
    yield Listed(keys.NODES, 1, {keys.node(name): _entry(node) for name, node in found.items()})
    index = keys.index("Port", _id(0))
    yield Listed(index, 1, {index: _entry(store_pb2.Index(parent_id=NET))})
    vxlan = network_pb2.NETWORK_TYPE_VXLAN
    network = network_pb2.Network(id=NET, key=1, segmentation_id=1, mtu=1450, network_type=vxlan, dns_domain="example.org")
    entries, members = {keys.network(NET): _entry(network)}, {f"{MEMBERS}security_group": _entry(_group())}
    for family in (network_pb2.IP_VERSION_IPV4, network_pb2.IP_VERSION_IPV6):
        rule = security_pb2.SecurityGroupRule(id=_id(family, 2), security_group_id=GROUP, remote_group_id=GROUP)
        rule.direction, rule.ethertype = security_pb2.DIRECTION_INGRESS, family
        members[f"{MEMBERS}security_group_rule/{rule.id}"] = _entry(rule)
    for number in range(known):
        port = _port(number)
        entries[keys.ports(NET) + port.id] = _entry(port)
        entries[keys.bindings(NET) + port.id] = _entry(port_pb2.Binding(node="h2" if number else "h1"))
        members[keys.members(GROUP) + port.id] = _entry(store_pb2.Member(addresses=[port.fixed_ips[0].ip_address]))
    yield Listed(keys.scope(NET), 1, entries)
    yield Listed(MEMBERS, 1, members)


def _group() -> security_pb2.SecurityGroup:
    return security_pb2.SecurityGroup(id=GROUP, key=4096, stateful=True)


def _port(number: int) -> port_pb2.Port:
    mac = f"fa:16:3e:00:{number >> 8:02x}:{number & 255:02x}"
    port = port_pb2.Port(id=_id(number), network_id=NET, name=f"port-{number}", mac_address=mac, filtered=True)
    port.fixed_ips.add(subnet_id=SUBNET, ip_address=f"10.0.{1 + number // 250}.{1 + number % 250}")
    port.security_group_ids.append(GROUP)
    return port


def _id(number: int, kind: int = 1) -> str:
    return f"00000000-0000-7000-800{kind}-{number:012x}"


def _entry(message: Message) -> Entry:
    return Entry(message.SerializeToString(), 1, 1)
