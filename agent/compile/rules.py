"""Rules of security groups and members of the groups that they name: subroutines that all ports of the node share.

A rule that names a group is not multiplied with its members: the members are looked up, by the key of the group, and lead to
the rules, which are looked up by that key again. So a member costs one flow for each field in which it may stand, whatever
the number of rules, and a rule one for each masked range of ports, whatever the number of members.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.compile.base import flow
from agent.compile.view import View
from agent.model.flow import CT_INVALID, CT_TRACKED, LATER, Flow, Resubmit, SetField, match
from agent.model.item import Item
from agent.model.pipeline import (
    ALLOWED,
    BY_CONNECTION,
    FLAGS,
    GROUP_KEY,
    JUDGED,
    OF_INGRESS,
    REMOTE,
    CookieKind,
    Table,
    cookie,
)
from agent.model.remark import pending
from agent.model.rule import Allowed, Direction, Masked, Prefix
from agent.model.wire import ETH_IPV4, ETH_IPV6, ICMP, ICMPV6, SCTP, WITH_PORTS
from controlplane.store import keys

Fields = dict[str, int | tuple[int, int]]
ANYBODY = 0
ANY = -1
# Where the ports of a protocol stand.
NUMBERS = {number: (f"{name}_src", f"{name}_dst") for number, name in WITH_PORTS.items()}
NUMBERS |= {ICMP: ("icmp_type", "icmp_code"), ICMPV6: ("icmpv6_type", "icmpv6_code")}
WAYS = (0, BY_CONNECTION)
WHICH_WAY = OF_INGRESS | BY_CONNECTION
# Fields of a connection can be matched where there is one only.
VALID = (CT_TRACKED, CT_TRACKED | CT_INVALID)


def compile_group(view: View, scope: str) -> Iterable[Item]:
    """The list of the remotes that the rules of a group name."""
    group = view.group(scope)
    if group is None or not group.key or not group.used:
        return
    lists: dict[Direction, list[int]] = {}
    for remote, directions in view.remotes(scope).items():
        if (key := _key(view, remote)) is not None:
            for direction in directions:
                lists.setdefault(direction, []).append(key)
    mark = scope_cookie(scope)
    for direction, remotes in sorted(lists.items()):
        asked = [
            action
            for key in sorted(remotes)
            for action in (SetField(REMOTE, key), Resubmit(Table.MEMBERS if key else Table.RULES))
        ]
        for way in WAYS if group.stateful else (0,):
            yield flow(Table.GROUP, 100, match(**_asked(group.key, direction, way)), *asked, cookie=mark)


def compile_member(view: View, scope: str, name: str) -> Iterable[Item]:
    """The addresses of one member, in the fields in which rules of ports here look for them."""
    group, named = view.group(scope), view.named(scope)
    if group is None or not group.key or not named:
        return
    mark = scope_cookie(scope)
    for prefix in view.member(scope, name):
        for direction in named:
            if direction.ipv6 == prefix.ipv6:
                for way in WAYS:
                    yield _member(group.key, prefix, direction, way, mark)


def _member(key: int, prefix: Prefix, direction: Direction, way: int, mark: int) -> Flow:
    where: Fields = {JUDGED: (_way(direction, way), WHICH_WAY), REMOTE: key, **_other_side(direction, way, prefix[1:])}
    return flow(Table.MEMBERS, 100, match(**where), Resubmit(Table.RULES), cookie=mark)


def compile_rule(view: View, scope: str, rule_id: str) -> Iterable[Item]:
    """What one rule allows. Of rules that want the same flow the first by id has it, and counts."""
    group, rule = view.group(scope), view.rule(scope, rule_id)
    if group is None or not group.key or not group.used or rule is None:
        return
    key = _key(view, rule.remote)
    if key is None:
        if view.group(rule.remote) is None:
            yield pending(scope, "what a rule names is not known yet")
        return
    for allowed in rule.allows:
        if view.owner(scope, allowed) == rule_id:
            for way in WAYS if group.stateful else (0,):
                yield _rule(100, group.key, key, allowed, way, _packet(allowed, way), cookie(CookieKind.RULE, rule_id))


def compile_fragments(view: View, scope: str, allowed: Allowed) -> Iterable[Item]:
    """Fragments that are not the first of their packet have no ports. They are let through where any port is: what they
    belong to was judged by the first, and without it the others are never put together."""
    group = view.group(scope)
    if group is None or not group.key or not group.used or not view.has_fragments(scope, allowed):
        return
    key = _key(view, allowed.remote)
    if key is None or allowed.protocol == ANY:
        return
    for way in WAYS if group.stateful else (0,):
        fields = _packet(allowed, way)
        fields["ip_frag"] = (LATER, LATER)
        if allowed.ipv6 and not way:
            del fields["ip_proto"]  # Open vSwitch says 44 of all of them
        yield _rule(50, group.key, key, allowed, way, fields, scope_cookie(scope))


def _rule(priority: int, group: int, remote: int, allowed: Allowed, way: int, packet: Fields, mark: int) -> Flow:
    direction = Direction(allowed.ingress, allowed.ipv6)
    where: Fields = {**_asked(group, direction, way), REMOTE: remote, **packet}
    if allowed.prefix is not None:
        where |= _other_side(direction, way, allowed.prefix)
    return flow(Table.RULES, priority, match(**where), SetField(FLAGS, ALLOWED, ALLOWED), cookie=mark)


def _key(view: View, remote: str) -> int | None:
    """What stands in REMOTE; None when there is no such group, or it is not known: its rules allow nothing."""
    if not remote:
        return ANYBODY
    group = view.group(remote)
    return group.key if group is not None and group.key else None


def _way(direction: Direction, way: int) -> int:
    return (OF_INGRESS if direction.ingress else 0) | way


def _asked(group: int, direction: Direction, way: int) -> Fields:
    """The question that is put to a group."""
    family = ETH_IPV6 if direction.ipv6 else ETH_IPV4
    return {JUDGED: (group | _way(direction, way), GROUP_KEY | WHICH_WAY), "eth_type": family}


def _other_side(direction: Direction, way: int, prefix: Masked) -> Fields:
    """Who has sent what is received, and who is to receive what is sent."""
    end = "src" if direction.ingress else "dst"
    names = (f"ct_ipv6_{end}", f"ct_nw_{end}") if way else (f"ipv6_{end}", f"ip_{end}")
    fields: Fields = {"eth_type": ETH_IPV6 if direction.ipv6 else ETH_IPV4, names[not direction.ipv6]: prefix}
    return fields | {"ct_state": VALID} if way else fields


def _packet(allowed: Allowed, way: int) -> Fields:
    """Protocol, and ports or type and code."""
    if allowed.protocol == ANY:
        return {}
    source, target = ("ct_tp_src", "ct_tp_dst") if way else NUMBERS.get(allowed.protocol, ("", ""))
    fields: Fields = {"ct_nw_proto" if way else "ip_proto": allowed.protocol} | ({"ct_state": VALID} if way else {})
    if way and allowed.protocol == SCTP and allowed.target is not None:
        # Its connections have no ports in user space; what answers comes from where the first packet went.
        fields["ip_proto"], target = SCTP, "sctp_src"
    for name, masked in ((source, allowed.source), (target, allowed.target)):
        if masked is not None:
            # Type and code of ICMP have 8 bits, but 16 as those of a connection.
            fields[name] = masked[0] if allowed.protocol in (ICMP, ICMPV6) else masked
    return fields


def scope_cookie(scope: str) -> int:
    """The cookie of flows that several rules or members of a group share."""
    return cookie(CookieKind.GROUP, keys.split(scope)[1])
