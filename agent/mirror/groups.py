"""Security groups and address groups that concern this node: those of ports plugged here, and those that their rules name.

Both are known by their scope. An address group is a group whose members are its addresses, one by one; so a change of one
address, or of one port elsewhere, is a change of one member.

Tokens: ("group", scope): key, stateful, mode, whether it is listed, whether ports here have it · ("member", scope, name) ·
("rule", scope, id) · ("allowed", scope, allowed): the rule that has a match which several want · ("fragments", scope,
allowed): whether any rule has matches with it · ("remotes", scope): groups that its rules name, and in which directions ·
("referents", scope): the groups alone · ("named", scope): in which directions and families rules of ports here name it ·
("cut", scope): when something was last taken away from it · ("groups", port): those by which a port plugged here is filtered.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_network

from agent.mirror.scope import ScopeState, Token
from agent.model.rule import Allowed, Direction, Masked, Prefix, Rule, ranged
from agent.model.wire import ICMP, ICMPV6, WITH_PORTS
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.values import Invalid, addresses, protocol_number
from kumihimo.v1 import network_pb2, port_pb2, security_pb2, store_pb2

ANY = -1
WHOLE = (1 << 16) - 1
LAST_OF_ICMP = 255


@dataclass(slots=True)
class GroupState(ScopeState):
    """A group as it stands below its scope. key: 0 when there is no such group."""

    key: int = 0
    stateful: bool = True
    observes: bool = False
    cut: int = 0
    members: dict[str, tuple[Prefix, ...]] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    # By what rules allow: which they are.
    owners: dict[Allowed, set[str]] = field(default_factory=lambda: defaultdict(set))
    fragments: Counter[Allowed] = field(default_factory=Counter)
    remotes: dict[str, Counter[Direction]] = field(default_factory=lambda: defaultdict(Counter))

    def holds(self, token: Token) -> bool:
        """Whether it has the member, rule or match that a token names."""
        match token:
            case ("member", _, str(name)):
                return name in self.members
            case ("rule", _, str(rule)):
                return rule in self.rules
            case ("fragments", _, Allowed() as allowed):
                return allowed in self.fragments
        return True


def groups_of(port: port_pb2.Port) -> tuple[str, ...] | None:
    """Scopes of the security groups by which a port is filtered; None when it is not filtered."""
    if not port.filtered or (port.HasField("port_security_enabled") and not port.port_security_enabled):
        return None
    return tuple(sorted(keys.scope(group, keys.SECURITY) for group in port.security_group_ids))


class Groups:
    """See the module. Nothing of `states` is to be changed by others."""

    def __init__(self) -> None:
        self.states: dict[str, GroupState] = {}
        self.named: dict[str, Counter[Direction]] = {}
        self._users: dict[str, set[str]] = {}  # ports plugged here that have a group, or are to have it
        self._asked: dict[str, tuple[str, ...]] = {}
        self._of: dict[str, tuple[str, ...]] = {}

    def wanted(self) -> Set[str]:
        """The scopes that concern this node."""
        return self._users.keys() | self.named.keys()

    def is_used(self, scope: str) -> bool:
        """Whether a port plugged here has the group."""
        return scope in self._users

    def rules(self) -> Iterator[str]:
        """Ids of the rules of all groups that ports plugged here have."""
        for scope in self._users.keys() & self.states.keys():
            yield from self.states[scope].rules

    def filtered(self) -> Set[str]:
        """The ports plugged here that have groups."""
        return self._asked.keys()

    def of(self, port: str) -> tuple[tuple[str, ...], bool]:
        """The groups by which a port plugged here is filtered, and whether they are those that it has in the store: others take
        their place when all that they say is known, so that nothing is refused meanwhile."""
        return self._of.get(port, ()), self._of.get(port) == self._asked.get(port)

    def use(self, port: str, groups: tuple[str, ...]) -> set[Token]:
        """A port plugged here has these groups now."""
        if groups:
            self._asked[port] = groups
        else:
            self._asked.pop(port, None)
        return self._settle(port)

    def _settle(self, port: str) -> set[Token]:
        """Let the groups that a port is to have take the place of those before, if that can be."""
        asked, before = self._asked.get(port, ()), self._of.pop(port, ())
        known = all(scope in self.states and self.states[scope].listed for scope in asked)
        now = asked if known or not before else before
        if now:
            self._of[port] = now
        tokens: set[Token] = {("groups", port)}
        groups, old = {*asked, *now}, {scope for scope, users in self._users.items() if port in users}
        for scope in groups - old:
            if scope not in self._users:
                tokens |= self._name(scope, 1)
                tokens.add(("group", scope))
            self._users.setdefault(scope, set()).add(port)
        for scope in old - groups:
            self._users[scope].discard(port)
            if not self._users[scope]:
                del self._users[scope]
                tokens |= self._name(scope, -1)
                tokens.add(("group", scope))
        return tokens

    def _name(self, scope: str, times: int) -> set[Token]:
        """Count, or count off, what the rules of a group name."""
        tokens: set[Token] = set()
        if scope in self.states:
            for remote, directions in self.states[scope].remotes.items():
                for direction, number in directions.items():
                    tokens |= self._count(remote, direction, times * number)
        return tokens

    def _count(self, remote: str, direction: Direction, number: int) -> set[Token]:
        if not remote:
            return set()
        known = self.named.setdefault(remote, Counter())
        before = set(known)
        known[direction] += number
        if not known[direction]:
            del known[direction]
        after = set(known)
        if not known:
            del self.named[remote]
        return {("named", remote)} if before != after else set()

    def forget(self) -> set[Token]:
        """Forget the groups that concern nobody here any more. Not while notices are taken in: one of them may take away what
        the next one brings back, and what was forgotten meanwhile would not be listed again."""
        tokens: set[Token] = set()
        for scope in self.states.keys() - self.wanted():
            tokens |= set(_tokens(scope, self.states.pop(scope)))
        return tokens

    def tokens(self) -> Iterator[Token]:
        """All that is known, by its tokens."""
        for scope, state in self.states.items():
            yield from _tokens(scope, state)

    # -- notices ------------------------------------------------------------------------------------------------------

    def begin(self, scope: str) -> GroupState | None:
        """The state that a notice of a scope goes into; None when it is of no interest."""
        return self.states.setdefault(scope, GroupState()) if scope in self.states or scope in self.wanted() else None

    def complete(self, scope: str) -> set[Token]:
        """It is known as a whole now."""
        state = self.states[scope]
        if state.listed:
            return set()
        state.listed = True
        tokens: set[Token] = {("group", scope)}
        for port in list(self._users.get(scope, ())):
            tokens |= self._settle(port)
        return tokens

    def take(self, scope: str, state: GroupState, key: str, entry: Entry | None) -> set[Token]:
        """Take in one key. DecodeError: it is no message."""
        match [sys.intern(part) for part in keys.split(key)[2:]]:
            case ["security_group"]:
                group = security_pb2.SecurityGroup.FromString(entry.value) if entry else security_pb2.SecurityGroup()
                observes = group.mode == security_pb2.SECURITY_GROUP_MODE_OBSERVE
                tokens = _settle(scope, state, group.key, not group.HasField("stateful") or group.stateful, observes)
            case ["address_group"]:
                named = security_pb2.AddressGroup.FromString(entry.value) if entry else security_pb2.AddressGroup()
                tokens = _settle(scope, state, named.key, True, False)
                members = {address: parsed for address in named.addresses if (parsed := prefixes([address]))}
                for name in state.members.keys() | members.keys():
                    tokens |= _put_member(scope, state, name, members.get(name))
            case ["member", port]:
                member = store_pb2.Member.FromString(entry.value) if entry else None
                tokens = _put_member(scope, state, port, prefixes(member.addresses) if member else None)
            case ["security_group_rule", rule]:
                stored = security_pb2.SecurityGroupRule.FromString(entry.value) if entry else None
                tokens = self._put_rule(scope, state, rule, parse(stored) if stored else None)
            case ["cut"]:
                state.cut = entry.mod_revision if entry else 0
                tokens = {("cut", scope)}
            case ["change"] if entry is not None:
                state.trace_context = store_pb2.ChangeRecord.FromString(entry.value).trace_context
                tokens = set()
            case _:
                tokens = set()
        state.note(key, there=entry is not None)
        return tokens

    def _put_rule(self, scope: str, state: GroupState, rule_id: str, new: Rule | None) -> set[Token]:
        old = state.rules.pop(rule_id, None)
        if new is not None:
            state.rules[rule_id] = new
        if old == new:
            return set()
        tokens: set[Token] = {("rule", scope, rule_id)}
        for rule, number in ((old, -1), (new, 1)):
            if rule is not None:
                tokens |= _index(scope, state, rule, number)
                if self.is_used(scope):
                    tokens |= self._count(rule.remote, rule.direction, number)
        return tokens


def _settle(scope: str, state: GroupState, key: int, stateful: bool, observes: bool) -> set[Token]:
    before = state.key, state.stateful, state.observes
    state.key, state.stateful, state.observes = key, stateful, observes
    return {("group", scope)} if before != (key, stateful, observes) else set()


def _put_member(scope: str, state: GroupState, name: str, new: tuple[Prefix, ...] | None) -> set[Token]:
    old = state.members.pop(name, None)
    if new is not None:
        state.members[name] = new
    return {("member", scope, name)} if old != new else set()


def _index(scope: str, state: GroupState, rule: Rule, number: int) -> set[Token]:
    """Note that a rule is there, or is gone."""
    tokens: set[Token] = set()
    for allowed in rule.allows:
        owners = state.owners[allowed]
        before = min(owners, default=None)
        (owners.add if number > 0 else owners.discard)(rule.id)
        if before is not None and before != min(owners, default=None):
            tokens.add(("allowed", scope, allowed))
        if not owners:
            del state.owners[allowed]
        fragments = allowed.fragments
        there = fragments in state.fragments
        state.fragments[fragments] += number
        if not state.fragments[fragments]:
            del state.fragments[fragments]
        if there != (fragments in state.fragments):
            tokens.add(("fragments", scope, fragments))
    known = state.remotes[rule.remote]
    before_directions = set(known)
    known[rule.direction] += number
    if not known[rule.direction]:
        del known[rule.direction]
    if before_directions != set(known):
        tokens.add(("remotes", scope))
        if rule.remote and not (before_directions and known):
            tokens.add(("referents", scope))
    if not known:
        del state.remotes[rule.remote]
    return tokens


def _tokens(scope: str, state: GroupState) -> Iterator[Token]:
    yield from ((what, scope) for what in ("group", "cut", "remotes", "referents", "named"))
    yield from (("member", scope, name) for name in state.members)
    yield from (("rule", scope, rule) for rule in state.rules)
    yield from (("fragments", scope, allowed) for allowed in state.fragments)


def prefixes(given: Iterable[str]) -> tuple[Prefix, ...]:
    """Addresses, prefixes and ranges as prefixes. What this release cannot read is nobody's address."""
    return tuple(dict.fromkeys(prefix for address in given for prefix in _prefixes(address)))


@lru_cache(maxsize=1024)
def _prefixes(address: str) -> tuple[Prefix, ...]:
    try:
        networks = addresses(address)[1]
    except Invalid:
        return ()
    return tuple(Prefix(each.version == 6, int(each.network_address), int(each.netmask)) for each in networks)


def parse(stored: security_pb2.SecurityGroupRule) -> Rule:
    """A rule as it is stored; what this release cannot read allows nothing."""
    ipv6 = stored.ethertype == network_pb2.IP_VERSION_IPV6
    direction = Direction(stored.direction == security_pb2.DIRECTION_INGRESS, ipv6)
    remote = ""
    if stored.remote_group_id:
        remote = keys.scope(stored.remote_group_id, keys.SECURITY)
    elif stored.remote_address_group_id:
        remote = keys.scope(stored.remote_address_group_id, keys.ADDRESSES)
    return Rule(stored.id, direction, remote, tuple(_allowed(stored, direction, remote)))


def _allowed(stored: security_pb2.SecurityGroupRule, direction: Direction, remote: str) -> Iterator[Allowed]:
    known = stored.direction in (security_pb2.DIRECTION_INGRESS, security_pb2.DIRECTION_EGRESS)
    prefix: Masked | None = None
    protocol = ANY
    try:
        if stored.remote_ip_prefix:
            network = ip_network(stored.remote_ip_prefix)
            known = known and (network.version == 6) == direction.ipv6
            prefix = (int(network.network_address), int(network.netmask)) if network.prefixlen else None
        if stored.protocol:
            protocol = protocol_number(stored.protocol)
    except ValueError:
        return
    if not known:
        return
    whole = Allowed(*direction, remote, prefix, protocol)
    low = stored.port_range_min if stored.HasField("port_range_min") else None
    high = stored.port_range_max if stored.HasField("port_range_max") else None
    if low is None:
        yield whole
    elif protocol in (ICMP, ICMPV6) and max(low, high or 0) <= LAST_OF_ICMP:
        yield whole._replace(source=(low, WHOLE), target=None if high is None else (high, WHOLE))
    elif protocol in WITH_PORTS and high is not None:
        for ports in ranged(low, high):
            yield whole._replace(target=ports) if ports[1] else whole
