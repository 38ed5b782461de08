"""The filter of List and Watch: text → predicate over messages of one kind (RESOURCES, standard methods; AIP-160).

    expression = term {OR term}        term = factor {AND factor}        factor = [NOT] ( "(" expression ")" | comparison )
    comparison = path op value         op = "=" "!=" "<" "<=" ">" ">=" ":" "in_cidr"

A path through a repeated field holds when any entry does. `:` asks whether a repeated field has the value, a text contains
it, or (with `*`) the field is set at all. A text value may end with `*`: prefix match. Enum values by long or short name,
times as RFC 3339. Every fault is FILTER_INVALID with its position.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from controlplane.errors import ApiError, Code
from controlplane.registry import Descriptor, Field, Kind
from controlplane.validate import is_set, short
from controlplane.values import Invalid, Network, address, prefix, quoted

Predicate = Callable[[Any], bool]

LONGEST = 4096  # characters
DEEPEST = 20  # parentheses
MOST = 100  # comparisons, each of which is made with every object

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<op><=|>=|!=|[=<>:])|(?P<paren>[()])|(?P<word>[^\s()"=<>:!]+))""", re.VERBOSE
)
_TIMESTAMP = "google.protobuf.Timestamp"
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


def predicate(kind: Kind, text: str) -> Predicate:
    """What a filter accepts; an empty one accepts everything."""
    if len(text) > LONGEST:
        raise _invalid(LONGEST, f"a filter has at most {LONGEST} characters")
    tokens = list(_tokens(text))
    return _Parser(kind.descriptor, tokens, len(text)).whole() if tokens else lambda _: True


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while text[position:].strip():
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise _invalid(position + len(text[position:]) - len(text[position:].lstrip()), "this cannot be read")
        yield _Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup))
        position = found.end()


class _Parser:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, descriptor: Descriptor, tokens: list[_Token], end: int) -> None:
        self._descriptor = descriptor
        self._tokens = tokens
        self._next = 0
        self._end = end
        self._depth = 0
        self._terms = 0

    def whole(self) -> Predicate:
        found = self._any()
        if self._next < len(self._tokens):
            raise _invalid(self._tokens[self._next].position, "AND, OR or the end is expected here")
        return found

    def _any(self) -> Predicate:
        parts = [self._all()]
        while self._take_word("OR"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else lambda message: any(part(message) for part in parts)

    def _all(self) -> Predicate:
        parts = [self._factor()]
        while self._take_word("AND"):
            parts.append(self._factor())
        return parts[0] if len(parts) == 1 else lambda message: all(part(message) for part in parts)

    def _factor(self) -> Predicate:
        negated = False
        while self._take_word("NOT"):
            negated = not negated
        part = self._part()
        return (lambda message: not part(message)) if negated else part

    def _part(self) -> Predicate:
        token = self._peek()
        if token is not None and token.text == "(" and token.kind == "paren":
            self._depth += 1
            if self._depth > DEEPEST:
                raise _invalid(token.position, f"at most {DEEPEST} parentheses may stand in each other")
            self._next += 1
            inner = self._any()
            closing = self._take("a closing parenthesis")
            if closing.text != ")":
                raise _invalid(closing.position, "a closing parenthesis is expected here")
            self._depth -= 1
            return inner
        return self._comparison()

    def _comparison(self) -> Predicate:
        path = self._take('a term such as name = "web"')
        if path.kind != "word":
            raise _invalid(path.position, 'a term such as name = "web" is expected here')
        op = self._take("an operator")
        if op.kind != "op" and op.text != "in_cidr":
            raise _invalid(op.position, "one of = != < <= > >= : in_cidr is expected here")
        value = self._take("a value")
        if value.kind not in ("string", "word"):
            raise _invalid(value.position, "a value is expected here")
        self._terms += 1
        if self._terms > MOST:
            raise _invalid(path.position, f"at most {MOST} comparisons are accepted")
        fields = self._fields(path)
        text = re.sub(r"\\(.)", r"\1", value.text[1:-1]) if value.kind == "string" else value.text
        test = _test(fields[-1], op, text, value.position)
        if len(fields) == 1 and not fields[0].is_repeated:
            field, name = fields[0], fields[0].name
            return lambda message: test((message, field, getattr(message, name)))
        return lambda message: any(test(found) for found in _reach(message, fields))

    def _fields(self, path: _Token) -> list[Field]:
        fields: list[Field] = []
        descriptor = self._descriptor
        for name in path.text.split("."):
            field = descriptor.fields_by_name.get(name) if descriptor is not None else None
            if field is None or (field.message_type is not None and field.message_type.GetOptions().map_entry):
                raise _invalid(path.position, f"{quoted(path.text)} is no field of {self._descriptor.name} to compare")
            fields.append(field)
            descriptor = field.message_type
        return fields

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, expected: str) -> _Token:
        token = self._peek()
        if token is None:
            raise _invalid(self._end, f"{expected} is expected here")
        self._next += 1
        return token

    def _take_word(self, word: str) -> bool:
        token = self._peek()
        if token is None or token.kind != "word" or token.text != word:
            return False
        self._next += 1
        return True


def _reach(message: Any, fields: list[Field]) -> Iterator[tuple[Any, Field, Any]]:
    """(owner, field, value) at the end of a path; through repeated fields every entry."""
    field = fields[0]
    if len(fields) == 1:
        if field.is_repeated and len(getattr(message, field.name)):
            for item in getattr(message, field.name):
                yield message, field, item
        else:
            yield message, field, None if field.is_repeated else getattr(message, field.name)
        return
    value = getattr(message, field.name)
    for item in value if field.is_repeated else [value]:
        yield from _reach(item, fields[1:])


def _test(field: Field, op: _Token, text: str, position: int) -> Callable[[tuple[Any, Field, Any]], bool]:
    """What one value must be, by the type of its field."""
    if op.text == ":" and text == "*":
        return lambda found: is_set(found[0], found[1])
    if op.text == "in_cidr":
        return _in_cidr(field, text, position)
    if field.message_type is not None:
        if field.message_type.full_name != _TIMESTAMP:
            raise _invalid(position, f"{field.name} holds objects; compare one of their fields")
        return _ordered(op, _time(text, position), lambda value: value.ToDatetime(tzinfo=UTC))
    if field.enum_type is not None:
        return _ordered(op, _enum(field, text, position), lambda value: value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if text not in ("true", "false"):
            raise _invalid(position, f"{field.name} is true or false")
        return _ordered(op, text == "true", lambda value: value)
    if field.cpp_type in _INTEGERS:
        try:
            return _ordered(op, int(text), lambda value: value)
        except ValueError:
            raise _invalid(position, f"{field.name} is compared to a whole number") from None
    if op.text == ":":
        return (lambda found: found[2] == text) if field.is_repeated else (lambda found: text in found[2])
    if op.text in ("=", "!=") and text.endswith("*"):
        head = text[:-1]
        return lambda found: (str(found[2] or "").startswith(head)) == (op.text == "=")
    return _ordered(op, text, lambda value: value)


def _ordered(op: _Token, wanted: Any, read: Callable[[Any], Any]) -> Callable[[tuple[Any, Field, Any]], bool]:
    compare: dict[str, Callable[[Any], bool]] = {
        "=": lambda value: value == wanted,
        ":": lambda value: value == wanted,
        "!=": lambda value: value != wanted,
        "<": lambda value: value < wanted,
        "<=": lambda value: value <= wanted,
        ">": lambda value: value > wanted,
        ">=": lambda value: value >= wanted,
    }
    test = compare[op.text]

    def holds(found: tuple[Any, Field, Any]) -> bool:
        # An empty list has no value: it differs from every one, and is less than none.
        return op.text == "!=" if found[2] is None else test(read(found[2]))

    return holds


def _in_cidr(field: Field, text: str, position: int) -> Callable[[tuple[Any, Field, Any]], bool]:
    if field.type != FieldDescriptor.TYPE_STRING:
        raise _invalid(position, f"{field.name} is no address")
    try:
        network: Network = prefix(text)
    except Invalid as error:
        raise _invalid(position, error.message) from None

    def inside(found: tuple[Any, Field, Any]) -> bool:
        try:
            return found[2] is not None and address(found[2]) in network
        except Invalid:
            return False

    return inside


def _enum(field: Field, text: str, position: int) -> int:
    for value in field.enum_type.values:
        if text.upper() in (value.name, short(value.name, field)):
            return int(value.number)
    accepted = ", ".join(short(value.name, field) for value in field.enum_type.values if value.number)
    raise _invalid(position, f"{field.name} is one of {accepted}")


def _time(text: str, position: int) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise _invalid(position, "a time such as 2026-11-22T12:00:00Z is expected here") from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _invalid(position: int, message: str) -> ApiError:
    text = f"filter, position {position}: {message}"
    return ApiError(Code.INVALID_ARGUMENT, "FILTER_INVALID", text, {"position": str(position)})
