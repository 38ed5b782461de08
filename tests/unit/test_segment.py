"""Segments of every type as compile makes them: numbers that never meet, many networks, names of bridges, narrow wires."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import pytest

from agent.compile import FEATURES
from agent.compile.engine import Engine
from agent.compile.port import verdict
from agent.compile.tunnel import TUNNELS
from agent.compile.view import View
from agent.facts.model import HostFacts, Interface, Link
from agent.mirror.state import State
from agent.model.flow import Flow, Group, Output, PopVlan, PushVlan, Resubmit, SetField, match
from agent.model.host import Bridge, OvsPort, Uplink
from agent.model.pipeline import FLAGS, FROM_PROVIDER, FROM_TUNNEL, Table
from agent.model.remark import Remark
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.feed import Listed
from kumihimo.v1 import network_pb2, node_pb2, port_pb2, store_pb2

UNDERLAY4, UNDERLAY6 = "192.0.2.1", "2001:db8::1"
PEER = {UNDERLAY4: "192.0.2.2", UNDERLAY6: "2001:db8::2"}
TUNNEL_PORTS = {tunnel.port: number for number, tunnel in enumerate(TUNNELS.values(), 1)}
WIRES = {"p": "br-p", "q": "br-q"}
FIRST_TAP = 100


def name(kind: int, number: int) -> str:
    return str(UUID(int=kind << 112 | 7 << 76 | 2 << 62 | number))


def network(number: int, kind: str, segment: int = 0, wire: str = "", key: int = 0, mtu: int = 1400) -> network_pb2.Network:
    return network_pb2.Network(
        id=name(1, number),
        key=key or number,
        network_type=network_pb2.NetworkType.Value(f"NETWORK_TYPE_{kind}"),
        segmentation_id=segment,
        physical_network=wire,
        mtu=mtu,
    )


class Host:
    """h1 with one port plugged for each of some networks, and a port of each on h2; compiled."""

    def __init__(
        self,
        networks: Iterable[network_pb2.Network],
        node: dict[str, Any] | None = None,
        tunnel_ip: str = UNDERLAY4,
        mtu: int = 0,
        link: Link | None = None,
        datapath: str = "netdev",
    ) -> None:
        """link: what bears the tunnel_ip; by default it is br-phy."""
        self.state = State("h1")
        self.networks = list(networks)
        own = {"tunnel_ip": tunnel_ip, "bridge_mappings": {wire: f"eth-{wire}" for wire in WIRES}} | (node or {})
        nodes = [
            node_pb2.Node(id="h1", key=1, **own),
            node_pb2.Node(id="h2", key=2, tunnel_ip=PEER[tunnel_ip]),
        ]
        interfaces = {port: Interface(port, "br-int", number, None, "", "") for port, number in TUNNEL_PORTS.items()}
        for number, (wire, bridge) in enumerate(WIRES.items(), 10):
            interfaces[f"int-{bridge}"] = Interface(f"int-{bridge}", "br-int", number, None, "patch", "")
            interfaces[f"eth-{wire}"] = Interface(f"eth-{wire}", bridge, 1, None, "", "", mtu)
        interfaces["phy0"] = Interface("phy0", "br-phy", 1, None, "", "", mtu)
        for number, _ in enumerate(self.networks):
            tap = f"tap{number}"
            interfaces[tap] = Interface(tap, "br-int", FIRST_TAP + number, name(2, number), "", "")
        foreign = frozenset({"br-phy", "br-foreign"})
        bears = link or Link("br-phy", mtu)
        underlay = {tunnel_ip: "br-phy"} if bears.name == "br-phy" else {}
        facts = HostFacts(interfaces, (datapath,), "3.1.0", tuple(underlay), underlay, foreign, {tunnel_ip: bears})
        self.engine = Engine(self.state, FEATURES)
        self.engine.touch(self.state.take_facts(facts))
        self._list(keys.NODES, {keys.node(node.id): node for node in nodes})
        for number, made in enumerate(self.networks):
            here, there = name(2, number), name(3, number)
            index = keys.index("Port", here)
            self._list(index, {index: store_pb2.Index(parent_id=made.id)})
            messages: dict[str, Any] = {keys.network(made.id): made}
            for place, port, node_id in ((1, here, "h1"), (2, there, "h2")):
                message = port_pb2.Port(id=port, network_id=made.id, mac_address=f"fa:16:3e:00:00:0{place}")
                message.port_security_enabled = False  # its flows are others' matter
                message.fixed_ips.add(subnet_id=made.id, ip_address=f"10.0.0.{place}")
                messages[keys.ports(made.id) + port] = message
                messages[keys.bindings(made.id) + port] = port_pb2.Binding(node=node_id)
            self._list(keys.scope(made.id), messages)
        self.changes = self.engine.run()
        self.items = self.engine.items()

    def _list(self, prefix: str, messages: dict[str, Any]) -> None:
        entries = {key: Entry(message.SerializeToString(), 1, 1) for key, message in messages.items()}
        self.engine.touch(self.state.take(Listed(prefix, 1, entries)))

    def flows(self, table: Table, **fields: int) -> list[Flow]:
        """The flows of a table that match these fields among others."""
        wanted = set(fields.items())
        flows = [item for item in self.items.values() if isinstance(item, Flow) and item.table == table]
        return [flow for flow in flows if wanted <= {(field, value) for field, value, _ in flow.match}]

    def remarks(self) -> list[Remark]:
        return [item for item in self.items.values() if isinstance(item, Remark)]

    def of(self, kind: type[Any]) -> list[Any]:
        return [item for item in self.items.values() if isinstance(item, kind)]


def test_a_64_more_networks_than_vlans_on_one_node_and_none_meets_another() -> None:
    """A wire full of VLANs and flat (with KUMI_FULL two), each tunnel type at both ends of its numbers; keys of 24 bits."""
    wires = list(WIRES)[: 2 if os.environ.get("KUMI_FULL") else 1]
    kinds: list[tuple[str, int, str]] = [("VLAN", vlan, wire) for wire in wires for vlan in range(1, 4095)]
    kinds += [("FLAT", 0, wire) for wire in wires]
    for kind, last in (("VXLAN", (1 << 24) - 1), ("GENEVE", (1 << 24) - 1), ("GRE", (1 << 32) - 1)):
        kinds += [(kind, number, "") for number in (*range(1, 30), last)]
    kinds += [("LOCAL", 0, "")] * 10
    most = (1 << 24) - 1
    host = Host(network(number, *kind, key=most - number) for number, kind in enumerate(kinds, 1))
    assert len(host.networks) > 4094
    assert not host.changes.failed
    assert {group.group_id for group in host.of(Group)} == {made.key for made in host.networks}
    entrances = [*host.flows(Table.FROM_PROVIDER), *(flow for flow in host.flows(Table.CLASSIFY) if len(flow.match) == 2)]
    led = [action.value for flow in entrances for action in flow.actions if getattr(action, "field", "") == "metadata"]
    assert sorted(led) == sorted(made.key for made in host.networks if made.network_type != network_pb2.NETWORK_TYPE_LOCAL)
    exits = {
        flow.match: flow.actions for table in (Table.NODE, Table.PROVIDER) for flow in host.flows(table) if flow.priority == 100
    }
    assert len(exits) == len(set(exits.values())) == len(led), "no two networks leave in the same way"


@pytest.mark.parametrize("kind", ["VXLAN", "GENEVE", "GRE"])
def test_b_net_03_to_05_each_tunnel_type_has_its_own_port_and_table(kind: str) -> None:
    host = Host([network(1, kind, 501)])
    tunnel = TUNNELS[host.networks[0].network_type]
    ports = {port.name: port for port in host.of(OvsPort) if port.external_ids == (("kumihimo", "tunnel"),)}
    assert ports[tunnel.port].type == tunnel.type
    assert ports.keys() == TUNNEL_PORTS.keys(), "and those that are there already stay"
    assert [flow.actions[-1] for flow in host.flows(Table.NODE, metadata=1)] == [Resubmit(tunnel.table)]
    (onward,) = host.flows(tunnel.table, reg10=2)
    assert onward.actions[-1] == Output(TUNNEL_PORTS[tunnel.port])
    assert [flow.match for flow in host.flows(Table.CLASSIFY, tun_id=501)] == [
        (("in_port", TUNNEL_PORTS[tunnel.port], None), ("tun_id", 501, None))
    ]


def test_b_net_02_frames_of_a_vlan_and_of_a_flat_network() -> None:
    host = Host([network(1, "VLAN", 100, "p"), network(2, "FLAT", 0, "p")])
    mark = SetField(FLAGS, FROM_PROVIDER, FROM_PROVIDER)
    (tagged,), (plain,) = host.flows(Table.FROM_PROVIDER, vlan_vid=0x1064), host.flows(Table.FROM_PROVIDER, vlan_vid=0)
    assert tagged.actions == (PopVlan(), SetField("metadata", 1), mark, Resubmit(Table.L2))
    assert plain.actions == (SetField("metadata", 2), mark, Resubmit(Table.L2))
    (push,), (out,) = host.flows(Table.PROVIDER, metadata=1), host.flows(Table.PROVIDER, metadata=2)
    assert push.actions == (PushVlan(), SetField("vlan_vid", 0x1064), Output(10))
    assert out.actions == (Output(10),)
    assert ("vlan_vid", 0, None) in out.match, "what a workload has tagged itself goes to no wire"
    # A switch sends nothing out of the port it came from; this counts it, and holds for what the service says too.
    refused = {flow.match for flow in host.flows(Table.PROVIDER) if flow.priority > 100}
    assert refused == {match(reg0=(flag, flag)) for flag in (FROM_TUNNEL, FROM_PROVIDER)}
    (group,) = (group for group in host.of(Group) if group.group_id == 1)
    assert group.buckets[1:] == ((Resubmit(Table.PROVIDER),),), "to the wire once, however many nodes"


def test_b_net_06_a_local_network_knows_nobody_elsewhere() -> None:
    host = Host([network(1, "LOCAL")])
    assert [flow.match for flow in host.flows(Table.L2, metadata=1) if flow.priority == 100] == [
        (("eth_dst", 0xFA163E000001, None), ("metadata", 1, None))
    ]
    assert len(host.flows(Table.NEIGHBOURS, metadata=1)) == 1
    assert [len(group.buckets) for group in host.of(Group)] == [1]
    assert host.flows(Table.NODE, metadata=1) == host.flows(Table.PROVIDER, metadata=1) == []


@pytest.mark.parametrize(
    ("mapped", "bridge"),
    [
        ({"p": "eth1"}, "br-p"),
        ({"p": "br-foreign"}, ""),
        ({"int": "eth1"}, "br-int-6da88c"),
        ({"phy": "eth1"}, "br-phy-72ebed"),
        ({"a-very-long-name": "eth1"}, "br-a-ver-6c1588"),
    ],
)
def test_a_61_the_name_of_a_bridge_is_short_and_never_somebody_elses(mapped: dict[str, str], bridge: str) -> None:
    host = Host([], node={"bridge_mappings": mapped})
    made = [item for item in host.of(Bridge) if item.name != "br-int"]
    used = bridge or "br-foreign"
    assert [(item.name, item.fail_mode) for item in made] == ([(bridge, "standalone")] if bridge else [])
    assert len(used) <= 15
    assert host.of(Uplink) == [], "it is not there yet"
    patches = {(port.bridge, port.name) for port in host.of(OvsPort) if port.type == "patch"}
    assert patches == {("br-int", f"int-{used}"), (used, f"phy-{used}")}


@pytest.mark.parametrize(
    ("node", "kind", "why"),
    [
        ({"bridge_mappings": {}}, "VLAN", "physical network p is not in the bridge_mappings of node h1"),
        ({"bridge_mappings": {"p": "eth9"}}, "FLAT", "physical network p of node h1: eth9 on br-p: it is not there"),
        ({"tunnel_types": [network_pb2.NETWORK_TYPE_GRE]}, "VXLAN", "vxlan is not in the tunnel_types of node h1"),
    ],
)
def test_a_port_whose_segment_is_not_here_is_not_wired_and_says_why(node: dict[str, Any], kind: str, why: str) -> None:
    host = Host([network(1, kind, 7, "p" if kind != "VXLAN" else ""), network(2, "GRE", 7)], node=node)
    found = verdict(View(host.state), name(1, 1), name(2, 0))
    assert (found.wired, found.reason, found.message) == (False, "SEGMENT_NOT_ON_NODE", why)
    assert [remark.port_id for remark in host.remarks()] == [name(2, 0)]
    assert [group.group_id for group in host.of(Group)] == [2], "the other network is as ever"
    assert verdict(View(host.state), name(1, 2), name(2, 1)).wired


def test_b_net_02_a_mapped_interface_is_brought_up_and_one_of_a_foreign_bridge_is_not() -> None:
    assert host_uplinks({wire: f"eth-{wire}" for wire in WIRES}) == {f"eth-{wire}" for wire in WIRES}
    assert host_uplinks({"p": "br-foreign"}) == set()


def host_uplinks(mapped: dict[str, str]) -> set[str]:
    return {item.name for item in Host([], node={"bridge_mappings": mapped}).of(Uplink)}


@pytest.mark.parametrize(
    ("kind", "tunnel_ip", "overhead"),
    [
        ("VXLAN", UNDERLAY4, 50),
        ("GENEVE", UNDERLAY4, 50),
        ("GRE", UNDERLAY4, 42),
        ("VXLAN", UNDERLAY6, 70),
        ("GENEVE", UNDERLAY6, 70),
        ("GRE", UNDERLAY6, 62),
        ("VLAN", UNDERLAY4, 0),
        ("FLAT", UNDERLAY6, 0),
    ],
)
def test_b_net_12_a_wire_that_carries_one_byte_too_little_is_told(kind: str, tunnel_ip: str, overhead: int) -> None:
    made = network(1, kind, 7 if kind != "FLAT" else 0, "p" if kind in ("VLAN", "FLAT") else "")
    assert Host([made], tunnel_ip=tunnel_ip, mtu=1400 + overhead).remarks() == []
    (told,) = Host([made], tunnel_ip=tunnel_ip, mtu=1399 + overhead).remarks()
    assert told.reason == "UNDERLAY_MTU"
    assert f"mtu is 1400, and such a packet takes {1400 + overhead} bytes on br-p" in told.message
    assert f"which carries {1399 + overhead}: it is lost. An mtu of at most 1399," in told.message
    assert Host([made], tunnel_ip=tunnel_ip, mtu=0).remarks() == [], "not known"


def test_b_net_12_so_is_that_of_an_ordinary_interface_which_has_the_tunnel_ip() -> None:
    made = network(1, "VXLAN", 7)
    assert Host([made], link=Link("bond0", 1450), datapath="system").remarks() == []
    (told,) = Host([made], link=Link("bond0", 1449), datapath="system").remarks()
    assert told.reason == "UNDERLAY_MTU"
    assert "takes 1450 bytes on bond0, which carries 1449" in told.message


def test_a_tunnel_ip_from_which_no_tunnel_can_start_is_told() -> None:
    (told,) = Host([], node={"tunnel_ip": "192.0.2.9"}).remarks()
    assert (told.scope, told.reason) == ("", "TUNNEL_IP_NOT_HERE")
    assert told.message == (
        "tunnel_ip is 192.0.2.9, and no interface of this host has it; nothing passes by tunnel."
        f" What could be used: {UNDERLAY4}"
    )
    (told,) = Host([], link=Link("eth0", 1500)).remarks()
    assert "eth0 has it, which is no bridge of Open vSwitch but br-int" in told.message
    assert told.message.endswith("What could be used: none")
    assert Host([], link=Link("eth0", 1500), datapath="system").remarks() == []
    assert Host([], node={"tunnel_ip": ""}).remarks() == []
