"""A network on this node: its segment, and its group of members.

Broadcast and multicast go to local members and once to each other node that has members, or once to the provider's wire. A
frame from a tunnel, and whatever the DHCP service says, never leaves the host, and a frame from the wire never returns to
it: tables NODE and PROVIDER drop them by their flags.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.compile.base import MULTICAST, flow, is_up
from agent.compile.port import verdict
from agent.compile.segment import missing, segment_items, to_all_nodes
from agent.compile.view import View
from agent.model.flow import Action, Group, Resubmit, SetField, ToGroup, match
from agent.model.item import Item
from agent.model.pipeline import TARGET, CookieKind, Table, cookie
from kumihimo.v1 import network_pb2


def compile_network(view: View, network_id: str) -> Iterable[Item]:
    """Segment, group and broadcast."""
    network = view.network(network_id)
    if network is None or not view.local_ports(network_id) or not is_up(network) or missing(view, network):
        return
    mark = cookie(CookieKind.NETWORK, network_id)
    yield from segment_items(view, network, mark)
    yield flow(Table.L2, 90, match(metadata=network.key, eth_dst=MULTICAST), ToGroup(network.key), cookie=mark)
    yield Group(network.key, tuple(_buckets(view, network)))


def _buckets(view: View, network: network_pb2.Network) -> Iterator[tuple[Action, ...]]:
    for port in view.local_ports(network.id):
        interface = view.plugged(network.id, port)
        if verdict(view, network.id, port).wired and interface is not None and interface.ofport is not None:
            yield SetField(TARGET, interface.ofport), Resubmit(Table.INGRESS)
    yield from to_all_nodes(view, network)
