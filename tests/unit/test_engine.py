"""`full() == incremental()`: after any order of events the engine holds what a compile from nothing gives.

The store, the host and the feed are modelled here; notices of different prefixes arrive in any order, lists come late, are
repeated, and swallow changes, as they do on the wire.
"""

from __future__ import annotations

import os
import random
from collections import deque
from ipaddress import ip_network
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.compile import FEATURES
from agent.compile.engine import Conflict, Engine
from agent.compile.tunnel import TUNNELS
from agent.facts.model import HostFacts, Interface, Link
from agent.mirror.state import State
from agent.model.item import Item, Key
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.feed import Changed, Listed
from controlplane.values import eui64
from kumihimo.v1 import network_pb2, node_pb2, port_pb2, security_pb2, store_pb2

NETWORKS = [f"00000000-0000-7000-8000-0000000000{number:02x}" for number in range(4)]
PORTS = [f"00000000-0000-7000-8000-0000000001{number:02x}" for number in range(200)]
SIX = [f"00000000-0000-7000-8000-0000000002{number:02x}" for number in range(4)]  # IPv6 subnets
GROUPS = [f"00000000-0000-7000-8000-0000000003{number:02x}" for number in range(4)]
ADDRESS_GROUPS = [f"00000000-0000-7000-8000-0000000004{number:02x}" for number in range(2)]
RULES = [f"00000000-0000-7000-8000-0000000005{number:02x}" for number in range(24)]
# What the other side of a rule may be.
REMOTES = ["", "10.0.0.0/25", "0.0.0.0/0", *GROUPS, *ADDRESS_GROUPS]
NODES = ["h1", "h2", "h3", "h4"]
VXLAN_PORT = TUNNELS[network_pb2.NETWORK_TYPE_VXLAN].port
# Interfaces whose numbers come and go; numbers below 10 are theirs, so no two interfaces share one.
MADE = {
    VXLAN_PORT: 1,
    "kd000001": 2,
    "kd000002": 3,
    "kumi-geneve": 4,
    "kumi-gre": 5,
    "int-br-phys": 6,
    "eth1": 7,
}
TYPES = ("VXLAN", "GENEVE", "GRE", "VLAN", "FLAT", "LOCAL")


class Cloud:
    """A store, one host's interfaces, and a feed that delivers when told to."""

    def __init__(self) -> None:
        self.revision = 1
        self.entries: dict[str, Entry] = {}
        self.interfaces: dict[str, Interface] = {}
        self.state = State("h1")
        self.engine = Engine(self.state, FEATURES)
        self.watched: set[str] = set()
        self.pending: dict[str, deque[Listed | Changed]] = {}
        self.foreign: frozenset[str] = frozenset({"br-phy"})
        self.ofport = 10

    def write(self, *changes: tuple[str, Any | None]) -> None:
        """One transaction: the same revision for all."""
        self.revision += 1
        touched = []
        for key, message in changes:
            entry = None
            if message is not None:
                old = self.entries.get(key)
                value = message.SerializeToString()
                entry = Entry(value, old.create_revision if old else self.revision, self.revision)
                self.entries[key] = entry
            elif self.entries.pop(key, None) is None:
                continue
            touched.append((key, entry))
        for prefix in self.watched:
            mine = [change for change in touched if change[0].startswith(prefix)]
            if mine:
                self.pending.setdefault(prefix, deque()).append(Changed(prefix, self.revision, mine))

    def list(self, prefix: str) -> Listed:
        return Listed(prefix, self.revision, {key: entry for key, entry in self.entries.items() if key.startswith(prefix)})

    def follow(self) -> None:
        self.engine.touch(self.state.forget())
        wanted = self.state.interest()
        for prefix in self.watched - wanted:
            self.pending.pop(prefix, None)
        for prefix in wanted - self.watched:
            self.pending[prefix] = deque([self.list(prefix)])
        self.watched = wanted

    def deliver(self, prefix: str) -> None:
        notices = self.pending[prefix]
        self.engine.touch(self.state.take(notices.popleft()))
        if not notices:
            del self.pending[prefix]
        self.follow()

    def settle(self) -> None:
        self.facts()
        while self.pending:
            self.deliver(min(self.pending))

    def facts(self) -> None:
        underlay = {"192.168.50.1": "br-phy"}
        borne = {address: Link(bridge, 1500) for address, bridge in underlay.items()}
        facts = HostFacts(dict(self.interfaces), ("netdev",), "3.1.0", tuple(underlay), underlay, self.foreign, borne)
        self.engine.touch(self.state.take_facts(facts))
        self.follow()


def port(number: int, network: int, address: int, *, up: bool = True, guarded: bool = True) -> port_pb2.Port:
    message = port_pb2.Port(
        id=PORTS[number],
        network_id=NETWORKS[network],
        mac_address=f"fa:16:3e:00:{network:02x}:{number:02x}",
        admin_state_up=up,
        port_security_enabled=guarded,
    )
    message.fixed_ips.add(subnet_id=NETWORKS[network], ip_address=f"10.0.{network}.{address}")
    if number % 3 == 0:
        message.fixed_ips.add(subnet_id=SIX[network], ip_address=eui64(ip_network(f"fd00:{network}::/64"), message.mac_address))
    if number % 7 == 0 and guarded:
        message.allowed_address_pairs.add(ip_address="10.0.9.0/24")
        message.allowed_address_pairs.add(ip_address="fd00:9::/64", mac_address="fa:16:3e:99:99:99")
        if up:
            message.allowed_address_pairs.add(ip_address="10.0.9.9/32", mac_address=f"00:00:5e:00:01:{number % 3:02x}")
    if number % 5 == 0:
        message.dns_name = f"name{number}"
    if number % 20 == 0 and up:
        message.dns_domain = f"domain{number % 3}.example"
        message.extra_dhcp_opts.add(name="ntp-server", value="10.0.0.3")
    return message


class Incremental(RuleBasedStateMachine):
    """Random events over 200 ports on 4 networks and 4 nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.cloud = Cloud()
        self.home: dict[int, int] = {}
        self.groups: dict[int, tuple[int, ...]] = {}  # of ports that are filtered

    @initialize(seed=st.integers(0, 2**32))
    def populate(self, seed: int) -> None:
        chance = random.Random(seed)
        self.cloud.interfaces[VXLAN_PORT] = Interface(VXLAN_PORT, "br-int", 1, None, "vxlan", "")
        for number in range(3):
            self.put_node(number, True, "")
            self.put_network(number, True, 100, "VXLAN")
        for number in range(200):
            self.put_port(number, chance.randrange(3), True, True)
            if chance.random() < 0.7:
                self.bind(number, chance.randrange(3))
            if chance.random() < 0.1:
                self.plug(number, True)
            if chance.random() < 0.4:
                self.join(number, chance.sample(range(len(GROUPS)), chance.randrange(3)))
        for number in range(len(GROUPS)):
            self.put_group(number, chance.random() < 0.8, False, True)
        for number in range(len(ADDRESS_GROUPS)):
            self.put_addresses(number, ["10.0.0.3", "10.0.1.0/26", "fd00::/64"], True)
        for number in range(len(RULES) // 2):
            self.put_rule(
                number, number % 2 == 0, chance.choice(REMOTES), chance.choice(["", "tcp"]), (80, 83), number % 5 == 0
            )
        self.cloud.settle()

    @rule(number=st.integers(0, 3), tunnel=st.booleans(), mapped=st.sampled_from(["", "eth1", "br-ex"]))
    def put_node(self, number: int, tunnel: bool, mapped: str = "") -> None:
        node = node_pb2.Node(id=NODES[number], key=number + 1, tunnel_ip=f"192.168.50.{number + 1}" if tunnel else "")
        if mapped:
            node.bridge_mappings["phys"] = mapped
        self.cloud.write((keys.node(NODES[number]), node))

    @rule(number=st.integers(0, 3))
    def delete_node(self, number: int) -> None:
        self.cloud.write((keys.node(NODES[number]), None))

    @rule(number=st.integers(0, 3), up=st.booleans(), segment=st.integers(1, 200), kind=st.sampled_from(TYPES))
    def put_network(self, number: int, up: bool, segment: int, kind: str = "VXLAN") -> None:
        network = network_pb2.Network(
            id=NETWORKS[number],
            key=number + 1,
            network_type=network_pb2.NetworkType.Value(f"NETWORK_TYPE_{kind}"),
            physical_network="phys" if kind in ("VLAN", "FLAT") else "",
            segmentation_id=segment * 4 + number,
            admin_state_up=up,
            mtu=1450,
            dns_domain="kumihimo.internal",
        )
        subnet = network_pb2.Subnet(
            id=NETWORKS[number],
            network_id=NETWORKS[number],
            cidr=f"10.0.{number}.0/24",
            enable_dhcp=segment % 3 != 0,
            dhcp_server_ip=f"10.0.{number}.254",
        )
        mode = segment % 4 + 1
        six = network_pb2.Subnet(
            id=SIX[number],
            network_id=NETWORKS[number],
            cidr=f"fd00:{number}::/64",
            ip_version=network_pb2.IP_VERSION_IPV6,
            ipv6_ra_mode=mode,  # type: ignore[arg-type]
            ipv6_address_mode=mode,  # type: ignore[arg-type]
            enable_dhcp=mode != network_pb2.IPV6_MODE_NONE,
            dhcp_server_ip=f"fd00:{number}::ffff",
        )
        scope = keys.scope(NETWORKS[number])
        self.cloud.write(
            (keys.network(NETWORKS[number]), network),
            (keys.subnets(NETWORKS[number]) + NETWORKS[number], subnet),
            (keys.subnets(NETWORKS[number]) + SIX[number], six),
            (scope + "change", store_pb2.ChangeRecord()),
        )

    @rule(number=st.integers(0, 3))
    def delete_network(self, number: int) -> None:
        scope = keys.scope(NETWORKS[number])
        gone = [key for key in self.cloud.entries if key.startswith(scope)]
        ports = [keys.index("Port", PORTS[port]) for port, network in self.home.items() if network == number]
        self.home = {port: network for port, network in self.home.items() if network != number}
        self.cloud.write(*((key, None) for key in [*gone, *ports]))

    @rule(number=st.integers(0, 199), network=st.integers(0, 3), up=st.booleans(), guarded=st.booleans())
    def put_port(self, number: int, network: int, up: bool, guarded: bool) -> None:
        if self.home.get(number, network) != network:
            self.delete_port(number)
        self.home[number] = network
        message = port(number, network, number + 2, up=up, guarded=guarded)
        if number in self.groups:
            message.filtered = True
            message.security_group_ids.extend(GROUPS[group] for group in self.groups[number])
        self.cloud.write(
            (keys.index("Port", PORTS[number]), store_pb2.Index(parent_id=NETWORKS[network])),
            (keys.ports(NETWORKS[network]) + PORTS[number], message),
        )

    @rule(number=st.integers(0, 199), groups=st.lists(st.integers(0, 3), max_size=3, unique=True))
    def join(self, number: int, groups: list[int]) -> None:
        """A port gets other groups, which hold its addresses then."""
        network = self.home.get(number)
        if network is None:
            return
        gone = set(self.groups.get(number, ())) - set(groups)
        self.groups[number] = tuple(groups)
        self.put_port(number, network, True, True)
        told = store_pb2.Member(addresses=[fixed.ip_address for fixed in port(number, network, number + 2).fixed_ips])
        self.cloud.write(
            *((keys.members(GROUPS[group]) + PORTS[number], told) for group in groups),
            *((keys.members(GROUPS[group]) + PORTS[number], None) for group in gone),
            *(self.cut(group) for group in gone),
        )

    def cut(self, group: int) -> tuple[str, store_pb2.Cut]:
        return keys.cut_of(keys.scope(GROUPS[group], "secgroup")), store_pb2.Cut(cause=str(self.cloud.revision))

    @rule(number=st.integers(0, 3), stateful=st.booleans(), observes=st.booleans(), there=st.booleans())
    def put_group(self, number: int, stateful: bool, observes: bool, there: bool) -> None:
        group = security_pb2.SecurityGroup(id=GROUPS[number], key=number + 1, stateful=stateful)
        if observes:
            group.mode = security_pb2.SECURITY_GROUP_MODE_OBSERVE
        scope = keys.scope(GROUPS[number], "secgroup")
        self.cloud.write((keys.head(scope), group if there else None), (scope + "change", store_pb2.ChangeRecord()))

    @rule(
        number=st.integers(0, 1),
        addresses=st.lists(
            st.sampled_from(["10.0.0.3", "10.0.0.0/24", "10.0.0.5-10.0.0.9", "fd00::/64", "nonsense"]), unique=True
        ),
        there=st.booleans(),
    )
    def put_addresses(self, number: int, addresses: list[str], there: bool) -> None:
        group = security_pb2.AddressGroup(id=ADDRESS_GROUPS[number], key=10 + number, addresses=addresses)
        scope = keys.scope(ADDRESS_GROUPS[number], "addrgroup")
        cut = store_pb2.Cut(cause=str(self.cloud.revision))
        self.cloud.write((keys.head(scope), group if there else None), (keys.cut_of(scope), cut))

    @rule(
        number=st.integers(0, len(RULES) - 1),
        ingress=st.booleans(),
        remote=st.sampled_from(REMOTES),
        protocol=st.sampled_from(["", "tcp", "udp", "icmp", "89"]),
        ports=st.sampled_from([None, (80, 83), (80, 80), (1, 65535), (8, 0)]),
        ipv6=st.booleans(),
    )
    def put_rule(
        self, number: int, ingress: bool, remote: str, protocol: str, ports: tuple[int, int] | None, ipv6: bool
    ) -> None:
        group = GROUPS[number % len(GROUPS)]
        message = security_pb2.SecurityGroupRule(id=RULES[number], security_group_id=group, protocol=protocol)
        message.direction = security_pb2.DIRECTION_INGRESS if ingress else security_pb2.DIRECTION_EGRESS
        message.ethertype = network_pb2.IP_VERSION_IPV6 if ipv6 else network_pb2.IP_VERSION_IPV4
        if remote in GROUPS:
            message.remote_group_id = remote
        elif remote in ADDRESS_GROUPS:
            message.remote_address_group_id = remote
        elif not ipv6:
            message.remote_ip_prefix = remote
        if ports is not None and protocol in ("tcp", "udp", "icmp"):
            message.port_range_min, message.port_range_max = ports
        self.cloud.write((keys.rules(group) + RULES[number], message))

    @rule(number=st.integers(0, len(RULES) - 1))
    def delete_rule(self, number: int) -> None:
        group = number % len(GROUPS)
        self.cloud.write((keys.rules(GROUPS[group]) + RULES[number], None), self.cut(group))

    @rule(number=st.integers(0, 199))
    def delete_port(self, number: int) -> None:
        network = self.home.pop(number, None)
        if network is not None:
            self.cloud.write(
                (keys.index("Port", PORTS[number]), None),
                (keys.ports(NETWORKS[network]) + PORTS[number], None),
                (keys.bindings(NETWORKS[network]) + PORTS[number], None),
            )

    @rule(number=st.integers(0, 199), node=st.integers(0, 3))
    def bind(self, number: int, node: int) -> None:
        network = self.home.get(number)
        if network is not None:
            self.cloud.write((keys.bindings(NETWORKS[network]) + PORTS[number], port_pb2.Binding(node=NODES[node])))

    @rule(number=st.integers(0, 199))
    def unbind(self, number: int) -> None:
        network = self.home.get(number)
        if network is not None:
            self.cloud.write((keys.bindings(NETWORKS[network]) + PORTS[number], None))

    @rule(number=st.integers(0, 199), valid=st.booleans())
    def plug(self, number: int, valid: bool) -> None:
        self.cloud.ofport += 1
        name = f"tap{number}"
        ofport = self.cloud.ofport if valid else None
        self.cloud.interfaces[name] = Interface(name, "br-int", ofport, PORTS[number], "", "" if valid else "no such device")

    @rule(number=st.integers(0, 199))
    def unplug(self, number: int) -> None:
        self.cloud.interfaces.pop(f"tap{number}", None)

    @rule(name=st.sampled_from(sorted(MADE)), there=st.booleans())
    def made_interface(self, name: str, there: bool) -> None:
        self.cloud.interfaces[name] = Interface(name, "br-int", MADE[name] if there else None, None, "", "")

    @rule(mtu=st.sampled_from([0, 1400, 1499, 1600]), bridge=st.sampled_from(["br-phy", "br-phys", "br-ex"]))
    def wire(self, mtu: int, bridge: str) -> None:
        self.cloud.interfaces[f"nic-{bridge}"] = Interface(f"nic-{bridge}", bridge, 99, None, "", "", mtu)

    @rule(there=st.booleans())
    def foreign_bridge(self, there: bool) -> None:
        self.cloud.foreign = frozenset({"br-phy", "br-ex"} if there else {"br-phy"})

    @rule()
    def look_at_host(self) -> None:
        self.cloud.facts()

    @rule(data=st.data(), most=st.integers(1, 5))
    def deliver(self, data: st.DataObject, most: int) -> None:
        for _ in range(most):
            if self.cloud.pending:
                self.cloud.deliver(data.draw(st.sampled_from(sorted(self.cloud.pending))))

    @rule(data=st.data())
    def lose_stream(self, data: st.DataObject) -> None:
        """Everything is listed again, at the revision of now; pending changes are swallowed by the lists."""
        for prefix in sorted(self.cloud.watched):
            self.cloud.pending[prefix] = deque([self.cloud.list(prefix)])

    @invariant()
    def incremental_is_full(self) -> None:
        self.cloud.engine.run()
        assert self.cloud.engine.items() == self.cloud.engine.full()

    def teardown(self) -> None:
        self.cloud.settle()
        changes = self.cloud.engine.run()
        assert not changes.failed
        # A process that starts now and reads everything comes to the same.
        fresh = Cloud()
        fresh.entries, fresh.revision, fresh.interfaces = self.cloud.entries, self.cloud.revision, self.cloud.interfaces
        fresh.foreign = self.cloud.foreign
        fresh.settle()
        fresh.engine.run()
        assert self.cloud.engine.items() == fresh.engine.items()


Incremental.TestCase.settings = settings(
    max_examples=200 if os.environ.get("KUMI_FULL") else 10,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_full_equals_incremental = Incremental.TestCase


def _populated() -> Incremental:
    machine = Incremental()
    machine.populate(1)
    machine.cloud.engine.run()
    return machine


def test_one_changed_port_compiles_a_handful_of_units() -> None:
    machine = _populated()
    machine.put_port(5, machine.home[5], False, True)
    machine.cloud.settle()
    assert machine.cloud.engine.run().compiled <= 3


def test_applied_then_reverted_is_as_before() -> None:
    machine = _populated()
    before = machine.cloud.engine.items()
    assert before
    home = dict(machine.home)
    for number in range(4):
        machine.delete_network(number)
    for number in range(200):
        machine.unplug(number)
    machine.cloud.settle()
    machine.cloud.engine.run()
    left = list(machine.cloud.engine.items())
    assert {key[0] for key in left} == {"bridge", "flow", "ovs-port"}
    assert {key[2] for key in left if key[0] == "ovs-port"} <= {tunnel.port for tunnel in TUNNELS.values()}, "those stay"
    assert not [key for key in machine.cloud.engine.items() if key[0] == "flow" and key[3] and key[1] == 60]
    again = _populated()
    assert again.home == home
    assert again.cloud.engine.items() == before


def test_two_units_that_disagree_are_reported_and_hurt_nobody_else() -> None:
    machine = _populated()
    kept = machine.cloud.engine.items()
    # Two ports of one network with one MAC: the store forbids it, so only a defect can bring it about.
    network = machine.home[0]
    twins = [number for number, home in machine.home.items() if home == network][:2]
    twin = port(twins[1], network, 250)
    twin.mac_address = port(twins[0], network, 2).mac_address
    machine.bind(twins[0], 1)
    machine.bind(twins[1], 2)
    machine.cloud.write((keys.ports(NETWORKS[network]) + PORTS[twins[1]], twin))
    machine.cloud.settle()
    changes = machine.cloud.engine.run()
    assert any(Conflict.__name__ in detail for detail in changes.failed.values())
    now = machine.cloud.engine.items()
    others: dict[Key, Item] = {key: item for key, item in kept.items() if key[0] != "flow"}
    assert others.items() <= now.items()
