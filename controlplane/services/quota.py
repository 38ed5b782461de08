"""Quotas: how many objects of a kind a project may have, exact under any concurrency.

Each counted object holds a slot, a claim of a number from 1 to the limit (`claim/quota/{project}/{plural}/{n}`): a number
more than the limit cannot be claimed, and no counter is fought over. After a limit was lowered, slots above it may exist:
the highest limit there was is remembered (`former`), and as long as a slot above the limit is in use, who takes one compares
the project's whole folder. Such slots become fewer only, since a claim compares the keys that the limit was read from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from controlplane.errors import Violation, exhausted, precondition
from controlplane.registry import KINDS, Kind
from controlplane.services.base import Context, Rules, claim_free, first_free
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
    of_project, plural = KINDS["Quota"], kind.options.plural
    key = keys.place(of_project, project)
    transaction.read(key)
    stored = transaction.message(of_project, key)
    crowded = stored is not None and plural in stored.former_limits
    if stored is not None and plural in stored.limits:
        return number(stored.limits[plural]), crowded
    settings = defaults_of(transaction)
    limit = settings.quotas.get(plural, kind.options.quota)
    return number(limit), crowded or plural in settings.former_quotas


def defaults_of(transaction: Transaction) -> Any:
    """The Settings; the commit happens only if they are as they were read."""
    kind = KINDS["Settings"]
    transaction.read(keys.SETTINGS)
    return transaction.message(kind, keys.SETTINGS) or kind.message()


def remember(former: MutableMapping[str, int], before: Mapping[str, int], now: Mapping[str, int]) -> None:
    """Keep in `former`, by plural noun, the highest limit there was, where that is more than now."""
    for plural in COUNTED:
        most = max(number(before[plural]), former.get(plural, 0))
        if most > number(now[plural]):
            former[plural] = most
        elif plural in former:
            del former[plural]


def number(limit: int) -> int:
    """A limit as slots are counted: MOST for any number."""
    return MOST if limit == UNLIMITED else int(limit)


def take(transaction: Transaction, kind: Kind, new: Any, context: Context) -> int:
    """Take a slot for a new object; its number. Raises QUOTA_EXCEEDED."""
    project = new.project_id
    limit, crowded = limit_of(transaction, kind, project)
    pool = keys.quota_pool(project, kind)
    slot = first_free(transaction, pool, 1, limit, context) if transaction.has_fewer(keys.claim(pool), limit) else None
    # A slot above the limit was taken under a higher one, of which this transaction knows: none is added while it holds.
    if crowded and _highest(transaction, pool) > limit:
        transaction.require_unchanged(keys.claim(pool))
    if slot is None:
        plural, used = kind.options.plural, transaction.count(keys.claim(pool))
        raise exhausted(
            "QUOTA_EXCEEDED",
            f"project {project} may have {limit} {plural.replace('_', ' ')} and has {used}; delete some, or ask an operator"
            " for a higher quota",
            quota=plural,
            limit=str(limit),
            used=str(used),
        )
    claim_free(transaction, pool, slot, owner=new.id, project=project)
    return slot


def give_back(transaction: Transaction, kind: Kind, index: store_pb2.Index) -> None:
    """Free the slot of an object that goes."""
    if index.quota_slot:
        transaction.delete(keys.claim(keys.quota_pool(index.project_id, kind), index.quota_slot))


def _highest(transaction: Transaction, pool: str) -> int:
    """The highest slot in use."""
    folder = keys.claim(pool)
    return max((int(key[len(folder) :]) for key in transaction.folder(folder)), default=0)


def effective(limits: Mapping[str, int], defaults: Mapping[str, int]) -> dict[str, int]:
    """The limit of every counted kind: what was set for the project, else for the installation."""
    return {plural: limits.get(plural, defaults.get(plural, kind.options.quota)) for plural, kind in COUNTED.items()}


def check_limits(field: str, limits: Mapping[str, int]) -> Iterator[Violation]:
    """Faults of limits by plural noun."""
    for plural, limit in sorted(limits.items()):
        if plural not in COUNTED:
            accepted = ", ".join(COUNTED)
            text = f"{field}: nothing is counted as {quoted(plural)}; accepted: {accepted}"
            yield Violation(field, "VALUE_OUT_OF_RANGE", text)
        elif not UNLIMITED <= limit < MOST:
            text = f"{field}: {plural} is {limit}; {UNLIMITED} (any number) to {MOST - 1} is accepted"
            yield Violation(field, "VALUE_OUT_OF_RANGE", text)


def usage(cache: Cache, project: str) -> dict[str, int]:
    """How many objects of each counted kind a project has."""
    return {plural: len(cache.folder(keys.claim(keys.quota_pool(project, kind)))) for plural, kind in COUNTED.items()}


def _is_key(project: str) -> bool:
    """Whether an object can stand in the store under this id (keys.py)."""
    return "/" not in project and not project.startswith(".")


class QuotaRules(Rules):
    """See the module."""

    kind = "Quota"

    def default(self, object_id: str, context: Context) -> Any | None:
        if not object_id or not _is_key(object_id):
            return None
        return KINDS[self.kind].message(id=object_id, project_id=object_id)

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        if new.id and not _is_key(new.id):
            yield Violation(
                "id", "ID_INVALID", f"id {quoted(new.id)} has a / or begins with a dot; the id of a project without is accepted"
            )
        yield from check_limits("limits", new.limits)

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        new.project_id = new.id
        self._remember(transaction, KINDS[self.kind].message(), new)

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        new.project_id = new.id
        self._remember(transaction, old, new)

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        """Back to the defaults, unless more is in use: nobody would remember it."""
        defaults = effective({}, defaults_of(transaction).quotas)
        for plural, kind in COUNTED.items():
            pool = keys.quota_pool(old.id, kind)
            transaction.require_unchanged(keys.claim(pool))
            if _highest(transaction, pool) > number(defaults[plural]):
                raise precondition(
                    "INCOMPATIBLE_STATE",
                    f"Quota {old.id}: more {plural.replace('_', ' ')} may be in use than the {defaults[plural]} of the default;"
                    " clear its limits by an update instead",
                )

    def _remember(self, transaction: Transaction, old: Any, new: Any) -> None:
        settings = defaults_of(transaction)
        defaults = effective({}, settings.quotas)
        # Where the project had no limit of its own, it may have as much as any default has allowed.
        most = {plural: max(number(limit), settings.former_quotas.get(plural, 0)) for plural, limit in defaults.items()}
        remember(new.former_limits, {**most, **old.limits}, {**defaults, **new.limits})
