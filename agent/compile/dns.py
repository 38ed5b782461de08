"""The DNS service of a network on this node: names of all its ports, answered by the dnsmasq that does DHCP.

Every node that has a port of the network knows the names of all its ports and answers by itself. What is not a name of the
network is refused at once: the service namespace has no way to the outside, so there is nobody to ask.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from agent.compile.base import flow, ip_number, is_ipv6, mac_number
from agent.compile.view import View
from agent.model.flow import Flow, Output, match
from agent.model.host import PortName
from agent.model.pipeline import CookieKind, Table, cookie
from agent.model.wire import ETH_IPV4, ETH_IPV6, ICMP, ICMPV6, TCP, UDP
from controlplane.names import assignments
from kumihimo.v1 import network_pb2, port_pb2

ECHO_REQUEST, ECHO_REQUEST_6 = 8, 128
DNS_PORT = 53


def name(network: network_pb2.Network, port: port_pb2.Port) -> Iterator[PortName]:
    """What the port is called: one small item, so that a port elsewhere costs a line and its change no restart."""
    lines = tuple(
        f"{each.ip_address} {each.fqdn} {each.hostname}" if each.fqdn != each.hostname else f"{each.ip_address} {each.fqdn}"
        for each in assignments(port, network.dns_domain)
    )
    if lines:
        yield PortName(sys.intern(network.id), sys.intern(port.id), lines)


def dns_config(view: View, network: network_pb2.Network) -> Iterator[str]:
    """dnsmasq's lines: nothing is forwarded, and of what is ours we know when it does not exist."""
    for domain in sorted({network.dns_domain, *view.domains(network.id)} - {""}):
        yield f"local=/{domain}/"
    yield "domain-needed"
    yield "bogus-priv"
    # Names are the API's to give: what a guest calls itself must not shadow another.
    yield "dhcp-ignore-names"


def dns_flows(network: network_pb2.Network, served: Iterable[network_pb2.Subnet], ofport: int, mac: str) -> Iterator[Flow]:
    """Questions and pings of local ports to the service address; nothing else reaches the namespace.

    They come from table PORT_SECURITY only, so never from another host, and leave by the service port only.
    """
    mark = cookie(CookieKind.NETWORK, network.id)
    for subnet in served:
        six = is_ipv6(subnet.cidr)
        to_service = {
            "metadata": network.key,
            "eth_dst": mac_number(mac),
            "eth_type": ETH_IPV6 if six else ETH_IPV4,
            "ipv6_dst" if six else "ip_dst": ip_number(subnet.dhcp_server_ip),
        }
        for fields in (
            {"ip_proto": UDP, "udp_dst": DNS_PORT},
            {"ip_proto": TCP, "tcp_dst": DNS_PORT},
            {"ip_proto": ICMPV6, "icmpv6_type": ECHO_REQUEST_6} if six else {"ip_proto": ICMP, "icmp_type": ECHO_REQUEST},
        ):
            yield flow(Table.SERVICES, 110, match(**to_service, **fields), Output(ofport), cookie=mark)
