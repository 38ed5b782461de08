"""The node itself: br-int, and the flows that are always there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.compile.base import drop, flow
from agent.compile.guard import untagged
from agent.compile.view import View
from agent.model.flow import Resubmit, SetField, match
from agent.model.host import INTEGRATION_BRIDGE, Bridge
from agent.model.item import Item
from agent.model.pipeline import (
    FLAGS,
    FROM_PROVIDER,
    FROM_TUNNEL,
    NEIGHBOUR_FLOATS,
    REASON,
    CookieKind,
    Reason,
    Table,
    cookie,
)


def compile_base(view: View) -> Iterable[Item]:
    """What every node has, whatever it carries."""
    yield Bridge(INTEGRATION_BRIDGE, view.datapath_type())
    yield from _always()


def _always() -> Iterator[Item]:
    base = cookie(CookieKind.BASE)
    ends = {
        Table.CLASSIFY: Reason.UNKNOWN_SOURCE,
        Table.PORT_SECURITY: Reason.UNKNOWN_SOURCE,
        Table.ARP_REPLY: Reason.ARP_UNKNOWN,
        Table.FROM_PROVIDER: Reason.UNKNOWN_SOURCE,
        Table.L2: Reason.UNKNOWN_UNICAST,
        Table.LOCAL: Reason.NO_PORT,
        Table.NODE: Reason.NO_TUNNEL,
        Table.PROVIDER: Reason.NO_TUNNEL,
        Table.VXLAN: Reason.NO_TUNNEL,
        Table.GENEVE: Reason.NO_TUNNEL,
        Table.GRE: Reason.NO_TUNNEL,
    }
    for table, reason in ends.items():
        yield flow(table, 0, match(), *drop(reason), cookie=base)
    yield from untagged()
    yield flow(Table.SERVICES, 0, match(), Resubmit(Table.EGRESS_TRACK), cookie=base)
    yield flow(
        Table.ARP_REPLY,
        50,
        match(reg0=(NEIGHBOUR_FLOATS, NEIGHBOUR_FLOATS)),
        SetField(FLAGS, 0, NEIGHBOUR_FLOATS),
        Resubmit(Table.L2),
        cookie=base,
    )
    for table, flag in ((Table.NODE, FROM_TUNNEL), (Table.PROVIDER, FROM_TUNNEL), (Table.PROVIDER, FROM_PROVIDER)):
        yield flow(table, 110 + flag, match(reg0=(flag, flag)), *drop(Reason.SPLIT_HORIZON), cookie=base)
    for reason in Reason:
        yield flow(Table.DROP, 50, match(**{REASON: int(reason)}), cookie=base)
    yield flow(Table.DROP, 0, match(), cookie=base)
