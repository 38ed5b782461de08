"""Frames made and taken apart by hand, so that a test may send what no kernel would."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

BROADCAST = "ff:ff:ff:ff:ff:ff"
NOBODY = "00:00:00:00:00:00"
UNSET = str(IPv4Address(0))
ARP_REQUEST, ARP_REPLY = 1, 2
VXLAN, GENEVE = 4789, 6081
UDP, GRE = 17, 47
ECHO, ECHO_REPLY, INFORMATION = 8, 0, 15


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ip_bytes(ip: str) -> bytes:
    return IPv4Address(ip).packed


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(source: str, target: str, kind: int, payload: bytes) -> bytes:
    return (mac_bytes(target) + mac_bytes(source) + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def arp(
    source: str,
    sender_ip: str,
    target_ip: str,
    *,
    op: int = ARP_REQUEST,
    target: str = BROADCAST,
    sender_mac: str | None = None,
    target_mac: str = NOBODY,
) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, op) + mac_bytes(sender_mac or source) + ip_bytes(sender_ip)
    return ethernet(source, target, 0x0806, body + mac_bytes(target_mac) + ip_bytes(target_ip))


def ipv4(source: str, target: str, sender_ip: str, target_ip: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0)
    head += ip_bytes(sender_ip) + ip_bytes(target_ip)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return ethernet(source, target, 0x0800, head + payload)


def echo(source: str, target: str, sender_ip: str, target_ip: str, marker: bytes, kind: int = ECHO) -> bytes:
    """An ICMP echo request that carries `marker`, and brings it back in the reply; or such a reply, which nobody answers."""
    body = struct.pack("!BBHHH", kind, 0, 0, 0x4B55, 1) + marker
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    return ipv4(source, target, sender_ip, target_ip, 1, body)


def silent(source: str, target: str, sender_ip: str, target_ip: str, marker: bytes) -> bytes:
    """Something that may begin a connection, and that no kernel answers (RFC 6918, 2.3)."""
    return echo(source, target, sender_ip, target_ip, marker, INFORMATION)


def udp(source: str, target: str, sender_ip: str, target_ip: str, ports: tuple[int, int], payload: bytes) -> bytes:
    body = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload  # no checksum
    return ipv4(source, target, sender_ip, target_ip, 17, body)


def ipv6(source: str, target: str, payload: bytes) -> bytes:
    head = (
        struct.pack("!IHBB", 6 << 28, len(payload), 59, 64)
        + bytes.fromhex("fe80" + "0" * 28)
        + bytes.fromhex("ff02" + "0" * 28)
    )
    return ethernet(source, target, 0x86DD, head + payload)


def expect_echo(marker: bytes) -> list[tuple[int, str]]:
    """What guest.py is to look for: the reply to `echo`."""
    return [(12, "0800"), (34, "00"), (42, marker.hex())]


def expect_arp(ip: str) -> list[tuple[int, str]]:
    """The same: an ARP answer about `ip`."""
    return [(12, "0806"), (20, "0002"), (28, ip_bytes(ip).hex())]


def is_arp_request(frame: bytes) -> bool:
    return frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x01"


def dhcp_ports(frame: bytes) -> bool:
    """Whether it goes from or to a port of DHCP."""
    if frame[12:14] != b"\x08\x00" or frame[23] != 17:
        return False
    at = 14 + (frame[14] & 15) * 4
    return bool({67, 68} & set(struct.unpack("!HH", frame[at : at + 4])))


def dhcp_kind(frame: bytes) -> int:
    """Option 53 of a DHCP message (RFC 2132: 3 is REQUEST, 5 is ACK), 0 when it is none."""
    if not dhcp_ports(frame):
        return 0
    at = 14 + (frame[14] & 15) * 4 + 8 + 240
    while at + 1 < len(frame) and frame[at] != 255:
        if frame[at] == 53:
            return frame[at + 2]
        at += 1 if frame[at] == 0 else 2 + frame[at + 1]
    return 0


@dataclass(frozen=True, slots=True)
class Tunnelled:
    """A frame as it crossed the underlay; kind is that of the tunnel, and vni its number or key."""

    source: str
    target: str
    vni: int
    inner: bytes
    kind: str = "vxlan"


def captured(path: Path) -> Iterator[bytes]:
    """The frames of a capture file."""
    data, at = path.read_bytes(), 24
    while at + 16 <= len(data):
        length = struct.unpack("<I", data[at + 8 : at + 12])[0]
        yield data[at + 16 : at + 16 + length]
        at += 16 + length


def tunnelled(path: Path) -> list[Tunnelled]:
    """The tunnel packets of a capture file: VXLAN (RFC 7348), Geneve (RFC 8926), GRE with a key (RFC 2890)."""
    found = []
    for frame in captured(path):
        if frame[12:14] == b"\x08\x00":
            at, protocol = 14 + (frame[14] & 15) * 4, frame[23]
            ends = [str(IPv4Address(frame[start : start + 4])) for start in (26, 30)]
        elif frame[12:14] == b"\x86\xdd":
            at, protocol = 54, frame[20]
            ends = [str(IPv6Address(frame[start : start + 16])) for start in (22, 38)]
        else:
            continue
        body = frame[at:]
        port = struct.unpack("!H", body[2:4])[0]
        if protocol == UDP and port == VXLAN:
            found.append(Tunnelled(*ends, int.from_bytes(body[12:15], "big"), body[16:], "vxlan"))
        elif protocol == UDP and port == GENEVE:
            options = (body[8] & 63) * 4
            found.append(Tunnelled(*ends, int.from_bytes(body[12:15], "big"), body[16 + options :], "geneve"))
        elif protocol == GRE and body[0] & 0x20:
            found.append(Tunnelled(*ends, int.from_bytes(body[4:8], "big"), body[8:], "gre"))
    return found


def tag_of(frame: bytes) -> int:
    """The VLAN of a frame; 0 when it is untagged."""
    return int.from_bytes(frame[14:16], "big") & 0xFFF if frame[12:14] == b"\x81\x00" else 0
