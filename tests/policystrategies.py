"""Random policies for hypothesis: ports of one network, their groups, rules and address groups, and packets to be tried.

Everything is named by number, so that each test makes an estate of it as it can: messages for a compiler, or objects of a
cloud. Port n has the addresses `address(n, 4)` and `address(n, 6)`, which follows from its MAC, and may have a pair of each
family (`PAIRS`) that is no other port's. A policy is small when all that is drawn is the first there is: so it shrinks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter

from kumihimo.v1 import security_pb2 as pb
from tests.policymodel import NAMES, Probe

GROUPS, PLACES = 4, 2  # of a policy
FAMILIES = (4, 6)
OSPF = "89"  # a protocol without ports
ICMP = {4: "icmp", 6: "icmpv6"}
WITH_PORTS = ("tcp", "udp", "sctp")
# Of these Open vSwitch takes all packets between two addresses for one connection, in user space.
TRACKED_AS_ONE = {int(OSPF), NAMES["sctp"]}
# Of ICMP: requests for an echo and a time, which begin something; destination unreachable, which by itself does not.
TYPES = {4: (8, 13, 3), 6: (128, 1)}
LAST = 65535
BELOW = 32768  # ports of rules are below, or the last one; those that packets come from are above
FIRST_SOURCE = 40_000

MAC = "fa:16:3e:00:00:{:02x}"
FIXED = {4: "10.0.0.{}", 6: "fd00:1::f816:3eff:fe00:{:x}"}
SUBNETS = {4: "10.0.0.0/24", 6: "fd00:1::/64"}
PAIRS = {4: "10.0.9.{}/29", 6: "fd00:9::{:x}/125"}
Kind = tuple[int, tuple[int, int]]  # protocol; ports, of which that of the sender is 0 when there are some, or type and code
_FIRST = 0x10  # the first port's number in all of these
_SIX = FIXED[6].format
PREFIXES = {
    4: ("10.0.0.16/30", "10.0.0.20/31", "10.0.0.18/32", "10.0.9.128/27", "192.0.2.0/24", "10.0.0.0/24", "0.0.0.0/0"),
    6: (f"{_SIX(0x10)}/126", f"{_SIX(0x14)}/127", f"{_SIX(0x12)}/128", "fd00:9::80/123", "fd00:8::/64", "fd00:1::/64", "::/0"),
}
ADDRESSES = (
    *("10.0.0.17-10.0.0.19", "10.0.0.21", "10.0.0.16/29", "10.0.9.137-10.0.9.150", "198.51.100.0/24"),
    *(f"{_SIX(0x11)}-{_SIX(0x13)}", _SIX(0x15), f"{_SIX(0x10)}/125", "fd00:9::88-fd00:9::99", "fd00:8::/64"),
)


def mac(port: int) -> str:
    """The MAC of a port."""
    return MAC.format(_FIRST + port)


def address(port: int, family: int) -> str:
    """The address of a family that a port has."""
    return FIXED[family].format(_FIRST + port)


def pair(port: int, family: int) -> str:
    """The prefix of a family that a port may be allowed to send from."""
    return PAIRS[family].format(8 * (_FIRST + port))


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a group. low and high: ports, or type and code of ICMP. Of prefix, member (a group) and places (an address
    group) one names the other side; none of them: anybody."""

    group: int
    direction: int
    family: int
    protocol: str
    low: int | None
    high: int | None
    prefix: str = ""
    member: int | None = None
    places: int | None = None

    def message(self, groups: Sequence[str], places: Sequence[str]) -> pb.SecurityGroupRule:
        """The rule as a group's. groups, places: ids by number."""
        rule = pb.SecurityGroupRule(
            direction=self.direction,  # type: ignore[arg-type]
            ethertype=self.family,  # type: ignore[arg-type]
            protocol=self.protocol,
            port_range_min=self.low,
            port_range_max=self.high,
            remote_ip_prefix=self.prefix,
        )
        if self.member is not None:
            rule.remote_group_id = groups[self.member]
        if self.places is not None:
            rule.remote_address_group_id = places[self.places]
        return rule

    @property
    def said(self) -> Rule:
        """The same of all rules that the API takes for equal."""
        return replace(self, prefix="") if self.prefix.endswith("/0") else self

    def edges(self) -> Iterator[Kind]:
        """Packets (protocol, ports) on both sides of what the rule allows; those of ports come from 0."""
        if self.protocol in WITH_PORTS and self.low is not None and self.high is not None:
            inside = (self.low + min(self.high, BELOW)) // 2 if self.low < BELOW else LAST
            for port in (self.low, self.low - 1, self.high, self.high + 1, inside):
                if 0 < port <= LAST:
                    yield NAMES[self.protocol], (0, port)
            for other in WITH_PORTS:
                yield NAMES[other], (0, self.low)
        if self.protocol == ICMP[self.family]:
            for kind in TYPES[self.family]:
                for code in (self.high or 0, (self.high or 0) + 1):
                    yield NAMES[self.protocol], (kind, code)

    def __str__(self) -> str:
        ingress = self.direction == pb.DIRECTION_INGRESS
        said = [self.protocol or "any protocol"]
        if self.low is not None:
            said.append(f"{self.low}{'' if self.high is None else f'-{self.high}'}")
        side = self.prefix or "anybody"
        if self.member is not None:
            side = f"group {self.member}"
        if self.places is not None:
            side = f"addresses {self.places}"
        return f"{'ingress' if ingress else 'egress'} IPv{self.family} {' '.join(said)} {'from' if ingress else 'to'} {side}"


@dataclass(frozen=True, slots=True)
class Group:
    """A group without its rules."""

    stateful: bool
    observes: bool


@dataclass(frozen=True, slots=True)
class Port:
    """The groups of a port, and the families of which it has a pair. Without groups it may be guarded by none."""

    groups: frozenset[int]
    pairs: frozenset[int]
    guarded: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that decides. As text it is for who looks into a disagreement."""

    groups: tuple[Group, ...]
    places: tuple[tuple[str, ...], ...]
    ports: tuple[Port, ...]
    rules: tuple[Rule, ...]

    def pairs(self, port: int) -> list[str]:
        """The prefixes that a port may send from besides its addresses."""
        return [pair(port, family) for family in sorted(self.ports[port].pairs)]

    def packets(self, turn: int, each: int) -> Iterator[tuple[int, int, Probe]]:
        """First packets: of every pair of ports and both families at most `each`, by what the rules of the two say, and beside
        it. turn: which of them; all come by and by. None is another's answer: what is tracked without ports goes one way."""
        sources = itertools.count(FIRST_SOURCE)
        ways = itertools.product(itertools.permutations(range(len(self.ports)), 2), FAMILIES)
        for number, ((sender, receiver), family) in enumerate(ways):
            kinds, ends = self._kinds(sender, receiver, family), self._ends(sender, receiver, family)
            first = (turn + number * each) % len(kinds)
            for step, (protocol, (kind, port)) in enumerate((kinds[first:] + kinds[:first])[:each]):
                ports = (next(sources), port) if port and not kind else (kind, port)
                yield sender, receiver, Probe(*ends[(turn + number + step) % len(ends)], protocol, ports)

    def _kinds(self, sender: int, receiver: int, family: int) -> list[Kind]:
        found = [(NAMES[ICMP[family]], (TYPES[family][0], 0)), (int(OSPF), (0, 0))]
        found += [(NAMES[protocol], (0, 80)) for protocol in WITH_PORTS]
        for rule in self.rules:
            judged = receiver if rule.direction == pb.DIRECTION_INGRESS else sender
            if rule.family == family and rule.group in self.ports[judged].groups:
                found += rule.edges()
        return [kind for kind in dict.fromkeys(found) if sender < receiver or kind[0] not in TRACKED_AS_ONE]

    def _ends(self, sender: int, receiver: int, family: int) -> list[tuple[str, str]]:
        """From which address to which."""
        sides = [
            [address(port, family), *([str(ip_network(pair(port, family))[1])] if family in self.ports[port].pairs else [])]
            for port in (sender, receiver)
        ]
        return list(itertools.product(*sides))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        """How hypothesis shows it."""
        printer.text(f"\n{self}\n")

    def _lines(self) -> Iterator[str]:
        for number, group in enumerate(self.groups):
            observes = ", observes" if group.observes else ""
            yield f"group {number}, {'stateful' if group.stateful else 'stateless'}{observes}"
            yield from (f"  {rule}" for rule in self.rules if rule.group == number)
        for number, places in enumerate(self.places):
            yield f"addresses {number}: {' '.join(places) or 'none'}"
        for number, port in enumerate(self.ports):
            groups = f"groups {' '.join(map(str, sorted(port.groups))) or 'none'}" if port.guarded else "not filtered"
            ends = [address(number, family) for family in FAMILIES] + self.pairs(number)
            yield f"port {number}, {' '.join(ends)}: {groups}"


_NUMBERS = st.integers(1, BELOW - 1) | st.just(LAST)
_RANGES = st.tuples(st.integers(1, BELOW - 10), st.integers(0, 9)).map(lambda drawn: (drawn[0], sum(drawn))) | st.tuples(
    _NUMBERS, _NUMBERS
).map(lambda drawn: (min(drawn), max(drawn)))
_NONE: st.SearchStrategy[tuple[int | None, int | None]] = st.just((None, None))
_TYPES = {family: st.tuples(st.sampled_from(kinds), st.sampled_from((None, 0, 1))) for family, kinds in TYPES.items()}


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Of any of the groups."""
    family = draw(st.sampled_from(FAMILIES))
    protocol = draw(st.sampled_from(("", "tcp", "udp", "sctp", ICMP[family], "tcp", "udp", "", OSPF)))
    numbers = _NONE
    if protocol in WITH_PORTS:
        numbers |= _RANGES
    elif protocol == ICMP[family]:
        numbers |= _TYPES[family]
    low, high = draw(numbers)
    remote = draw(
        st.fixed_dictionaries({})
        | st.fixed_dictionaries({})
        | st.fixed_dictionaries({"member": st.integers(0, GROUPS - 1)})
        | st.fixed_dictionaries({"places": st.integers(0, PLACES - 1)})
        | st.fixed_dictionaries({"prefix": st.sampled_from(PREFIXES[family])})
    )
    direction = draw(st.sampled_from((pb.DIRECTION_INGRESS, pb.DIRECTION_EGRESS)))
    return Rule(draw(st.integers(0, GROUPS - 1)), direction, family, protocol, low, high, **remote)


@st.composite
def _ports(draw: st.DrawFn) -> Port:
    groups = draw(st.frozensets(st.integers(0, GROUPS - 1), max_size=3))
    guarded = bool(groups) or not draw(st.booleans())
    return Port(groups, draw(st.frozensets(st.sampled_from(FAMILIES))) if guarded else frozenset(), guarded)


_GROUPS = st.builds(Group, st.sampled_from((True, True, True, False)), st.sampled_from((False,) * 24 + (True,)))
_PLACES = st.lists(st.sampled_from(ADDRESSES), max_size=4, unique=True).map(tuple)


@st.composite
def policies(draw: st.DrawFn, ports: int, least: int = 0) -> Policy:
    """For so many ports, with so many rules at least."""
    several = draw(st.sampled_from(sorted({least, max(least, 10), max(least, 30)})))
    return Policy(
        groups=draw(st.tuples(*[_GROUPS] * GROUPS)),
        places=draw(st.tuples(*[_PLACES] * PLACES)),
        ports=draw(st.tuples(*[_ports()] * ports)),
        rules=tuple(draw(st.lists(rules(), min_size=several, max_size=60, unique_by=lambda rule: rule.said))),
    )


def each_of(
    seed: int,
    examples: int,
    test: Callable[[Policy, int], None],
    *,
    ports: int,
    least: int = 0,
    phases: Iterable[Phase] = Phase,
) -> None:
    """Try so many policies of a seed, with the turn of their packets. Each is drawn from nothing: hypothesis varies what it has
    drawn five times before it draws another. Nothing is kept of them; a first failure ends it."""
    options = settings(
        max_examples=1,
        phases=phases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    # What hypothesis tries first is the smallest there is, and would be the only one: there is nothing in it to try.
    tried = policies(ports, least).filter(lambda policy: bool(policy.rules) and any(port.groups for port in policy.ports))

    def one(policy: Policy, turn: int) -> None:
        test(policy, turn)

    for number in range(examples):
        hypothesis.seed(f"{seed}/{number}")(options(given(policy=tried, turn=st.integers(0, 999))(one)))()
