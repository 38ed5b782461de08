"""A packet as somebody describes it, in the fields of flows and in the words of `ofproto/trace`."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from agent.model import text
from agent.model.flow import CT_ESTABLISHED, CT_INVALID, CT_NEW, CT_RELATED, CT_REPLY, CT_TRACKED
from agent.model.wire import ETH_ARP, ETH_IPV4, ETH_IPV6, ICMP, ICMPV6, SOLICIT, TAGGED, WITH_PORTS
from kumihimo.v1 import inspect_pb2 as pb

TTL = 64
_STATES = (
    *((CT_NEW, "new"), (CT_ESTABLISHED, "est"), (CT_RELATED, "rel")),
    *((CT_REPLY, "rpl"), (CT_INVALID, "inv"), (CT_TRACKED, "trk")),
)
# The switch takes a field only behind those that it needs.
_FIRST = ("in_port", "vlan_vid", "eth_type", "ip_proto", "icmpv6_type", "icmpv6_code", "ct_state", "ct_nw_proto")
_NAMES = {"ip_ttl": "nw_ttl"}  # that of ofproto/trace


def fields_of(packet: pb.Packet) -> dict[str, int]:
    """The fields of flows (agent/model/flow.py). ValueError: an address or MAC is none."""
    found = {"eth_src": _mac(packet.eth_src), "eth_dst": _mac(packet.eth_dst), "eth_type": packet.eth_type}
    if packet.HasField("vlan_id"):
        found["vlan_vid"] = TAGGED | packet.vlan_id
    if packet.eth_type == ETH_ARP:
        found |= {"arp_op": packet.arp_op, "arp_sha": _mac(packet.eth_src), "arp_tha": 0}
        found |= {"arp_spa": _address(packet.ip_src, 4), "arp_tpa": _address(packet.ip_dst, 4)}
    elif packet.eth_type == ETH_IPV4:
        found |= {"ip_src": _address(packet.ip_src, 4), "ip_dst": _address(packet.ip_dst, 4)}
    elif packet.eth_type == ETH_IPV6:
        found |= {"ipv6_src": _address(packet.ip_src, 6), "ipv6_dst": _address(packet.ip_dst, 6)}
    if packet.eth_type in (ETH_IPV4, ETH_IPV6):
        found |= {"ip_proto": packet.protocol, "ip_ttl": TTL} | _upper(packet)
    return found


def _upper(packet: pb.Packet) -> dict[str, int]:
    if name := WITH_PORTS.get(packet.protocol):
        return {f"{name}_src": packet.source_port, f"{name}_dst": packet.destination_port}
    if packet.protocol == ICMP and packet.eth_type == ETH_IPV4:
        return {"icmp_type": packet.icmp_type, "icmp_code": packet.icmp_code}
    if packet.protocol != ICMPV6 or packet.eth_type != ETH_IPV6:
        return {}
    found = {"icmpv6_type": packet.icmp_type, "icmpv6_code": packet.icmp_code}
    if packet.icmp_type == SOLICIT:
        found |= {"nd_target": _address(packet.nd_target, 6), "nd_sll": _mac(packet.eth_src)}
    return found


def flow_of(fields: Mapping[str, int]) -> str:
    """The packet as an argument of `ofproto/trace`."""
    ordered = sorted(fields, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    return ",".join(f"{_NAMES.get(name, name)}={_shown(name, fields[name])}" for name in ordered)


def state_of(bits: int, separator: str = "|") -> str:
    """ct_state by names."""
    return separator.join(name for bit, name in _STATES if bits & bit)


def _shown(name: str, value: int) -> str:
    return state_of(value) if name == "ct_state" else text.shown(name, value, None)


def _mac(given: str) -> int:
    digits = given.replace(":", "")
    if given and len(digits) != 12:
        raise ValueError(f"{given} is no MAC")
    return int(digits or "0", 16)


def _address(given: str, version: int) -> int:
    address = ip_address(given)
    if address.version != version:
        raise ValueError(f"{given} is no address of IPv{version}")
    return int(address)


# Types of ICMP that begin something for connection tracking, in this field and of this code alone.
_BEGINNING = {"icmp_type": (8, 13, 15), "icmpv6_type": (128,)}


def begins(fields: Mapping[str, int]) -> bool:
    """Whether connection tracking takes a packet for the first of a connection: all but most of ICMP."""
    return all(
        fields[name] in kinds and not fields.get(name.replace("type", "code"))
        for name, kinds in _BEGINNING.items()
        if name in fields
    )


_SWAPPED = {"eth_src": "eth_dst", "ip_src": "ip_dst", "ipv6_src": "ipv6_dst"}
_SWAPPED |= {f"{name}_src": f"{name}_dst" for name in WITH_PORTS.values()}
_ASKED = {("icmp_type", 0): 8, ("icmp_type", 14): 13, ("icmp_type", 16): 15, ("icmpv6_type", 129): 128}


def answered(fields: Mapping[str, int]) -> dict[str, int]:
    """The packet that one answers."""
    found = dict(fields)
    for one, other in _SWAPPED.items():
        if one in fields:
            found[one], found[other] = fields[other], fields[one]
    for (name, reply), request in _ASKED.items():
        if fields.get(name) == reply:
            found[name] = request
    return found
