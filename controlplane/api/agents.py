"""Questions to agents, which only they can answer: what is on their hosts now.

An agent is asked over mutual TLS, as user `kumi-api`, at the address that it reports; whoever answers there must hold the
certificate of that node. A silent agent is no error of the caller's: he gets what the store knows, and why it is no more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from controlplane.api.crud import current
from controlplane.errors import not_found, refuse
from controlplane.registry import KINDS
from controlplane.services.base import Context
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.txn import Origin
from controlplane.tls import Tls, Watched, node_name
from controlplane.validate import check
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import store_pb2

SECONDS = 5.0
MOST_AT_ONCE = 16
LARGEST = 8 << 20  # bytes of an answer
SERVICE = pb.DESCRIPTOR.services_by_name["Agent"]


@dataclass(eq=False)
class Silent(Exception):
    """An agent that cannot be asked, or did not answer."""

    reason: str
    message: str


class Agents:
    """Asks agents. tls: our own certificate; None: there are none, and no agent answers."""

    def __init__(self, cache: Cache, tls: Tls | None) -> None:
        self._cache = cache
        self._files = Watched(tls) if tls else None
        self._turn = asyncio.Semaphore(MOST_AT_ONCE)

    async def ask(self, node_id: str, name: str, request: Any) -> Any:
        """The answer to one of the methods of `Agent`. Raises Silent."""
        if self._files is None:
            raise Silent("NO_CERTIFICATES", "the API has no certificate to ask agents with; set etcd_ca and what goes with it")
        if self._cache.get(keys.alive(node_id)) is None:
            raise Silent("NODE_DEAD", f"the agent of node {node_id} is not heard of; its traffic goes on")
        entry = self._cache.get(keys.agent_status(node_id))
        status = store_pb2.AgentStatus.FromString(entry.value) if entry else store_pb2.AgentStatus()
        if not status.address:
            why = status.features.get("inspect", "it is of a release that answers none")
            raise Silent("NOT_LISTENING", f"the agent of node {node_id} answers no questions: {why.removeprefix('off: ')}")
        async with self._turn:
            return await self._ask(node_id, status.address, name, request)

    async def _ask(self, node_id: str, address: str, name: str, request: Any) -> Any:
        assert self._files is not None
        self._files.changed()
        held, method = self._files.loaded, SERVICE.methods_by_name[name]
        options = [
            ("grpc.ssl_target_name_override", node_name(node_id)),
            ("grpc.max_receive_message_length", LARGEST),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        secret = grpc.ssl_channel_credentials(held.ca, held.key, held.certificate)
        async with grpc.aio.secure_channel(address, secret, options) as channel:
            call: Any = channel.unary_unary(
                f"/{SERVICE.full_name}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            try:
                return await call(request, timeout=SECONDS)
            except grpc.aio.AioRpcError as error:
                detail = " ".join((error.details() or error.code().name).split())
                raise Silent("AGENT_SILENT", f"the agent of node {node_id} at {address} does not answer: {detail}") from None


class Inspect:
    """`Nodes.Inspect`."""

    def __init__(self, cache: Cache, agents: Agents) -> None:
        self._cache = cache
        self._agents = agents

    async def inspect(self, request: pb.InspectNodeRequest, context: Context, origin: Origin) -> pb.NodeInspection:
        """What is on a node; where its agent is silent, the ports that it reported last, and why."""
        refuse(check(request, operator=context.caller.is_operator))
        await current(self._cache)
        if self._cache.get(keys.node(request.id)) is None:
            raise not_found("Node", request.id or '""')
        try:
            found: pb.NodeInspection = await self._agents.ask(request.id, "Inspect", request)
        except Silent as error:
            found = self._remembered(request.id)
            found.reason, found.message = error.reason, error.message
        return found

    def _remembered(self, node_id: str) -> pb.NodeInspection:
        found = pb.NodeInspection(node=node_id)
        ports = self._cache.folder(keys.port_status(node_id))
        if ports:
            bridge = found.bridges.add(name="br-int", managed=True)
        for key, entry in sorted(ports.items()):
            status = store_pb2.PortStatus.FromString(entry.value)
            port_id = key.rsplit("/", 1)[1]
            port = bridge.ports.add(name=status.interface, ofport=status.ofport, purpose="workload", wired=status.wired)
            port.reason, port.message = status.reason, status.message
            place = self._cache.locate(KINDS["Port"], port_id)
            known = self._cache.message(KINDS["Port"], place) if place else None
            port.objects.add(kind="Port", id=port_id, name=known.name if known else "")
            if known is not None:
                network = self._cache.message(KINDS["Network"], keys.network(known.network_id))
                port.objects.add(kind="Network", id=known.network_id, name=network.name if network else "")
        return found
