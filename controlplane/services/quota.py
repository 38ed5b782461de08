"""Quotas: how many objects of a kind a project may have, exact under any concurrency.

Each counted object holds a slot, a claim of a number from 1 to the limit (`claim/quota/{project}/{plural}/{n}`): a number
more than the limit cannot be claimed, and no counter is fought over. After a limit was lowered below what is in use, slots
above it exist; then (`crowded`) the whole folder is compared too, until a higher limit holds them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlplane.errors import Violation, exhausted, precondition
from controlplane.registry import KINDS, Kind
from controlplane.services.base import Context, Rules, claim, first_free
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.txn import Transaction
from controlplane.values import quoted
from kumihimo.v1 import store_pb2

COUNTED = {kind.options.plural: kind for kind in KINDS.values() if kind.options.quota}
UNLIMITED = -1
MOST = (1 << 31) - 1


def limit_of(transaction: Transaction, kind: Kind, project: str) -> tuple[int, bool]:
    """(how many a project may have, whether slots above that may be in use)."""
    of_project = KINDS["Quota"]
    key = keys.place(of_project, project)
    transaction.read(key)
    stored = transaction.message(of_project, key)
    plural = kind.options.plural
    if stored is None or plural not in stored.limits:
        return int(kind.options.quota), False
    return int(stored.limits[plural]), plural in stored.crowded


def take(transaction: Transaction, kind: Kind, new: Any, context: Context) -> int:
    """Take a slot for a new object; its number. Raises QUOTA_EXCEEDED."""
    project = new.project_id
    limit, crowded = limit_of(transaction, kind, project)
    pool = keys.quota_pool(project, kind)
    if limit == UNLIMITED:
        limit = MOST
    used = transaction.count(keys.claim(pool)) if limit < MOST else 0
    slot = first_free(transaction, pool, 1, limit, context) if used < limit else None
    if crowded:
        transaction.require_unchanged(keys.claim(pool))
    if slot is None or claim(transaction, pool, slot, owner=new.id, project=project) is not None:
        plural = kind.options.plural
        raise exhausted(
            "QUOTA_EXCEEDED",
            f"project {project} may have {limit} {plural.replace('_', ' ')} and has {used}; delete some, or ask an operator"
            " for a higher quota",
            quota=plural,
            limit=str(limit),
            used=str(used),
        )
    return slot


def give_back(transaction: Transaction, kind: Kind, index: store_pb2.Index) -> None:
    """Free the slot of an object that goes."""
    if index.quota_slot:
        transaction.delete(keys.claim(keys.quota_pool(index.project_id, kind), index.quota_slot))


def effective(limits: Any) -> dict[str, int]:
    """The limit of every counted kind, where `limits` are those that were set."""
    return {plural: limits.get(plural, kind.options.quota) for plural, kind in COUNTED.items()}


def usage(cache: Cache, project: str) -> dict[str, int]:
    """How many objects of each counted kind a project has."""
    return {plural: len(cache.folder(keys.claim(keys.quota_pool(project, kind)))) for plural, kind in COUNTED.items()}


class QuotaRules(Rules):
    """See the module."""

    kind = "Quota"

    def default(self, object_id: str, context: Context) -> Any | None:
        return KINDS[self.kind].message(id=object_id, project_id=object_id) if object_id else None

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        if new.id and not keys.names_object(new.id):
            yield Violation(
                "id", "ID_INVALID", f"id: {quoted(new.id)} is no project's; one without / that begins with no dot is"
            )
        for plural, limit in sorted(new.limits.items()):
            if plural not in COUNTED:
                accepted = ", ".join(COUNTED)
                yield Violation(
                    "limits", "VALUE_OUT_OF_RANGE", f"limits: nothing is counted as {plural!r}; accepted: {accepted}"
                )
            elif not UNLIMITED <= limit < MOST:
                text = f"limits: {plural} is {limit}; {UNLIMITED} (any number) to {MOST - 1} is accepted"
                yield Violation("limits", "VALUE_OUT_OF_RANGE", text)

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        new.project_id = new.id
        self._mark_crowded(transaction, new)

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        self.create(transaction, new, context)

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        # The defaults are limits that nobody has been measured against.
        if any(transaction.count(keys.claim(keys.quota_pool(old.id, kind))) for kind in COUNTED.values()):
            raise precondition(
                "INCOMPATIBLE_STATE",
                f"Quota {old.id}: the project has objects that are counted; update the limits instead",
            )
        for kind in COUNTED.values():
            transaction.require_empty(keys.claim(keys.quota_pool(old.id, kind)))

    def _mark_crowded(self, transaction: Transaction, new: Any) -> None:
        del new.crowded[:]
        for plural, limit in effective(new.limits).items():
            folder = keys.claim(keys.quota_pool(new.id, COUNTED[plural]))
            slots = [int(key[len(folder) :]) for key in transaction.folder(folder)]
            transaction.require_unchanged(folder)
            if limit != UNLIMITED and max(slots, default=0) > limit:
                new.crowded.append(plural)
