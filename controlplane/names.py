"""The names of ports within their network: what DNS answers, and what DHCP calls them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address

from kumihimo.v1 import port_pb2

DEFAULT = "host-"
_DEFAULT = re.compile(DEFAULT + r"(\d{1,3}(-\d{1,3}){3}|[0-9a-f]{4}(-[0-9a-f]{4}){7})")


def default_label(ip: str) -> str:
    """The name of an address whose port has none: host-10-0-0-5, or host- and the eight groups of an IPv6 address."""
    address = ip_address(ip)
    text = address.exploded if isinstance(address, IPv6Address) else str(address)
    return DEFAULT + re.sub("[.:]", "-", text)


def is_default(label: str) -> bool:
    """Whether a name has the form of one that follows from an address."""
    return _DEFAULT.fullmatch(label) is not None


def domain_of(port: port_pb2.Port, network_domain: str) -> str:
    """The domain of a port's names; "" when there is none."""
    return port.dns_domain or network_domain


def assignments(port: port_pb2.Port, network_domain: str) -> Iterator[port_pb2.DnsAssignment]:
    """What each address of the port is called."""
    domain = domain_of(port, network_domain)
    for fixed in port.fixed_ips:
        label = port.dns_name or default_label(fixed.ip_address)
        yield port_pb2.DnsAssignment(ip_address=fixed.ip_address, hostname=label, fqdn=f"{label}.{domain}" if domain else label)
