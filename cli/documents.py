"""YAML and JSON files as trees that know their lines.

Scalars keep the text that was written: what it means is up to the field it is for, so `name: no` is a name and
`mac: 11:22:33:44:55:66` a MAC. The tree is built from the parser's events without recursion: PyYAML's own way ends the
process where nesting is deep.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_DEEPEST = 100  # levels; the parser's time grows with their square
_NULL = ("", "~", "null", "Null", "NULL")
# A character beyond the first 65,536 as JSON writes it in ASCII.
_PAIR = re.compile(r"((?<!\\)(?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


class Unreadable(Exception):
    """A file that is no YAML, with the line that says so; 0: no line does."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(slots=True, eq=False)
class Node:
    """One value of a file: a scalar (text), a list (items) or a mapping (pairs). line counts from 1."""

    line: int
    text: str | None = None
    null: bool = False
    items: list[Node] | None = None
    pairs: list[tuple[Node, Node]] | None = None
    done: bool = field(default=True, repr=False)


def read(name: str) -> list[Node]:
    """The documents of a file, `-` being standard input. Empty documents are left out. Raises Unreadable."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise Unreadable(0, f"it cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(data[: error.start].count(b"\n") + 1, "it is not UTF-8") from error
    return [node for node in _documents(text) if not node.null]


def _documents(text: str) -> Iterator[Node]:
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        yield from _trees(yaml.parse(_whole_characters(text), Loader=loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        told = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        # What ends too early is at fault in its last line.
        raise Unreadable(min(mark.line + 1, len(text.splitlines())) if mark else 0, f"it is not YAML: {told}") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise Unreadable(line, f"it is not YAML: {error.reason}") from error


def _whole_characters(text: str) -> str:
    """JSON may write one character as two escapes, which YAML does not know."""
    if text.lstrip()[:1] not in ("[", "{") or not _PAIR.search(text):
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return _PAIR.sub(lambda found: found[1] + json.loads(f'"\\u{found[2]}\\u{found[3]}"'), text)


def _trees(events: Iterator[Any]) -> Iterator[Node]:
    """One tree for each document."""
    import yaml.events

    kinds: Any = yaml.events
    open_nodes: list[tuple[Node, list[Node]]] = []  # what has begun, with its children so far
    anchors: dict[str, Node] = {}
    for event in events:
        made: Node | None = None
        if isinstance(event, kinds.DocumentStartEvent):
            anchors = {}
        elif isinstance(event, kinds.ScalarEvent):
            made = Node(event.start_mark.line + 1, event.value, bool(event.implicit[0]) and event.value in _NULL)
        elif isinstance(event, kinds.AliasEvent):
            made = anchors.get(event.anchor)
            if made is None or not made.done:
                raise Unreadable(event.start_mark.line + 1, f"it is not YAML: *{event.anchor} stands for nothing")
        elif isinstance(event, kinds.CollectionStartEvent):
            node = Node(event.start_mark.line + 1, done=False)
            if len(open_nodes) == _DEEPEST:
                raise Unreadable(node.line, f"it is nested more than {_DEEPEST} levels deep")
            open_nodes.append((node, []))
            if event.anchor:
                anchors[event.anchor] = node
        elif isinstance(event, kinds.CollectionEndEvent):
            made, children = open_nodes.pop()
            made.done = True
            if isinstance(event, kinds.MappingEndEvent):
                made.pairs = list(zip(children[::2], children[1::2], strict=True))
            else:
                made.items = children
        if made is None:
            continue
        if isinstance(event, kinds.ScalarEvent) and event.anchor:
            anchors[event.anchor] = made
        if open_nodes:
            open_nodes[-1][1].append(made)
        else:
            yield made
