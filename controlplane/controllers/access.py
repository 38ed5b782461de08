"""Gives each Node its user and role in etcd, and takes them away when it is deleted.

It runs only where etcd is spoken to over TLS. What it changes is no key of the store, so no comparison guards it; it
looks at every node again whenever it begins.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from controlplane.controllers.runner import Controller
from controlplane.progress import Progress
from controlplane.store import keys
from controlplane.store.access import Access
from controlplane.store.client import Entry
from controlplane.store.commit import Committer

_log = structlog.get_logger("kumihimo.access")


class AccessControl(Controller):
    """See the module. Marks are ids of nodes."""

    name = "access"

    def __init__(self, committer: Committer, progress: Progress) -> None:
        super().__init__(committer, progress)
        self._access = Access(committer.store)

    def changed(self, key: str, new: Entry | None) -> None:
        match keys.split(key):
            case ["node", node] if node != ".change":
                self.mark(node)

    async def leftovers(self) -> Iterable[str]:
        return await self._access.nodes()

    async def work(self, marks: list[str]) -> None:
        for node in marks:
            if self.cache.get(keys.node(node)) is None:
                await self._access.dismiss(node)
                _log.info("dismissed", node=node)
            elif await self._access.admit(node):
                _log.info("admitted", node=node)
