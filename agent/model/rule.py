"""What security group rules allow, in the terms of flows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# Bits that are looked at, and what they must be.
Masked = tuple[int, int]
PORT_BITS = 16


class Prefix(NamedTuple):
    """Addresses of one family: those whose bits of mask are those of value."""

    ipv6: bool
    value: int
    mask: int


class Allowed(NamedTuple):
    """One match of packets that a rule allows; a range of ports takes several.

    remote: scope of the group that the other side is in, or "" with prefix, or "" without for anybody. protocol: -1 for any.
    source: type of ICMP; target: port, or code of ICMP; of which some bits may be looked at, and none for all.
    """

    ingress: bool
    ipv6: bool
    remote: str
    prefix: Masked | None
    protocol: int
    source: Masked | None = None
    target: Masked | None = None

    @property
    def fragments(self) -> Allowed:
        """The same without what a fragment does not have that is not the first of its packet."""
        return self._replace(source=None, target=None)


class Direction(NamedTuple):
    """In which packets a remote is looked for."""

    ingress: bool
    ipv6: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a security group."""

    id: str
    direction: Direction
    remote: str
    allows: tuple[Allowed, ...]


def ranged(first: int, last: int) -> Iterator[Masked]:
    """Ports from first to last in as few masked values as there can be."""
    while first <= last:
        size = first & -first or 1 << PORT_BITS
        while first + size - 1 > last:
            size >>= 1
        yield first, (1 << PORT_BITS) - size
        first += size
