"""Packets as workloads send them: what is asked for, its answer, and the question for a neighbour that comes before."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import Any

from controlplane.values import PROTOCOLS, protocol_number
from kumihimo.v1 import inspect_pb2 as pb

ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
ICMP, ICMPV6 = 1, 58
ECHO = {4: 8, 6: 128}  # types of requests
# What answers an ICMP message, by protocol and type: echo, timestamp and information requests.
ANSWERS = {(ICMP, 8): 0, (ICMP, 13): 14, (ICMP, 15): 16, (ICMPV6, 128): 129}
SOLICITATION = 135
BROADCAST = "ff:ff:ff:ff:ff:ff"
EPHEMERAL = 49152


def version(ip: str) -> int:
    return ip_address(ip).version


def protocol_of(request: Any, ip: str) -> int:
    """The number of an IP protocol; that of ICMP is of the address's family."""
    number = protocol_number(request.protocol) if request.protocol else ICMP
    return ICMPV6 if number == ICMP and version(ip) == 6 else number


def sent(request: Any, source: tuple[str, str], target: tuple[str, str]) -> pb.Packet:
    """The packet that a request describes; source and target: MAC and address."""
    protocol = protocol_of(request, target[1])
    packet = pb.Packet(eth_src=source[0], eth_dst=target[0], ip_src=source[1], ip_dst=target[1], protocol=protocol)
    packet.eth_type = IPV4 if version(target[1]) == 4 else IPV6
    if protocol in (ICMP, ICMPV6):
        packet.icmp_type = request.icmp_type if request.HasField("icmp_type") else ECHO[version(target[1])]
        packet.icmp_code = request.icmp_code
    else:
        packet.source_port = request.source_port if request.HasField("source_port") else EPHEMERAL
        packet.destination_port = request.destination_port
    if request.HasField("vlan_id"):
        packet.vlan_id = request.vlan_id
    return packet


def is_answered(packet: pb.Packet) -> bool:
    """Whether something comes back."""
    return packet.protocol not in (ICMP, ICMPV6) or (packet.protocol, packet.icmp_type) in ANSWERS


def answer(packet: pb.Packet) -> pb.Packet:
    """What comes back, to the MAC that it was sent from."""
    back = pb.Packet(
        eth_src=packet.eth_dst,
        eth_dst=packet.eth_src,
        eth_type=packet.eth_type,
        ip_src=packet.ip_dst,
        ip_dst=packet.ip_src,
        protocol=packet.protocol,
        source_port=packet.destination_port,
        destination_port=packet.source_port,
    )
    if packet.protocol in (ICMP, ICMPV6):
        back.icmp_type, back.icmp_code = ANSWERS[packet.protocol, packet.icmp_type], packet.icmp_code
    return back


def question(packet: pb.Packet) -> pb.Packet:
    """What a workload asks before it sends a packet: ARP, or neighbour discovery."""
    target = ip_address(packet.ip_dst)
    if not isinstance(target, IPv6Address):
        return pb.Packet(
            eth_src=packet.eth_src, eth_dst=BROADCAST, eth_type=ARP, arp_op=1, ip_src=packet.ip_src, ip_dst=packet.ip_dst
        )
    last = target.packed[-3:]
    return pb.Packet(
        eth_src=packet.eth_src,
        eth_dst="33:33:ff:" + last.hex(":"),
        eth_type=IPV6,
        ip_src=packet.ip_src,
        ip_dst=str(IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:-3] + last)),
        protocol=ICMPV6,
        icmp_type=SOLICITATION,
        nd_target=packet.ip_dst,
    )


def unicast(mac: str) -> bool:
    """Whether a MAC is that of one interface; "" is none (IEEE 802, the first bit on the wire)."""
    return bool(mac) and not int(mac[:2], 16) & 1


def called(packet: pb.Packet) -> str:
    """The kind of a packet in a word: tcp/80, icmp."""
    name = PROTOCOLS.get(packet.protocol, f"protocol {packet.protocol}")
    if packet.protocol in (ICMP, ICMPV6) and (packet.icmp_type not in ECHO.values() or packet.icmp_code):
        return f"{name} type {packet.icmp_type} code {packet.icmp_code}"
    return f"{name}/{packet.destination_port}" if packet.destination_port else name
