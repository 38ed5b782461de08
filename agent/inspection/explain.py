"""`Explain`: what filters a port that is plugged here, read from the switch: its flows with their counters, and its drops."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from agent.compile.port import verdict
from agent.compile.view import View
from agent.drivers.openflow.codec import PortStats
from agent.inspection import words
from agent.inspection.names import Names
from agent.inspection.samples import Samples
from agent.mirror.groups import groups_of
from agent.mirror.state import State
from agent.model import text
from agent.model.flow import Flow, Match, Resubmit, SetField, match
from agent.model.pipeline import REASON, SOURCE, TARGET, CookieKind, Table, cookie
from kumihimo.v1 import inspect_pb2 as pb

SECONDS = 3.0
MOST = 500

# Fields by which a flow is of one port.
OWN = (SOURCE, TARGET, "in_port")


class Switch(Protocol):
    """What counts."""

    async def flow_counters(
        self, table: int | None = None, idle: bool = False, matched: Match = ()
    ) -> list[tuple[Flow, int, int]]: ...

    async def port_counters(self) -> Mapping[int, PortStats]: ...


class Explainer:
    """Answers `Explain`."""

    def __init__(self, state: State, switch: Switch, samples: Samples) -> None:
        self._state = state
        self._switch = switch
        self._samples = samples

    async def explain(self, request: pb.ExplainPortRequest) -> pb.PortExplanation:
        """What filters the port."""
        reply = pb.PortExplanation(node=self._state.node_id, live=True, defaults=words.DEFAULTS)
        reply.time.GetCurrentTime()
        found = verdict(View(self._state), self._state.located.get(request.id) or "", request.id)
        reply.wired, reply.reason, reply.message = found.wired, found.reason, found.message
        interface = self._state.interface_of.get(request.id)
        if interface is None:
            return reply
        reply.interface = interface.name
        if interface.ofport is None:
            return reply
        reply.recent.extend(self._samples.of(request.id, interface.ofport))
        try:
            async with asyncio.timeout(SECONDS):
                names = Names(self._state)
                await self._add_filters(reply, names, interface.ofport)
                await self._add_rules(reply, names, request.id)
                lost = await self.dropped(interface.ofport)
                stats = (await self._switch.port_counters()).get(interface.ofport)
                reply.delivered = stats.tx_packets if stats is not None else 0
        except (TimeoutError, OSError) as error:
            reply.notes.append(f"flows: {str(error) or f'not read within {SECONDS:g} s'}")
            return reply
        reply.drops.extend(words.drops(lost))
        return reply

    async def dropped(self, ofport: int) -> Mapping[int, int]:
        """Packets from or to a port that were dropped so far, by reason."""
        found: dict[int, int] = {}
        for field in (SOURCE, TARGET):
            for flow, packets, _ in await self._switch.flow_counters(Table.DROP, matched=match(**{field: ofport})):
                reason = {name: value for name, value, _ in flow.match}.get(REASON)
                if reason is not None:
                    found[reason] = found.get(reason, 0) + packets
        return found

    async def _add_rules(self, reply: pb.PortExplanation, names: Names, port_id: str) -> None:
        """The rules of its security groups, which it shares with other ports: so are their counters."""
        port = names.stored(port_id)
        scopes = (groups_of(port) if port is not None else None) or ()
        groups = [group for scope in scopes if (group := self._state.groups.states.get(scope)) is not None]
        rules = {cookie(CookieKind.RULE, rule.id): rule for group in groups for rule in group.rules.values()}
        counted = dict.fromkeys(rules, 0)
        for flow, packets, _ in await self._switch.flow_counters(Table.RULES, True) if rules else ():
            if flow.cookie in counted:
                counted[flow.cookie] += packets
        for mark, rule in list(rules.items())[: max(0, MOST - len(reply.filters))]:
            told = pb.PortFilter(table=Table.RULES, stage=words.stage(Table.RULES), passes=True, packets=counted[mark])
            told.object.CopyFrom(names.behind(mark))
            told.text = "what it receives" if rule.direction.ingress else "what it sends"
            reply.filters.append(told)

    async def _add_filters(self, reply: pb.PortExplanation, names: Names, ofport: int) -> None:
        flows: dict[tuple[object, ...], tuple[Flow, int]] = {}
        for field in OWN:
            for flow, packets, _ in await self._switch.flow_counters(None, True, match(**{field: ofport})):
                if flow.table != Table.DROP:
                    flows[flow.key] = flow, packets
        for flow, packets in sorted(flows.values(), key=lambda pair: (pair[0].table, -pair[0].priority, pair[0].match)):
            if len(reply.filters) == MOST:
                reply.notes.append(f"{len(flows) - MOST} more flows are left out")
                break
            reply.filters.append(_filter(names, flow, packets))


def _filter(names: Names, flow: Flow, packets: int) -> pb.PortFilter:
    refused = not flow.actions or any(isinstance(action, Resubmit) and action.table == Table.DROP for action in flow.actions)
    reasons = [action.value for action in flow.actions if isinstance(action, SetField) and action.field == REASON]
    return pb.PortFilter(
        table=flow.table,
        stage=words.stage(flow.table),
        object=names.behind(flow.cookie),
        text=words.packets(flow.match),
        passes=not refused,
        reason=words.why(reasons[-1])[0] if refused and reasons else "",
        packets=packets,
        flow=f"{text.name(flow)} {text.contents(flow)}",
    )
