"""dnsmasq's words for what leases are made of."""

from __future__ import annotations

from kumihimo.v1 import network_pb2

INFINITE = -1


def tag(object_id: str) -> str:
    """dnsmasq's name of a subnet, or of a port: the random end of its id."""
    return "s" + object_id[-12:]


def lease_time(subnet: network_pb2.Subnet) -> str:
    """How long a lease lives."""
    duration = subnet.dhcp_lease_duration
    # dnsmasq counts in seconds: a lease is never shorter than was asked for.
    return "infinite" if duration.seconds == INFINITE else f"{duration.seconds + (duration.nanos > 0)}s"
