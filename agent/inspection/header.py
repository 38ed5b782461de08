"""The headers of a frame, as far as its first bytes tell them. Never fails: a guest may have sent anything."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from agent.model.wire import ADVERTISE, ETH_ARP, ETH_IPV4, ETH_IPV6, ICMP, ICMPV6, SCTP, SOLICIT, TCP, UDP
from kumihimo.v1 import inspect_pb2 as pb

_TAGS = (0x8100, 0x88A8)
# Headers of IPv6 that have their length in bytes 1 (RFC 8200): hop-by-hop, routing, destination options; and that of fragments.
_EXTENSIONS, _FRAGMENT = (0, 43, 60), 44
_OFFSET = 0x1FFF


def read(data: bytes) -> pb.Packet:
    """The packet. What does not stand in the first bytes is left out."""
    packet = pb.Packet(eth_dst=data[:6].hex(":"), eth_src=data[6:12].hex(":"))
    kind, rest = _number(data, 12), data[14:]
    if kind in _TAGS:
        packet.vlan_id, kind, rest = _number(rest, 0) & 0xFFF, _number(rest, 2), rest[4:]
    packet.eth_type = kind
    if kind == ETH_ARP and len(rest) >= 28:
        packet.arp_op = _number(rest, 6)
        packet.ip_src, packet.ip_dst = str(IPv4Address(rest[14:18])), str(IPv4Address(rest[24:28]))
    elif kind == ETH_IPV4 and len(rest) >= 20:
        packet.protocol = rest[9]
        packet.ip_src, packet.ip_dst = str(IPv4Address(rest[12:16])), str(IPv4Address(rest[16:20]))
        if not _number(rest, 6) & _OFFSET:  # a later fragment has no ports
            _read_upper(packet, rest[4 * (rest[0] & 0xF) :])
    elif kind == ETH_IPV6 and len(rest) >= 40:
        packet.ip_src, packet.ip_dst = str(IPv6Address(rest[8:24])), str(IPv6Address(rest[24:40]))
        _read_extensions(packet, rest[6], rest[40:])
    return packet


def _read_extensions(packet: pb.Packet, following: int, rest: bytes) -> None:
    while len(rest) >= 8 and following in (*_EXTENSIONS, _FRAGMENT):
        if following == _FRAGMENT and _number(rest, 2) >> 3:
            packet.protocol = rest[0]
            return
        length = 8 if following == _FRAGMENT else 8 + 8 * rest[1]
        following, rest = rest[0], rest[length:]
    packet.protocol = following
    _read_upper(packet, rest)


def _read_upper(packet: pb.Packet, rest: bytes) -> None:
    if len(rest) < 4:
        return
    if packet.protocol in (TCP, UDP, SCTP):
        packet.source_port, packet.destination_port = _number(rest, 0), _number(rest, 2)
    elif packet.protocol in (ICMP, ICMPV6):
        packet.icmp_type, packet.icmp_code = rest[0], rest[1]
        neighbour = packet.protocol == ICMPV6 and packet.icmp_type in (SOLICIT, ADVERTISE)
        if neighbour and len(rest) >= 24:
            packet.nd_target = str(IPv6Address(rest[8:24]))


def _number(data: bytes, offset: int) -> int:
    """16 bits; 0 beyond the end."""
    return int.from_bytes(data[offset : offset + 2], "big")
