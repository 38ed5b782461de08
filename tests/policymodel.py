"""What security groups allow, said once more and in another way: the tests' own understanding of the rules.

It reads what the API tells or the store holds (messages), knows nothing of flows, and is not derived from the code that it is
to judge: a packet passes when some rule of some group of its sender allows it to be sent, and some rule of some group of its
receiver allows it to be received.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from kumihimo.v1 import port_pb2
from kumihimo.v1 import security_pb2 as pb

NAMES = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "ospf": 89, "sctp": 132}
ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
ANSWERS = {(ICMP, 8): 0, (ICMP, 13): 14, (ICMP, 15): 16, (ICMPV6, 128): 129}  # by protocol and type


@dataclass(frozen=True, slots=True)
class Probe:
    """A packet: protocol by number; ports are (source, target), or type and code of ICMP."""

    source: str
    target: str
    protocol: int
    ports: tuple[int, int] = (0, 0)

    @property
    def version(self) -> int:
        return ip_address(self.source).version


def begins(probe: Probe) -> bool:
    """Whether connection tracking takes it for the first packet of a connection: of ICMP a few, and those of code 0 alone."""
    kind, code = probe.ports
    return probe.protocol not in (ICMP, ICMPV6) or ((probe.protocol, kind) in ANSWERS and not code)


def is_answered(probe: Probe) -> bool:
    """Whether something answers such a packet and is known as its answer."""
    return probe.protocol in (ICMP, TCP, UDP, ICMPV6, SCTP) and begins(probe)


def answer(probe: Probe) -> Probe:
    """What answers it."""
    first, second = probe.ports
    ports = (ANSWERS[probe.protocol, first], 0) if probe.protocol in (ICMP, ICMPV6) else (second, first)
    return Probe(probe.target, probe.source, probe.protocol, ports)


def is_within(address: str, place: str) -> bool:
    """Whether an address is one, in a prefix, or in a range."""
    number = ip_address(address)
    if "-" in place:
        first, last = map(ip_address, place.split("-"))
        return first.version == number.version and first <= number <= last
    network = ip_network(place)
    return network.version == number.version and number in network


@dataclass
class Policies:
    """Everything that decides. members: group → addresses of its ports; addresses: address group → its addresses."""

    ports: Mapping[str, port_pb2.Port]
    groups: Mapping[str, pb.SecurityGroup]
    rules: Iterable[pb.SecurityGroupRule]
    members: Mapping[str, Iterable[str]]
    addresses: Mapping[str, Iterable[str]]

    def passes(self, sender: str, receiver: str, probe: Probe) -> bool:
        """Whether a first packet gets from one port to another."""
        return self.refusal(sender, receiver, probe) is None

    def refusal(self, sender: str, receiver: str, probe: Probe) -> tuple[str, str] | None:
        """At which port a first packet is refused, and why, by the name that counters have for it; None: it passes."""
        for port, direction, other, reason in (
            (sender, pb.DIRECTION_EGRESS, probe.target, "SG_EGRESS"),
            (receiver, pb.DIRECTION_INGRESS, probe.source, "SG_INGRESS"),
        ):
            groups = self._groups_of(port)
            stateless = {group for group in groups or () if not self.groups[group].stateful}
            # What is not tracked is not asked what it begins: what no group filters, and what stateless groups allow.
            tracked = groups is not None and (not groups or groups != stateless)
            if tracked and not begins(probe) and not self._says(stateless, direction, probe, other):
                return port, "CT_INVALID"
            if not self._allows(port, direction, probe, other):
                return port, reason
        return None

    def may_send(self, port: str, probe: Probe) -> bool:
        return self._allows(port, pb.DIRECTION_EGRESS, probe, probe.target)

    def may_receive(self, port: str, probe: Probe) -> bool:
        return self._allows(port, pb.DIRECTION_INGRESS, probe, probe.source)

    def lives(self, sender: str, receiver: str, probe: Probe) -> bool:
        """Whether what answers a first packet passes where both ends track: by the rules that allow what it answers; of SCTP
        also as a packet of its own."""
        back = answer(probe)
        own = probe.protocol == SCTP
        return (self.may_send(sender, probe) or (own and self.may_receive(sender, back))) and (
            self.may_receive(receiver, probe) or (own and self.may_send(receiver, back))
        )

    def _groups_of(self, port_id: str) -> set[str] | None:
        """None: the port is not filtered."""
        port = self.ports[port_id]
        if not port.filtered or not port.port_security_enabled:
            return None
        return {group for group in port.security_group_ids if group in self.groups}

    def _allows(self, port_id: str, direction: int, probe: Probe, other: str) -> bool:
        groups = self._groups_of(port_id)
        if groups is None or any(self.groups[group].mode == pb.SECURITY_GROUP_MODE_OBSERVE for group in groups):
            return True
        return self._says(groups, direction, probe, other)

    def _says(self, groups: Set[str], direction: int, probe: Probe, other: str) -> bool:
        """Whether a rule of these groups allows it."""
        return any(
            rule.security_group_id in groups
            and rule.direction == direction
            and rule.ethertype == probe.version
            and self._is_other_side(rule, other)
            and _is_packet(rule, probe)
            for rule in self.rules
        )

    def _is_other_side(self, rule: pb.SecurityGroupRule, other: str) -> bool:
        if rule.remote_group_id:
            return any(is_within(other, place) for place in self.members.get(rule.remote_group_id, ()))
        if rule.remote_address_group_id:
            return any(is_within(other, place) for place in self.addresses.get(rule.remote_address_group_id, ()))
        return not rule.remote_ip_prefix or is_within(other, rule.remote_ip_prefix)


def _is_packet(rule: pb.SecurityGroupRule, probe: Probe) -> bool:
    if not rule.protocol:
        return True
    if probe.protocol != (NAMES[rule.protocol] if rule.protocol in NAMES else int(rule.protocol)):
        return False
    if probe.protocol in (ICMP, ICMPV6):
        kind, code = probe.ports
        return (not rule.HasField("port_range_min") or kind == rule.port_range_min) and (
            not rule.HasField("port_range_max") or code == rule.port_range_max
        )
    if not rule.HasField("port_range_min"):
        return True
    return rule.port_range_min <= probe.ports[1] <= rule.port_range_max
