"""What every desired item has in common, and the contract between the reconcile loop and a driver.

An item is a frozen value. Its `key` says which object of the host it is (first element: the kind), the rest of the
value says what that object must be like. Two units that emit one key with different values are a defect.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Key = tuple[Hashable, ...]


class Item(Protocol):
    """A frozen, hashable value that stands for one object on the host."""

    @property
    def key(self) -> Key:
        """Identity: kind first, for example ("flow", 60, 100, match)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one item could not be applied or removed."""

    reason: str
    message: str


class Driver(Protocol):
    """Makes one family of items real, and decides nothing."""

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds (first element of the key) that this driver takes."""

    async def read_owned(self) -> Mapping[Key, Item]:
        """Everything of these kinds on the host that is ours. What is not ours is never returned and never touched."""

    async def apply(self, put: Sequence[Item], delete: Sequence[Item]) -> Mapping[Key, Failure]:
        """Create or change `put`, remove `delete`; returns the failures by key. One failure never stops the others.

        Idempotent: putting what is there and deleting what is gone succeed.
        """


@runtime_checkable
class Watched(Protocol):
    """A driver that notices what others do to its kinds. One without is read back only when it may have lost everything."""

    async def changed(self) -> None:
        """Return, within 5 s, when what is there may not be what was read or applied last. Cheap while nothing happens.

        Own changes may count too. OSError when it cannot be told at the moment.
        """

    async def read_foreign(self) -> Sequence[Item]:
        """What stands among ours at the last `read_owned` and is not ours: to be told of, never to be touched."""
