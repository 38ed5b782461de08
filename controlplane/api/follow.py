"""Follows a packet from host to host by asking their agents, and says of each what is done there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.api import packets
from controlplane.api.agents import Agents, Silent
from controlplane.api.expired import Expired
from controlplane.api.standing import Names, title
from controlplane.identity import Caller
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import operations_pb2


@dataclass(frozen=True, slots=True)
class Side:
    """Who sends or receives: an address and, where it is known, its MAC, its port and the node of that.

    foreign: the port is not to be named to whoever asks.
    """

    ip: str
    mac: str = ""
    port: Any = None
    node: str = ""
    foreign: bool = False

    @property
    def name(self) -> str:
        return "a port of another project" if self.foreign else title(self.port)

    @property
    def text(self) -> str:
        return f"{self.name} ({self.ip})" if self.port is not None else self.ip


class Follow:
    """Follows packets for one caller."""

    def __init__(self, agents: Agents, expired: Expired, names: Names, caller: Caller) -> None:
        self._agents = agents
        self._expired = expired
        self._names = names
        self._caller = caller
        self.partial = False
        self._drops: dict[str, Sequence[pb.PortDrop]] = {}
        self._notes: list[str] = []

    async def direction(self, source: Side, target: Side, packet: pb.Packet, **how: bool) -> operations_pb2.TraceDirection:
        """One way. Before it sends, the workload asks for its neighbour. how: of the connection, as TraceNodeRequest has it."""
        way = operations_pb2.TraceDirection(packet=packet)
        if not source.node:
            way.summary, way.reason = f"{source.text} is on no node, so nothing is sent", "NOT_ATTACHED"
            return way
        port_id, known = source.port.id, bool(packet.eth_dst)
        asks = [self._ask(source.node, packet=packets.question(packet), port_id=port_id)]
        asks += [self._ask(source.node, packet=packet, port_id=port_id, **how)] if known else []
        question, *told = await asyncio.gather(*asks)
        self._drops[port_id] = question.drops
        here = told[0] if known else None
        refused = here is not None and any(end.fate == pb.PACKET_FATE_DROPPED for walk in here.walks[:1] for end in walk.ends)
        # Of what is dropped either way the packet itself tells more than the question before it.
        if not refused and not await self._neighbour(way, question, source, target, packet):
            return way
        if here is None:  # it goes where the answer has told
            here = await self._ask(source.node, packet=packet, port_id=port_id, **how)
        await self._carry(way, here, source, target, packet, how)
        return way

    async def _neighbour(self, way: Any, question: pb.NodeTrace, source: Side, target: Side, packet: pb.Packet) -> bool:
        """Whether the workload learns a MAC; it is written into the packet where it was not known."""
        if not question.walks:
            return self._silent(way, question, source)
        ends = question.walks[0].ends
        led = next((end for end in ends if packets.unicast(end.mac)), None)
        lost = [end for end in ends if end.fate == pb.PACKET_FATE_DROPPED]
        if len(lost) == len(ends):
            self._add(way, question, source)
            await self._dropped(way, question.walks[0], lost[0], source, f"the question for {packet.ip_dst} is dropped")
            return False
        if led is None:
            text = f"the question for {packet.ip_dst} goes to all members: its owner answers"
            self._hop(way, source, "neighbour", pb.ObjectRef(), text)
        else:
            packet.eth_dst = packet.eth_dst or led.mac
            who = "the host answers" if led.fate == pb.PACKET_FATE_ANSWERED else "its owner is asked"
            self._hop(way, source, "neighbour", pb.ObjectRef(), f"{packet.ip_dst} has MAC {led.mac}: {who}")
        if not packet.eth_dst:
            way.reason = "ADDRESS_UNKNOWN"
            way.summary = f"nobody is known to have {packet.ip_dst}: whoever answers gets the packet"
        return bool(packet.eth_dst)

    async def _carry(
        self, way: Any, here: pb.NodeTrace, source: Side, target: Side, packet: pb.Packet, how: Mapping[str, bool]
    ) -> None:
        """From the sender's host on."""
        if not here.walks:
            self._silent(way, here, source)
            return
        self._add(way, here, source)
        walk = here.walks[0]
        end = _best(walk.ends, target)
        match end.fate:
            case pb.PACKET_FATE_DROPPED:
                await self._dropped(way, walk, end, source, "dropped")
            case pb.PACKET_FATE_TUNNEL | pb.PACKET_FATE_WIRE:
                await self._beyond(way, end, source, target, packet, how)
            case _:
                self._delivered(way, end, target)

    async def _beyond(
        self, way: Any, end: pb.TraceEnd, source: Side, target: Side, packet: pb.Packet, how: Mapping[str, bool]
    ) -> None:
        """On the receiver's host."""
        tunnel = end.fate == pb.PACKET_FATE_TUNNEL
        if tunnel and end.node != target.node and target.node:
            at = self._names.host(end.node, "another port") if end.node else end.address
            way.reason, way.summary = "MISDIRECTED", f"sent to {at}, and {target.text} is not there"
            return
        if target.port is None or not target.node:
            way.passes = not tunnel or target.port is None
            way.summary = f"leaves {self._names.host(source.node, source.name)}" + (" by the wire" if not tunnel else "")
            return
        sent = {"network_id": target.port.network_id, "from_node": source.node}
        there = await self._ask(target.node, packet=packet, **sent, **how)
        if not there.walks:
            self._silent(way, there, target)
            if tunnel:
                way.summary += "; up to its tunnel the packet passes"
            return
        self._add(way, there, target)
        walk = there.walks[0]
        last = _best(walk.ends, target)
        if last.fate == pb.PACKET_FATE_DROPPED:
            await self._dropped(way, walk, last, target, "dropped")
        else:
            self._delivered(way, last, target)

    def _delivered(self, way: Any, end: pb.TraceEnd, target: Side) -> None:
        if end.fate == pb.PACKET_FATE_DELIVERED and target.port is not None and end.object.id != target.port.id:
            self._names.clear(end.object)
            way.reason = "MISDIRECTED"
            way.summary = f"delivered to port {end.object.name or end.object.id} in place of {target.text}"
            return
        way.passes, way.summary = True, f"delivered to {target.text}"

    async def _dropped(self, way: Any, walk: pb.TraceWalk, end: pb.TraceEnd, at: Side, what: str) -> None:
        way.reason = end.reason or "NO_FLOW"
        host = self._names.host(at.node, at.name)
        why = await self._by_groups(end, way.packet) if end.HasField("filtered") else end.message
        way.summary = f"{what} on {host}: {why}" + (f" ({end.reason})" if end.reason else "")
        if walk.HasField("disagreement"):
            passes = any(wanted.fate != pb.PACKET_FATE_DROPPED for wanted in walk.desired_ends)
            way.summary += f"; {self.differs(walk.disagreement, passes)}"

    async def _by_groups(self, end: pb.TraceEnd, packet: pb.Packet) -> str:
        """That no rule allows it, as a clause."""
        for ref in (end.filtered, *end.groups):
            self._names.clear(ref)
        if not end.groups:
            return f"port {end.filtered.name or end.filtered.id} has no security group, so nothing passes"
        groups = ", ".join(ref.name or ref.id for ref in end.groups)
        direction, other = ("ingress", f"from {packet.ip_src}") if end.ingress else ("egress", f"to {packet.ip_dst}")
        plural = "s" if len(end.groups) > 1 else ""
        said = f"no {direction} rule of security group{plural} {groups} allows {packets.called(packet)} {other}"
        rule = await self._expired.find((ref.id for ref in end.groups), end.ingress, packet)
        return f"{said}; one that did expired at {rule.expire_time.ToJsonString()}" if rule is not None else said

    def differs(self, parting: pb.TraceDisagreement, passes: bool) -> str:
        """Where what is installed is not what is desired, as a clause."""
        self._names.clear(parting.wanted)
        wanted = parting.wanted
        whose = f"of {wanted.kind} {wanted.name or wanted.id} " if wanted.kind else ""
        text = f"a flow {whose}in table {parting.table} ({parting.stage}) is not there as desired"
        return f"{text}, and with it the packet would pass" if passes else text

    def _silent(self, way: Any, told: pb.NodeTrace, at: Side) -> bool:
        """Nothing was traced there."""
        self.partial = True
        way.reason = told.reason
        message = told.message if self._caller.is_operator else f"{self._names.host(at.node, at.name)} does not answer"
        way.summary = f"{message}, so what becomes of the packet there is not known"
        return False

    def _add(self, way: Any, told: pb.NodeTrace, at: Side) -> None:
        """What a node has told, as stages and, for operators, as it is."""
        walk = told.walks[0]
        if walk.HasField("disagreement"):
            where = f"on {self._names.host(at.node, at.name)}"
            self._notes.append(f"{where} {self.differs(walk.disagreement, passes=False)}")
        self._add_tracked(told, at)
        ends = {end.step: end for end in walk.ends}
        for number, step in enumerate(walk.steps):
            # Of subroutines what rules allow, and where it ends.
            if step.bridge or (step.depth and number not in ends and not step.object.kind.endswith("Rule")):
                continue
            end = ends.get(number)
            allowed = self._names.allowed(step.object)
            text = self._fate(end) if end is not None else f"allowed: {allowed}" if allowed else "goes on"
            self._hop(way, at, step.stage, step.object, text)
        if self._caller.is_operator:
            for each in (step.object for one in told.walks for step in one.steps):
                self._names.clear(each)
            way.nodes.append(told)

    def _add_tracked(self, told: pb.NodeTrace, at: Side) -> None:
        """Say it when a packet of the connection that is there fares otherwise than the first of a new one."""
        first, *others = told.walks
        for walk in others:
            ends = [self._fate(end) for end in walk.ends]
            if ends != [self._fate(end) for end in first.ends]:
                text = (
                    f"on {self._names.host(at.node, at.name)} a packet of the connection that is there ({walk.connection}) is "
                )
                self._notes.append(text + ", ".join(dict.fromkeys(ends)))

    def _fate(self, end: pb.TraceEnd) -> str:
        match end.fate:
            case pb.PACKET_FATE_DELIVERED:
                self._names.clear(end.object)
                return f"delivered to port {end.object.name or end.object.id}"
            case pb.PACKET_FATE_TUNNEL:
                if not self._caller.is_operator:
                    return "sent to another host"
                return f"sent by {end.segment} to node {end.node or end.address}"
            case pb.PACKET_FATE_WIRE:
                return f"sent to the wire, {end.segment}"
            case pb.PACKET_FATE_ANSWERED:
                return "answered by the host"
            case pb.PACKET_FATE_SERVICE:
                return "given to the service of the network"
        return f"dropped: {end.message}" + (f" ({end.reason})" if end.reason else "")

    def _hop(self, way: Any, at: Side, stage: str, ref: pb.ObjectRef, text: str) -> None:
        hop = way.hops.add(stage=stage, object=ref, text=text, node=at.node if self._caller.is_operator else "")
        self._names.clear(hop.object)

    async def _ask(self, node: str, **fields: Any) -> pb.NodeTrace:
        """What a node says; of a silent one, why."""
        try:
            found: pb.NodeTrace = await self._agents.ask(node, "Trace", pb.TraceNodeRequest(id=node, **fields))
        except Silent as error:
            found = pb.NodeTrace(node=node, reason=error.reason, message=error.message)
        self.partial |= bool(found.notes)
        if self._caller.is_operator:
            self._notes += [f"node {node}: {note}" for note in found.notes]
        return found

    def notes(self, source: Side, target: Side) -> Iterator[str]:
        """What nodes have said beside it: differences, and what workloads have lost that does nothing wrong would not."""
        yield from dict.fromkeys(self._notes)
        for side in (source, target):
            for drop in self._drops.get(side.port.id, ()) if side.port is not None else ():
                if not drop.usual:
                    yield f"{drop.packets} packets of {side.name} were dropped so far: {drop.message} ({drop.reason})"


def _best(ends: Sequence[pb.TraceEnd], target: Side) -> pb.TraceEnd:
    """Of several copies the one that matters: that for the receiver, else one that arrives somewhere."""

    def rank(end: pb.TraceEnd) -> int:
        if target.port is not None and end.object.id == target.port.id:
            return 0
        if end.fate == pb.PACKET_FATE_TUNNEL and end.node == target.node:
            return 1
        return 3 if end.fate == pb.PACKET_FATE_DROPPED else 2

    return min(ends, key=rank)
