"""`Ports.Explain`: what filters a port, and in one sentence whether anything is wrong with it."""

from __future__ import annotations

from typing import Any

from controlplane.api.agents import Agents, Silent
from controlplane.api.crud import current
from controlplane.api.standing import Finding, Names, Standing, title
from controlplane.errors import refuse
from controlplane.services.base import Context
from controlplane.store.cache import Cache
from controlplane.store.txn import Origin
from controlplane.validate import check
from kumihimo.v1 import inspect_pb2 as pb


class Explain:
    """The method."""

    def __init__(self, cache: Cache, standing: Standing, agents: Agents) -> None:
        self._cache = cache
        self._standing = standing
        self._agents = agents

    async def explain(self, request: pb.ExplainPortRequest, context: Context, origin: Origin) -> pb.PortExplanation:
        """What filters a port; where its node's agent is silent, what the store knows of it, and why not more."""
        caller = context.caller
        refuse(check(request, operator=caller.is_operator))
        await current(self._cache)
        port = self._standing.port(request.id, caller)
        findings = self._standing.of(port, caller)
        node = self._standing.node_of(port)
        reply = await self._looked(node, request) if node else pb.PortExplanation()
        names = Names(self._cache, caller)
        for found in reply.filters:
            found.text = names.allowed(found.object) or found.text
            names.clear(found.object)
        _conclude(reply, port, findings)
        if not port.filtered or (port.HasField("port_security_enabled") and not port.port_security_enabled):
            reply.notes.append("no security group filters it")
        if not caller.is_operator:
            _hide(reply)
        return reply

    async def _looked(self, node: str, request: pb.ExplainPortRequest) -> pb.PortExplanation:
        try:
            found: pb.PortExplanation = await self._agents.ask(node, "Explain", request)
        except Silent as error:
            return pb.PortExplanation(node=node, reason=error.reason, message=error.message)
        return found


def _conclude(reply: pb.PortExplanation, port: Any, findings: list[Finding]) -> None:
    """The sentence: what keeps everything from passing, else what was dropped that need not have been."""
    dropped = [
        f"{drop.packets} packets were dropped so far: {drop.message} ({drop.reason})" for drop in reply.drops if not drop.usual
    ]
    if findings and findings[0].fatal:
        said = findings.pop(0).text
    elif not reply.live:
        said = f"{title(port)} was wired when it was heard of last: {reply.message}"
    elif not reply.wired:
        said = f"{title(port)} is not wired: {reply.message}"
    elif reply.notes:
        said = f"{title(port)} was wired when its node was last looked at; {reply.notes.pop(0)}"
    elif dropped:
        said = f"{title(port)} is wired, but of its traffic {dropped.pop(0)}"
    else:
        said = f"{title(port)} is wired, and nothing of its traffic was dropped that should not have been"
    reply.summary = said[:1].upper() + said[1:]
    reply.notes.extend([*(finding.note for finding in findings), *dropped])


def _hide(reply: pb.PortExplanation) -> None:
    """Tenants see what is filtered, not the names of hosts and the flows."""
    if reply.message:
        reply.message = "its host does not answer" if not reply.live else ""
    reply.node = reply.interface = ""
    for found in reply.filters:
        found.flow = ""
