"""Router advertisements and DHCPv6 of a network: what its dnsmasq is told beside IPv4, and the flows that lead to it.

No advertisement names a default router yet (router lifetime 0): it could only name its sender, and nobody routes behind the
service's link-local address. A host that is told such a router sends everything there and hears nothing, while one that is
told none says at once that there is no route (RFC 4861, sections 5.2 and 6.3.4). So a `gateway_ip` that a workload serves is
kept from other ports, and guests are told of it by other means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.compile.base import flow, ip_number, is_ipv6, link_local, mac_number
from agent.compile.lease import known_by, lease_time, options, tag
from agent.compile.neighbour import ADVERTISEMENT, SOLICITATION
from agent.compile.provider import PHYSICAL
from agent.compile.view import View
from agent.model.flow import Flow, Output, Resubmit, match
from agent.model.pipeline import CookieKind, Table, cookie
from agent.model.wire import ETH_IPV6, ICMPV6, UDP
from controlplane.values import service_mac
from kumihimo.v1 import network_pb2 as pb

DHCP_CLIENT, DHCP_SERVER = 546, 547
ROUTER_SOLICITATION = 133
SUFFIX = ".6"  # of the name of a dhcp-host file: a port has one for each family
INTERVAL = 200  # seconds: advertisements that nobody asked for come at least as often
MODES = {
    pb.IPV6_MODE_SLAAC: "ra-only",
    pb.IPV6_MODE_DHCPV6_STATELESS: "ra-stateless",
    pb.IPV6_MODE_DHCPV6_STATEFUL: "static",
}


def split(served: Sequence[pb.Subnet]) -> tuple[list[pb.Subnet], list[pb.Subnet]]:
    """The IPv4 subnets and the IPv6 subnets."""
    return [each for each in served if not is_ipv6(each.cidr)], [each for each in served if is_ipv6(each.cidr)]


def config(network: pb.Network, served: Sequence[pb.Subnet], interface: str) -> Iterator[str]:
    """Lines of dnsmasq's configuration (dnsmasq(8)) for IPv6 subnets."""
    if served:
        yield "enable-ra"
        yield f"ra-param={interface},mtu:{network.mtu},{INTERVAL},0"
    for subnet in served:
        name = tag(subnet.id)
        first, length = subnet.cidr.split("/")
        yield f"dhcp-range=set:{name},{first},{MODES[subnet.ipv6_ra_mode]},{length},{lease_time(subnet)}"
        servers = ",".join(f"[{server}]" for server in subnet.dns_nameservers or [subnet.dhcp_server_ip])
        yield f"dhcp-option=tag:{name},option6:dns-server,{servers}"
        if network.dns_domain:
            yield f"dhcp-option=tag:{name},option6:domain-search,{network.dns_domain}"


def flows(network: pb.Network, served: Sequence[pb.Subnet], ofport: int) -> Iterator[Flow]:
    """What the service hears: solicitations of routers, which go to those on a wire too; questions to DHCPv6; solicitations
    of neighbours that ask for it, and the advertisements that it has asked for.
    """
    if not served:
        return
    mark, mac = cookie(CookieKind.NETWORK, network.id), service_mac(network.key)
    ipv6 = {"metadata": network.key, "eth_type": ETH_IPV6}
    solicitation = match(**ipv6, ip_proto=ICMPV6, icmpv6_type=ROUTER_SOLICITATION)
    to_wire = (Resubmit(Table.L2),) if network.network_type in PHYSICAL else ()
    yield flow(Table.SERVICES, 110, solicitation, Output(ofport), *to_wire, cookie=mark)
    question = match(**ipv6, ip_proto=UDP, udp_src=DHCP_CLIENT, udp_dst=DHCP_SERVER)
    yield flow(Table.SERVICES, 110, question, Output(ofport), cookie=mark)
    for ip in (link_local(mac), *(subnet.dhcp_server_ip for subnet in served)):
        asked = match(metadata=network.key, **SOLICITATION, nd_target=ip_number(ip))
        yield flow(Table.SERVICES, 110, asked, Output(ofport), cookie=mark)
    told = match(metadata=network.key, eth_dst=mac_number(mac), **ADVERTISEMENT)
    yield flow(Table.SERVICES, 110, told, Output(ofport), cookie=mark)


def hosts(view: View, network_id: str, served: Sequence[pb.Subnet]) -> Iterator[tuple[str, str]]:
    """(name, dhcp-host line) of every local port with addresses that DHCPv6 gives, or options that it tells."""
    modes = {subnet.id: subnet.ipv6_address_mode for subnet in served}
    for port_id in view.local_ports(network_id) if set(modes.values()) - {pb.IPV6_MODE_SLAAC} else ():
        port = view.port(network_id, port_id)
        if port is None:
            continue
        # A stateless server gives no address; but a line without one would be taken for IPv4 too.
        asked = {pb.IPV6_MODE_DHCPV6_STATEFUL} | ({pb.IPV6_MODE_DHCPV6_STATELESS} if options(port) else set())
        addresses = [f"[{fixed.ip_address}]" for fixed in port.fixed_ips if modes.get(fixed.subnet_id) in asked]
        if addresses:
            yield port_id + SUFFIX, ",".join([*known_by(port), *addresses])
