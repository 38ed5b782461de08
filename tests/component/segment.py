"""A segment on a private host with a service namespace and two clients, for what dnsmasq serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agent.drivers.dnsmasq import DnsmasqDriver
from agent.drivers.netlink import NetlinkDriver
from agent.model.host import ServiceNamespace
from tests.component.private_host import processes, sh

A, B = "fa:16:3e:00:01:0a", "fa:16:3e:00:01:0b"


@asynccontextmanager
async def segment(service: ServiceNamespace) -> AsyncIterator[DnsmasqDriver]:
    """A driver, and a bridge that joins the namespace and the clients `a` and `b`, which have the MACs `A` and `B`."""
    sh("ip link add br0 type bridge stp_state 0 mcast_snooping 0; ip link set br0 up")
    netlink = NetlinkDriver()
    assert not await netlink.apply([service], [])
    sh(f"ip link set {service.outer} master br0")
    for name, mac in (("a", A), ("b", B)):
        sh(f"ip netns add {name}; ip link add tap{name} type veth peer name eth0 address {mac} netns {name}")
        sh(f"ip link set tap{name} master br0 up; ip -n {name} link set eth0 up; ip -n {name} link set lo up")
        sh(f"ip netns exec {name} ethtool -K eth0 tx off")
    driver = DnsmasqDriver()
    yield driver
    assert not await driver.apply([], list((await driver.read_owned()).values()))
    assert not processes("dnsmasq")
    assert not await netlink.apply([], [service])
    sh("ip netns del a; ip netns del b; ip link del br0")


def ask4(client: str, tries: int = 15) -> str:
    """The address that a client gets by DHCPv4, or "". One DISCOVER per second, until it is answered."""
    said = sh(f"ip netns exec {client} udhcpc -i eth0 -n -q -f -t {tries} -T 1 -s /bin/true 2>&1", check=False)
    return said.partition("lease of ")[2].partition(" ")[0]
