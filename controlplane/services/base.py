"""What the kernel asks of a kind's rules, and what rules of several kinds share: claims of unique values."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.config import Defaults
from controlplane.errors import ApiError, Code, Violation
from controlplane.identity import Caller
from controlplane.registry import KINDS
from controlplane.store import keys
from controlplane.store.cache import Cache, parse
from controlplane.store.txn import Transaction
from kumihimo.v1 import store_pb2

REFERRERS_SHOWN = 20
LONGEST_NAME = 40  # characters of a name that messages show


@dataclass(slots=True)
class Hints:
    """Where to look first for a free value of a pool. Only a hint: the claim in the transaction decides."""

    next: dict[str, int] = field(default_factory=dict)
    random: random.Random = field(default_factory=random.SystemRandom)


@dataclass(frozen=True, slots=True)
class Context:
    """What rules may know beside the store: who asks, and what the installation defaults to."""

    caller: Caller
    defaults: Defaults
    hints: Hints


class Rules:
    """Rules of one kind. The kernel has checked the descriptor's rules and the references before it calls these."""

    kind: str

    def complete(self, new: Any, context: Context) -> None:
        """Write the defaults that do not depend on the store."""

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        """Faults that the request shows by itself."""
        yield from ()

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        """Checks against other objects, values chosen, claims."""

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        """The same for a change."""

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        """Refuse while others refer to it; release what it claimed; with force, delete what it owns."""


def stored(cache: Cache, kind: str, object_id: str) -> Any | None:
    """The stored message of an object, or None."""
    key = cache.locate(KINDS[kind], object_id)
    entry = cache.get(key) if key else None
    return parse(KINDS[kind], entry) if entry else None


def network_of(transaction: Transaction, network_id: str) -> Any:
    """The network of a child; the kernel has made sure that it exists and stays."""
    entry = transaction.require(keys.network(network_id))
    if entry is None:
        raise ApiError(Code.NOT_FOUND, "REFERENCE_NOT_FOUND", f"Network {network_id} does not exist")
    return parse(KINDS["Network"], entry)


def subnets_of(cache: Cache, network_id: str) -> list[Any]:
    """The subnets of a network, oldest first."""
    kind = KINDS["Subnet"]
    found = [parse(kind, entry) for entry in cache.folder(keys.subnets(network_id)).values()]
    return sorted(found, key=lambda subnet: (subnet.create_time.ToNanoseconds(), subnet.id))


# -- claims -----------------------------------------------------------------------------------------------------------


def claim(
    transaction: Transaction, pool: str, value: object, *, owner: str, project: str, network: str = ""
) -> store_pb2.Claim | None:
    """Take a value out of a pool. None: taken for `owner`; else the claim that holds it.

    A value that is being released is free to the project that had it, at once; to others when the nodes have let go.
    """
    key = keys.claim(pool, value)
    entry = transaction.read(key)
    if entry is not None:
        holder = store_pb2.Claim.FromString(entry.value)
        if not (holder.releasing and holder.project_id == project) and holder.owner != owner:
            return holder
    transaction.put(key, store_pb2.Claim(owner=owner, project_id=project, network_id=network))
    return None


def release(transaction: Transaction, pool: str, value: object) -> None:
    """Give a value back; it is free to others when the nodes concerned have let go of it (controllers/release.py)."""
    key = keys.claim(pool, value)
    entry = transaction.cache.get(key)
    if entry is not None:
        holder = store_pb2.Claim.FromString(entry.value)
        holder.releasing = True
        transaction.put(key, holder)


def first_free(transaction: Transaction, pool: str, low: int, high: int, hints: Hints) -> int | None:
    """A number of [low, high] that nobody claims, beginning at the hint; None when there is none."""
    start = hints.next.get(pool, low)
    if not low <= start <= high:
        start = low
    taken: Mapping[str, object] = transaction.cache.folder(keys.claim(pool))
    for number in _around(low, high, start):
        key = keys.claim(pool, number)
        if key not in taken and not transaction.planned(key):
            hints.next[pool] = number + 1
            return number
    return None


def _around(low: int, high: int, start: int) -> Iterable[int]:
    yield from range(start, high + 1)
    yield from range(low, start)


def in_use(kind: str, object_id: str, name: str, referrers: list[str]) -> ApiError:
    """RESOURCE_IN_USE with the first referrers and their number."""
    shown = ", ".join(referrers[:REFERRERS_SHOWN])
    return ApiError(
        Code.FAILED_PRECONDITION,
        "RESOURCE_IN_USE",
        f"{kind} {label(object_id, name)} is in use by {len(referrers)}: {shown}; delete these first",
        {"count": str(len(referrers)), "referrers": shown},
    )


def label(object_id: str, name: str) -> str:
    """How messages name an object: its name, where it has one, and its id."""
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME - 1] + "…"
    return f"{name} ({object_id})" if name else object_id
