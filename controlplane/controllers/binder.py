"""Decides where a port is: turns "seen on a node" into `net/{net}/bind/{port}`.

Rules: a port that is asked to be on a node (`net/{net}/place/{port}`) is bound there when it is seen there, and is never bound
to another; until then it stays where it is bound, so that a move has no gap. Otherwise: a port seen on one node is bound to
it. A port seen on several stays where it is bound while it is seen there or while that node's agent is dead (its traffic goes
on); else the node it is seen on takes it. A port seen nowhere is unbound.
"""

from __future__ import annotations

import structlog

from controlplane.controllers.runner import Controller
from controlplane.errors import ApiError
from controlplane.registry import KINDS
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.txn import Origin, Transaction
from kumihimo.v1 import port_pb2, store_pb2

ORIGIN = Origin(actor="binder", project_id="", method="controller/binder")

_log = structlog.get_logger("kumihimo.binder")


class Binder(Controller):
    """See the module. Marks are ids of ports."""

    name = "binder"

    def changed(self, key: str, new: Entry | None) -> None:
        match keys.split(key):
            case ["status", _, "port", port] | ["net", _, "bind" | "place", port]:
                self.mark(port)
            case ["net", _, "port", port] if self.progress.seen(port):
                self.mark(port)
            case ["alive" | "node", node]:
                for folder in (keys.bound_to(node), keys.port_status(node)):
                    for seen in self.cache.folder(folder):
                        self.mark(seen.rsplit("/", 1)[1])

    async def work(self, marks: list[str]) -> None:
        await self._bind(marks)

    async def _bind(self, batch: list[str]) -> None:
        def attempt(transaction: Transaction) -> int:
            return sum(self._decide(transaction, port) for port in batch)

        try:
            moved, revision = await self.committer.commit(attempt, ORIGIN)
        except ApiError as error:
            # One port that others keep changing must not hold up the batch: each by itself.
            if len(batch) == 1:
                _log.warning("not bound", port=batch[0], detail=error.message)
                raise
            for port in batch:
                await self._bind([port])
            return
        if moved:
            _log.info("bound", ports=moved, revision=revision)

    def _decide(self, transaction: Transaction, port_id: str) -> int:
        """Write what one port's binding should be; 1 when that is a change."""
        port = transaction.object(KINDS["Port"], port_id)
        if port is None:
            return 0
        key = keys.bindings(port.network_id) + port_id
        entry = transaction.read(key)
        old = port_pb2.Binding.FromString(entry.value) if entry else None
        asked = transaction.read(keys.placements(port.network_id) + port_id)
        new = self._place(old, port_id, store_pb2.Placement.FromString(asked.value).node if asked else "")
        if (new and (new.node, new.interface)) == (old and (old.node, old.interface)):
            return 0
        if new is not None and old is not None:
            new.attach_time.CopyFrom(old.attach_time)
        elif new is not None:
            new.attach_time.GetCurrentTime()
        transaction.require(keys.place(KINDS["Port"], port_id, port.network_id))
        transaction.record(
            "Binding",
            port_id,
            project=port.project_id,
            name=port.name,
            before=old.SerializeToString() if old else b"",
            after=new.SerializeToString() if new else b"",
        )
        if old is not None and (new is None or new.node != old.node):
            transaction.delete(keys.bound_to(old.node, port_id))
        if new is None:
            transaction.delete(key)
        else:
            # A node that is deleted in the meantime takes no port.
            transaction.require(keys.node(new.node))
            transaction.put(key, new)
            transaction.put(keys.bound_to(new.node, port_id), new)
        return 1

    def _place(self, old: port_pb2.Binding | None, port_id: str, asked: str) -> port_pb2.Binding | None:
        """asked: the node it shall be on; one that is deleted asks for nothing."""
        seen = {
            node: status for node, status in self.progress.seen(port_id).items() if self.cache.get(keys.node(node)) is not None
        }
        if asked in seen:
            node = asked
        elif old is not None and old.node in seen:
            node = old.node
        elif seen and (not asked or self.cache.get(keys.node(asked)) is None):
            node = min(seen)
        else:
            return None
        return port_pb2.Binding(node=node, interface=seen[node].interface)
