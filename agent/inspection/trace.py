"""`Trace`: what becomes of a packet on this node, by what is installed and by what is desired.

What is installed the switch itself says (`ofproto/trace`), which only reads. What is desired our own evaluation of the engine's
items says (agent/model/evaluate.py); where the two part is told. Bounded: `SECONDS` for the switch, `MOST` steps in the answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from itertools import zip_longest
from pathlib import Path

from agent.compile.base import is_ipv6
from agent.compile.provider import PHYSICAL, provider
from agent.compile.tunnel import TUNNELS
from agent.compile.view import View
from agent.drivers import unixctl
from agent.inspection import conntrack, packet, words
from agent.inspection.names import Names
from agent.inspection.traced import parse
from agent.mirror.state import State
from agent.model.evaluate import Connection, Tables, TooLong, evaluate, of_connection
from agent.model.flow import CT_ESTABLISHED, CT_INVALID, CT_REPLY, CT_TRACKED, Flow, SetField
from agent.model.host import INTEGRATION_BRIDGE
from agent.model.item import Item
from agent.model.journey import End, Fate, Journey, Step
from agent.model.pipeline import GENERATION, POLICY_PORT, REASON, TARGET, Table
from agent.model.wire import TAGGED
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import network_pb2

SECONDS = 3.0
MOST = 500
TRIES, PAUSE = 3, 0.05  # seconds; what was compiled just now may not be there yet
PASSES = 64  # through connection tracking that a trace is told of; a copy for each member of a network has one
ANSWER = CT_TRACKED | CT_ESTABLISHED | CT_REPLY
_ZONE = re.compile(r"^ct\(table=\d+,zone=(\d+)\)$")

_FATES = {Fate.DROPPED: pb.PACKET_FATE_DROPPED, Fate.ANSWERED: pb.PACKET_FATE_ANSWERED}


class Refused(Exception):
    """A packet that cannot be traced here: reason for a program, and a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Tracer:
    """Answers `Trace`. desired: the items that the node shall have. dropped: what an ofport has lost so far, by reason."""

    def __init__(
        self,
        state: State,
        desired: Callable[[], Iterable[Item]],
        dropped: Callable[[int], Awaitable[Mapping[int, int]]],
        rundir: Path,
    ) -> None:
        self._state = state
        self._desired = desired
        self._dropped = dropped
        self._rundir = rundir

    async def trace(self, request: pb.TraceNodeRequest) -> pb.NodeTrace:
        """What becomes of the packet."""
        reply = pb.NodeTrace(node=self._state.node_id)
        reply.time.GetCurrentTime()
        interface = self._state.interface_of.get(request.port_id)
        await asyncio.gather(self._way(reply, request), self._add_drops(reply, interface.ofport if interface else None))
        return reply

    async def _way(self, reply: pb.NodeTrace, request: pb.TraceNodeRequest) -> None:
        try:
            fields = packet.fields_of(request.packet)
            fields |= self._sent(request.port_id) if request.port_id else self._arriving(request.network_id, request.from_node)
            await self._walks(reply, request, fields)
        except Refused as error:
            reply.reason, reply.message = error.reason, str(error)
        except ValueError as error:
            reply.reason, reply.message = "PACKET_INVALID", str(error)

    def _sent(self, port_id: str) -> dict[str, int]:
        """Where the workload of a port comes in."""
        interface = self._state.interface_of.get(port_id)
        if interface is None:
            raise Refused("NOT_ATTACHED", "no interface of this host names the port")
        if interface.ofport is None:
            raise Refused("INTERFACE_ERROR", f"interface {interface.name}: {interface.error or 'has no ofport yet'}")
        return {"in_port": interface.ofport}

    def _arriving(self, network_id: str, from_node: str) -> dict[str, int]:
        """Where a packet for a network comes in, from another node or from a wire."""
        view = View(self._state)
        network = view.network(network_id)
        if network is None:
            raise Refused("NETWORK_NOT_ON_NODE", "no port of the network is on this node")
        if network.network_type in PHYSICAL:
            return self._from_wire(view, network)
        tunnel = TUNNELS.get(network.network_type)
        interface = view.interface(tunnel.port) if tunnel else None
        if interface is None or interface.ofport is None:
            raise Refused("NO_TUNNEL", "this node has no tunnel port for the network")
        found = {"in_port": interface.ofport, "tun_id": network.segmentation_id}
        sender, own = view.node(from_node), view.node(view.node_id)
        if sender is not None and own is not None and sender.tunnel_ip and not is_ipv6(sender.tunnel_ip):
            found |= {"tun_src": int(ip_address(sender.tunnel_ip)), "tun_dst": int(ip_address(own.tunnel_ip))}
        return found

    def _from_wire(self, view: View, network: network_pb2.Network) -> dict[str, int]:
        found = provider(view, network.physical_network)
        interface = view.interface(found.patch) if found else None
        if interface is None or interface.ofport is None:
            raise Refused("SEGMENT_NOT_ON_NODE", f"physical network {network.physical_network} is not on this node")
        tagged = network.network_type == network_pb2.NETWORK_TYPE_VLAN
        return {"in_port": interface.ofport} | ({"vlan_vid": TAGGED | network.segmentation_id} if tagged else {})

    async def _walks(self, reply: pb.NodeTrace, request: pb.TraceNodeRequest, fields: Mapping[str, int]) -> None:
        """As the first packet of a connection (or one that belongs to none, and begins none), and as one of the connection that
        there is; or as an answer."""
        if request.answer:
            first = packet.answered(fields)
            marks = generations(self._desired())
            await self._walk(
                reply, fields, "an answer", {zone: Connection(ANSWER, mark, first) for zone, mark in marks.items()}
            )
            return
        begins = packet.begins(fields)
        fresh = {} if begins else dict.fromkeys(generations(self._desired()), Connection(CT_TRACKED | CT_INVALID))
        installed = await self._walk(reply, fields, "new" if begins else "invalid", fresh)
        if installed is None or not (zones := list(dict.fromkeys(map(int, _zones(installed))))):
            return
        try:
            found = {zone: conntrack.find(await self._listed(zone), fields, request.any_source_port) for zone in zones}
        except (TimeoutError, OSError) as error:
            reply.notes.append(f"connections: {str(error) or f'not told within {SECONDS:g} s'}")
            return
        known = {zone: tracked for zone, tracked in found.items() if tracked is not None}
        if known:
            told = next(iter(known.values())).state
            await self._walk(reply, fields, told, {zone: each.connection for zone, each in known.items()})

    async def _walk(
        self, reply: pb.NodeTrace, fields: Mapping[str, int], called: str, connections: Mapping[int, Connection]
    ) -> Journey | None:
        """One walk; what of it is installed. connections: by zone."""
        installed, desired, parted = await self._both(reply, fields, connections)
        shown = installed or desired
        if shown is None:
            raise Refused("SWITCH_SILENT", "the switch does not answer, and what is desired leads nowhere")
        walk = reply.walks.add(connection=called if any(step.run for step in shown.steps) else "")
        names = Names(self._state)
        self._tell(reply, walk, names, shown)
        if parted and installed is not None and desired is not None:
            walk.disagreement.CopyFrom(_disagreement(names, installed, desired))
            walk.desired_ends.extend(self._end(names, desired, end) for end in desired.ends[:MOST])
        return installed

    async def _both(
        self, reply: pb.NodeTrace, fields: Mapping[str, int], connections: Mapping[int, Connection]
    ) -> tuple[Journey | None, Journey | None, bool]:
        """What is installed, what is desired, and whether the two part for longer than a change takes."""
        for tries in reversed(range(TRIES)):
            desired, met = await asyncio.to_thread(_evaluate, Tables(list(self._desired())), fields, connections)
            # A trace of the switch has one mark for all zones: that of the first which the packet comes to.
            alike = len({known.mark for known in met.values()}) < 2
            try:
                installed = await self._installed(fields, next(iter((met or connections).values()), None))
            except (TimeoutError, OSError) as error:
                why = str(error) or f"not told within {SECONDS:g} s"
                reply.notes.append(f"what is installed: {why}; this is by what is desired")
                return None, desired, False
            if not alike or desired is None or not differ(installed, desired):
                return installed, desired, False
            if tries:
                await asyncio.sleep(PAUSE)
        return installed, desired, True

    async def _installed(self, fields: Mapping[str, int], known: Connection | None) -> Journey:
        """What the switch says. Of a connection it is told what it cannot look up in a trace."""
        asked = question(fields, known)
        async with asyncio.timeout(SECONDS), unixctl.connect(self._rundir, timeout=SECONDS) as control:
            return parse(await control.call("ofproto/trace", INTEGRATION_BRIDGE, *asked), fields)

    async def _listed(self, zone: int) -> str:
        """The connections of a zone."""
        async with asyncio.timeout(SECONDS), unixctl.connect(self._rundir, timeout=SECONDS) as control:
            return await control.call("dpctl/dump-conntrack", f"zone={zone}")

    def _tell(self, reply: pb.NodeTrace, walk: pb.TraceWalk, names: Names, journey: Journey) -> None:
        for step in journey.steps[:MOST]:
            walk.steps.append(_step(names, step))
        ends = [end for end in journey.ends if end.fate is not Fate.DROPPED or end.fields.get(REASON) not in words.PASSES]
        for end in ends[:MOST]:
            walk.ends.append(self._end(names, journey, end))
        reply.left_out += max(0, len(journey.steps) - MOST) + max(0, len(journey.ends) - MOST)

    def _end(self, names: Names, journey: Journey, end: End) -> pb.TraceEnd:
        told = pb.TraceEnd(step=end.step, cause=names.behind(_decided(journey, end).cookie))
        if end.fate is not Fate.OUTPUT:
            told.fate = _FATES[end.fate]
            if end.fate is Fate.DROPPED:
                reason = end.fields.get(REASON, 0)
                told.reason, told.message = words.why(reason)
                if register := words.BY_GROUPS.get(reason):
                    self._add_groups(told, names, end.fields.get(register, 0), register == TARGET)
            elif "eth_src" in end.fields:
                told.mac = _mac(end.fields["eth_src"])
            return told
        told.mac = _mac(end.fields.get("eth_dst", 0))
        interface = names.interface(end.port)
        told.interface = interface.name if interface else f"port {end.port}"
        tunnels = {tunnel.port: tunnel.type for tunnel in TUNNELS.values()}
        if told.interface in tunnels:
            address = end.fields.get("tun_ipv6_dst") or end.fields.get("tun_dst", 0)
            told.fate, told.address = pb.PACKET_FATE_TUNNEL, str(ip_address(address))
            told.node = names.node_at(told.address)
            told.segment = f"{tunnels[told.interface]} {end.fields.get('tun_id', 0)}"
        elif interface is not None and interface.iface_id:
            told.fate = pb.PACKET_FATE_DELIVERED
            told.object.CopyFrom(names.port(interface.iface_id))
        elif interface is not None and interface.type == "patch":
            told.fate = pb.PACKET_FATE_WIRE
            tag = end.fields.get("vlan_vid", 0) & 0xFFF
            told.segment = f"vlan {tag}" if tag else "flat"
        else:
            told.fate = pb.PACKET_FATE_SERVICE
        if end.fault:
            told.fate, told.message = pb.PACKET_FATE_DROPPED, f"the switch says: {end.fault}"
            told.reason = "NOT_SENT"
        return told

    def _add_groups(self, told: pb.TraceEnd, names: Names, ofport: int, ingress: bool) -> None:
        """Whose rules have not allowed it."""
        port_id = self._state.ports_by_number().get(ofport, "")
        port = names.stored(port_id)
        if port is not None:
            told.filtered.CopyFrom(names.port(port_id))
            told.groups.extend(pb.ObjectRef(kind="SecurityGroup", id=group) for group in port.security_group_ids)
            told.ingress = ingress

    async def _add_drops(self, reply: pb.NodeTrace, ofport: int | None) -> None:
        if ofport is None:
            return
        try:
            async with asyncio.timeout(SECONDS):
                lost = await self._dropped(ofport)
        except (TimeoutError, OSError) as error:
            reply.notes.append(f"drops: {str(error) or f'not told within {SECONDS:g} s'}")
            return
        reply.drops.extend(words.drops(lost))


def question(fields: Mapping[str, int], known: Connection | None) -> list[str]:
    """Arguments of `ofproto/trace`. Of a connection it is told what a trace cannot look up."""
    if known is None:
        return [packet.flow_of(fields)]
    states = ["--ct-next", packet.state_of(known.state, ",")] * PASSES
    return [packet.flow_of({**fields, **of_connection(fields, known)}), *states]


def _zones(journey: Journey) -> Iterator[str]:
    """Zones of connection tracking that a packet has been sent through, in their order."""
    for step in journey.steps:
        for action in step.actions:
            yield from _ZONE.findall(action)


def generations(items: Iterable[Item]) -> dict[int, int]:
    """The mark of connections that the policy of now allows, by the number of the port, which is its zone."""
    found = {}
    for item in items:
        if isinstance(item, Flow) and item.table == Table.POLICY:
            port = next((value for name, value, _ in item.match if name == POLICY_PORT), 0)
            marks = [action.value for action in item.actions if isinstance(action, SetField) and action.field == GENERATION]
            if port and marks:
                found[port] = marks[0]
    return found


def _evaluate(
    tables: Tables, fields: Mapping[str, int], connections: Mapping[int, Connection]
) -> tuple[Journey | None, dict[int, Connection]]:
    """What is desired, and what the packet is known as in the zones that it comes to, in their order."""
    met: dict[int, Connection] = {}

    def track(zone: int) -> Connection | None:
        known = connections.get(zone)
        if known is not None:
            met.setdefault(zone, known)
        return known

    try:
        return evaluate(tables, fields, track), met
    except (TooLong, RecursionError):
        return None, met


def differ(installed: Journey, desired: Journey) -> bool:
    """Whether the two lead a packet by other flows, or to another end."""
    steps = zip_longest(installed.here(), desired.steps)
    if not all(found is not None and wanted is not None and found.is_of(wanted) for found, wanted in steps):
        return True
    return sorted(end.told for end in installed.ends) != sorted(end.told for end in desired.ends)


def _disagreement(names: Names, installed: Journey, desired: Journey) -> pb.TraceDisagreement:
    """Where they part."""
    here = list(installed.here())
    pairs = enumerate(zip(here, desired.steps, strict=False))
    last = min(len(here), len(desired.steps)) - 1  # both have it, and it does not go on alike
    place = next((number for number, (found, wanted) in pairs if not found.is_of(wanted)), last)
    found, wanted = here[place], desired.steps[place]
    return pb.TraceDisagreement(
        table=wanted.table,
        stage=words.stage(wanted.table),
        wanted=names.behind(wanted.cookie),
        wanted_flow=_flow(wanted),
        found=names.behind(found.cookie),
        found_flow=_flow(found),
    )


def _flow(step: Step) -> str:
    """A step's flow in one line."""
    if step.priority < 0:
        return f"table={step.table}: no flow"
    parts = [f"table={step.table}", f"priority={step.priority}", *([step.match] if step.match else [])]
    return f"{','.join(parts)} actions={','.join(step.actions)}"


def _mac(number: int) -> str:
    return number.to_bytes(6, "big").hex(":")


def _decided(journey: Journey, end: End) -> Step:
    """The step that decided an end: what a drop is by, is who sent it to table DROP."""
    step = journey.steps[end.step]
    return journey.steps[end.step - 1] if step.table == Table.DROP and end.step else step


def _step(names: Names, step: Step) -> pb.TraceStep:
    return pb.TraceStep(
        table=step.table,
        stage=words.stage(step.table) if not step.bridge else "",
        priority=step.priority,
        cookie=step.cookie,
        object=names.behind(step.cookie) if not step.bridge else None,
        match=step.match,
        actions=step.actions,
        bridge=step.bridge,
        depth=step.depth,
        run=step.run,
        notes=step.notes,
    )
