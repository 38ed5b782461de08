"""The pipeline in words: a line for each table, reason and kind of cookie. Nothing else here knows them one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from agent.model import text
from agent.model.evaluate import CT_MARK
from agent.model.flow import FIELD_BITS, FieldMatch
from agent.model.pipeline import SOURCE, TARGET, USUAL, CookieKind, Reason, Table
from agent.model.wire import ICMP, ICMPV6, SCTP, TCP, UDP
from kumihimo.v1 import inspect_pb2 as pb

# What a table is for.
STAGES: Mapping[Table, str] = {
    Table.CLASSIFY: "where it comes from",
    Table.PORT_SECURITY: "anti-spoofing",
    Table.ND_GUARD: "anti-spoofing of neighbour discovery",
    Table.EGRESS_TRACK: "security groups of the sender",
    Table.EGRESS_STATE: "connection at the sender",
    Table.POLICY: "security groups of the port",
    Table.EGRESS_DECIDE: "verdict of the sender's groups",
    Table.GROUP: "rules of a group",
    Table.MEMBERS: "members of a group",
    Table.RULES: "rule",
    Table.EGRESS_STATELESS: "verdict of the sender's stateless groups",
    Table.EGRESS_KNOWN: "what the sender's groups let go on",
    Table.SERVICES: "services of the host",
    Table.ARP_REPLY: "answer to ARP",
    Table.ND_TARGET: "to whom neighbour discovery asks about",
    Table.NEIGHBOURS: "IPv4 neighbours",
    Table.NEIGHBOURS_6: "IPv6 neighbours",
    Table.FROM_PROVIDER: "from a physical network",
    Table.L2: "where it goes",
    Table.INGRESS: "security groups of the receiver",
    Table.INGRESS_STATE: "connection at the receiver",
    Table.INGRESS_DECIDE: "verdict of the receiver's groups",
    Table.INGRESS_STATELESS: "verdict of the receiver's stateless groups",
    Table.INGRESS_KNOWN: "what the receiver's groups let go on",
    Table.LOCAL: "to a workload",
    Table.NODE: "to another node",
    Table.PROVIDER: "to a physical network",
    Table.VXLAN: "by VXLAN",
    Table.GENEVE: "by Geneve",
    Table.GRE: "by GRE",
    Table.DROP: "drops",
    Table.MARKER: "marker of the agent",
}

# Why a packet is dropped: a clause that goes on from "it was dropped: ".
WHY: Mapping[Reason, str] = {
    Reason.UNKNOWN_SOURCE: "nothing is known of the interface that it came by",
    Reason.SPOOFED_MAC: "it does not bear the MAC of the port (anti-spoofing)",
    Reason.SPOOFED_IP: "the port has no such source address, nor an allowed pair of it (anti-spoofing)",
    Reason.SPOOFED_ARP: "its ARP claims an address or MAC that is not the port's (anti-spoofing)",
    Reason.DHCP_SERVER: "workloads may not be DHCP servers",
    Reason.PROTOCOL: "it is neither IP nor ARP",
    Reason.IPV6: "it is IPv6, and the port has no IPv6 address",
    Reason.ADMIN_DOWN: "the port or its network is switched off (admin_state_up is false)",
    Reason.ARP_UNKNOWN: "its ARP asks for an address that nobody on the network has",
    Reason.ARP_OWN: "its ARP asks for its own address",
    Reason.UNKNOWN_UNICAST: "nobody on the network has the MAC that it goes to",
    Reason.BACK_TO_SENDER: "it would go back to its sender",
    Reason.SPLIT_HORIZON: "what came from elsewhere does not leave the node again",
    Reason.NO_TUNNEL: "no tunnel leads to the receiver's node",
    Reason.NO_PORT: "the receiver's port is not on the node",
    Reason.SPOOFED_IPV6: "the port has no such IPv6 source address, nor an allowed pair of it (anti-spoofing)",
    Reason.SPOOFED_ND: "its neighbour discovery claims an address or MAC that is not the port's (anti-spoofing)",
    Reason.RA_SERVER: "workloads may not advertise routers",
    Reason.DHCPV6_SERVER: "workloads may not be DHCPv6 servers",
    Reason.ND_UNKNOWN: "its neighbour discovery asks for an address that nobody on the network has",
    Reason.ND_OWN: "its neighbour discovery asks for its own address",
    Reason.VLAN_TAG: "it bears a VLAN tag, which workloads may not send",
    Reason.SG_EGRESS: "no rule of the sender's security groups allows it",
    Reason.SG_INGRESS: "no rule of the receiver's security groups allows it",
    Reason.CT_INVALID: "it belongs to no connection, and none can begin with it",
    Reason.OBSERVED: "no rule allows it, and a security group that only observes lets it pass",
    Reason.FRAGMENT: "it is a fragment that is too small, or lies over another one, or whose packet belongs to no connection",
}
# Because no rule of a port allows it, and in which register that port is.
BY_GROUPS: Mapping[int, str] = {Reason.SG_EGRESS: SOURCE, Reason.SG_INGRESS: TARGET}
# Counted like a drop, and none.
PASSES = frozenset({Reason.OBSERVED})
WITHOUT_REASON = "no flow takes it any further"

# The kind of resource behind a cookie.
KINDS: Mapping[CookieKind, str] = {
    CookieKind.BASE: "",
    CookieKind.NODE: "Node",
    CookieKind.NETWORK: "Network",
    CookieKind.PORT: "Port",
    CookieKind.MARKER: "",
    CookieKind.GROUP: "SecurityGroup",
    CookieKind.RULE: "SecurityGroupRule",
}

# What holds for every port and is asked for by nobody.
DEFAULTS = (
    "ARP is answered by the host for every address of the network, neighbour discovery led to its owner alone; others are"
    " asked for nowhere",
    "DHCP, DHCPv6 and router solicitations go to the network's own service on the host and to nobody else",
    "DNS and echo requests to the service address of the network are answered on the host",
    "ARP, neighbour discovery, MLD and IGMP pass security groups, and so do answers of the network's own service",
    "frames with a VLAN tag are dropped",
)

_PROTOCOLS = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", ICMPV6: "ICMPv6", SCTP: "SCTP"}
_VERSIONS = {0x0806: "ARP", 0x0800: "IPv4", 0x86DD: "IPv6"}
# By field, in the order in which they are told.
_FIELDS = {
    "ip_src": "from",
    "ipv6_src": "from",
    "ip_dst": "to",
    "ipv6_dst": "to",
    "arp_op": "of operation",
    "arp_spa": "that says",
    "arp_sha": "with MAC",
    "arp_tpa": "that asks for",
    "icmp_type": "of type",
    "icmpv6_type": "of type",
    "icmp_code": "of code",
    "icmpv6_code": "of code",
    "nd_target": "about",
    "nd_sll": "with link-layer address",
    "nd_tll": "with link-layer address",
    "tcp_src": "from port",
    "udp_src": "from port",
    "tcp_dst": "to port",
    "udp_dst": "to port",
    "eth_src": "from MAC",
    "eth_dst": "to MAC",
}
_ORDER = {name: number for number, name in enumerate(_FIELDS)}
# Where a packet is in the pipeline, and what is said by the words before.
_ASIDE = ("eth_type", "ip_proto", "metadata", "in_port", "reg", "ct_")


def stage(table: int) -> str:
    """What a table is for."""
    return STAGES.get(Table(table), Table(table).name) if table in set(Table) else f"table {table}"


def why(reason: int) -> tuple[str, str]:
    """A drop reason's name, and what it means."""
    if reason not in set(Reason):
        return "", WITHOUT_REASON
    known = Reason(reason)
    return known.name, WHY.get(known, known.name)


def drops(lost: Mapping[int, int]) -> Iterator[pb.PortDrop]:
    """What was dropped, by reason; the most first."""
    for reason, count in sorted(lost.items(), key=lambda item: -item[1]):
        name, message = why(reason)
        if count:
            yield pb.PortDrop(reason=name, message=message, packets=count, usual=reason in USUAL)


def packets(matched: Iterable[FieldMatch]) -> str:
    """Which packets a flow takes, in words."""
    fields = {name: (value, mask) for name, value, mask in matched}
    protocol = fields.get("ip_proto", (0, None))[0]
    version = fields.get("eth_type", (0, None))[0]
    said = [_PROTOCOLS.get(protocol, f"IP protocol {protocol}") if protocol else _VERSIONS.get(version, "any frame")]
    if CT_MARK in fields:
        said.append("of a connection that is allowed")
    if SOURCE in fields and TARGET in fields:
        said.append("of its own")
    for name in sorted(fields, key=lambda name: _ORDER.get(name, len(_ORDER))):
        value, mask = fields[name]
        if not name.startswith(_ASIDE):
            said.append(f"{_FIELDS.get(name, name.replace('_', ' '))} {_shown(name, value, mask)}")
    return " ".join(said)


def _shown(name: str, value: int, mask: int | None) -> str:
    """A value; of a prefix with its length."""
    if mask is None or FIELD_BITS[name] not in (32, 128):
        return text.shown(name, value, mask) if FIELD_BITS.get(name, 0) > 16 else str(value)
    return f"{text.shown(name, value, None)}/{mask.bit_count()}"
