"""Keeps what security groups hold of ports as the ports say, whoever wrote them.

An API of this release writes a port and its groups' members together. One of a release before there were groups, which may have
written what is stored or run beside us during an upgrade, makes ports without groups: they get their project's default group,
and are filtered from then on. It also deletes and changes ports without a word to their groups.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

import structlog

from controlplane.controllers.runner import Controller
from controlplane.errors import ApiError
from controlplane.progress import Progress
from controlplane.registry import KINDS
from controlplane.services import membership
from controlplane.services.base import of_controller
from controlplane.services.defaults import Installation
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.commit import Committer
from controlplane.store.txn import Origin, Transaction

ORIGIN = Origin(actor="members", project_id="", method="controller/members")

_log = structlog.get_logger("kumihimo.members")


class Members(Controller):
    """See the module. Marks are ids of ports."""

    name = "members"
    batch = 50  # about 2 ms of looking

    def __init__(self, committer: Committer, progress: Progress, installation: Installation) -> None:
        super().__init__(committer, progress)
        self._installation = installation
        self._groups: dict[str, set[str]] = defaultdict(set)  # port → groups that hold it

    async def run(self) -> None:
        self._groups.clear()
        await super().run()

    def changed(self, key: str, new: Entry | None) -> None:
        match keys.split(key):
            case ["net", _, "port", port]:
                self.mark(port)
            case ["secgroup", group, "member", port]:
                if new is not None:
                    self._groups[port].add(group)
                else:
                    self._groups[port].discard(group)
                    if not self._groups[port]:
                        del self._groups[port]
                self.mark(port)

    async def work(self, marks: list[str]) -> None:
        await asyncio.sleep(0)  # all is well with most: others have their turn between two looks
        await self._mend([port for port in marks if self._is_wrong(port)])

    def _is_wrong(self, port_id: str) -> bool:
        """By what this replica knows: it costs the store nothing where all is well."""
        found = self.cache.located(KINDS["Port"], port_id)
        port = self.cache.parsed(KINDS["Port"], *found) if found else None
        held = {group: self.cache.get(keys.members(group) + port_id) for group in self._groups.get(port_id, ())}
        return membership.is_wrong(port, {group: entry.value for group, entry in held.items() if entry is not None})

    async def _mend(self, ports: list[str]) -> None:
        if not ports:
            return
        context = of_controller(self.name, self._installation, self.committer.hints)

        def attempt(transaction: Transaction) -> int:
            return sum(membership.mend(transaction, port, self._groups.get(port, set()), context) for port in ports)

        try:
            mended, revision = await self.committer.commit(attempt, ORIGIN)
        except ApiError as error:
            # One port that others keep changing must not hold up the batch: each by itself.
            if len(ports) == 1:
                _log.warning("not mended", port=ports[0], detail=error.message)
                raise
            for port in ports:
                await self._mend([port])
            return
        if mended:
            _log.info("mended", ports=mended, revision=revision)
