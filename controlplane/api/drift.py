"""What nodes have found changed by others, out of their status (`Operations.ListDrift`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError

from controlplane.api.crud import current
from controlplane.api.listing import page_size
from controlplane.errors import not_found
from controlplane.registry import KINDS
from controlplane.services.base import Context
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.txn import Origin
from kumihimo.v1 import operations_pb2, store_pb2


class Drift:
    """The method `Operations.ListDrift`. A page ends between two nodes; its token is the id of the last."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    async def drift(self, request: Any, context: Context, origin: Origin) -> Any:
        size = page_size(request.page_size)
        await current(self._cache)
        nodes = self._cache.ids(KINDS["Node"])
        if request.node:
            if request.node not in nodes:
                raise not_found("Node", request.node)
            nodes = [request.node]
        reply = operations_pb2.ListDriftResponse()
        last = ""
        for node in nodes:
            if node <= request.page_token:
                continue
            if len(reply.items) >= size:
                reply.next_page_token = last
                break
            last = node
            for drift in self._found(node):
                drift.node = node
                reply.items.append(drift)
        return reply

    def _found(self, node: str) -> Iterable[Any]:
        entry = self._cache.get(keys.drift_status(node))
        if entry is None:
            return ()
        try:
            return store_pb2.DriftReport.FromString(entry.value).items
        except DecodeError:
            return ()  # a node's own statement; it says it again
