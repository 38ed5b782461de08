"""MACs that move between ports: those of allowed address pairs that are no port's own, as VRRP has them (RFC 5798).

Nothing is learned from packets, so a frame to such a MAC goes to every port that may send with it, one copy to each host;
the guests that do not have the MAC now pass over it. Which one has it may change without anybody being told.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.compile.base import flow, is_up, mac_number
from agent.compile.port import verdict
from agent.compile.segment import missing, to_node
from agent.compile.view import View
from agent.model.flow import Action, Resubmit, SetField, match
from agent.model.item import Item
from agent.model.pipeline import TARGET, CookieKind, Table, cookie
from kumihimo.v1 import network_pb2


def compile_floating(view: View, network_id: str) -> Iterable[Item]:
    """A flow for each such MAC. A port's own MAC goes before it."""
    macs = view.floating_macs(network_id)
    network = view.network(network_id) if macs else None
    if network is None or not view.local_ports(network_id) or not is_up(network) or missing(view, network):
        return
    mark = cookie(CookieKind.NETWORK, network_id)
    for mac, ports in macs.items():
        # The same way once: to a host, or to the wire.
        ways = dict.fromkeys(way for port in ports if (way := _way(view, network, port)))
        where = match(metadata=network.key, eth_dst=mac_number(mac))
        if ways:
            yield flow(Table.L2, 95, where, *(action for way in ways for action in way), cookie=mark)


def _way(view: View, network: network_pb2.Network, port_id: str) -> tuple[Action, ...]:
    """To one port, here or elsewhere; () when it is nowhere."""
    port = view.port(network.id, port_id)
    if port is None or not is_up(port):
        return ()
    interface = view.plugged(network.id, port_id)
    if interface is not None and interface.ofport is not None and verdict(view, network.id, port_id).wired:
        return SetField(TARGET, interface.ofport), Resubmit(Table.INGRESS)
    bound = view.bound_to(network.id, port_id)
    node = view.node(bound) if bound and bound != view.node_id else None
    return to_node(network, node) if node is not None else ()
