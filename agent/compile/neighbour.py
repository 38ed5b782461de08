"""Neighbours: which MAC an address has, and the responder that answers for it on the host that asks."""

from __future__ import annotations

from collections.abc import Iterable

from agent.compile.base import ETH_ARP, drop, flow, ip_match
from agent.compile.view import View
from agent.model.flow import Flow, InPort, Match, Move, Resubmit, SetField, match
from agent.model.item import Item
from agent.model.pipeline import (
    ASKED,
    FLAGS,
    FOUND,
    FOUND_OFFSET,
    NEIGHBOUR_FLOATS,
    NEIGHBOUR_FOUND,
    SOURCE,
    CookieKind,
    Reason,
    Table,
    cookie,
)
from kumihimo.v1 import network_pb2

MAC_BITS = 48
MAC_MASK = ((1 << MAC_BITS) - 1) << FOUND_OFFSET
ARP_REPLY = 2


def neighbour(network_key: int, ip: int, mac: int, mark: int) -> Flow:
    """(network, address) → MAC. One flow serves the ARP answer, and routing when it comes."""
    return flow(
        Table.NEIGHBOURS,
        100,
        match(metadata=network_key, **{ASKED: ip}),
        SetField(FOUND, mac << FOUND_OFFSET, MAC_MASK),
        SetField(FLAGS, NEIGHBOUR_FOUND, NEIGHBOUR_FOUND),
        cookie=mark,
    )


def floating(network: network_pb2.Network, cidr: str) -> Flow:
    """An allowed address pair may move between ports, so ARP for it is not answered but goes to all members.

    Several ports share the flow, hence the network's cookie: equal keys must be equal items.
    """
    ip, mask = ip_match(cidr)
    where: dict[str, int | tuple[int, int]] = {"metadata": network.key}
    if mask:
        where[ASKED] = ip if mask == 0xFFFFFFFF else (ip, mask)
    return flow(
        Table.NEIGHBOURS,
        50,
        match(**where),
        SetField(FLAGS, NEIGHBOUR_FLOATS, NEIGHBOUR_FLOATS),
        cookie=cookie(CookieKind.NETWORK, network.id),
    )


def own_address(ofport: int, ip: int, mark: int) -> Flow:
    """A port that asks for its own address (a probe, an announcement) must get no answer: it would think it is taken."""
    asked = match(**{SOURCE: ofport}, eth_type=ETH_ARP, arp_op=1, arp_tpa=ip)
    return flow(Table.SERVICES, 120, asked, *drop(Reason.ARP_OWN), cookie=mark)


def compile_arp(_: View) -> Iterable[Item]:
    """The ARP responder: looks the address up, and turns a request into its answer."""
    base = cookie(CookieKind.BASE)
    yield flow(
        Table.SERVICES,
        100,
        match(eth_type=ETH_ARP, arp_op=1),
        Move("arp_tpa", ASKED, 32),
        Resubmit(Table.NEIGHBOURS),
        Resubmit(Table.ARP_REPLY),
        cookie=base,
    )
    found: Match = match(eth_type=ETH_ARP, reg0=(NEIGHBOUR_FOUND, NEIGHBOUR_FOUND))
    yield flow(
        Table.ARP_REPLY,
        100,
        found,
        SetField(FLAGS, 0, NEIGHBOUR_FOUND),
        Move("eth_src", "eth_dst", MAC_BITS),
        Move(FOUND, "eth_src", MAC_BITS, source_offset=FOUND_OFFSET),
        SetField("arp_op", ARP_REPLY),
        Move("arp_sha", "arp_tha", MAC_BITS),
        Move(FOUND, "arp_sha", MAC_BITS, source_offset=FOUND_OFFSET),
        Move("arp_spa", "arp_tpa", 32),
        Move(ASKED, "arp_spa", 32),
        InPort(),
        cookie=base,
    )
