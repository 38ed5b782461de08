"""The node itself: br-int, the tunnel port, the flows that are always there; and the way to every other node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.compile.base import drop, flow, ip_number
from agent.compile.view import View
from agent.model.flow import Output, Resubmit, SetField, match
from agent.model.host import Bridge, OvsPort
from agent.model.item import Item
from agent.model.pipeline import (
    FLAGS,
    FROM_TUNNEL,
    NEIGHBOUR_FLOATS,
    NODE_KEY,
    REASON,
    CookieKind,
    Reason,
    Table,
    cookie,
)

INTEGRATION_BRIDGE = "br-int"
VXLAN_PORT = "kumi-vxlan"


def compile_base(view: View) -> Iterable[Item]:
    """What every node has, whatever it carries."""
    yield Bridge(INTEGRATION_BRIDGE, view.datapath_type())
    own = view.node(view.node_id)
    if own is not None and own.tunnel_ip:
        options = (("key", "flow"), ("local_ip", own.tunnel_ip), ("remote_ip", "flow"))
        yield OvsPort(INTEGRATION_BRIDGE, VXLAN_PORT, "vxlan", options, (("kumihimo", "tunnel"),))
    yield from _always()


def _always() -> Iterator[Item]:
    base = cookie(CookieKind.BASE)
    ends = {
        Table.CLASSIFY: Reason.UNKNOWN_SOURCE,
        Table.PORT_SECURITY: Reason.UNKNOWN_SOURCE,
        Table.ARP_REPLY: Reason.ARP_UNKNOWN,
        Table.L2: Reason.UNKNOWN_UNICAST,
        Table.LOCAL: Reason.NO_PORT,
        Table.NODE: Reason.NO_TUNNEL,
        Table.VXLAN: Reason.NO_TUNNEL,
    }
    for table, reason in ends.items():
        yield flow(table, 0, match(), *drop(reason), cookie=base)
    yield flow(Table.SERVICES, 0, match(), Resubmit(Table.L2), cookie=base)
    yield flow(
        Table.ARP_REPLY,
        50,
        match(reg0=(NEIGHBOUR_FLOATS, NEIGHBOUR_FLOATS)),
        SetField(FLAGS, 0, NEIGHBOUR_FLOATS),
        Resubmit(Table.L2),
        cookie=base,
    )
    yield flow(Table.INGRESS, 0, match(), Resubmit(Table.LOCAL), cookie=base)
    split = match(reg0=(FROM_TUNNEL, FROM_TUNNEL))
    yield flow(Table.NODE, 110, split, *drop(Reason.SPLIT_HORIZON), cookie=base)
    for reason in Reason:
        yield flow(Table.DROP, 50, match(**{REASON: int(reason)}), cookie=base)
    yield flow(Table.DROP, 0, match(), cookie=base)


def compile_node(view: View, node_id: str) -> Iterable[Item]:
    """One flow: packets for this node's key leave by its tunnel address."""
    node = view.node(node_id)
    tunnel = view.interface(VXLAN_PORT)
    if node is None or node_id == view.node_id or not node.tunnel_ip or tunnel is None or tunnel.ofport is None:
        return
    yield flow(
        Table.VXLAN,
        100,
        match(**{NODE_KEY: node.key}),
        SetField("tun_dst", ip_number(node.tunnel_ip)),
        Output(tunnel.ofport),
        cookie=cookie(CookieKind.NODE, node_id),
    )
