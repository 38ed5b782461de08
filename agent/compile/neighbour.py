"""Neighbours: which MAC an address has; ARP is answered for it on the host that asks, neighbour discovery led to it."""

from __future__ import annotations

from collections.abc import Iterable

from agent.compile.base import drop, flow, ip_match, ip_number, is_ipv6
from agent.compile.view import View
from agent.model.flow import Action, Flow, InPort, Match, Move, Resubmit, SetField, match
from agent.model.item import Item
from agent.model.pipeline import (
    ASKED,
    ASKED_6,
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
from agent.model.wire import ADVERTISE, ETH_ARP, ETH_IPV6, ICMPV6, SOLICIT
from kumihimo.v1 import network_pb2

MAC_BITS = 48
MAC_MASK = ((1 << MAC_BITS) - 1) << FOUND_OFFSET
ARP_REPLY = 2
SOLICITATION = {"eth_type": ETH_IPV6, "ip_proto": ICMPV6, "icmpv6_type": SOLICIT, "icmpv6_code": 0}
ADVERTISEMENT = {**SOLICITATION, "icmpv6_type": ADVERTISE}
FOUND_IT = SetField(FLAGS, NEIGHBOUR_FOUND, NEIGHBOUR_FOUND)
ALL_NODES, ALL_NODES_MAC = ip_number("ff02::1"), 0x3333_0000_0001


def neighbour(network_key: int, ip: str, mac: int, mark: int) -> Flow:
    """(network, address) → MAC. One flow serves ARP or neighbour discovery, and routing when it comes."""
    table, asked = _place(ip)
    return flow(
        table,
        100,
        match(metadata=network_key, **{asked: ip_number(ip)}),
        SetField(FOUND, mac << FOUND_OFFSET, MAC_MASK),
        FOUND_IT,
        cookie=mark,
    )


def floating(network: network_pb2.Network, cidr: str) -> Flow:
    """An allowed address pair may move between ports, so a question for it is not answered but goes to all members.

    Several ports share the flow, hence the network's cookie: equal keys must be equal items.
    """
    table, asked = _place(cidr)
    return flow(
        table,
        50,
        match(metadata=network.key, **{asked: ip_match(cidr)}),
        SetField(FLAGS, NEIGHBOUR_FLOATS, NEIGHBOUR_FLOATS),
        cookie=cookie(CookieKind.NETWORK, network.id),
    )


def _place(address: str) -> tuple[Table, str]:
    """Table and register of the look-up of an address or prefix."""
    return (Table.NEIGHBOURS_6, ASKED_6) if is_ipv6(address) else (Table.NEIGHBOURS, ASKED)


def own_address(ofport: int, ip: str, mark: int, *elsewhere: Action) -> Flow:
    """A port that asks for its own address (a probe, an announcement) must get no answer: it would think it is taken.

    elsewhere: where others may have the address, as on a wire, and so are to hear of it.
    """
    if is_ipv6(ip):
        asked, reason = match(**{SOURCE: ofport}, **SOLICITATION, nd_target=ip_number(ip)), Reason.ND_OWN
    else:
        asked, reason = match(**{SOURCE: ofport}, eth_type=ETH_ARP, arp_op=1, arp_tpa=ip_number(ip)), Reason.ARP_OWN
    return flow(Table.SERVICES, 120, asked, *(elsewhere or drop(reason)), cookie=mark)


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


def compile_nd(_: View) -> Iterable[Item]:
    """Neighbour discovery (RFC 4861): looks the target up, and leads a solicitation to the one that it asks about.

    Its owner answers: the kernel's datapath can write no options of an advertisement ("nd_options_type" in ovs-fields(7)),
    and a solicitation needs none rewritten. It may go to the link-layer address of the owner alone (RFC 6085, section 3).
    """
    base = cookie(CookieKind.BASE)
    yield flow(
        Table.SERVICES,
        100,
        match(**SOLICITATION),
        Move("nd_target", ASKED_6, 128),
        Resubmit(Table.NEIGHBOURS_6),
        Resubmit(Table.ND_TARGET),
        cookie=base,
    )
    found: dict[str, int | tuple[int, int]] = {**SOLICITATION, FLAGS: (NEIGHBOUR_FOUND, NEIGHBOUR_FOUND)}
    # Who looks for a duplicate has no address yet: all are told, as the owner would, and there is no option to rewrite.
    yield flow(
        Table.ND_TARGET,
        110,
        match(**found, ipv6_src=0),
        SetField(FLAGS, 0, NEIGHBOUR_FOUND),
        Move(FOUND, "eth_src", MAC_BITS, source_offset=FOUND_OFFSET),
        Move(ASKED_6, "ipv6_src", 128),
        SetField("eth_dst", ALL_NODES_MAC),
        SetField("ipv6_dst", ALL_NODES),
        SetField("icmpv6_type", ADVERTISE),
        InPort(),
        cookie=base,
    )
    yield flow(
        Table.ND_TARGET,
        100,
        match(**found),
        SetField(FLAGS, 0, NEIGHBOUR_FOUND),
        Move(FOUND, "eth_dst", MAC_BITS, source_offset=FOUND_OFFSET),
        Resubmit(Table.L2),
        cookie=base,
    )
    floats = match(**{FLAGS: (NEIGHBOUR_FLOATS, NEIGHBOUR_FLOATS)})
    yield flow(Table.ND_TARGET, 50, floats, SetField(FLAGS, 0, NEIGHBOUR_FLOATS), Resubmit(Table.L2), cookie=base)
    yield flow(Table.ND_TARGET, 0, match(), *drop(Reason.ND_UNKNOWN), cookie=base)
