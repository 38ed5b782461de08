"""Checks one message against the rules in its descriptor, and brings it to canonical form in the same walk.

Own code and no rule library: the reason of each fault is part of the API, and canonical form (addresses, sets) must come
from the same pass that checks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from controlplane import values
from controlplane.errors import Code, Violation
from controlplane.registry import Field, behaviors, rules
from kumihimo.v1 import resource_pb2

OUTPUT_ONLY = field_behavior_pb2.OUTPUT_ONLY
IMMUTABLE = field_behavior_pb2.IMMUTABLE
REQUIRED = field_behavior_pb2.REQUIRED


def _fields(message: Message) -> Sequence[Field]:
    return message.DESCRIPTOR.fields


def behaves(field: Field, behavior: int) -> bool:
    """Whether google.api.field_behavior of a field holds this value."""
    return behavior in behaviors(field)


def is_set(message: Message, field: Field) -> bool:
    """Whether a field holds something: presence where the field has it, else a value other than the default."""
    if field.is_repeated:
        return len(getattr(message, field.name)) > 0
    if field.has_presence:
        return message.HasField(field.name)
    return bool(getattr(message, field.name) != field.default_value)


def clear_output(message: Message) -> None:
    """Remove what only the server sets: it is ignored on input."""
    for field, _ in message.ListFields():
        if behaves(field, OUTPUT_ONLY):
            message.ClearField(field.name)


def check(message: Message, *, operator: bool, old: Message | None = None) -> list[Violation]:
    """All faults of a resource, in the order of its fields; canonical form is written into it.

    old: what is stored, for an update: immutable fields must be equal, and a field reserved to operators may stay.
    """
    found: list[Violation] = []
    for field in _concerned(message, old):
        before = len(found)
        found.extend(_field(message, field, ""))
        if len(found) > before:
            continue
        changed = is_set(message, field) if old is None else getattr(message, field.name) != getattr(old, field.name)
        if not changed:
            continue
        if old is not None and behaves(field, IMMUTABLE):
            found.append(
                Violation(
                    field.name,
                    "IMMUTABLE_FIELD",
                    f"{field.name} cannot change after creation; it is {_shown(getattr(old, field.name))}",
                )
            )
        if rules(field).operator_only and not operator:
            found.append(
                Violation(
                    field.name,
                    "FIELD_FORBIDDEN",
                    f"{field.name} may be set by an operator only; leave it out to have it chosen",
                    Code.PERMISSION_DENIED,
                )
            )
        if rules(field).unsupported:
            found.append(
                Violation(
                    field.name,
                    "FEATURE_NOT_SUPPORTED",
                    f"{field.name} is not acted upon by this release; leave it out",
                    Code.UNIMPLEMENTED,
                )
            )
    return found


def _concerned(message: Message, old: Message | None) -> list[Field]:
    """The fields that can be at fault: those that are set, were set, or must be; in the order of their numbers."""
    found: dict[int, Field] = {field.number: field for field, _ in message.ListFields()}
    found.update((field.number, field) for field in _required(message))
    if old is not None:
        found.update((field.number, field) for field, _ in old.ListFields())
    return [found[number] for number in sorted(found)]


_REQUIRED: dict[str, tuple[Field, ...]] = {}


def _required(message: Message) -> tuple[Field, ...]:
    name = message.DESCRIPTOR.full_name
    if name not in _REQUIRED:
        _REQUIRED[name] = tuple(field for field in _fields(message) if behaves(field, REQUIRED))
    return _REQUIRED[name]


def _field(message: Message, field: Field, path: str) -> Iterator[Violation]:
    name = f"{path}{field.name}"
    rule = rules(field)
    if not is_set(message, field):
        if behaves(field, REQUIRED):
            yield Violation(name, "MISSING_FIELD", f"{name} is missing")
        return
    if behaves(field, OUTPUT_ONLY):
        return
    value = getattr(message, field.name)
    if field.is_repeated:
        yield from _repeated(message, field, name, rule)
    elif field.type == FieldDescriptor.TYPE_STRING:
        canonical, violation = _string(value, name, rule)
        if violation:
            yield violation
        else:
            setattr(message, field.name, canonical)
    elif field.type == FieldDescriptor.TYPE_ENUM:
        yield from _enum(value, field, name)
    elif field.cpp_type in (
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
    ):
        yield from _number(value, name, rule)
    elif holds_messages(field):
        for inner in _fields(value):
            yield from _field(value, inner, f"{name}.")
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        yield from _well_known(value, name)


def _well_known(value: Any, name: str) -> Iterator[Violation]:
    """A Duration or Timestamp outside of its bounds can be stored, and not be shown as JSON."""
    try:
        value.ToJsonString()
    except (ValueError, OverflowError):
        yield Violation(name, "VALUE_OUT_OF_RANGE", f"{name} is no {value.DESCRIPTOR.name} that can be: {_shown(value)}")


def holds_messages(field: Field) -> bool:
    """Whether a field holds messages of ours, one or a list; the entries of a map are none."""
    inner = field.message_type
    return inner is not None and inner.full_name.startswith("kumihimo.") and not inner.GetOptions().map_entry


def _repeated(message: Message, field: Field, name: str, rule: resource_pb2.FieldRules) -> Iterator[Violation]:
    items: Any = getattr(message, field.name)
    if rule.max_items and len(items) > rule.max_items:
        yield _too_many(items, name, rule)
        return
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for key, value in items.items():
            for part in (key, value) if isinstance(value, str) else (key,):
                _, violation = _string(part, f"{name}[{key!r}]", rule)
                if violation:
                    yield violation
        return
    faulty = False
    for number, item in enumerate(items):
        place = f"{name}[{number}]"
        if field.type == FieldDescriptor.TYPE_STRING:
            canonical, violation = _string(item, place, rule)
            if violation:
                faulty = True
                yield violation
            else:
                items[number] = canonical
        elif field.type == FieldDescriptor.TYPE_ENUM:
            for violation in _enum(item, field, place, unset=False):
                faulty = True
                yield violation
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in _fields(item):
                for violation in _field(item, inner, f"{place}."):
                    faulty = True
                    yield violation
    if not faulty:
        yield from _unique(items, name, rule)


def _too_many(items: Any, name: str, rule: resource_pb2.FieldRules) -> Violation:
    return Violation(name, "TOO_MANY_VALUES", f"{name} has {len(items)} entries; at most {rule.max_items} are accepted")


def too_many(message: Message) -> Iterator[Violation]:
    """The fields of a resource that have more entries than they may: asked before anything is done with each entry."""
    for field, value in message.ListFields():
        if field.is_repeated and 0 < rules(field).max_items < len(value):
            yield _too_many(value, field.name, rules(field))


def _unique(items: Any, name: str, rule: resource_pb2.FieldRules) -> Iterator[Violation]:
    if rule.set:
        ordered = sorted(items)
        twice = {item for item, after in pairwise(ordered) if item == after}
        if twice:
            yield Violation(name, "DUPLICATE_VALUE", f"{name} holds {_shown(min(twice))} twice")
        del items[:]
        items.extend(ordered)
    if rule.unique:
        seen: set[Any] = set()
        for number, item in enumerate(items):
            if isinstance(item, Message):
                identity = item.SerializeToString(deterministic=True) if rule.unique == "*" else getattr(item, rule.unique)
            else:
                identity = item
            if not identity:
                continue
            if identity in seen:
                shown = _shown(item if rule.unique == "*" else identity)
                yield Violation(f"{name}[{number}]", "DUPLICATE_VALUE", f"{name} holds {shown} twice")
            seen.add(identity)


def _string(value: str, name: str, rule: resource_pb2.FieldRules) -> tuple[str, Violation | None]:
    if rule.max_length and len(value) > rule.max_length:
        message = f"{name} has {len(value)} characters; at most {rule.max_length} are accepted"
        return value, Violation(name, "STRING_TOO_LONG", message)
    try:
        return values.CANONICAL[rule.format](value), None
    except values.Invalid as error:
        return value, Violation(name, error.reason, f"{name}: {error.message}")


def _enum(value: int, field: Field, name: str, unset: bool = True) -> Iterator[Violation]:
    """unset: zero stands for the default; an entry of a list has none."""
    if value not in field.enum_type.values_by_number or not (value or unset):
        accepted = ", ".join(short(item.name, field) for item in field.enum_type.values if item.number)
        yield Violation(name, "ENUM_INVALID", f"{name} is {value}, which means nothing; one of {accepted} is accepted")


def _number(value: int, name: str, rule: resource_pb2.FieldRules) -> Iterator[Violation]:
    low = rule.minimum if rule.HasField("minimum") else None
    high = rule.maximum if rule.HasField("maximum") else None
    if (low is not None and value < low) or (high is not None and value > high):
        yield Violation(name, "VALUE_OUT_OF_RANGE", f"{name} is {value}; {low} to {high} is accepted")


def short(enum_value: str, field: Field) -> str:
    """An enum value as people write it: NETWORK_TYPE_VXLAN of NetworkType is VXLAN."""
    common = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return enum_value.removeprefix(common)


def _shown(value: object) -> str:
    return " ".join(str(value).split()) or "empty"
