"""What is wrong with the objects of an apply: every fault with its place, and the one error that tells of them all.

A fault is told twice over: as data, whole, to him who only asks (validate_only), and in an error, which has room for a few.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

from controlplane.errors import ApiError, Code, Violation
from kumihimo.v1 import operations_pb2 as pb

LARGEST = 3 << 20  # bytes of all that are told: a client takes 4 MiB unless it says otherwise
LONGEST = 1000  # characters of each text

OVERHEAD = 8  # bytes of tag and length of a fault in the reply
PRUNED = -1  # the place of what is not in the request


class PlanError(ApiError):
    """The error of an apply, with its faults as data."""

    faults: list[pb.ApplyFault]


@dataclass(slots=True)
class Faults:
    """What is wrong, by place in the request."""

    _found: list[tuple[pb.ApplyFault, ApiError]] = field(default_factory=list)
    _places: set[tuple[int, str]] = field(default_factory=set)  # with each field, and with ""

    def __bool__(self) -> bool:
        return bool(self._found)

    def copy(self) -> Faults:
        return Faults(list(self._found), set(self._places))

    def add(self, index: int, error: ApiError) -> None:
        self._places.add((index, ""))
        where = error.metadata.get("field", "")
        if not error.violations and where and self.at(index, where):
            return  # it was seen in an earlier step
        for item in error.violations or [Violation(where, error.reason, error.message)]:
            fault = pb.ApplyFault(index=index, field=item.field[:LONGEST], reason=item.reason, message=item.message[:LONGEST])
            self._found.append((fault, error))
            self._places.add((index, fault.field))

    def at(self, index: int, path: str = "") -> bool:
        """Whether something is wrong at a place, with one field of it where that is named."""
        return (index, path) in self._places

    def error(self) -> PlanError:
        """The first fault's error, which names every other with its place."""
        ordered = sorted(self._found, key=lambda item: item[0].index)
        sizes = accumulate(item.ByteSize() + OVERHEAD for item, _ in ordered)
        told_of = [item for (item, _), size in zip(ordered, sizes, strict=True) if size <= LARGEST]
        violations = [Violation(_path(item), item.reason, f"{_path(item)}: {item.message}") for item in told_of]
        first = ordered[0][1]
        metadata = {**first.metadata, "faults": str(len(ordered))}
        told = PlanError(first.code, violations[0].reason, violations[0].message, metadata, violations)
        told.faults = told_of
        return told


def wrong(where: str, reason: str, text: str) -> ApiError:
    """INVALID_ARGUMENT for one field of one object."""
    return ApiError(Code.INVALID_ARGUMENT, reason, text, {"field": where})


def _path(item: pb.ApplyFault) -> str:
    where = f"objects[{item.index}]" if item.index != PRUNED else "prune_tag"
    return f"{where}.{item.field}" if item.field else where
