"""The probe of `Operations.Trace`: a packet is sent as if a workload had, and counters of both ports tell what became of it.

Others' packets are counted too, so on a busy port an arrival may be another's. A drop is told by its reason.
"""

from __future__ import annotations

import asyncio

from controlplane.api.agents import Agents, Silent
from controlplane.api.follow import Side
from kumihimo.v1 import inspect_pb2 as pb

SECONDS, PAUSE = 3.0, 0.1


async def probe(agents: Agents, source: Side, target: Side, packet: pb.Packet) -> str:
    """Send it, and what became of it, as a sentence."""
    try:
        before = await _looked(agents, source, target)
        asked = pb.TraceNodeRequest(id=source.node, packet=packet, port_id=source.port.id)
        sent: pb.NodeProbe = await agents.ask(source.node, "Probe", asked)
        if sent.reason:
            return f"nothing was sent: {sent.message}"
        deadline = asyncio.get_running_loop().time() + SECONDS
        while True:
            after = await _looked(agents, source, target)
            if (told := _told(before, after, source, target)) or asyncio.get_running_loop().time() > deadline:
                return told or _lost(target)
            await asyncio.sleep(PAUSE)
    except Silent:
        return "nothing is known of it: an agent did not answer"


async def _looked(agents: Agents, *sides: Side) -> list[pb.PortExplanation | None]:
    """What nodes count for both ports."""

    async def look(side: Side) -> pb.PortExplanation | None:
        if side.port is None or not side.node:
            return None
        found: pb.PortExplanation = await agents.ask(side.node, "Explain", pb.ExplainPortRequest(id=side.port.id))
        return found

    return list(await asyncio.gather(*map(look, sides)))


def _told(before: list[pb.PortExplanation | None], after: list[pb.PortExplanation | None], source: Side, target: Side) -> str:
    """What has been counted since."""
    for side, was, now in zip((source, target), before, after, strict=True):
        if was is None or now is None or side.port is None:
            continue
        counted = {drop.reason: drop.packets for drop in was.drops}
        for drop in now.drops:
            if drop.packets > counted.get(drop.reason, 0):
                return f"a packet was sent and dropped, as {side.name} counts: {drop.message} ({drop.reason})"
    was, now = before[1], after[1]
    if was is not None and now is not None and now.delivered > was.delivered:
        return f"a packet was sent and arrived: {target.text} was given {_packets(now.delivered - was.delivered)} since"
    return ""


def _packets(number: int) -> str:
    return "1 packet" if number == 1 else f"{number} packets"


def _lost(target: Side) -> str:
    if target.port is None or not target.node:
        return "a packet was sent, and not counted as dropped"
    return f"a packet was sent, and within {SECONDS:g} s neither given to {target.text} nor counted as dropped: lost on the way"
