"""Returns values of deleted objects (addresses, MACs, VNIs, numbers) to their pools, once no node uses them any more.

A claim marked `releasing` at revision R is free when every live node that concerns itself with the network has applied R
(numbers of nodes: every live node has applied the node scope at R). Dead nodes are not waited for.
"""

from __future__ import annotations

import asyncio

from controlplane.progress import Progress
from controlplane.store import client, keys
from controlplane.store.cache import Cache
from controlplane.store.client import Entry, Store
from kumihimo.v1 import store_pb2

PAUSE = 0.05  # seconds between two sweeps: releasing has no hurry, and acknowledgements come in crowds
BATCH = 500


class Release:
    """See the module."""

    name = "release"

    def __init__(self, store: Store, cache: Cache, progress: Progress) -> None:
        self._store = store
        self._cache = cache
        self._progress = progress
        self._pending: dict[str, store_pb2.Claim] = {}
        self._woken = asyncio.Event()

    async def run(self) -> None:
        self._cache.observe(self._changed)
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                await self._sweep()
                await asyncio.sleep(PAUSE)
        finally:
            self._cache.forget(self._changed)
            self._pending.clear()

    def _changed(self, key: str, old: Entry | None, new: Entry | None) -> None:
        if key.startswith(keys.CLAIMS):
            claim = store_pb2.Claim.FromString(new.value) if new else None
            if claim is not None and claim.releasing:
                self._pending[key] = claim
            else:
                self._pending.pop(key, None)
        elif not key.startswith((keys.STATUS, keys.ALIVE, keys.NETWORKS)):
            return
        if self._pending:
            self._woken.set()

    async def _sweep(self) -> None:
        free = [key for key, claim in self._pending.items() if self._is_free(key, claim)][:BATCH]
        for key in free:
            entry = self._cache.get(key)
            if entry is not None:
                # Taken again by its project in the meantime: then the revision differs and nothing happens.
                await self._store.transact([client.modified_at(key, entry.mod_revision)], [client.delete(key)])

    def _is_free(self, key: str, claim: store_pb2.Claim) -> bool:
        entry = self._cache.get(key)
        if entry is None:
            return False
        if claim.network_id:
            lagging, _ = self._progress.behind(claim.network_id, entry.mod_revision)
        else:
            lagging, _ = self._progress.behind_nodes(entry.mod_revision)
        return not lagging
