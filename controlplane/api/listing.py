"""Pages and order of a List.

Pages walk by (order, id): the token holds both of the last object shown, so what exists during the whole walk appears
exactly once, whatever comes and goes meanwhile, and a token survives a restart of the server.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from functools import total_ordering
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.errors import ApiError, Code, fault
from controlplane.registry import Field, Kind
from controlplane.services.kernel import MADE_AT_READ
from controlplane.values import quoted

DEFAULT_PAGE = 100
LARGEST_PAGE = 1000
LARGEST_REPLY = 3 << 20  # bytes of a page: a client takes 4 MiB unless it says otherwise
LONGEST_ORDER = 1000  # characters
LONGEST_TOKEN = 1 << 16

_MADE_AT_READ = set(MADE_AT_READ) - {"revision"}

# Position of an object in a list: its ordering values, as JSON can hold them, and its id.
Place = tuple[Any, ...]


def page_size(asked: int) -> int:
    """How many to show: 100 when not said, never more than 1000. Raises VALUE_OUT_OF_RANGE when negative."""
    if asked < 0:
        raise fault("page_size", "VALUE_OUT_OF_RANGE", f"page_size is {asked}; 0 (the default) to {LARGEST_PAGE} is accepted")
    return min(asked or DEFAULT_PAGE, LARGEST_PAGE)


@total_ordering
class _Descending:
    """Turns an order round."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and self.value == other.value

    def __lt__(self, other: _Descending) -> bool:
        return bool(other.value < self.value)

    __hash__ = None  # type: ignore[assignment]


class Order:
    """How a list is ordered: by the named fields, then by id. Raises ORDER_BY_INVALID."""

    def __init__(self, kind: Kind, text: str) -> None:
        self._fields: list[tuple[Field, bool]] = []
        if len(text) > LONGEST_ORDER:
            raise _invalid(f"{len(text)} characters; at most {LONGEST_ORDER} are accepted")
        for part in text.split(",") if text.strip() else []:
            name, _, direction = part.strip().partition(" ")
            field = kind.descriptor.fields_by_name.get(name)
            if field is None or field.is_repeated or name in _MADE_AT_READ or not _is_comparable(field):
                raise _invalid(f"{quoted(name)} is no field of {kind.name} to order by")
            if direction.strip() not in ("", "asc", "desc"):
                raise _invalid(f"{quoted(direction.strip())} is no direction; desc, or nothing, is accepted")
            self._fields.append((field, direction.strip() == "desc"))

    @property
    def is_by_id(self) -> bool:
        """No field is named: the order of ids, which the cache keeps."""
        return not self._fields

    def place(self, message: Any) -> Place:
        return (*(_value(getattr(message, field.name)) for field, _ in self._fields), message.id)

    def key(self, place: Place) -> Place:
        """What places are compared by."""
        turned = [
            _Descending(value) if descending else value for value, (_, descending) in zip(place, self._fields, strict=False)
        ]
        return (*turned, place[-1])

    def token(self, place: Place) -> str:
        """The page token that continues after a place."""
        return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()

    def after(self, token: str) -> Place | None:
        """The place that a token continues after; None for the first page. Raises PAGE_TOKEN_INVALID."""
        if not token:
            return None
        try:
            if len(token) > LONGEST_TOKEN:
                raise ValueError
            place = json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
            if not isinstance(place, list) or len(place) != len(self._fields) + 1 or not isinstance(place[-1], str):
                raise ValueError
        except (binascii.Error, UnicodeError, ValueError, TypeError, IndexError, RecursionError):
            raise _not_ours() from None
        return tuple(place)


def _is_comparable(field: Field) -> bool:
    return field.message_type is None or field.message_type.full_name == "google.protobuf.Timestamp"


def _value(value: Any) -> Any:
    return value.ToNanoseconds() if isinstance(value, Timestamp) else value


def later_than(order: Order, place: Place | None) -> Callable[[Place], bool]:
    """Whether a place comes after another. Raises PAGE_TOKEN_INVALID when the token was made for another order."""
    if place is None:
        return lambda _: True
    bound = order.key(place)

    def later(other: Place) -> bool:
        try:
            return bool(order.key(other) > bound)
        except TypeError:
            raise _not_ours() from None

    return later


def _not_ours() -> ApiError:
    text = "page_token is none of ours, or of a list in another order; leave it empty for the first page"
    return ApiError(Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID", text)


def _invalid(message: str) -> ApiError:
    return fault("order_by", "ORDER_BY_INVALID", f"order_by: {message}")
