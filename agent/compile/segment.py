"""How the frames of a network travel between nodes, whatever its type: by tunnel, by the wire of a provider, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from agent.compile.provider import PHYSICAL, obstacle, provider, provider_items
from agent.compile.tunnel import TUNNELS, is_enabled, tunnel_items
from agent.compile.view import View
from agent.model.flow import Action, Resubmit, SetField
from agent.model.item import Item
from agent.model.pipeline import NODE_KEY, Table
from agent.model.remark import Remark
from controlplane.store import keys
from controlplane.values import overhead
from kumihimo.v1 import network_pb2, node_pb2


def missing(view: View, network: network_pb2.Network) -> str:
    """Why this node has no part in a network, as a sentence; "" when it has."""
    if network.network_type in PHYSICAL:
        return obstacle(view, network.physical_network)
    if network.network_type in TUNNELS and not is_enabled(view, network.network_type):
        return f"{TUNNELS[network.network_type].type} is not in the tunnel_types of node {view.node_id}"
    return ""


def segment_items(view: View, network: network_pb2.Network, mark: int) -> Iterator[Item]:
    """What a network needs here to reach beyond the host."""
    if network.network_type in TUNNELS:
        yield from tunnel_items(view, network, mark)
    elif network.network_type in PHYSICAL:
        yield from provider_items(view, network, mark)
    yield from _mtu_remark(view, network)


def to_node(network: network_pb2.Network, node: node_pb2.Node) -> tuple[Action, ...]:
    """To a port on another node; () where nothing leads there."""
    if network.network_type in TUNNELS:
        return _by_tunnel(node.key)
    return (Resubmit(Table.PROVIDER),) if network.network_type in PHYSICAL else ()


@lru_cache(4096)
def _by_tunnel(node_key: int) -> tuple[Action, ...]:
    """One object for all ports of a node."""
    return SetField(NODE_KEY, node_key), Resubmit(Table.NODE)


def to_all_nodes(view: View, network: network_pb2.Network) -> Iterator[tuple[Action, ...]]:
    """A copy for each way by which the network leaves the host: a tunnel for each node with members, or the wire once."""
    if network.network_type in TUNNELS:
        for node_id in view.members(network.id):
            node = view.node(node_id)
            if node is not None and node.tunnel_ip:
                yield to_node(network, node)
    elif network.network_type in PHYSICAL:
        yield (Resubmit(Table.PROVIDER),)


def _mtu_remark(view: View, network: network_pb2.Network) -> Iterator[Remark]:
    """The switch drops what is too large for the wire, and tells nobody: so it is told here."""
    if network.network_type in PHYSICAL:
        found = provider(view, network.physical_network)
        wire, more = found.bridge if found is not None else "", 0
        carries = view.wire_mtu(wire)
    else:
        own = view.node(view.node_id)
        tunnel_ip = own.tunnel_ip if own is not None and network.network_type in TUNNELS else ""
        more = overhead(network.network_type, 6 if ":" in tunnel_ip else 4)
        wire = view.bridge_of(tunnel_ip)
        carries = view.wire_mtu(wire)
        if not wire and (link := view.link_of(tunnel_ip)) is not None:
            wire, carries = link.name, link.mtu
    if carries and network.mtu + more > carries:
        text = (
            f"mtu is {network.mtu}, and such a packet takes {network.mtu + more} bytes on {wire}, which carries {carries}:"
            f" it is lost. An mtu of at most {max(carries - more, 0)}, or a larger one of {wire}, would do"
        )
        yield Remark(keys.scope(network.id), "UNDERLAY_MTU", text)
