"""`Probe`: sends one packet as if the workload of a port plugged here had sent it. What became of it flow counters tell."""

from __future__ import annotations

from typing import Protocol

from agent.inspection import packet
from agent.inspection.frame import frame
from agent.inspection.names import Names
from agent.mirror.state import State
from kumihimo.v1 import inspect_pb2 as pb


class Switch(Protocol):
    """What sends."""

    async def send(self, in_port: int, data: bytes) -> None: ...


class Prober:
    """Answers `Probe`."""

    def __init__(self, state: State, switch: Switch) -> None:
        self._state = state
        self._switch = switch

    async def probe(self, request: pb.TraceNodeRequest) -> pb.NodeProbe:
        """Send the packet; why not, where that cannot be."""
        reply = pb.NodeProbe(node=self._state.node_id)
        interface = self._state.interface_of.get(request.port_id)
        if interface is None or interface.ofport is None or Names(self._state).stored(request.port_id) is None:
            reply.reason, reply.message = "NOT_ATTACHED", "no interface of this host names the port"
            return reply
        try:
            await self._switch.send(interface.ofport, frame(packet.fields_of(request.packet)))
        except ValueError as error:
            reply.reason, reply.message = "PACKET_INVALID", str(error)
        except OSError as error:
            reply.reason, reply.message = "SWITCH_SILENT", str(error)
        return reply
