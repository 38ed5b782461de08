"""Gives a node without `tunnel_ip` the first underlay address of the installation's family that its agent reports."""

from __future__ import annotations

import structlog

from controlplane.controllers.runner import Controller
from controlplane.errors import ApiError
from controlplane.progress import Progress
from controlplane.registry import KINDS
from controlplane.services.base import claim
from controlplane.services.defaults import Installation
from controlplane.services.node import TUNNEL_POOL
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.commit import Committer
from controlplane.store.txn import Origin, Transaction
from controlplane.values import Invalid, address
from kumihimo.v1 import store_pb2

ORIGIN = Origin(actor="registrar", project_id="", method="controller/registrar")

_log = structlog.get_logger("kumihimo.registrar")


class Registrar(Controller):
    """See the module. Marks are ids of nodes."""

    name = "registrar"

    def __init__(self, committer: Committer, progress: Progress, installation: Installation) -> None:
        super().__init__(committer, progress)
        self._installation = installation

    def changed(self, key: str, new: Entry | None) -> None:
        match keys.split(key):
            case ["status", node, "agent"] | ["node", node] if node != ".change":
                self.mark(node)
            case ["settings", _]:
                for node in self.cache.ids(KINDS["Node"]):
                    self.mark(node)

    async def work(self, marks: list[str]) -> None:
        for node in marks:
            await self._complete(node)

    async def _complete(self, node_id: str) -> None:
        def attempt(transaction: Transaction) -> str:
            entry = transaction.read(keys.node(node_id))
            node = transaction.object(KINDS["Node"], node_id)
            reported = self.cache.get(keys.agent_status(node_id))
            if entry is None or node is None or node.tunnel_ip or reported is None:
                return ""
            version = self._installation.of(transaction.read(keys.SETTINGS)).underlay_ip_version
            for candidate in store_pb2.AgentStatus.FromString(reported.value).underlay_ips:
                if _version(candidate) == version and not claim(transaction, TUNNEL_POOL, candidate, owner=node_id, project=""):
                    message = KINDS["Node"].new(entry.value)
                    message.tunnel_ip = candidate
                    transaction.put(keys.node(node_id), message)
                    transaction.record("Node", node_id, before=entry.value, after=message.SerializeToString())
                    return candidate
            return ""

        try:
            chosen, _ = await self.committer.commit(attempt, ORIGIN)
        except ApiError as error:
            # The runner begins anew, with every node: one that is passed over would stay without its address.
            _log.warning("not completed", node=node_id, detail=error.message)
            raise
        if chosen:
            _log.info("completed", node=node_id, tunnel_ip=chosen)


def _version(text: str) -> int:
    """Of an address; 0 when it is none that a tunnel may start from."""
    try:
        return address(text).version
    except Invalid:
        return 0
