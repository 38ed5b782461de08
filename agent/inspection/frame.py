"""A packet as bytes, out of the fields of flows: what a probe sends. IPv4 and IPv6, with checksums (RFC 791, 1071, 8200)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from agent.inspection.packet import TTL
from agent.model.wire import ETH_IPV4, ETH_IPV6, ICMP, ICMPV6, TAGGED, TCP, UDP

PAYLOAD = b"kumihimo probe"
SHORTEST = 60  # bytes of a frame
SYN = 0x02
_DONT_FRAGMENT = 0x4000


def frame(fields: Mapping[str, int]) -> bytes:
    """The frame. ValueError: such a packet is not made here."""
    version = fields["eth_type"]
    if version not in (ETH_IPV4, ETH_IPV6):
        raise ValueError("a probe is a packet of IPv4 or IPv6")
    protocol = fields["ip_proto"]
    tag = struct.pack("!HH", 0x8100, fields["vlan_vid"] & ~TAGGED) if "vlan_vid" in fields else b""
    head = _mac(fields["eth_dst"]) + _mac(fields["eth_src"]) + tag + struct.pack("!H", version)
    if version == ETH_IPV4:
        ends = fields["ip_src"].to_bytes(4, "big") + fields["ip_dst"].to_bytes(4, "big")
        body = _upper(fields, protocol, ends, PAYLOAD)
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, _DONT_FRAGMENT, TTL, protocol, 0) + ends
        packet = packet[:10] + struct.pack("!H", checksum(packet)) + packet[12:] + body
    else:
        ends = fields["ipv6_src"].to_bytes(16, "big") + fields["ipv6_dst"].to_bytes(16, "big")
        body = _upper(fields, protocol, ends, PAYLOAD)
        packet = struct.pack("!IHBB", 6 << 28, len(body), protocol, TTL) + ends + body
    return (head + packet).ljust(SHORTEST, b"\0")


def _upper(fields: Mapping[str, int], protocol: int, ends: bytes, payload: bytes) -> bytes:
    """What is behind the IP header."""
    if protocol == TCP:
        ports = struct.pack("!HH", fields["tcp_src"], fields["tcp_dst"])
        body, at = ports + struct.pack("!IIBBHHH", 1, 0, 5 << 4, SYN, 1024, 0, 0), 16
    elif protocol == UDP:
        body, at = struct.pack("!HHHH", fields["udp_src"], fields["udp_dst"], 8 + len(payload), 0) + payload, 6
    elif protocol in (ICMP, ICMPV6):
        name = "icmp" if protocol == ICMP else "icmpv6"
        body, at = struct.pack("!BBHHH", fields[f"{name}_type"], fields[f"{name}_code"], 0, 0x4B55, 1) + payload, 2
    else:
        return payload
    # ICMP of IPv4 alone is summed without the ends.
    pseudo = b"" if protocol == ICMP else ends + struct.pack("!II", len(body), protocol)
    return body[:at] + struct.pack("!H", checksum(pseudo + body) or 0xFFFF) + body[at + 2 :]


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def _mac(number: int) -> bytes:
    return number.to_bytes(6, "big")
