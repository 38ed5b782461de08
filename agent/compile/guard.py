"""Port security: what a workload may send. Every refusal has its reason."""

from __future__ import annotations

from collections.abc import Iterator

from agent.compile.base import drop, flow, ip_match, is_ipv6, mac_number, speaks_ipv6
from agent.compile.guard6 import guard_ipv6
from agent.model.flow import Action, Flow, Resubmit, match
from agent.model.pipeline import SOURCE, CookieKind, Reason, Table, cookie
from agent.model.wire import ETH_ARP, ETH_IPV4, ETH_IPV6, UDP
from kumihimo.v1 import port_pb2

TAGGED = (0x1000, 0x1000)  # vlan_vid and mask: any tag, that of VLAN 0 (priority) too


def untagged() -> Iterator[Flow]:
    """No workload sends VLAN tags, with port security or without: the network would carry them to its other members."""
    tagged = match(vlan_vid=TAGGED)
    yield flow(Table.PORT_SECURITY, 200, tagged, *drop(Reason.VLAN_TAG), cookie=cookie(CookieKind.BASE))


def guard(port: port_pb2.Port, ofport: int, mark: int) -> Iterator[Flow]:
    """The flows of one port."""

    def rule(priority: int, *actions: Action, **fields: int | tuple[int, int]) -> Flow:
        return flow(Table.PORT_SECURITY, priority, match(**{SOURCE: ofport}, **fields), *actions, cookie=mark)

    onward = Resubmit(Table.SERVICES)
    if port.HasField("port_security_enabled") and not port.port_security_enabled:
        yield rule(100, onward)
        return
    mac = mac_number(port.mac_address)
    senders = [(mac, ip_match(fixed.ip_address)) for fixed in port.fixed_ips if not is_ipv6(fixed.ip_address)]
    senders += [
        (mac_number(pair.mac_address) if pair.mac_address else mac, ip_match(pair.ip_address))
        for pair in port.allowed_address_pairs
        if not is_ipv6(pair.ip_address)
    ]
    yield rule(120, *drop(Reason.DHCP_SERVER), eth_type=ETH_IPV4, ip_proto=UDP, udp_src=67, udp_dst=68)
    ask = {"eth_type": ETH_IPV4, "ip_proto": UDP, "ip_src": 0, "udp_src": 68, "udp_dst": 67}
    yield rule(110, onward, eth_src=mac, **ask)
    yield rule(100, onward, eth_src=mac, eth_type=ETH_ARP, arp_sha=mac, arp_spa=0)
    for sender, (ip, mask) in dict.fromkeys(senders):
        address = ip if mask == 0xFFFFFFFF else (ip, mask)
        if mask:
            yield rule(100, onward, eth_src=sender, eth_type=ETH_IPV4, ip_src=address)
            yield rule(100, onward, eth_src=sender, eth_type=ETH_ARP, arp_sha=sender, arp_spa=address)
        else:
            yield rule(100, onward, eth_src=sender, eth_type=ETH_IPV4)
            yield rule(99, onward, eth_src=sender, eth_type=ETH_ARP, arp_sha=sender)
    has_ipv6 = speaks_ipv6(port)
    for sender in dict.fromkeys(
        [mac, *(mac_number(pair.mac_address) for pair in port.allowed_address_pairs if pair.mac_address)]
    ):
        yield rule(90, *drop(Reason.SPOOFED_ARP), eth_src=sender, eth_type=ETH_ARP)
        yield rule(90, *drop(Reason.SPOOFED_IP), eth_src=sender, eth_type=ETH_IPV4)
        yield rule(90, *drop(Reason.SPOOFED_IPV6 if has_ipv6 else Reason.IPV6), eth_src=sender, eth_type=ETH_IPV6)
        yield rule(80, *drop(Reason.PROTOCOL), eth_src=sender)
    yield rule(50, *drop(Reason.SPOOFED_MAC))
    if has_ipv6:
        yield from guard_ipv6(port, ofport, mark)
