"""Masks: which fields of an update replace those of the stored object (AIP-134), and which a read returns (AIP-157)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from controlplane.errors import fault
from controlplane.registry import Descriptor, Kind
from controlplane.validate import IMMUTABLE, OUTPUT_ONLY, behaves, is_set
from controlplane.values import quoted

# Say which object, or guard the change; never part of it.
_ADDRESSING = {"id", "etag"}


def merged(old: Any, given: Any, paths: list[str]) -> Any:
    """A copy of `old` with the fields that the mask names taken from `given`.

    No path: every field that is set. `*`: every field; immutable ones that are unset stay. Raises FIELD_MASK_INVALID.
    """
    fields = given.DESCRIPTOR.fields_by_name
    _refuse_unknown("update_mask", given.DESCRIPTOR, paths)
    if not paths:
        names = {name for name, field in fields.items() if is_set(given, field)}
    elif "*" in paths:
        names = {name for name, field in fields.items() if not behaves(field, IMMUTABLE) or is_set(given, field)}
    else:
        names = set(paths)
    names = {name for name in names - _ADDRESSING if not behaves(fields[name], OUTPUT_ONLY)}
    part = type(given)()
    part.CopyFrom(given)
    new = type(old)()
    new.CopyFrom(old)
    for name in fields:
        if name in names:
            new.ClearField(name)
        else:
            part.ClearField(name)
    new.MergeFrom(part)
    return new


def read_mask(kind: Kind, mask: FieldMask) -> Callable[[Any], Any]:
    """What clears the fields that a read mask does not name; nothing when it is empty. Raises FIELD_MASK_INVALID."""
    _refuse_unknown("read_mask", kind.descriptor, mask.paths)
    if not mask.paths or "*" in mask.paths:
        return lambda message: message
    cleared = set(kind.descriptor.fields_by_name) - set(mask.paths) - {"id"}

    def shown(message: Any) -> Any:
        for name in cleared:
            message.ClearField(name)
        return message

    return shown


def _refuse_unknown(field: str, descriptor: Descriptor, paths: Iterable[str]) -> None:
    unknown = sorted(set(paths) - set(descriptor.fields_by_name) - {"*"})
    if unknown:
        raise fault(
            field,
            "FIELD_MASK_INVALID",
            f"{field} names {quoted(unknown[0])}, which is no field of {descriptor.name}; fields by name or * are accepted",
        )
