"""What the kernel asks of a kind's rules, and what rules of several kinds share: claims of unique values."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from controlplane.config import Defaults
from controlplane.errors import ApiError, Code, Violation
from controlplane.identity import Caller, Role
from controlplane.registry import KINDS
from controlplane.services.defaults import Installation
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.commit import Hints
from controlplane.store.txn import Transaction
from kumihimo.v1 import store_pb2

REFERRERS_SHOWN = 20
LONGEST_NAME = 40  # characters of a name that messages show


@dataclass(frozen=True, slots=True)
class Context:
    """What rules may know beside the store: who asks, and what the installation defaults to.

    stated: fields that an apply states, so that an empty one means "none" and not "choose". applied: an apply makes or
    changes it.
    """

    caller: Caller
    installation: Installation
    defaults: Defaults
    hints: Hints
    stated: frozenset[str] = frozenset()
    applied: bool = False
    random: random.Random = field(default_factory=random.SystemRandom)

    def at(self, transaction: Transaction) -> Context:
        """The same with the defaults that hold for a transaction, which is written only while they do."""
        defaults = self.installation.of(transaction.read(keys.SETTINGS))
        return self if defaults is self.defaults else replace(self, defaults=defaults)


def of_controller(name: str, installation: Installation, hints: Hints) -> Context:
    """What a controller decides in: it sees everything."""
    return Context(Caller(name, "", Role.OPERATOR), installation, installation.now(), hints)


# A method of a kind beside the standard ones: (transaction, request, context) → its reply.
Method = Callable[[Transaction, Any, Context], Any]


class Rules:
    """Rules of one kind. The kernel has checked the descriptor's rules and the references before it calls these."""

    kind: str
    # By name: those that write, and give an object of the kind; those that only read. What the requests of the former may
    # leave out is written into them before they are checked.
    changes: Mapping[str, Method] = {}
    completes: Mapping[str, Callable[[Any], None]] = {}
    reads: Mapping[str, Method] = {}

    def complete(self, new: Any, context: Context) -> None:
        """Write the defaults that do not depend on the store."""

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        """Faults that the request shows by itself."""
        yield from ()

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        """Checks against other objects, values chosen, claims."""

    def furnish(self, transaction: Transaction, new: Any, context: Context) -> None:
        """Make what a new object begins with; it is in the transaction by now."""

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        """The same for a change."""

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        """Refuse while others refer to it; release what it claimed; with force, delete what it owns."""

    def always_there(self, transaction: Transaction, name: str, project: str, context: Context) -> str:
        """The id of the object of a name that every project has, whether it was made before or is now; "": there is none."""
        return ""

    def default(self, object_id: str, context: Context) -> Any | None:
        """An implicit kind: the object of an id that was never stored; None where there can be none."""
        return None


def network_of(transaction: Transaction, network_id: str) -> Any:
    """The network of a child, not to be changed; the kernel has made sure that it exists and stays."""
    key = keys.network(network_id)
    transaction.require(key)
    network = transaction.message(KINDS["Network"], key)
    if network is None:
        raise ApiError(Code.NOT_FOUND, "REFERENCE_NOT_FOUND", f"Network {network_id} does not exist")
    return network


def messages(transaction: Transaction, kind: str, folder: str) -> list[Any]:
    """The objects of a kind in a folder, oldest first; not to be changed."""
    cache = transaction.cache
    found = [cache.parsed(KINDS[kind], key, entry) for key, entry in transaction.folder(folder).items()]
    return sorted(found, key=lambda item: (item.create_time.ToNanoseconds(), item.id)) if len(found) > 1 else found


def subnets_of(transaction: Transaction, network_id: str) -> list[Any]:
    """The subnets of a network, oldest first; not to be changed."""
    return messages(transaction, "Subnet", keys.subnets(network_id))


def hold(transaction: Transaction, folder: str) -> Mapping[str, Entry]:
    """What stands in a folder; until the commit nothing comes to it."""
    if transaction.cache.folder(folder):
        transaction.require_unchanged(folder)
    else:
        transaction.require_empty(folder)
    return transaction.folder(folder)


# -- claims -----------------------------------------------------------------------------------------------------------


def claim(
    transaction: Transaction, pool: str, value: object, *, owner: str, project: str, network: str = "", scope: str = ""
) -> store_pb2.Claim | None:
    """Take a value out of a pool. None: taken for `owner`; else the claim that holds it.

    A value that is being released is free to the project that had it, at once; to others when the nodes have let go: those
    of a network, of another scope, or all.
    """
    key = keys.claim(pool, value)
    entry = transaction.read(key)
    if entry is not None:
        holder = store_pb2.Claim.FromString(entry.value)
        if not (holder.releasing and holder.project_id == project) and holder.owner != owner:
            return holder
    transaction.put(key, store_pb2.Claim(owner=owner, project_id=project, network_id=network, scope=scope))
    return None


def claim_free(
    transaction: Transaction, pool: str, value: object, *, owner: str, project: str, network: str = "", scope: str = ""
) -> None:
    """Take a value out of a pool that nobody has (`Transaction.holds`)."""
    made = store_pb2.Claim(owner=owner, project_id=project, network_id=network, scope=scope)
    transaction.create(keys.claim(pool, value), made)


def release(transaction: Transaction, pool: str, value: object) -> None:
    """Give a value back; it is free to others when the nodes concerned have let go of it (controllers/release.py)."""
    key = keys.claim(pool, value)
    entry = transaction.get(key)
    if entry is not None:
        holder = store_pb2.Claim.FromString(entry.value)
        holder.releasing = True
        transaction.put(key, holder)


def first_free(transaction: Transaction, pool: str, low: int, high: int, context: Context) -> int | None:
    """A number of [low, high] that nobody claims, beginning at the hint; None when there is none."""
    start = context.hints.start(pool, low, high)
    for number in chain(range(start, high + 1), range(low, start)):
        if not transaction.holds(keys.claim(pool, number)):
            context.hints.took(pool, number)
            return number
    return None


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
