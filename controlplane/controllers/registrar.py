"""Gives a node without `tunnel_ip` the first underlay address that its agent reports, claimed like any other."""

from __future__ import annotations

import asyncio

import structlog

from controlplane.errors import ApiError
from controlplane.progress import Progress
from controlplane.registry import KINDS
from controlplane.services.base import claim, stored
from controlplane.services.node import TUNNEL_POOL
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.client import Entry, Store
from controlplane.store.txn import Origin, Transaction, commit
from controlplane.values import Invalid, address
from kumihimo.v1 import store_pb2

ORIGIN = Origin(actor="registrar", project_id="", method="controller/registrar")

_log = structlog.get_logger("kumihimo.registrar")


class Registrar:
    """See the module."""

    name = "registrar"

    def __init__(self, store: Store, cache: Cache, progress: Progress) -> None:
        self._store = store
        self._cache = cache
        self._dirty: dict[str, None] = {}
        self._woken = asyncio.Event()
        del progress  # every controller is made alike

    async def run(self) -> None:
        self._cache.observe(self._changed)
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                for node in list(self._dirty):
                    del self._dirty[node]
                    await self._complete(node)
        finally:
            self._cache.forget(self._changed)

    def _changed(self, key: str, old: Entry | None, new: Entry | None) -> None:
        match keys.split(key):
            case ["status", node, "agent"] | ["node", node] if node != ".change":
                self._dirty[node] = None
                self._woken.set()

    async def _complete(self, node_id: str) -> None:
        def attempt(transaction: Transaction) -> str:
            entry = transaction.read(keys.node(node_id))
            node = stored(self._cache, "Node", node_id)
            reported = self._cache.get(keys.agent_status(node_id))
            if entry is None or node is None or node.tunnel_ip or reported is None:
                return ""
            for candidate in store_pb2.AgentStatus.FromString(reported.value).underlay_ips:
                if _is_ipv4(candidate) and not claim(transaction, TUNNEL_POOL, candidate, owner=node_id, project=""):
                    message = KINDS["Node"].new(entry.value)
                    message.tunnel_ip = candidate
                    transaction.put(keys.node(node_id), message)
                    transaction.resources.append(f"node/{node_id}")
                    return candidate
            return ""

        try:
            chosen, _ = await commit(self._store, self._cache, attempt, ORIGIN)
        except ApiError as error:
            _log.warning("not completed", node=node_id, detail=error.message)
            return
        if chosen:
            _log.info("completed", node=node_id, tunnel_ip=chosen)


def _is_ipv4(text: str) -> bool:
    try:
        return address(text).version == 4
    except Invalid:
        return False
