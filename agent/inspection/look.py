"""`Inspect`: bridges, ports, tunnels and what they belong to, read from the host as it is; names come from the mirror.

Bounded: at most `MOST` ports are told, each look at the host has `SECONDS`, and the loop gets its turn every `TURN` ports.
What cannot be looked at is a note, and the rest is told.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from agent.drivers.exec import ExecError
from agent.facts.model import Interface
from agent.facts.ovsdb import Ovsdb, OvsdbError, Rows
from agent.mirror.state import State
from agent.model.host import INTEGRATION_BRIDGE, NOT_RUNNING, DhcpServer, OvsPort, Peer
from agent.model.item import Driver, Item, Key
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import network_pb2, store_pb2

MOST = 2000
MOST_OF_A_PEER = 50
SECONDS = 3.0
TURN = 100
OWNER = "kumihimo"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Bridge:
    """A bridge as the database has it. tags: VLAN by name of those ports that have one; br-int's are not looked at."""

    name: str
    datapath_type: str
    managed: bool
    tags: Mapping[str, int]


class Look:
    """Answers `Inspect`. One look serves all who ask while it lasts."""

    def __init__(
        self,
        state: State,
        ovsdb: Ovsdb,
        drivers: Sequence[Driver],
        port_status: Callable[[str], bytes | None],
    ) -> None:
        """drivers: those whose items are told (ports, DHCP, peers). port_status: what was said of a port last, serialized."""
        self._state = state
        self._ovsdb = ovsdb
        self._drivers = drivers
        self._port_status = port_status
        self._looking: asyncio.Task[pb.NodeInspection] | None = None

    async def inspect(self, request: pb.InspectNodeRequest) -> pb.NodeInspection:
        """What is on this node now."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> pb.NodeInspection:
        found = pb.NodeInspection(node=self._state.node_id, live=True)
        found.time.GetCurrentTime()
        owned: dict[Key, Item] = {}
        for driver in self._drivers:
            owned.update(await self._noted(found, "/".join(sorted(driver.kinds)), driver.read_owned()) or {})
        bridges = await self._noted(found, "bridge", self._ovsdb.read(_bridges)) or []
        await self._add_bridges(found, bridges, owned)
        for item in owned.values():
            if isinstance(item, DhcpServer):
                running = item.wrong != NOT_RUNNING
                objects = [self._network(item.network_id)]
                found.namespaces.add(name=item.namespace, service="dhcp", running=running, objects=objects)
        self._add_peers(found, {item.address for item in owned.values() if isinstance(item, Peer)})
        return found

    async def _noted(self, found: pb.NodeInspection, what: str, work: Awaitable[T]) -> T | None:
        """What a look gives; None and a note when it cannot be had in time."""
        try:
            async with asyncio.timeout(SECONDS):
                return await work
        except TimeoutError:
            found.notes.append(f"{what}: not read within {SECONDS:g} s")
        except (OSError, OvsdbError, ExecError) as error:
            found.notes.append(f"{what}: {error}")
        return None

    async def _add_bridges(self, found: pb.NodeInspection, bridges: Sequence[_Bridge], owned: Mapping[Key, Item]) -> None:
        ours = {item.name: item for item in owned.values() if isinstance(item, OvsPort)}
        by_bridge: dict[str, list[Interface]] = {}
        for interface in self._ovsdb.facts().values():
            by_bridge.setdefault(interface.bridge, []).append(interface)
        told = 0
        for bridge in sorted(bridges, key=lambda bridge: (bridge.name != INTEGRATION_BRIDGE, bridge.name)):
            shown = found.bridges.add(name=bridge.name, datapath_type=bridge.datapath_type, managed=bridge.managed)
            interfaces = sorted(by_bridge.get(bridge.name, ()), key=lambda interface: (interface.ofport or 0, interface.name))
            for interface in interfaces:
                if interface.name == bridge.name:
                    continue  # the bridge's own end
                told += 1
                if told > MOST:
                    found.left_out += 1
                    continue
                if told % TURN == 0:
                    await asyncio.sleep(0)
                port = shown.ports.add(name=interface.name, type=interface.type, error=interface.error)
                port.ofport = interface.ofport or 0
                port.tag = bridge.tags.get(interface.name, 0)
                self._explain(port, interface, ours.get(interface.name))

    def _explain(self, port: pb.InspectedPort, interface: Interface, ours: OvsPort | None) -> None:
        """What the port is there for, and what it belongs to."""
        if ours is not None:
            port.managed = True
            port.options.update(ours.options)
            ids = dict(ours.external_ids)
            port.purpose = ids.get(OWNER, "")
            port.objects.extend(self._named(ids))
        elif interface.iface_id and interface.bridge == INTEGRATION_BRIDGE:
            port.purpose = "workload"
            network_id = self._state.located.get(interface.iface_id) or ""
            network = self._state.networks.get(network_id)
            known = network.port(interface.iface_id) if network else None
            port.objects.add(kind="Port", id=interface.iface_id, name=known.name if known else "")
            if network_id:
                port.objects.append(self._network(network_id))
            self._add_status(port, interface.iface_id)
        networks = [item.id for item in port.objects if item.kind == "Network"]
        port.segment = self._segment(networks[0]) if networks else ""

    def _add_status(self, port: pb.InspectedPort, port_id: str) -> None:
        """What was last said of the port in status."""
        said = self._port_status(port_id)
        if said is None:
            return
        try:
            status = store_pb2.PortStatus.FromString(said)
        except DecodeError:
            return  # of a former release: told again as soon as anything of it changes
        port.wired, port.reason, port.message = status.wired, status.reason, status.message

    def _named(self, ids: Mapping[str, str]) -> Iterator[pb.ObjectRef]:
        """`kumihimo-network` in external_ids is the id of a Network."""
        for key, value in sorted(ids.items()):
            kind = "".join(word.capitalize() for word in key.removeprefix(f"{OWNER}-").split("-"))
            if key.startswith(f"{OWNER}-"):
                yield self._network(value) if kind == "Network" else pb.ObjectRef(kind=kind, id=value)

    def _network(self, network_id: str) -> pb.ObjectRef:
        state = self._state.networks.get(network_id)
        name = state.network.name if state and state.network else ""
        return pb.ObjectRef(kind="Network", id=network_id, name=name)

    def _segment(self, network_id: str) -> str:
        state = self._state.networks.get(network_id)
        if state is None or state.network is None:
            return ""
        network = state.network
        kind = network_pb2.NetworkType.Name(network.network_type).removeprefix("NETWORK_TYPE_").lower()
        return f"{kind} {network.segmentation_id}" if network.segmentation_id else kind

    def _add_peers(self, found: pb.NodeInspection, resolved: set[str]) -> None:
        """Nodes that share a network with this one."""
        shared: dict[str, list[str]] = {}
        for network_id, state in self._state.networks.items():
            for node_id in state.members:
                if node_id != self._state.node_id:
                    shared.setdefault(node_id, []).append(network_id)
        for node_id, networks in sorted(shared.items()):
            node = self._state.nodes.get(node_id)
            address = node.tunnel_ip if node else ""
            peer = found.peers.add(node=node_id, address=address, resolved=address in resolved, shared=len(networks))
            peer.objects.extend(self._network(network) for network in sorted(networks)[:MOST_OF_A_PEER])


def _bridges(tables: Rows) -> list[_Bridge]:
    found = []
    for bridge in tables["Bridge"].rows.values():
        tags = {}
        if bridge.name != INTEGRATION_BRIDGE:
            # Few ports, as a rule; of br-int the tables of flows tell, not tags.
            tags = {port.name: _number(port.tag) for port in bridge.ports[:MOST]}
        managed = bridge.external_ids.get(OWNER) == "bridge"
        found.append(_Bridge(bridge.name, bridge.datapath_type or "system", managed, tags))
    return found


def _number(column: Any) -> int:
    """An optional number of the database; 0: it has none."""
    hit = re.search(r"\d+", str(column))
    return int(hit[0]) if hit else 0
