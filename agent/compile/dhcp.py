"""The DHCP service of a network on this node: its namespace, its dnsmasq, and the flows that lead to it.

A DHCPv4 client asks for one address: a port with several gets the first that lies in a subnet with DHCP; its guest sets the
others.

What the service says carries the flag that keeps it on the host, and is guarded by nothing: it is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.compile import dhcp6
from agent.compile.base import flow, is_up, mac_number
from agent.compile.dns import dns_config, dns_flows
from agent.compile.lease import known_by, lease_time, options, tag
from agent.compile.neighbour import neighbour
from agent.compile.segment import missing
from agent.compile.view import View
from agent.model.flow import Flow, Output, Resubmit, SetField, match
from agent.model.host import INTEGRATION_BRIDGE, DhcpServer, OvsPort, ServiceNamespace
from agent.model.item import Item
from agent.model.pipeline import FLAGS, FROM_SERVICE, FROM_TUNNEL, CookieKind, Table, cookie
from agent.model.remark import pending
from agent.model.wire import ETH_IPV4, UDP
from controlplane.names import default_label
from controlplane.store import keys
from controlplane.values import service_mac
from kumihimo.v1 import network_pb2, port_pb2

INNER = "dhcp0"


def service_interface(key: int) -> str:
    """Name of the host's end of a network's service link."""
    return f"kd{key:06x}"


def compile_dhcp(view: View, network_id: str) -> Iterable[Item]:
    """The network's service namespace here, its dnsmasq, and the flows that lead to it."""
    network = view.network(network_id)
    if network is None or not view.local_ports(network_id) or not is_up(network) or missing(view, network):
        return
    served = [subnet for subnet in view.subnets(network_id) if subnet.enable_dhcp and subnet.dhcp_server_ip]
    if not served:
        return
    namespace = f"kumi-{network_id}"
    outer = service_interface(network.key)
    mac = service_mac(network.key)
    addresses = sorted(f"{subnet.dhcp_server_ip}/{subnet.cidr.split('/')[1]}" for subnet in served)
    yield ServiceNamespace(namespace, outer, INNER, mac, tuple(addresses), network.mtu)
    owner = (("kumihimo", "service"), ("kumihimo-network", network_id))
    yield OvsPort(INTEGRATION_BRIDGE, outer, "", (), owner)
    four, six = dhcp6.split(served)
    hosts = sorted([*_hosts(view, network_id, four), *dhcp6.hosts(view, network_id, six)])
    ports = dict.fromkeys(name.removesuffix(dhcp6.SUFFIX) for name, _ in hosts)
    own = [line for port_id in ports if (port := view.port(network_id, port_id)) is not None for line in options(port)]
    yield DhcpServer(network_id, namespace, config(network, served, [*dns_config(view, network), *own]), tuple(hosts))
    interface = view.interface(outer)
    if interface is not None and interface.ofport is not None:
        yield from _service_flows(network, four, interface.ofport, mac)
        yield from dhcp6.flows(network, six, interface.ofport)
        yield from dns_flows(network, served, interface.ofport, mac)
    else:
        yield pending(keys.scope(network_id))


def _service_flows(network: network_pb2.Network, served: list[network_pb2.Subnet], ofport: int, mac: str) -> Iterator[Flow]:
    mark = cookie(CookieKind.NETWORK, network.id)
    quiet = FROM_TUNNEL | FROM_SERVICE
    yield flow(
        Table.CLASSIFY,
        100,
        match(in_port=ofport),
        SetField("metadata", network.key),
        SetField(FLAGS, quiet, quiet),
        Resubmit(Table.SERVICES),
        cookie=mark,
    )
    request = match(metadata=network.key, eth_type=ETH_IPV4, ip_proto=UDP, udp_src=68, udp_dst=67)
    if served:
        yield flow(Table.SERVICES, 110, request, Output(ofport), cookie=mark)
    for subnet in served:
        yield neighbour(network.key, subnet.dhcp_server_ip, mac_number(mac), mark)


def _hosts(view: View, network_id: str, served: list[network_pb2.Subnet]) -> Iterator[tuple[str, str]]:
    """(name, dhcp-host line) of every local port with an address that DHCPv4 serves."""
    by_id = {subnet.id: subnet for subnet in served}
    for port_id in view.local_ports(network_id):
        port = view.port(network_id, port_id)
        fixed = next((fixed for fixed in port.fixed_ips if fixed.subnet_id in by_id), None) if port is not None else None
        if port is not None and fixed is not None:
            yield port_id, host_line(port, fixed)


def host_line(port: port_pb2.Port, fixed: port_pb2.FixedIp) -> str:
    """dnsmasq's dhcp-host: MAC, tag of the port's own options, address, name."""
    return ",".join([*known_by(port), fixed.ip_address, port.dns_name or default_label(fixed.ip_address)])


def config(network: network_pb2.Network, served: list[network_pb2.Subnet], more: Iterable[str] = ()) -> str:
    """dnsmasq's configuration for one network (dnsmasq(8)); the driver adds what its own folder needs.

    more: lines of DNS and of ports; of two values of an option dnsmasq takes the first.
    """
    lines = [
        "no-hosts",
        "no-resolv",
        "no-ping",
        "bind-dynamic",
        f"interface={INNER}",
        "except-interface=lo",
        "dhcp-authoritative",
        *([f"domain={network.dns_domain}"] if network.dns_domain else []),
        *more,
    ]
    four, six = dhcp6.split(served)
    lines += dhcp6.config(network, six, INNER)
    for subnet in four:
        name = tag(subnet.id)
        first, length = subnet.cidr.split("/")
        netmask = ".".join(str((0xFFFFFFFF << (32 - int(length)) & 0xFFFFFFFF) >> shift & 255) for shift in (24, 16, 8, 0))
        lines.append(f"dhcp-range=set:{name},{first},static,{netmask},{lease_time(subnet)}")
        lines.append(f"dhcp-option=tag:{name},option:mtu,{network.mtu}")
        # Without a value the option is not sent; left out, dnsmasq would name itself.
        router = f",{subnet.gateway_ip}" if subnet.gateway_ip else ""
        lines.append(f"dhcp-option=tag:{name},option:router{router}")
        servers = ",".join(subnet.dns_nameservers) or subnet.dhcp_server_ip
        lines.append(f"dhcp-option=tag:{name},option:dns-server,{servers}")
        if network.dns_domain:
            lines.append(f"dhcp-option=tag:{name},option:domain-search,{network.dns_domain}")
        if subnet.host_routes:
            routes = [(route.destination, route.nexthop) for route in subnet.host_routes]
            # A client that takes option 121 ignores the router option (RFC 3442), so the default route goes here too.
            if subnet.gateway_ip:
                routes.append(("0.0.0.0/0", subnet.gateway_ip))
            listed = ",".join(f"{destination},{nexthop}" for destination, nexthop in routes)
            lines.append(f"dhcp-option=tag:{name},option:classless-static-route,{listed}")
    return "\n".join(lines) + "\n"
