"""List: filter, order and pages. Pages walk by id, so what exists during the whole walk appears exactly once."""

from __future__ import annotations

import base64
import binascii
import bisect
import re
from collections.abc import Callable, Sequence
from typing import Any

from controlplane.errors import ApiError, Code, fault
from controlplane.registry import Kind

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000

_TERM = re.compile(r'\s*([a-z_]+(?:\.[a-z_]+)?)\s*=\s*"((?:[^"\\]|\\.)*)"\s*')
_AND = re.compile(r"AND\b")

Predicate = Callable[[Any], bool]


def page_size(asked: int) -> int:
    """How many to show: 100 when not said, never more than 1000. Raises VALUE_OUT_OF_RANGE when negative."""
    if asked < 0:
        raise fault("page_size", "VALUE_OUT_OF_RANGE", f"page_size is {asked}; 0 (the default) to {LARGEST_PAGE} is accepted")
    return min(asked or DEFAULT_PAGE, LARGEST_PAGE)


def token_after(object_id: str) -> str:
    return base64.urlsafe_b64encode(object_id.encode()).decode()


def start_of_page(ids: Sequence[str], token: str) -> int:
    """Index of the first id of a page. Raises PAGE_TOKEN_INVALID."""
    if not token:
        return 0
    try:
        last = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, UnicodeEncodeError, ValueError):
        raise ApiError(
            Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID", "page_token is none of ours; leave it empty for the first page"
        ) from None
    return bisect.bisect_right(ids, last)


def predicate(kind: Kind, text: str) -> Predicate:
    """What a filter accepts: `field = "value"` terms joined by AND. Raises FILTER_INVALID with the position."""
    terms: list[tuple[list[str], str]] = []
    position = 0
    while position < len(text):
        if terms:
            joined = _AND.match(text, position)
            if joined is None:
                raise _invalid(position, "AND is expected here")
            position = joined.end()
        found = _TERM.match(text, position)
        if found is None:
            raise _invalid(position, 'a term such as name = "web" is expected here')
        path = found[1].split(".")
        _check_path(kind, path, found.start(1))
        terms.append((path, re.sub(r"\\(.)", r"\1", found[2])))
        position = found.end()
    return lambda message: all(wanted in _values(message, path) for path, wanted in terms)


def _check_path(kind: Kind, path: list[str], position: int) -> None:
    descriptor = kind.descriptor
    for number, name in enumerate(path):
        field = descriptor.fields_by_name.get(name)
        is_last = number == len(path) - 1
        is_map = field is not None and field.message_type is not None and field.message_type.GetOptions().map_entry
        if field is None or is_map or (field.message_type is None) != is_last:
            raise _invalid(position, f"{'.'.join(path)} is no field of {kind.name} that can be compared")
        descriptor = field.message_type


def _values(message: Any, path: list[str]) -> list[str]:
    field = message.DESCRIPTOR.fields_by_name[path[0]]
    value = getattr(message, path[0])
    items = list(value) if field.is_repeated else [value]
    if len(path) > 1:
        return [found for item in items for found in _values(item, path[1:])]
    return [_text(field, item) for item in items]


def _text(field: Any, item: Any) -> str:
    if field.enum_type is not None:
        number = field.enum_type.values_by_number.get(item)
        return number.name if number else str(item)
    if isinstance(item, bool):
        return str(item).lower()
    return str(item)


def _invalid(position: int, message: str) -> ApiError:
    text = f"filter, position {position}: {message}"
    return ApiError(Code.INVALID_ARGUMENT, "FILTER_INVALID", text, {"position": str(position)})
