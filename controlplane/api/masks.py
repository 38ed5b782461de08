"""Update masks (AIP-134): which fields of a request replace those of the stored object."""

from __future__ import annotations

from typing import Any

from controlplane.errors import fault
from controlplane.validate import IMMUTABLE, OUTPUT_ONLY, behaves, is_set
from controlplane.values import quoted

# Say which object, or guard the change; never part of it.
_ADDRESSING = {"id", "etag"}


def merged(old: Any, given: Any, paths: list[str]) -> Any:
    """A copy of `old` with the fields that the mask names taken from `given`.

    No path: every field that is set. `*`: every field; immutable ones that are unset stay. Raises FIELD_MASK_INVALID.
    """
    fields = given.DESCRIPTOR.fields_by_name
    unknown = sorted(set(paths) - set(fields) - {"*"})
    if unknown:
        raise fault(
            "update_mask",
            "FIELD_MASK_INVALID",
            f"update_mask names {quoted(unknown[0])}, which is no field of {given.DESCRIPTOR.name}; fields by name or * are"
            " accepted",
        )
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
