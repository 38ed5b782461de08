"""Returns values of deleted objects (addresses, MACs, VNIs, numbers) to their pools, once no node uses them any more.

A claim marked `releasing` at revision R is free when every live node that concerns itself with the network has applied R
(numbers of nodes: every live node has applied the node scope at R). Dead nodes are not waited for.
"""

from __future__ import annotations

import asyncio

from controlplane.controllers.runner import Controller
from controlplane.progress import Progress
from controlplane.store import client, keys
from controlplane.store.client import Entry
from controlplane.store.commit import Committer
from kumihimo.v1 import store_pb2

PAUSE = 0.05  # seconds between two sweeps: releasing has no hurry, and acknowledgements come in crowds
BATCH = 500
SWEEP = "sweep"


class Release(Controller):
    """See the module. The one mark says that a sweep may find something free."""

    name = "release"

    def __init__(self, committer: Committer, progress: Progress) -> None:
        super().__init__(committer, progress)
        self._pending: dict[str, store_pb2.Claim] = {}

    def changed(self, key: str, new: Entry | None) -> None:
        if key.startswith(keys.CLAIMS):
            claim = store_pb2.Claim.FromString(new.value) if new else None
            if claim is not None and claim.releasing:
                self._pending[key] = claim
            else:
                self._pending.pop(key, None)
        elif not key.startswith((keys.STATUS, keys.ALIVE, *keys.SCOPES)):
            return
        if self._pending:
            self.mark(SWEEP)

    async def work(self, marks: list[str]) -> None:
        await self._sweep()
        await asyncio.sleep(PAUSE)

    async def _sweep(self) -> None:
        # The revision is that of the claim which was judged: one that its project takes again while this sweep waits for
        # etcd has another, and stays.
        judged = [(key, self._free_at(key, claim)) for key, claim in self._pending.items()]
        for key, revision in [item for item in judged if item[1]][:BATCH]:
            await self.store.transact([client.modified_at(key, revision)], [client.delete(key)])

    def _free_at(self, key: str, claim: store_pb2.Claim) -> int:
        """The revision at which a claim is found free; 0 when it is not."""
        entry = self.cache.get(key)
        if entry is None:
            return 0
        scope = keys.scope(claim.network_id) if claim.network_id else claim.scope
        lagging, _ = self.progress.behind(scope, entry.mod_revision)
        return 0 if lagging else entry.mod_revision
