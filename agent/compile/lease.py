"""dnsmasq's words for what leases are made of."""

from __future__ import annotations

from contextlib import suppress

from controlplane.dhcpoptions import family
from controlplane.values import Invalid
from kumihimo.v1 import network_pb2, port_pb2

INFINITE = -1


def tag(object_id: str) -> str:
    """dnsmasq's name of a subnet, or of a port: the random end of its id."""
    return "s" + object_id[-12:]


def lease_time(subnet: network_pb2.Subnet) -> str:
    """How long a lease lives."""
    duration = subnet.dhcp_lease_duration
    # dnsmasq counts in seconds: a lease is never shorter than was asked for.
    return "infinite" if duration.seconds == INFINITE else f"{duration.seconds + (duration.nanos > 0)}s"


def known_by(port: port_pb2.Port) -> list[str]:
    """How a dhcp-host line of either family begins: MAC, and a tag where the port has options of its own.

    Which of a port's lines dnsmasq takes for a question without an address is not said, so each has the tag.
    """
    return [port.mac_address, f"set:{tag(port.id)}"] if options(port) else [port.mac_address]


def options(port: port_pb2.Port) -> list[str]:
    """dnsmasq's lines for what this port alone is told, whether its guest asks for it or not.

    What this release cannot read (a later API has accepted it) is left out: it must not cost the others their leases.
    """
    told: dict[tuple[str, int], str] = {}
    domain = [("domain-name", 4), ("domain-search", 4), ("domain-search", 6)] if port.dns_domain else []
    given = [(name, port.dns_domain, version) for name, version in domain]
    given += [(option.name, option.value, option.ip_version) for option in port.extra_dhcp_opts]
    for name, value, version in given:
        known = family(version)
        with suppress(Invalid):
            told[known.title, known.find(name).code] = known.written(name, value)
    return [f"dhcp-option-force=tag:{tag(port.id)},{line}" for line in told.values()]
