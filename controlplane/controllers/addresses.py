"""Gives the ports of a network, where they are many, their address in a subnet that came later and whose guests form theirs.

See services/formed.py.
"""

from __future__ import annotations

import structlog

from controlplane.controllers.runner import Controller
from controlplane.progress import Progress
from controlplane.registry import KINDS
from controlplane.services import formed
from controlplane.services.base import of_controller
from controlplane.services.defaults import Installation
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.commit import Committer
from controlplane.store.txn import Origin, Transaction
from kumihimo.v1 import store_pb2

ORIGIN = Origin(actor="addresses", project_id="", method="controller/addresses")

_log = structlog.get_logger("kumihimo.addresses")


class Addresses(Controller):
    """See the module. Marks are ids of subnets that have left a note. The note goes last: another holder begins anew, and
    finds with their address the ports that were done."""

    name = "addresses"

    def __init__(self, committer: Committer, progress: Progress, installation: Installation) -> None:
        super().__init__(committer, progress)
        self._installation = installation

    def changed(self, key: str, new: Entry | None) -> None:
        match keys.split(key):
            case ["forming", subnet] if new is not None:
                self.mark(subnet)

    async def work(self, marks: list[str]) -> None:
        for subnet_id in marks:
            await self._form(subnet_id)

    async def _form(self, subnet_id: str) -> None:
        note = self.cache.get(keys.forming(subnet_id))
        if note is None:
            return
        folder = keys.ports(store_pb2.Index.FromString(note.value).parent_id)
        there = sorted(key for key, entry in self.cache.folder(folder).items() if entry.create_revision < note.create_revision)
        given = 0
        for first in range(0, len(there), formed.FEW):
            given += await self._give(subnet_id, there[first : first + formed.FEW])

        def done(transaction: Transaction) -> None:
            if transaction.read(keys.forming(subnet_id)) is not None:
                transaction.delete(keys.forming(subnet_id))

        await self.committer.commit(done, ORIGIN)
        _log.info("formed", subnet=subnet_id, ports=given)

    async def _give(self, subnet_id: str, ports: list[str]) -> int:
        """One transaction for some ports, by key; to how many an address was given."""
        context = of_controller(self.name, self._installation, self.committer.hints)

        def attempt(transaction: Transaction) -> int:
            key = transaction.locate(KINDS["Subnet"], subnet_id)
            if key is None or transaction.require(key) is None:
                return 0
            subnet = transaction.message(KINDS["Subnet"], key)
            found = [port for port in (transaction.message(KINDS["Port"], place) for place in ports) if port is not None]
            return sum(formed.give(transaction, subnet, port, context) for port in found)

        given, _ = await self.committer.commit(attempt, ORIGIN)
        return given
