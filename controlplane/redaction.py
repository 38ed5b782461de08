"""Secrets of resources, kept out of what people and programs read.

A field with `secret` in its rules (resource.proto) holds one. Whatever leaves the API, enters a change record or a log line
goes through one of these functions; each returns a copy, and none of the copies has a secret or an unknown field in it: an
unknown one may be the secret of a later release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from controlplane.registry import Descriptor, Field, rules

MASK = "***"
CHANGED = "changed"

# (field, its value in the message, its value in the message before) → what to show, None for nothing
Shown = Callable[[Field, Any, Any], Any]


def without_secrets(message: Any) -> Any:
    """For replies: the secrets are unset."""
    return _copy(message, None, lambda field, value, before: None)


def masked(message: Any) -> Any:
    """For logs and records: a secret that is set is ***."""
    return _copy(message, None, lambda field, value, before: _text(field, MASK))


def masked_change(old: Any, new: Any) -> tuple[Any, Any]:
    """Before and after of an update, to be compared: a secret is *** in both where it is the same, else "changed" in `new`."""
    return masked(old), _copy(new, old, lambda field, value, before: _text(field, MASK if value == before else CHANGED))


def _copy(message: Any, before: Any, shown: Shown) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()
    if holds_secrets(message.DESCRIPTOR):
        _redact(copy, before, shown)
    return copy


def _redact(message: Any, before: Any, shown: Shown) -> None:
    for field, value in message.ListFields():
        earlier = getattr(before, field.name) if before is not None else None
        if rules(field).secret:
            _replace(message, field, earlier, shown)
        elif field.message_type is not None and holds_secrets(field.message_type):
            for item, old in _pairs(field, value, earlier):
                _redact(item, old, shown)


def _replace(message: Any, field: Field, earlier: Any, shown: Shown) -> None:
    value = getattr(message, field.name)
    if not field.is_repeated:
        text = shown(field, value, earlier)
    elif isinstance(value, Mapping):
        text = None
    else:
        # One mask for all of them: their number is nobody's business either.
        text = shown(field, list(value), None if earlier is None else list(earlier))
    message.ClearField(field.name)
    if text is not None and field.is_repeated:
        getattr(message, field.name).append(text)
    elif text is not None:
        setattr(message, field.name, text)


def _pairs(field: Field, value: Any, earlier: Any) -> Iterator[tuple[Any, Any]]:
    """The messages of a field, each with the one that stood in its place before, if any."""
    if not field.is_repeated:
        yield value, earlier
    elif field.message_type.GetOptions().map_entry:
        for key, item in value.items():
            yield item, earlier[key] if earlier is not None and key in earlier else None
    else:
        yield from list(zip_longest(value, earlier or ()))[: len(value)]


def _text(field: Field, text: str) -> Any:
    """A text as a value of the field; None where the field cannot hold one."""
    return {field.TYPE_STRING: text, field.TYPE_BYTES: text.encode()}.get(field.type)


_HOLDS: dict[str, bool] = {}


def holds_secrets(descriptor: Descriptor) -> bool:
    """Whether a message has a secret anywhere inside. Asked for each message, so answered once for each type."""
    found = _HOLDS.get(descriptor.full_name)
    if found is None:
        found = any(rules(field).secret for one in _reachable(descriptor) for field in one.fields)
        _HOLDS[descriptor.full_name] = found
    return found


def _reachable(descriptor: Descriptor) -> Iterator[Descriptor]:
    """The type, and all types of its fields, and of theirs; types may hold themselves."""
    seen = {descriptor.full_name}
    waiting = [descriptor]
    while waiting:
        one = waiting.pop()
        yield one
        for field in one.fields:
            if field.message_type is not None and field.message_type.full_name not in seen:
                seen.add(field.message_type.full_name)
                waiting.append(field.message_type)
