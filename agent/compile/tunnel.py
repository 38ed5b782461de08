"""Tunnels: one flow-based port per encapsulation, made with the first network of its type, and the way to every node.

A port that has been made stays: Open vSwitch loses packets of everybody when a port comes or goes, and was seen to go on
delivering to the host itself what arrived for a tunnel port that had been made anew.

Each encapsulation has a port, a table and thereby numbers of its own: 5001 of VXLAN and 5001 of GENEVE never meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from agent.compile.base import NODE_SCOPE, flow
from agent.compile.view import View
from agent.model.flow import Flow, Output, Resubmit, SetField, match
from agent.model.host import INTEGRATION_BRIDGE, OvsPort, Peer
from agent.model.item import Item
from agent.model.pipeline import FLAGS, FROM_TUNNEL, NODE_KEY, CookieKind, Table, cookie
from agent.model.remark import Remark, pending
from controlplane.store import keys
from kumihimo.v1 import network_pb2


@dataclass(frozen=True, slots=True)
class Tunnel:
    """An encapsulation: its port on br-int, Open vSwitch's name of the type, the table from node to destination."""

    port: str
    type: str
    table: Table


TUNNELS = {
    network_pb2.NETWORK_TYPE_VXLAN: Tunnel("kumi-vxlan", "vxlan", Table.VXLAN),
    network_pb2.NETWORK_TYPE_GENEVE: Tunnel("kumi-geneve", "geneve", Table.GENEVE),
    network_pb2.NETWORK_TYPE_GRE: Tunnel("kumi-gre", "gre", Table.GRE),
}


def is_enabled(view: View, network_type: int) -> bool:
    """Whether this node takes part in tunnels of a type; all of them, unless the Node names some."""
    own = view.node(view.node_id)
    return own is not None and (not own.tunnel_types or network_type in own.tunnel_types)


def compile_tunnels(view: View) -> Iterable[Item]:
    """The tunnel ports that are there already, and what is wrong with the address that they start from."""
    yield from _address_remark(view)
    for network_type, tunnel in TUNNELS.items():
        if view.interface(tunnel.port) is not None and is_enabled(view, network_type):
            yield from _port(view, tunnel)


def _address_remark(view: View) -> Iterator[Remark]:
    """The switch says nothing of a tunnel that starts from no address of the host: its packets are lost."""
    own = view.node(view.node_id)
    if own is None or not own.tunnel_ip:
        return
    link = view.link_of(own.tunnel_ip)
    if link is None:
        fault = "no interface of this host has it"
    elif view.datapath_type() == "netdev" and not view.bridge_of(own.tunnel_ip):
        fault = f"{link.name} has it, which is no bridge of Open vSwitch but br-int: in user space no tunnel can start there"
    else:
        return
    there = ", ".join(view.underlay_ips()) or "none"
    text = f"tunnel_ip is {own.tunnel_ip}, and {fault}; nothing passes by tunnel. What could be used: {there}"
    yield Remark(NODE_SCOPE, "TUNNEL_IP_NOT_HERE", text)


def _port(view: View, tunnel: Tunnel) -> Iterator[Item]:
    own = view.node(view.node_id)
    if own is not None and own.tunnel_ip:
        options = (("key", "flow"), ("local_ip", own.tunnel_ip), ("remote_ip", "flow"))
        yield OvsPort(INTEGRATION_BRIDGE, tunnel.port, tunnel.type, options, (("kumihimo", "tunnel"),))


def tunnel_items(view: View, network: network_pb2.Network, mark: int) -> Iterator[Item]:
    """A network's tunnel port, number on the wire, and peers."""
    tunnel = TUNNELS[network.network_type]
    own = view.node(view.node_id)
    yield from _port(view, tunnel)
    interface = view.interface(tunnel.port)
    if own is not None and own.tunnel_ip and (interface is None or interface.ofport is None):
        yield pending(keys.scope(network.id))
    if interface is not None and interface.ofport is not None:
        yield flow(
            Table.CLASSIFY,
            100,
            match(in_port=interface.ofport, tun_id=network.segmentation_id),
            SetField("metadata", network.key),
            SetField(FLAGS, FROM_TUNNEL, FROM_TUNNEL),
            Resubmit(Table.L2),
            cookie=mark,
        )
    yield flow(
        Table.NODE,
        100,
        match(metadata=network.key),
        SetField("tun_id", network.segmentation_id),
        Resubmit(tunnel.table),
        cookie=mark,
    )
    for node_id in view.members(network.id):
        node = view.node(node_id)
        if node is not None and node.tunnel_ip:
            yield Peer(node.tunnel_ip)


def compile_node(view: View, node_id: str) -> Iterable[Item]:
    """Packets for another node's key leave by its tunnel address: a flow for each encapsulation in use here."""
    node = view.node(node_id)
    if node is None or node_id == view.node_id or not node.tunnel_ip:
        return
    for tunnel in TUNNELS.values():
        interface = view.interface(tunnel.port)
        if interface is not None and interface.ofport is not None:
            yield _to_node(tunnel.table, node.key, node.tunnel_ip, interface.ofport, cookie(CookieKind.NODE, node_id))


def _to_node(table: Table, key: int, tunnel_ip: str, ofport: int, mark: int) -> Flow:
    address = ip_address(tunnel_ip)
    field = "tun_ipv6_dst" if isinstance(address, IPv6Address) else "tun_dst"
    return flow(table, 100, match(**{NODE_KEY: key}), SetField(field, int(address)), Output(ofport), cookie=mark)
