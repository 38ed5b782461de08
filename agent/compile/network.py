"""A network on this node: its key and segment, and its group of members.

Broadcast and multicast go to local members and once to each other node that has members. A frame from a tunnel, and
whatever the DHCP service says, never leaves the host: table NODE drops what has FROM_TUNNEL set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.compile.base import MULTICAST, flow, is_up
from agent.compile.node import VXLAN_PORT
from agent.compile.port import verdict
from agent.compile.view import View
from agent.model.flow import Action, Group, Resubmit, SetField, ToGroup, match
from agent.model.host import Peer
from agent.model.item import Item
from agent.model.pipeline import FLAGS, FROM_TUNNEL, NODE_KEY, TARGET, CookieKind, Table, cookie


def compile_network(view: View, network_id: str) -> Iterable[Item]:
    """Segment, group and broadcast."""
    network = view.network(network_id)
    if network is None or not view.local_ports(network_id) or not is_up(network):
        return
    mark = cookie(CookieKind.NETWORK, network_id)
    tunnel = view.interface(VXLAN_PORT)
    if tunnel is not None and tunnel.ofport is not None:
        yield flow(
            Table.CLASSIFY,
            100,
            match(in_port=tunnel.ofport, tun_id=network.segmentation_id),
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
        Resubmit(Table.VXLAN),
        cookie=mark,
    )
    yield flow(Table.L2, 90, match(metadata=network.key, eth_dst=MULTICAST), ToGroup(network.key), cookie=mark)
    yield Group(network.key, tuple(_buckets(view, network_id)))
    for node_id in view.members(network_id):
        node = view.node(node_id)
        if node is not None and node.tunnel_ip:
            yield Peer(node.tunnel_ip)


def _buckets(view: View, network_id: str) -> Iterator[tuple[Action, ...]]:
    for port in view.local_ports(network_id):
        interface = view.plugged(network_id, port)
        if verdict(view, network_id, port).wired and interface is not None and interface.ofport is not None:
            yield SetField(TARGET, interface.ofport), Resubmit(Table.INGRESS)
    for node_id in view.members(network_id):
        node = view.node(node_id)
        if node is not None and node.tunnel_ip:
            yield SetField(NODE_KEY, node.key), Resubmit(Table.NODE)
