"""What this host can do, and what it cannot and why: the one place that asks which datapaths it can really run.

Open vSwitch lists `system` among its datapath types whenever it was built with it, kernel module or not; a bridge of that
type then simply does not come up. The kernel says the truth: with the module there is a generic netlink family
`ovs_datapath` (linux/openvswitch.h).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path

from pyroute2.netlink import genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from agent.drivers import unixctl
from agent.drivers.exec import ExecError, run
from agent.facts.model import Capability, HostFacts
from controlplane.values import overhead
from kumihimo.v1 import network_pb2 as pb

FAMILY = "ovs_datapath"
RUNDIR = Path("/var/run/openvswitch")
# Those who carry the packets between hosts: the interface type of each type of network.
TUNNELS = {"vxlan": pb.NETWORK_TYPE_VXLAN, "geneve": pb.NETWORK_TYPE_GENEVE, "gre": pb.NETWORK_TYPE_GRE}
GUEST_MTU = 1500  # that networks may have everywhere, when the underlay takes it and a tunnel's header
DNSMASQ = (2, 85)  # what DHCP is tested with begins here
MANAGED = (5, 16)  # Linux: neighbour entries that the kernel keeps resolved
# A line of `dpif/show-dp-features` → the capability.
DATAPATH = {
    "conntrack": "CT state",
    "conntrack_zones": "CT zone",
    "conntrack_marks": "CT mark",
    "nat": "CT state NAT",
    "ct_timeout": "Conntrack timeout policy",
}
_YES = ("Yes", "true")


def usable_datapaths(offered: Iterable[str]) -> tuple[str, ...]:
    """The datapath types of those offered that bridges can have here, sorted. Blocks for a millisecond; call it in a thread."""
    return tuple(sorted(kind for kind in offered if kind != "system" or _kernel_has_it()))


def _kernel_has_it() -> bool:
    socket = GenericNetlinkSocket()
    try:
        socket.bind(FAMILY, genlmsg)
    except (NetlinkError, OSError):
        return False
    finally:
        socket.close()
    return True


async def probe(
    facts: HostFacts, interface_types: Iterable[str], bridge: str, tunnel_ip: str, rundir: Path = RUNDIR
) -> list[Capability]:
    """Everything that can differ from host to host, in a fixed order.

    bridge: the integration bridge, if there is one yet; tunnel_ip: the Node's, "" while it has none.
    """
    version, features = await _switch(bridge, rundir)
    offered = set(interface_types)
    found = [Capability("openvswitch", bool(version), version or "ovs-vswitchd does not answer")]
    found += _datapaths(facts)
    for tunnel in TUNNELS:
        on = tunnel in offered
        text = f"Open vSwitch offers interfaces of type {tunnel}" if on else f"Open vSwitch knows no interface type {tunnel}"
        found.append(Capability(f"tunnel_{tunnel}", on, text))
    found += _of_datapath(features, bridge)
    found.append(_ipv6())
    found.append(await _dnsmasq())
    found.append(_managed_neighbours())
    found.append(_underlay(facts, tunnel_ip))
    return found


def _datapaths(facts: HostFacts) -> Iterator[Capability]:
    kernel, user = "system" in facts.datapath_types, "netdev" in facts.datapath_types
    text = f"the kernel has the openvswitch module, and br-int uses it (netlink family {FAMILY})"
    missing = f"the kernel has no openvswitch module (netlink family {FAMILY}); `modprobe openvswitch` may help"
    yield Capability("datapath_system", kernel, text if kernel else missing)
    text = "Open vSwitch forwards in user space" if not kernel else "Open vSwitch could forward in user space; the kernel does"
    yield Capability("datapath_netdev", user, text if user else "Open vSwitch was built without the userspace datapath")


async def _switch(bridge: str, rundir: Path) -> tuple[str, dict[str, str]]:
    """(version, features of the bridge's datapath) as ovs-vswitchd says; empty what it does not."""
    version, features = "", {}
    try:
        async with unixctl.connect(rundir) as control:
            version = (await control.call("version")).strip().splitlines()[0]
            text = await control.call("dpif/show-dp-features", bridge)
            features = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    except (unixctl.UnixctlError, IndexError):
        return version, features
    return version, features


def _of_datapath(features: dict[str, str], bridge: str) -> Iterator[Capability]:
    for name, line in DATAPATH.items():
        said = features.get(line)
        if not features:
            yield Capability(name, False, f"not known yet: there is no bridge {bridge}")
        elif said is None:
            yield Capability(name, False, f"this Open vSwitch does not say whether its datapath has {line!r}")
        else:
            has = said in _YES
            yield Capability(name, has, f"the datapath of {bridge} {'has' if has else 'does not have'} {line!r}")


def _ipv6() -> Capability:
    place = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    if not place.exists():
        return Capability("ipv6", False, "the kernel was started or built without IPv6")
    off = place.read_text().strip() == "1"
    return Capability("ipv6", not off, "net.ipv6.conf.all.disable_ipv6 is 1" if off else "the kernel speaks IPv6")


async def _dnsmasq() -> Capability:
    try:
        text = await run(["dnsmasq", "--version"])
    except ExecError as error:
        return Capability("dhcp", False, f"dnsmasq cannot be run: {error.line}")
    found = re.search(r"ersion (\d+)\.(\d+)", text)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    told = f"dnsmasq {version[0]}.{version[1]}"
    if version < DNSMASQ:
        return Capability("dhcp", False, f"{told} is too old; {DNSMASQ[0]}.{DNSMASQ[1]} and later are tested")
    return Capability("dhcp", True, told)


def _managed_neighbours() -> Capability:
    release = os.uname().release
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    text = f"Linux {release} keeps the way to other nodes resolved"
    late = f"Linux {release} is older than {MANAGED[0]}.{MANAGED[1]}: the first packet to another node may be lost"
    return Capability("managed_neighbours", version >= MANAGED, text if version >= MANAGED else late)


def _underlay(facts: HostFacts, tunnel_ip: str) -> Capability:
    """Whether guests can have 1500 bytes through any tunnel."""
    address = tunnel_ip or next(iter(facts.underlay_ips), "")
    if not address:
        text = "there is no underlay address: the Node has no tunnel_ip, and no bridge but the integration bridge an address"
        return Capability("mtu_1500", False, text)
    if (link := facts.addresses.get(address)) is None:
        return Capability("mtu_1500", False, f"no interface of this host has the Node's tunnel_ip {address}")
    need = GUEST_MTU + max(overhead(network_type, ip_address(address).version) for network_type in TUNNELS.values())
    text = f"the underlay ({address} on {link.name}) has MTU {link.mtu}"
    return Capability("mtu_1500", link.mtu >= need, text if link.mtu >= need else f"{text}; {need} would be needed")
