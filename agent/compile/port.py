"""A port on this node: wired, guarded and reachable when it is plugged here; reachable through its node when it is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.compile.base import drop, flow, is_ipv6, is_up, link_local, mac_number, speaks_ipv6
from agent.compile.dns import name
from agent.compile.guard import guard
from agent.compile.neighbour import floating, neighbour, own_address
from agent.compile.provider import PHYSICAL
from agent.compile.segment import missing, to_node
from agent.compile.view import View
from agent.model.flow import Action, Flow, Meter, Output, Resubmit, SetField, ToController, match
from agent.model.item import Item
from agent.model.pipeline import (
    REASON,
    REASONS_OF_RECEIVER,
    REASONS_OF_SENDER,
    SAMPLE_BYTES,
    SAMPLES_A_SECOND,
    SAMPLES_AT_ONCE,
    SOURCE,
    TARGET,
    USUAL,
    CookieKind,
    Reason,
    Table,
    cookie,
)
from agent.model.remark import Remark
from controlplane.store import keys
from kumihimo.v1 import network_pb2, port_pb2


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
    asked = view.asked_to(network_id, port_id)
    if not bound and asked not in ("", view.node_id) and view.node(asked) is not None:
        return Verdict(False, "ASKED_ELSEWHERE", f"the port shall be on node {asked}; kumi port bind or unbind changes that")
    if interface.ofport is None:
        return Verdict(False, "INTERFACE_ERROR", f"interface {interface.name}: {interface.error or 'has no ofport yet'}")
    if view.node(view.node_id) is None:
        return Verdict(False, "NODE_UNKNOWN", f"node {view.node_id} is not registered; kumi node create {view.node_id}")
    if why := missing(view, network):
        return Verdict(False, "SEGMENT_NOT_ON_NODE", why)
    return Verdict(True)


def compile_port(view: View, network_id: str, port_id: str) -> Iterable[Item]:
    """Flows and names of one port, here or elsewhere."""
    network, port = view.network(network_id), view.port(network_id, port_id)
    if network is None or port is None:
        return
    mark = cookie(CookieKind.PORT, port_id)
    yield from name(network, port)
    interface = view.plugged(network_id, port_id)
    up = is_up(network) and is_up(port)
    found = verdict(view, network_id, port_id)
    if interface is not None and not found.wired:
        # Said here too, so that a reason that becomes another one is noticed although no flow changes.
        yield Remark(keys.scope(network_id), found.reason, found.message, port_id)
    if interface is not None and found.wired and interface.ofport is not None:
        ofport = interface.ofport
        yield from _classify(network, ofport, mark, up)
        yield from _drops(ofport, mark)
        if up:
            yield from guard(port, ofport, mark)
            yield from _deliver(ofport, mark)
            to_port = (SetField(TARGET, ofport), Resubmit(Table.INGRESS))
            yield from _reach(network, port, to_port, mark)
            elsewhere = [Resubmit(Table.L2)] if network.network_type in PHYSICAL else []
            for ip in _addresses(port):
                yield own_address(ofport, ip, mark, *elsewhere)
        return
    bound = view.bound_to(network_id, port_id)
    node = view.node(bound) if bound and bound != view.node_id else None
    if node is not None and up and (onward := to_node(network, node)):
        yield from _reach(network, port, onward, mark)


def _classify(network: network_pb2.Network, ofport: int, mark: int, up: bool) -> Iterator[Flow]:
    source = SetField(SOURCE, ofport)
    if up:
        onward: tuple[Action, ...] = (SetField("metadata", network.key), source, Resubmit(Table.PORT_SECURITY))
    else:
        onward = (source, *drop(Reason.ADMIN_DOWN))
    yield flow(Table.CLASSIFY, 100, match(in_port=ofport), *onward, cookie=mark)


def _deliver(ofport: int, mark: int) -> Iterator[Flow]:
    back = match(**{SOURCE: ofport, TARGET: ofport})
    yield flow(Table.INGRESS, 110, back, *drop(Reason.BACK_TO_SENDER), cookie=mark)
    yield flow(Table.LOCAL, 100, match(**{TARGET: ofport}), Output(ofport), cookie=mark)


def _reach(network: network_pb2.Network, port: port_pb2.Port, onward: tuple[Action, ...], mark: int) -> Iterator[Flow]:
    """How others find the port: its MAC leads to it, and who asks for its addresses is answered on the spot."""
    mac = mac_number(port.mac_address)
    yield flow(Table.L2, 100, match(metadata=network.key, eth_dst=mac), *onward, cookie=mark)
    for ip in _addresses(port):
        yield neighbour(network.key, ip, mac, mark)
    for pair in port.allowed_address_pairs:
        yield floating(network, pair.ip_address)
        if pair.mac_address and is_ipv6(pair.ip_address):
            yield floating(network, link_local(pair.mac_address))


def _addresses(port: port_pb2.Port) -> list[str]:
    """Those that are the port's alone: the given ones, and its link-local one."""
    given = [fixed.ip_address for fixed in port.fixed_ips]
    return [*given, link_local(port.mac_address)] if speaks_ipv6(port) else given


def _drops(ofport: int, mark: int) -> Iterator[Item]:
    """A counter for each reason that can befall what the port sends, or is sent. Of what need not have been dropped the
    agent is told some, by a meter of the port's own: a flood hides no other port's drops, and costs what it lets through."""
    yield Meter(ofport, SAMPLES_A_SECOND, SAMPLES_AT_ONCE)
    told = (ToController(ofport, SAMPLE_BYTES),)
    for reason in REASONS_OF_SENDER:
        # One that both ends have counts for the receiver when the packet has come so far.
        also = {TARGET: 0} if reason in REASONS_OF_RECEIVER else {}
        matched = match(**{REASON: int(reason), SOURCE: ofport}, **also)
        yield flow(Table.DROP, 100, matched, *(() if reason in USUAL else told), cookie=mark)
    for reason in REASONS_OF_RECEIVER:
        yield flow(Table.DROP, 100, match(**{REASON: int(reason), TARGET: ofport}), *told, cookie=mark)
