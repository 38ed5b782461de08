"""The lower half of an agent on a private host: real lanes over real drivers, and a set of every kind of object to hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from agent.drivers.dnsmasq import DnsmasqDriver
from agent.drivers.names import NamesDriver
from agent.drivers.netlink import NetlinkDriver
from agent.drivers.openflow.driver import OpenFlowDriver
from agent.drivers.ovsdb import OvsdbDriver
from agent.drivers.peers import PeerDriver
from agent.facts.ovsdb import Ovsdb
from agent.model.flow import Flow, Group, Meter, Output, Resubmit, SetField, ToController, ToGroup, Track, match
from agent.model.host import Bridge, DhcpServer, OvsPort, Peer, PortName, ServiceNamespace, Uplink
from agent.model.item import Failure, Item, Key
from agent.model.pipeline import CookieKind, Table, cookie, is_our_group, is_our_meter, is_ours
from agent.reconcile.drift import Drifts
from agent.reconcile.lane import Lane
from tests.waiting import until

RUNDIR = Path("/var/run/openvswitch")
NETWORK = "0192f0c4-7a3e-7c1d-8f2a-5b6c7d8e9f00"
NAMESPACE = f"kumi-{NETWORK}"
PORT_A, PORT_B = "0192f0c4-0000-7000-8000-00000000000a", "0192f0c4-0000-7000-8000-00000000000b"

# Kinds of which a fresh process cannot know what it has made: entries that peers share, interfaces that it only put up.
UNSEEN = {"peer", "uplink"}
# What the peers' addresses need; and an interface to a provider's wire.
UNDERLAY = """
ip netns add other
ip link add v0 type veth peer name v1 netns other
ip address add 192.0.2.1/24 dev v0
ip link set v0 up
ip -n other address add 192.0.2.2/24 dev v1
ip -n other address add 192.0.2.3/24 dev v1
ip -n other link set v1 up
ip link add nic0 type veth peer name wire0
"""
CONFIG = """\
port=0
no-hosts
no-resolv
bind-dynamic
interface=dhcp0
dhcp-authoritative
dhcp-range=set:s1,10.0.0.0,static,255.255.255.0,86400s
"""


def flows(port: int = 7) -> list[Item]:
    """Flows, of which one names a zone of connection tracking, one a group and one a meter, and these two."""
    mark = cookie(CookieKind.NETWORK, NETWORK)
    to_port = (SetField("reg15", port), Resubmit(int(Table.INGRESS)))
    return [
        Flow(int(Table.L2), 90, match(metadata=5, eth_dst=(1 << 40, 1 << 40)), (ToGroup(5),), mark),
        Flow(int(Table.LOCAL), 100, match(reg15=port), (Output(port),), mark),
        Flow(
            *(int(Table.EGRESS_TRACK), 100, match(reg14=port, eth_type=0x0800), (Track(port, int(Table.EGRESS_STATE)),)),
            cookie(CookieKind.PORT, PORT_A),
        ),
        Flow(int(Table.DROP), 100, match(reg11=3, reg14=port), (ToController(port, 128),), cookie(CookieKind.PORT, PORT_A)),
        Group(5, (to_port,)),
        Meter(port, 1, 16),
    ]


def tunnel(local_ip: str) -> OvsPort:
    options = (("key", "flow"), ("local_ip", local_ip), ("remote_ip", "flow"))
    return OvsPort("br-int", "kumi-vxlan", "vxlan", options, (("kumihimo", "tunnel"),))


def everything() -> list[Item]:
    """One object or more of every kind."""
    return [
        Bridge("br-int", "netdev"),
        tunnel("192.0.2.1"),
        ServiceNamespace(NAMESPACE, "kd000005", "dhcp0", "fa:16:3e:00:00:01", ("10.0.0.2/24",), 1450),
        OvsPort("br-int", "kd000005", "", (), (("kumihimo", "service"),)),
        DhcpServer(NETWORK, NAMESPACE, CONFIG, ((PORT_A, "fa:16:3e:00:01:0a,10.0.0.5"),)),
        PortName(NETWORK, PORT_A, ("10.0.0.5 a",)),
        Peer("192.0.2.2"),
        Uplink("nic0"),
        *flows(),
    ]


def changed() -> list[Item]:
    """The same keys, where they can be, with other values."""
    return [
        Bridge("br-int", "netdev"),
        tunnel("192.0.2.9"),
        ServiceNamespace(NAMESPACE, "kd000005", "dhcp0", "fa:16:3e:00:00:02", ("10.0.0.3/24",), 1400),
        OvsPort("br-int", "kd000005", "", (), (("kumihimo", "service"),)),
        DhcpServer(
            NETWORK,
            NAMESPACE,
            CONFIG.replace("86400s", "3600s"),
            ((PORT_A, "fa:16:3e:00:01:0a,10.0.0.6"), (PORT_B, "fa:16:3e:00:01:0b,10.0.0.5")),
        ),
        PortName(NETWORK, PORT_A, ("10.0.0.6 a",)),
        PortName(NETWORK, PORT_B, ("10.0.0.5 b",)),
        Peer("192.0.2.3"),
        *flows(8),
    ]


def switch() -> OpenFlowDriver:
    mark = cookie(CookieKind.MARKER)
    ours = (is_ours, is_our_group, is_our_meter)
    return OpenFlowDriver("br-int", *ours, marker_table=Table.MARKER, marker_cookie=mark, rundir=RUNDIR)


class Node:
    """Lanes that hold what is submitted."""

    def __init__(self, ovsdb: Ovsdb) -> None:
        self.drifts = Drifts(lambda key: f"Network {NETWORK}" if key[0] == "flow" else "", lambda: None)
        self.switch = switch()
        self.netlink = NetlinkDriver()
        host = [self.netlink, OvsdbDriver(ovsdb), NamesDriver(), DnsmasqDriver()]
        self.lanes = [
            Lane("flows", [self.switch], self._progressed, self.switch.synchronize, self.switch.lost, self.drifts),
            Lane("host", host, self._progressed, drifts=self.drifts),
            Lane("peers", [PeerDriver(RUNDIR)], self._progressed, lost=self.switch.lost, drifts=self.drifts),
        ]
        # Drivers remember what they saw: who looks from outside has his own.
        self.outside = switch()
        self._others = [NetlinkDriver(), OvsdbDriver(ovsdb), NamesDriver(), DnsmasqDriver(), self.outside]
        self.number = 0
        self._desired: dict[Key, Item] = {}

    def _progressed(self) -> None:
        """Tests look themselves."""

    def submit(self, items: Iterable[Item]) -> None:
        """State all that is desired."""
        wanted = {item.key: item for item in items}
        put = {key: item for key, item in wanted.items() if self._desired.get(key) != item}
        delete = self._desired.keys() - wanted.keys()
        self.number += 1
        self._desired = wanted
        for lane in self.lanes:
            lane.submit(self.number, put, set(delete), {key: {NETWORK} for key in [*put, *delete]})

    def start(self) -> None:
        for lane in self.lanes:
            lane.start()

    async def finished(self) -> None:
        """Wait until all that was submitted is in force, but for what fails."""
        await until(lambda: all(lane.finished >= self.number for lane in self.lanes), "every lane has finished")

    def failures(self) -> dict[Key, Failure]:
        return {key: failure for lane in self.lanes for found in lane.failures().values() for key, failure in found.items()}

    async def there(self) -> dict[Key, Item]:
        """What a fresh process would find, UNSEEN apart."""
        found: dict[Key, Item] = {}
        for driver in self._others:
            found.update(await driver.read_owned())
        return found

    async def held(self, items: Iterable[Item]) -> None:
        """Wait until all of this is applied, and nothing fails."""
        self.submit(items)
        self.start()
        await self.finished()
        await until(lambda: not self.failures(), f"nothing fails: {self.failures()}")


@asynccontextmanager
async def running_node() -> AsyncIterator[Node]:
    """A node whose lanes run inside; what they have made stays."""
    ovsdb = Ovsdb()
    await ovsdb.start()
    node = Node(ovsdb)
    tasks = [asyncio.create_task(lane.run()) for lane in node.lanes]
    try:
        yield node
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await node.switch.close()
        await node.outside.close()
        node.netlink.close()
        await ovsdb.stop()
