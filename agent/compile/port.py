"""A port on this node: wired, guarded and reachable when it is plugged here; reachable through its node when it is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.compile.base import (
    ETH_ARP,
    ETH_IPV4,
    ETH_IPV6,
    UDP,
    drop,
    flow,
    ip_match,
    ip_number,
    mac_number,
)
from agent.compile.view import View
from agent.model.flow import Action, Flow, InPort, Match, Move, Output, Resubmit, SetField, match
from agent.model.item import Item
from agent.model.pipeline import (
    ASKED,
    FLAGS,
    FOUND,
    FOUND_OFFSET,
    NEIGHBOUR_FLOATS,
    NEIGHBOUR_FOUND,
    NODE_KEY,
    REASON,
    REASONS_OF_SENDER,
    SOURCE,
    TARGET,
    CookieKind,
    Reason,
    Table,
    cookie,
)
from kumihimo.v1 import network_pb2, port_pb2

MAC_BITS = 48
MAC_MASK = ((1 << MAC_BITS) - 1) << FOUND_OFFSET
ARP_REPLY = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a port plugged here is to be wired, and if not, why."""

    wired: bool
    reason: str = ""
    message: str = ""


def verdict(view: View, network_id: str, port_id: str) -> Verdict:
    """The one place that decides whether a plugged port gets its flows."""
    interface = view.plugged(network_id, port_id)
    if interface is None:
        return Verdict(False, "NOT_ATTACHED", "no interface of this host names the port")
    network, port = view.network(network_id), view.port(network_id, port_id)
    if network is None or port is None:
        return Verdict(False, "PORT_UNKNOWN", f"interface {interface.name} names port {port_id}, which does not exist")
    bound = view.bound_to(network_id, port_id)
    if bound and bound != view.node_id:
        return Verdict(False, "BOUND_ELSEWHERE", f"the port is bound to node {bound}")
    if interface.ofport is None:
        return Verdict(False, "INTERFACE_ERROR", f"interface {interface.name}: {interface.error or 'has no ofport yet'}")
    if view.node(view.node_id) is None:
        return Verdict(False, "NODE_UNKNOWN", f"node {view.node_id} is not registered; kumi node create {view.node_id}")
    return Verdict(True)


def compile_port(view: View, network_id: str, port_id: str) -> Iterable[Item]:
    """Flows of one port, here or elsewhere."""
    network, port = view.network(network_id), view.port(network_id, port_id)
    if network is None or port is None:
        return
    mark = cookie(CookieKind.PORT, port_id)
    interface = view.plugged(network_id, port_id)
    up = _is_up(network) and _is_up(port)
    if interface is not None and verdict(view, network_id, port_id).wired and interface.ofport is not None:
        ofport = interface.ofport
        yield from _classify(network, ofport, mark, up)
        yield from _counters(ofport, mark)
        if up:
            yield from _guard(port, ofport, mark)
            yield from _deliver(ofport, mark)
            to_port = (SetField(TARGET, ofport), Resubmit(Table.INGRESS))
            yield from _reach(network, port, to_port, mark)
            for fixed in port.fixed_ips:
                yield _own_address(ofport, ip_number(fixed.ip_address), mark)
        return
    bound = view.bound_to(network_id, port_id)
    node = view.node(bound) if bound and bound != view.node_id else None
    if node is not None and up:
        yield from _reach(network, port, (SetField(NODE_KEY, node.key), Resubmit(Table.NODE)), mark)


def _is_up(message: network_pb2.Network | port_pb2.Port) -> bool:
    return not message.HasField("admin_state_up") or message.admin_state_up


def _classify(network: network_pb2.Network, ofport: int, mark: int, up: bool) -> Iterator[Flow]:
    source = SetField(SOURCE, ofport)
    if up:
        onward: tuple[Action, ...] = (SetField("metadata", network.key), source, Resubmit(Table.PORT_SECURITY))
    else:
        onward = (source, *drop(Reason.ADMIN_DOWN))
    yield flow(Table.CLASSIFY, 100, match(in_port=ofport), *onward, cookie=mark)


def _guard(port: port_pb2.Port, ofport: int, mark: int) -> Iterator[Flow]:
    """Port security: what the workload may send. Every refusal has its reason."""

    def rule(priority: int, *actions: Action, **fields: int | tuple[int, int]) -> Flow:
        return flow(Table.PORT_SECURITY, priority, match(**{SOURCE: ofport}, **fields), *actions, cookie=mark)

    onward = Resubmit(Table.SERVICES)
    if port.HasField("port_security_enabled") and not port.port_security_enabled:
        yield rule(100, onward)
        return
    mac = mac_number(port.mac_address)
    senders = [(mac, (ip_number(fixed.ip_address), 0xFFFFFFFF)) for fixed in port.fixed_ips]
    senders += [
        (mac_number(pair.mac_address) if pair.mac_address else mac, ip_match(pair.ip_address))
        for pair in port.allowed_address_pairs
    ]
    yield rule(120, *drop(Reason.DHCP_SERVER), eth_type=ETH_IPV4, ip_proto=UDP, udp_src=67, udp_dst=68)
    ask = {"eth_type": ETH_IPV4, "ip_proto": UDP, "ip_src": 0, "udp_src": 68, "udp_dst": 67}
    yield rule(110, onward, eth_src=mac, **ask)
    yield rule(100, onward, eth_src=mac, eth_type=ETH_ARP, arp_sha=mac, arp_spa=0)
    for sender, (ip, mask) in dict.fromkeys(senders):
        address = ip if mask == 0xFFFFFFFF else (ip, mask)
        if mask:
            yield rule(100, onward, eth_src=sender, eth_type=ETH_IPV4, ip_src=address)
            yield rule(100, onward, eth_src=sender, eth_type=ETH_ARP, arp_sha=sender, arp_spa=address)
        else:
            yield rule(100, onward, eth_src=sender, eth_type=ETH_IPV4)
            yield rule(99, onward, eth_src=sender, eth_type=ETH_ARP, arp_sha=sender)
    for sender in dict.fromkeys([mac, *(sender for sender, _ in senders)]):
        yield rule(90, *drop(Reason.SPOOFED_ARP), eth_src=sender, eth_type=ETH_ARP)
        yield rule(90, *drop(Reason.SPOOFED_IP), eth_src=sender, eth_type=ETH_IPV4)
        yield rule(90, *drop(Reason.IPV6), eth_src=sender, eth_type=ETH_IPV6)
        yield rule(80, *drop(Reason.PROTOCOL), eth_src=sender)
    yield rule(50, *drop(Reason.SPOOFED_MAC))


def _deliver(ofport: int, mark: int) -> Iterator[Flow]:
    back = match(**{SOURCE: ofport, TARGET: ofport})
    yield flow(Table.INGRESS, 110, back, *drop(Reason.BACK_TO_SENDER), cookie=mark)
    yield flow(Table.LOCAL, 100, match(**{TARGET: ofport}), Output(ofport), cookie=mark)


def _reach(network: network_pb2.Network, port: port_pb2.Port, onward: tuple[Action, ...], mark: int) -> Iterator[Flow]:
    """How others find the port: its MAC leads to it, and ARP for its addresses is answered on the spot."""
    mac = mac_number(port.mac_address)
    yield flow(Table.L2, 100, match(metadata=network.key, eth_dst=mac), *onward, cookie=mark)
    for fixed in port.fixed_ips:
        yield neighbour(network.key, ip_number(fixed.ip_address), mac, mark)
    for pair in port.allowed_address_pairs:
        yield _floating(network, pair.ip_address)


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


def _floating(network: network_pb2.Network, cidr: str) -> Flow:
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


def _own_address(ofport: int, ip: int, mark: int) -> Flow:
    """A port that asks for its own address (a probe, an announcement) must get no answer: it would think it is taken."""
    asked = match(**{SOURCE: ofport}, eth_type=ETH_ARP, arp_op=1, arp_tpa=ip)
    return flow(Table.SERVICES, 120, asked, *drop(Reason.ARP_OWN), cookie=mark)


def _counters(ofport: int, mark: int) -> Iterator[Flow]:
    """A counter for each reason that can befall what the port sends."""
    for reason in REASONS_OF_SENDER:
        yield flow(Table.DROP, 100, match(**{REASON: int(reason), SOURCE: ofport}), cookie=mark)


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
