"""Security groups of a port: what it may send and receive, and since when its connections have been allowed.

Every packet of a filtered port goes through connection tracking in a zone of the port's own. A connection bears the
*generation* of the policy that allowed it as its mark: a hash of the port's groups and of when something was last taken away
from each of them or from what their rules name. Packets of a connection with the generation of now pass at once; of all
others the rules are asked, also in the middle of a connection. So the removal of a rule ends what only it allowed, in both
directions, and costs every other connection one slow packet; and nothing needs to be looked up or flushed.

An answer is judged as what it answers: by the rules of the opposite direction, and by the addresses and ports with which its
connection began. So is an error about a connection (ICMP).

What the flows do not say is refused: each table ends in a drop, so a flow that is missing lets nothing through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from agent.compile.base import drop, flow, is_up
from agent.compile.port import verdict
from agent.compile.view import View
from agent.mirror.groups import groups_of
from agent.model.flow import (
    CT_INVALID,
    CT_NEW,
    CT_RELATED,
    CT_REPLY,
    CT_TRACKED,
    FRAGMENT,
    Action,
    Flow,
    Move,
    Resubmit,
    SetField,
    Track,
    match,
)
from agent.model.item import Item
from agent.model.pipeline import (
    ALLOWED,
    BY_CONNECTION,
    COMPLETE,
    FLAGS,
    FROM_SERVICE,
    GENERATION,
    GROUP_KEY,
    JUDGED,
    OBSERVED,
    OF_INGRESS,
    POLICY_PORT,
    REASON,
    REMOTE,
    SOURCE,
    STATELESS,
    TARGET,
    CookieKind,
    Reason,
    Table,
    cookie,
)
from agent.model.remark import pending
from agent.model.wire import ETH_ARP, ETH_IPV4, ETH_IPV6, ICMPV6, IGMP, SCTP
from controlplane.store import keys

# Query, report and done of MLD, report of MLDv2; solicitations and advertisements of routers and neighbours: what IPv6 cannot
# do without, and connection tracking does not know.
ALWAYS = (130, 131, 132, 143, 133, 134, 135, 136)
FAMILIES = (ETH_IPV4, ETH_IPV6)
UNTRACKED = (0, CT_TRACKED)
VALID = (CT_TRACKED, CT_TRACKED | CT_INVALID)
INVALID = (CT_TRACKED | CT_INVALID, CT_TRACKED | CT_INVALID)
NO_GENERATION = 0  # of connections that only pass because a group observes


@dataclass(frozen=True, slots=True)
class Side:
    """The stages of one direction. port: the register that holds the port; onward: where a packet goes that may pass."""

    judged: int
    port: str
    track: Table
    state: Table
    decide: Table
    stateless: Table
    known: Table
    onward: Table
    refused: Reason


EGRESS = Side(
    *(0, SOURCE, Table.EGRESS_TRACK, Table.EGRESS_STATE, Table.EGRESS_DECIDE, Table.EGRESS_STATELESS),
    *(Table.EGRESS_KNOWN, Table.L2, Reason.SG_EGRESS),
)
INGRESS = Side(
    *(OF_INGRESS, TARGET, Table.INGRESS, Table.INGRESS_STATE, Table.INGRESS_DECIDE, Table.INGRESS_STATELESS),
    *(Table.INGRESS_KNOWN, Table.LOCAL, Reason.SG_INGRESS),
)
SIDES = (EGRESS, INGRESS)


# What is not tracked where everything is. When the switch gives up waiting for the rest of a packet, it sends on the fragments
# that it has with whatever it tracks next, as if they were of that port: they go nowhere. And when it checks what it has cached
# of a port that is gone, by the flows of the port that has its number now, it would count the other's packets.
_NOBODYS = (SetField(SOURCE, 0), SetField(TARGET, 0), *drop(Reason.CT_INVALID))


def compile_filter(_: View) -> Iterable[Item]:
    """What is the same for all ports."""
    base = cookie(CookieKind.BASE)
    for side in SIDES:
        onward = Resubmit(side.onward)
        yield flow(side.track, 105, match(eth_type=ETH_ARP), onward, cookie=base)
        yield flow(side.track, 105, match(eth_type=ETH_IPV4, ip_proto=IGMP), onward, cookie=base)
        for kind in ALWAYS:
            yield flow(side.track, 105, match(eth_type=ETH_IPV6, ip_proto=ICMPV6, icmpv6_type=kind), onward, cookie=base)
        for state, actions in ((INVALID, drop(Reason.FRAGMENT)), (UNTRACKED, _NOBODYS)):
            yield flow(side.track, 103, match(**{FLAGS: (COMPLETE, COMPLETE)}, ct_state=state), *actions, cookie=base)
        yield flow(side.track, 0, match(), *drop(side.refused), cookie=base)
        yield from _states(side, base)
        yield from _decisions(side, base)
    # What the node itself says: answers of its services.
    yield flow(Table.EGRESS_TRACK, 90, match(**{SOURCE: 0}), Resubmit(Table.L2), cookie=base)
    service = match(**{FLAGS: (FROM_SERVICE, FROM_SERVICE)})
    yield flow(Table.INGRESS, 106, service, Resubmit(Table.LOCAL), cookie=base)
    # What is allowed already is not looked at any more.
    allowed = match(**{FLAGS: (ALLOWED, ALLOWED)})
    for table in (Table.GROUP, Table.MEMBERS, Table.RULES):
        yield flow(table, 1000, allowed, SetField(FLAGS, ALLOWED, ALLOWED), cookie=base)


def _states(side: Side, base: int) -> Iterator[Flow]:
    """What is not known as allowed is judged: as a packet, or as its connection."""
    valid = CT_TRACKED | CT_INVALID
    for priority, state, judged in (
        (80, (CT_TRACKED, valid | CT_REPLY | CT_RELATED), side.judged),
        (70, (CT_TRACKED | CT_RELATED, valid | CT_REPLY | CT_RELATED), side.judged | BY_CONNECTION),
        (70, (CT_TRACKED | CT_REPLY, valid | CT_REPLY), side.judged ^ OF_INGRESS | BY_CONNECTION),
    ):
        yield flow(side.state, priority, match(ct_state=state), *_judged(side, judged), cookie=base)
    # In user space Open vSwitch tracks SCTP without its ports: all of it between two addresses is one connection, of which it
    # is not known what was allowed. So every packet is judged, and one that may be an answer as one of its own as well.
    as_answer = side.judged ^ OF_INGRESS | BY_CONNECTION
    for family in FAMILIES:
        for reply, judgements in ((0, (side.judged,)), (CT_REPLY, (as_answer, side.judged))):
            sctp = match(eth_type=family, ip_proto=SCTP, ct_state=(CT_TRACKED | reply, valid | CT_REPLY))
            yield flow(side.state, 95, sctp, *_judged(side, *judgements), cookie=base)
    yield flow(side.state, 0, match(), *drop(Reason.CT_INVALID), cookie=base)
    for family in FAMILIES:
        broken = match(ct_state=INVALID, eth_type=family, ip_frag=(FRAGMENT, FRAGMENT))
        yield flow(side.state, 20, broken, *drop(Reason.FRAGMENT), cookie=base)
    yield flow(side.state, 10, match(ct_state=UNTRACKED), *_NOBODYS, cookie=base)


def _judged(side: Side, *judgements: int) -> Iterator[Action]:
    """Ask the rules, and decide."""
    yield Move(side.port, POLICY_PORT, 32)
    for judged in judgements:
        yield from (SetField(JUDGED, judged), Resubmit(Table.POLICY))
    yield Resubmit(side.decide)


# What judging leaves behind, and would have the rest of the way cached once for each policy.
_JUDGED = tuple(SetField(register, 0) for register in (JUDGED, REMOTE, POLICY_PORT))
_CLEAN = (*_JUDGED, SetField(GENERATION, 0))


def _decisions(side: Side, base: int) -> Iterator[Flow]:
    onward = Track(side.port, side.known)
    unflagged = SetField(FLAGS, 0, ALLOWED | OBSERVED | COMPLETE)
    for family in FAMILIES:
        allowed = match(**{FLAGS: (ALLOWED, ALLOWED)}, eth_type=family)
        observed = match(**{FLAGS: (OBSERVED, OBSERVED)}, eth_type=family)
        commit = replace(onward, commit=True, actions=(Move(GENERATION, "ct_mark", 32),))
        noted = replace(onward, commit=True, actions=(SetField("ct_mark", NO_GENERATION),))
        yield flow(side.decide, 100, allowed, unflagged, *_JUDGED, commit, cookie=base)
        yield flow(side.decide, 50, observed, unflagged, *_observe(), *_JUDGED, noted, cookie=base)
        # Fragments once more: those whose first was refused wait there for it, as they do where a connection is committed.
        fragment = match(**{FLAGS: (ALLOWED | COMPLETE, ALLOWED | COMPLETE)}, eth_type=family)
        yield flow(side.stateless, 120, fragment, unflagged, *_JUDGED, onward, cookie=base)
    yield flow(side.decide, 0, match(), *drop(side.refused), cookie=base)
    yield flow(
        side.stateless, 110, match(**{FLAGS: (ALLOWED, ALLOWED)}), unflagged, *_CLEAN, Resubmit(side.onward), cookie=base
    )
    passed = (unflagged, *_observe(), *_CLEAN, Resubmit(side.onward))
    yield flow(side.stateless, 50, match(**{FLAGS: (OBSERVED, OBSERVED)}), *passed, cookie=base)
    yield flow(side.stateless, 0, match(), *drop(side.refused), cookie=base)
    yield flow(side.known, 50, match(ct_state=INVALID), *drop(Reason.FRAGMENT), cookie=base)
    yield flow(side.known, 0, match(), *_NOBODYS, cookie=base)


def _observe() -> tuple[Action, ...]:
    """Count what is let through, and go on."""
    return SetField(REASON, int(Reason.OBSERVED)), Resubmit(Table.DROP)


def compile_policy(view: View, network_id: str, port_id: str) -> Iterable[Item]:
    """How a port plugged here is filtered."""
    network, port, interface = view.network(network_id), view.port(network_id, port_id), view.plugged(network_id, port_id)
    if network is None or port is None or interface is None or interface.ofport is None:
        return
    if not verdict(view, network_id, port_id).wired or not (is_up(network) and is_up(port)):
        return
    mark, ofport = cookie(CookieKind.PORT, port_id), interface.ofport
    if groups_of(port) is None:
        for side in SIDES:
            yield flow(side.track, 100, match(**{side.port: ofport}), Resubmit(side.onward), cookie=mark)
        return
    scopes, settled = view.filter_of(port_id)
    named = {*scopes, *(referent for scope in scopes for referent in view.referents(scope))}
    known = {scope: view.group(scope) for scope in named}
    if None in known.values() or not settled:
        yield pending(keys.scope(network_id), "what the security groups of a port say is not known yet")
    groups = [group for scope in scopes if (group := known[scope]) is not None and group.key]
    generation = _generation(view, scopes, named)
    stateless = any(not group.stateful for group in groups)
    tracked = not groups or any(group.stateful for group in groups)
    for side in SIDES:
        yield from _judge(side, ofport, stateless, tracked, mark)
        if tracked:
            allowed = (CT_TRACKED, CT_TRACKED | CT_NEW | CT_INVALID)
            current = match(ct_state=allowed, ct_mark=generation, ct_zone=ofport, **{side.port: ofport})
            yield flow(side.state, 90, current, Resubmit(side.onward), cookie=mark)
        own = match(ct_state=VALID, ct_zone=ofport, **{side.port: ofport})
        yield flow(side.known, 100, own, SetField(GENERATION, 0), Resubmit(side.onward), cookie=mark)
    observes = (SetField(FLAGS, OBSERVED, OBSERVED),) if any(group.observes for group in groups) else ()
    for bit in (0, STATELESS) if stateless else (0,):
        turns = [group.key for group in groups if group.stateful == (not bit)]
        asked = [action for key in turns for action in (SetField(JUDGED, key, GROUP_KEY), Resubmit(Table.GROUP))]
        where = match(**{POLICY_PORT: ofport}, **{JUDGED: (bit, STATELESS)})
        yield flow(Table.POLICY, 100, where, SetField(GENERATION, generation), *observes, *asked, cookie=mark)


def _judge(side: Side, ofport: int, stateless: bool, tracked: bool, mark: int) -> Iterator[Flow]:
    """The way into judgement: by stateless rules, where there are any, and by connection."""
    for family in FAMILIES:
        where = match(**{side.port: ofport}, eth_type=family)
        track = Track(ofport, side.state)
        if not stateless:
            yield flow(side.track, 100, where, track, cookie=mark)
            continue
        # Tracking is where fragments wait until their packet is whole. No connection comes of it.
        fragment = match(**{side.port: ofport}, **{FLAGS: (0, COMPLETE)}, eth_type=family, ip_frag=(FRAGMENT, FRAGMENT))
        yield flow(side.track, 102, fragment, SetField(FLAGS, COMPLETE, COMPLETE), Track(ofport, side.track), cookie=mark)
        yield flow(
            side.track,
            100,
            where,
            SetField(JUDGED, side.judged | STATELESS),
            SetField(POLICY_PORT, ofport),
            Resubmit(Table.POLICY),
            Resubmit(side.stateless),
            cookie=mark,
        )
        if tracked:
            yield flow(side.stateless, 100, where, SetField(FLAGS, 0, COMPLETE), *_CLEAN, track, cookie=mark)


def _generation(view: View, scopes: Iterable[str], named: Iterable[str]) -> int:
    """32 bits that are others when something is taken away, and never 0. Additions leave them as they are, but for a first
    rule that names a group: its connections are asked about once more."""
    text = "\n".join([*scopes, "", *(f"{scope} {view.cut(scope)}" for scope in sorted(named))])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") or 1
