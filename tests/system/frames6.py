"""IPv6 frames made and taken apart by hand (RFC 8200, 4861, 3315), beside those of frames.py."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

from tests.system.frames import checksum, ethernet, mac_bytes, tunnelled

NO_ADDRESS = "::"
ALL_NODES, ALL_ROUTERS, MLD_ROUTERS, DHCP_SERVERS = "ff02::1", "ff02::2", "ff02::16", "ff02::1:2"
ECHO, ECHO_REPLY = 128, 129
RS, RA, NS, NA, REDIRECT, MLD = 133, 134, 135, 136, 137, 143
DISCOVERY = frozenset({RS, RA, NS, NA, REDIRECT})
SOURCE, TARGET = 1, 2  # options
ICMP, UDP = 58, 17
ETHERTYPE = 0x86DD


def ip_bytes(ip: str) -> bytes:
    return IPv6Address(ip).packed


def solicited_node(ip: str) -> str:
    """The group of an address that solicitations for it go to."""
    return str(IPv6Address(ip_bytes("ff02::1:ff00:0")[:13] + ip_bytes(ip)[13:]))


def group_mac(ip: str) -> str:
    return "33:33:" + ip_bytes(ip)[12:].hex(":")


def packet(source: str, target: str, sender: str, receiver: str, protocol: int, payload: bytes, hops: int = 255) -> bytes:
    """A frame whose payload has its checksum at the place where ICMPv6 (2) or UDP (6) has it."""
    at = 2 if protocol == ICMP else 6
    pseudo = ip_bytes(sender) + ip_bytes(receiver) + struct.pack("!IxxxB", len(payload), protocol)
    payload = payload[:at] + struct.pack("!H", checksum(pseudo + payload)) + payload[at + 2 :]
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + ip_bytes(sender) + ip_bytes(receiver)
    return ethernet(source, target, ETHERTYPE, head + payload)


def icmp(source: str, target: str, sender: str, receiver: str, kind: int, body: bytes) -> bytes:
    return packet(source, target, sender, receiver, ICMP, struct.pack("!BBH", kind, 0, 0) + body)


def option(kind: int, mac: str | None) -> bytes:
    return b"" if mac is None else bytes([kind, 1]) + mac_bytes(mac)


def solicit(source: str, sender: str, asked: str, link_layer: str | None = None) -> bytes:
    """A neighbour solicitation; link_layer: what the option says, which is left out when it is None."""
    group = solicited_node(asked)
    return icmp(source, group_mac(group), sender, group, NS, bytes(4) + ip_bytes(asked) + option(SOURCE, link_layer))


def advertise(
    source: str, sender: str, told: str, link_layer: str | None, target: str = "", receiver: str = ALL_NODES
) -> bytes:
    """A neighbour advertisement with the override flag."""
    body = bytes([0x20, 0, 0, 0]) + ip_bytes(told) + option(TARGET, link_layer)
    return icmp(source, target or group_mac(receiver), sender, receiver, NA, body)


def router_solicit(source: str, sender: str) -> bytes:
    return icmp(source, group_mac(ALL_ROUTERS), sender, ALL_ROUTERS, RS, bytes(4))


def router_advertise(source: str, sender: str, marker: bytes) -> bytes:
    """A default router; the marker is in an option of a kind that nobody knows."""
    unknown = bytes([253, 3]) + marker + bytes(6)
    return icmp(source, group_mac(ALL_NODES), sender, ALL_NODES, RA, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + unknown)


def echo(source: str, target: str, sender: str, receiver: str, marker: bytes, kind: int = ECHO) -> bytes:
    return icmp(source, target, sender, receiver, kind, struct.pack("!HH", 0x4B55, 1) + marker)


def silent(source: str, target: str, sender: str, receiver: str, marker: bytes) -> bytes:
    """Something that may begin a connection, and that no kernel answers: no next header (RFC 8200, 4.7)."""
    head = struct.pack("!IHBB", 6 << 28, len(marker), 59, 255) + ip_bytes(sender) + ip_bytes(receiver)
    return ethernet(source, target, ETHERTYPE, head + marker)


def udp(source: str, target: str, sender: str, receiver: str, ports: tuple[int, int], payload: bytes) -> bytes:
    return packet(source, target, sender, receiver, UDP, struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload)


def expect_advertisement(told: str, mac: str) -> list[tuple[int, str]]:
    """What guest.py is to look for: the answer (solicited, override) about `told` that names `mac`."""
    return [(12, "86dd"), (54, "8800"), (58, "60000000"), (62, ip_bytes(told).hex()), (78, "0201" + mac_bytes(mac).hex())]


def expect_echo(marker: bytes) -> list[tuple[int, str]]:
    return [(12, "86dd"), (54, "81"), (62, marker.hex())]


def icmp_kind(frame: bytes) -> int:
    """Type of an ICMPv6 message without extension headers, 0 when it is none."""
    return frame[54] if frame[12:14] == b"\x86\xdd" and frame[20] == ICMP else 0


def stays_on_its_host(frame: bytes) -> bool:
    """Whether it is of router discovery or DHCPv6, or of neighbour discovery and for more than one."""
    kind = icmp_kind(frame)
    if kind in DISCOVERY:
        return kind not in (NS, NA) or bool(frame[0] & 1)
    if frame[12:14] != b"\x86\xdd" or frame[20] != UDP:
        return False
    return bool({546, 547} & set(struct.unpack("!HH", frame[54:58])))


def discovery_across(capture: Path) -> list[str]:
    """Frames of a capture of tunnels that should have stayed on their host."""
    return [found.inner.hex() for found in tunnelled(capture) if stays_on_its_host(found.inner)]


@dataclass(frozen=True, slots=True)
class Advertisement:
    """A router advertisement. prefixes: prefix → whether it is on the link, and for addresses by SLAAC."""

    managed: bool
    other: bool
    router_lifetime: int
    mtu: int
    prefixes: dict[str, tuple[bool, bool]]
    servers: tuple[str, ...]


def advertisement(frame: bytes) -> Advertisement:
    """A frame, taken apart."""
    flags, lifetime = frame[59], struct.unpack("!H", frame[60:62])[0]
    end, at = 54 + struct.unpack("!H", frame[18:20])[0], 70
    mtu, prefixes, servers = 0, {}, []
    while at < end:
        kind, length = frame[at], frame[at + 1] * 8
        data = frame[at : at + length]
        if kind == 3:
            prefixes[f"{IPv6Address(data[16:32])}/{data[2]}"] = (bool(data[3] & 0x80), bool(data[3] & 0x40))
        elif kind == 5:
            mtu = struct.unpack("!I", data[4:8])[0]
        elif kind == 25:
            servers = [str(IPv6Address(data[start : start + 16])) for start in range(8, length, 16)]
        at += length
    return Advertisement(bool(flags & 0x80), bool(flags & 0x40), lifetime, mtu, prefixes, tuple(servers))
