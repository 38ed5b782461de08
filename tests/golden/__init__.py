"""Stored bytes of every kind and message of a store format, as the release that made the format wrote them.

`python -m tests.golden` writes those of what is not there yet (a new kind, a new message) and leaves the others alone: what has
been written is never made anew, for it stands for the stores that exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from controlplane.audit import FAMILIES
from controlplane.store import keys
from kumihimo.v1 import store_pb2

FILE = Path(__file__).with_name(f"format{keys.FORMAT_VERSION}.json")


def stored() -> dict[str, type[Message]]:
    """Every message that a value of the store is."""
    found: dict[str, type[Message]] = {}
    for family in FAMILIES:
        if family.message is not None:
            found[family.message.DESCRIPTOR.full_name] = family.message
    # What the keys of a later feature may hold is stated beforehand.
    for descriptor in store_pb2.DESCRIPTOR.message_types_by_name.values():
        found.setdefault(descriptor.full_name, GetMessageClass(descriptor))
    return found


def read() -> dict[str, dict[str, Any]]:
    """name of the message → {"bytes": hexadecimal, "value": as JSON}."""
    known: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return known


def missing() -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries for the messages that have none."""
    known = read()
    for name, message_class in stored().items():
        if name not in known:
            message = message_class()
            fill(message, 1)
            yield name, {"bytes": message.SerializeToString(deterministic=True).hex(), "value": as_json(message)}


def as_json(message: Message) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def fill(message: Any, number: int) -> int:
    """Give every field a value that no other has; the next number."""
    for field in message.DESCRIPTOR.fields:
        number += 1
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            if value.message_type is None:
                getattr(message, field.name)[f"key{number}"] = scalar(value, number)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            number = fill(inner.add() if field.is_repeated else inner, number)
            if not field.is_repeated:
                inner.SetInParent()
        elif field.is_repeated:
            getattr(message, field.name).extend([scalar(field, number), scalar(field, number + 1)])
            number += 1
        else:
            setattr(message, field.name, scalar(field, number))
    return number


def scalar(field: Any, number: int) -> Any:
    """A value of the field's type other than its default."""
    if field.enum_type is not None:
        numbers = [item.number for item in field.enum_type.values if item.number]
        return numbers[number % len(numbers)]
    match field.cpp_type:
        case field.CPPTYPE_BOOL:
            return True
        case field.CPPTYPE_STRING:
            text = f"{field.name} {number} é"
            return text.encode() if field.type == field.TYPE_BYTES else text
        case field.CPPTYPE_DOUBLE | field.CPPTYPE_FLOAT:
            return number + 0.5
    return number
