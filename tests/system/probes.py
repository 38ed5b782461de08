"""Packets of `tests.policymodel` as frames: the first of a connection, and its answer."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from tests.policymodel import ICMP, ICMPV6, SCTP, TCP, UDP, Probe
from tests.system.frames import checksum, ethernet
from tests.system.frames6 import ETHERTYPE

SYN, SYN_ACK = 0x02, 0x12
FIRST, SECOND = 1000, 5000  # sequence numbers with which the two ends of a TCP connection begin
# Chunks of SCTP with which a connection begins (RFC 9260), and the polynomial of CRC32c, which sums it.
INIT, INIT_ACK, UNKNOWN = 1, 2, 0x8000
CASTAGNOLI = 0x82F63B78


def frame(source: str, target: str, probe: Probe, marker: bytes, flags: int = SYN) -> bytes:
    """A whole frame between two MACs that carries the marker."""
    ends = ip_address(probe.source).packed, ip_address(probe.target).packed
    body = _body(probe, marker, flags)
    pseudo = b"".join(ends)
    if probe.version == 6:
        pseudo += struct.pack("!IxxxB", len(body), probe.protocol)
    else:
        pseudo += struct.pack("!xBH", probe.protocol, len(body))
    at = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}.get(probe.protocol)
    if probe.protocol == SCTP:
        body = body[:8] + struct.pack("<I", crc32c(body)) + body[12:]
    elif at is not None:
        total = checksum(body if probe.protocol == ICMP else pseudo + body)
        body = body[:at] + struct.pack("!H", total or 0xFFFF) + body[at + 2 :]
    if probe.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(body), probe.protocol, 64) + ends[0] + ends[1]
        return ethernet(source, target, ETHERTYPE, head + body)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, probe.protocol, 0) + ends[0] + ends[1]
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return ethernet(source, target, 0x0800, head + body)


def crc32c(data: bytes) -> int:
    """RFC 9260, appendix A."""
    found = 0xFFFFFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (CASTAGNOLI if found & 1 else 0)
    return found ^ 0xFFFFFFFF


def _body(probe: Probe, marker: bytes, flags: int) -> bytes:
    """Without its checksum."""
    if probe.protocol == TCP:
        numbers = (FIRST, 0) if flags == SYN else (SECOND, FIRST + 1 + len(marker))
        return struct.pack("!HHIIBBHHH", *probe.ports, *numbers, 0x50, flags, 8192, 0, 0) + marker
    if probe.protocol == UDP:
        return struct.pack("!HHHH", *probe.ports, 8 + len(marker), 0) + marker
    if probe.protocol == SCTP:
        # What carries the marker is a parameter that nobody knows and everybody skips.
        kind, tag = (INIT, 0) if flags == SYN else (INIT_ACK, FIRST)
        begun = struct.pack("!IIHHI", FIRST, 8192, 1, 1, FIRST) + struct.pack("!HH", UNKNOWN, 4 + len(marker)) + marker
        return struct.pack("!HHII", *probe.ports, tag, 0) + struct.pack("!BBH", kind, 0, 4 + len(begun)) + begun
    if probe.protocol in (ICMP, ICMPV6):
        kind, code = probe.ports
        return struct.pack("!BBHHH", kind, code, 0, 0x4B55, 1) + marker
    return marker
