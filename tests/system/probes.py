"""Packets of `tests.policymodel` as frames: the first of a connection, and its answer."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from tests.policymodel import Probe
from tests.system.frames import checksum, ethernet
from tests.system.frames6 import ETHERTYPE

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
SYN, SYN_ACK = 0x02, 0x12
FIRST, SECOND = 1000, 5000  # sequence numbers with which the two ends of a TCP connection begin
ANSWERS = {(ICMP, 8): 0, (ICMP, 13): 14, (ICMPV6, 128): 129}


def is_answered(probe: Probe) -> bool:
    """Whether something answers such a packet and is known as its answer."""
    return probe.protocol in (TCP, UDP) or (probe.protocol, probe.ports[0]) in ANSWERS


def answer(probe: Probe) -> Probe:
    """What answers it."""
    if probe.protocol in (ICMP, ICMPV6):
        return Probe(probe.target, probe.source, probe.protocol, (ANSWERS[probe.protocol, probe.ports[0]], 0))
    return Probe(probe.target, probe.source, probe.protocol, probe.ports[::-1])


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
    if at is not None:
        total = checksum(body if probe.protocol == ICMP else pseudo + body)
        body = body[:at] + struct.pack("!H", total or 0xFFFF) + body[at + 2 :]
    if probe.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(body), probe.protocol, 64) + ends[0] + ends[1]
        return ethernet(source, target, ETHERTYPE, head + body)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, probe.protocol, 0) + ends[0] + ends[1]
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return ethernet(source, target, 0x0800, head + body)


def _body(probe: Probe, marker: bytes, flags: int) -> bytes:
    """Without its checksum."""
    if probe.protocol == TCP:
        numbers = (FIRST, 0) if flags == SYN else (SECOND, FIRST + 1 + len(marker))
        return struct.pack("!HHIIBBHHH", *probe.ports, *numbers, 0x50, flags, 8192, 0, 0) + marker
    if probe.protocol == UDP:
        return struct.pack("!HHHH", *probe.ports, 8 + len(marker), 0) + marker
    if probe.protocol in (ICMP, ICMPV6):
        kind, code = probe.ports
        return struct.pack("!BBHHH", kind, code, 0, 0x4B55, 1) + marker
    return marker
