"""Files for `kumi apply`: what each object states, and where in the file it says so.

An object is a mapping: `kind` (a noun or the name of its message), optionally `key` (a name that other objects of the
request refer to it by), and fields. A field goes by its name in the contract or by that of its option on the command
line (`network` for `network_id`, `ip` for `fixed_ips`). A value is written as the contract has it, or as it is typed on
the command line; a list of one may be written without brackets; nothing (`null`) unsets. What the file does not state
stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cli import documents, values
from cli.documents import Node
from cli.kinds import Kind, is_map, kind_named, kinds, option_name, writable

MOST = 500
"""Objects of one request; the API's own limit."""
RESERVED = ("kind", "key")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is said. line 0: the file as a whole."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(slots=True)
class Entry:
    """One object of a file. fields: those it states. lines: path of a field → its line. faulty: fields that cannot be read."""

    place: Place
    kind: Kind
    message: Any
    key: str = ""
    fields: list[str] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)

    @property
    def label(self) -> str:
        """How people are told of it."""
        return f'{self.kind.noun} "{self.message.name or self.key or self.message.id}"'

    def at(self, path: str) -> Place:
        """Where a field, or the nearest thing around it, is said."""
        while path:
            if path in self.lines:
                return Place(self.place.file, self.lines[path])
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.place


@dataclass(slots=True)
class Manifest:
    """What files say. faults: lines for people. whole: every object could be told apart, whatever is wrong inside it."""

    entries: list[Entry] = field(default_factory=list)
    faults: list[tuple[Place, str]] = field(default_factory=list)
    whole: bool = True

    def told(self, more: Iterable[tuple[Place, str]] = ()) -> list[str]:
        """Every fault as a line, in the order of the files."""
        return [f"{place}: {text}" for place, text in [*self.faults, *more]]


def read(files: Sequence[str]) -> Manifest:
    """Everything that files say, with every fault in it."""
    found = Manifest()
    for name in files:
        shown = "stdin" if name == "-" else name
        try:
            nodes = documents.read(name)
        except documents.Unreadable as error:
            found.faults.append((Place(shown, error.line), error.message))
            found.whole = False
            continue
        if not nodes:
            found.faults.append((Place(shown, 0), "it holds no object; accepted: objects such as {kind: network, name: web}"))
        for node in nodes:
            for item in [node] if node.items is None else node.items:
                _object(found, shown, item)
    return found


def listed(name: str, kind: Kind) -> Manifest:
    """The objects of one kind that a file lists, which may leave their kind out; none where the list is empty."""
    found = Manifest()
    shown = "stdin" if name == "-" else name
    try:
        nodes = documents.read(name)
    except documents.Unreadable as error:
        found.faults.append((Place(shown, error.line), error.message))
        return found
    if not nodes:
        found.faults.append((Place(shown, 0), "it holds nothing; [] says that there are none"))
    for node in nodes:
        for item in [node] if node.items is None else node.items:
            _object(found, shown, item, kind)
    for entry in found.entries:
        if entry.kind is not kind:
            found.faults.append((entry.place, f"this is a {entry.kind.noun}; a {kind.noun} is accepted"))
    return found


def _object(found: Manifest, file: str, node: Node, usual: Kind | None = None) -> None:
    """usual: the kind of what does not say its own."""
    place = Place(file, node.line)
    pairs = {key.text: value for key, value in node.pairs or [] if key.text is not None}
    noun = pairs.get("kind")
    if noun is None and usual is not None and node.pairs is not None:
        noun = Node(node.line, usual.noun)
    if node.pairs is None or noun is None or not noun.text:
        found.faults.append((place, f"this is no object with a kind; accepted: kind: {', '.join(kinds())}"))
        found.whole = False
        return
    kind = kind_named(noun.text) or kind_named(noun.text.replace("_", "-"))
    if kind is None:
        accepted = f"'{noun.text}' is no kind of this API; it has: {', '.join(kinds())}"
        found.faults.append((Place(file, noun.line), accepted))
        found.whole = False
        return
    entry = Entry(place, kind, kind.new())
    reader = _Reader(entry)
    reader.fill(entry.message, [pair for pair in node.pairs if pair[0].text not in RESERVED], "")
    entry.fields = [name for name in reader.stated if name not in entry.faulty]
    if key := pairs.get("key"):
        entry.key = key.text or ""
        entry.lines["key"] = key.line
    found.entries.append(entry)
    found.faults += [(at, f"{entry.label}: {text}") for at, text in reader.faults]


def names(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """How a field may be called in a file. A field's own name goes before another's option."""
    short = {option_name(field).replace("-", "_"): field for field in descriptor.fields if writable(field)}
    return {**short, **{field.name: field for field in descriptor.fields}}


class _Reader:
    """Reads one object. stated: its fields, in the order of the file."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self.faults: list[tuple[Place, str]] = []
        self.stated: list[str] = []

    def fill(self, message: Any, pairs: Sequence[tuple[Node, Node]], path: str) -> None:
        """Set the fields of a message, nested ones too."""
        known = names(message.DESCRIPTOR)
        seen: set[str] = set()
        for key, node in pairs:
            field = known.get((key.text or "").replace("-", "_"))
            where = f"{path}{field.name if field else key.text}"
            self._entry.lines.setdefault(where, key.line)
            if field is None:
                accepted = ", ".join(field.name for field in message.DESCRIPTOR.fields if writable(field))
                self._fault(key.line, path, f"{where} is no field of {message.DESCRIPTOR.name}; accepted: {accepted}")
            elif field.name in seen:
                self._fault(key.line, where, f"{where} is stated twice")
            elif not writable(field):
                self._fault(key.line, where, f"{where} is set by the server; leave it out")
            else:
                seen.add(field.name)
                if not path:
                    self.stated.append(field.name)
                self._set(message, field, node, where)

    def _set(self, message: Any, field: FieldDescriptor, node: Node, where: str) -> None:
        if node.null:
            return
        if is_map(field):
            value: Any = self._map(field, node, where)
        elif field.is_repeated:
            entries = [node] if node.items is None else node.items
            value = [self._one(field, entry, f"{where}[{number}]") for number, entry in enumerate(entries)]
            value = [entry for entry in value if entry is not None]
        else:
            value = self._one(field, node, where)
        if value is not None:
            values.assign(message, field, value)

    def _map(self, field: FieldDescriptor, node: Node, where: str) -> dict[Any, Any]:
        assert field.message_type is not None, "a map has a message for its entries"
        part = field.message_type.fields_by_name
        found = {}
        if node.pairs is None:
            self._fault(node.line, where, f"{where} is no mapping; accepted: {where}: {{KEY: VALUE}}")
        for key, value in node.pairs or []:
            self._entry.lines[f"{where}[{key.text!r}]"] = key.line
            if key.text is None or value.text is None or value.null:
                self._fault(key.line, where, f"{where} is no mapping of texts; accepted: {where}: {{KEY: VALUE}}")
                continue
            try:
                name, parsed = values.parse(part["key"], key.text), values.parse(part["value"], value.text)
            except ValueError as error:
                self._fault(value.line, where, f"{where}: {error}")
                continue
            if name in found:
                self._fault(key.line, where, f"{where} states {name} twice")
            found[name] = parsed
        return found

    def _one(self, field: FieldDescriptor, node: Node, where: str) -> Any:
        """One value; None when it cannot be read."""
        self._entry.lines[where] = node.line
        if node.pairs is not None and field.message_type is not None:
            message: Message = GetMessageClass(field.message_type)()
            self.fill(message, node.pairs, f"{where}.")
            return message
        if node.text is None or node.null:
            self._fault(node.line, where, f"{where} is no single value")
            return None
        try:
            return values.parse(field, node.text)
        except ValueError as error:
            self._fault(node.line, where, f"{where}: {error}")
            return None

    def _fault(self, line: int, path: str, text: str) -> None:
        self._entry.faulty.add(path.partition(".")[0].partition("[")[0])
        self.faults.append((Place(self._entry.place.file, line), text))
