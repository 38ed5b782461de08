"""What the commands print: tables for people, JSON and YAML for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from cli import values
from cli.kinds import kind_held, rules

FORMATS = ("table", "json", "yaml")
# Wide enough for any row: an id that is folded or cut cannot be copied, and a terminal wraps long lines itself.
_UNCUT = 100_000


def listing(items: Sequence[Message], columns: Sequence[str], form: str) -> None:
    """Print many objects: a table of the kind's columns, or a list of whole objects."""
    if form == "table":
        click.echo(table(items, columns))
    else:
        click.echo(structured([plain(item) for item in items], form))


def single(item: Message, form: str) -> None:
    """Print one object: a line for each field that holds something, objects in it as a table; or the whole object."""
    if form == "table":
        inner = [(kind, value) for field, value in _shown(item) if (kind := kind_held(field))]
        rows = [(field.name, values.text(field, value)) for field, value in _shown(item) if not kind_held(field)]
        click.echo(grid(("field", "value"), rows))
        for kind, held in inner:
            click.echo()
            click.echo(table(held, [name for name in kind.options.columns if name != kind.options.parent]))
    else:
        click.echo(structured(plain(item), form))


def table(items: Sequence[Any], columns: Sequence[str]) -> str:
    """Objects as a table; a column that the kind does not have is left out."""
    kept = [column for column in columns if not items or column in items[0].DESCRIPTOR.fields_by_name]
    rows = []
    for item in items:
        fields = item.DESCRIPTOR.fields_by_name
        rows.append([_cell(item, fields[name]) for name in kept])
    return grid(kept, rows)


def _cell(item: Any, field: FieldDescriptor) -> str:
    unset = field.message_type is not None and field.has_presence and not item.HasField(field.name)
    return "" if unset else values.text(field, getattr(item, field.name))


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, a row a line; on a terminal with a rule below the header."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    grid = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    for name in header:
        grid.add_column(Text(name.replace("_", " ")))
    for row in rows:
        # Text, not markup: a name may hold brackets.
        grid.add_row(*(Text(cell) for cell in row))
    console = Console(no_color=not terminal or "NO_COLOR" in os.environ, width=_UNCUT, force_terminal=terminal)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines())


def _shown(item: Message) -> list[tuple[Any, Any]]:
    """The fields worth a line: those that hold something, and switches that mean something, whose "no" says it too."""
    held = {field.name for field, _ in item.ListFields()}
    return [
        (field, getattr(item, field.name)) for field in item.DESCRIPTOR.fields if field.name in held or _is_plain_switch(field)
    ]


def _is_plain_switch(field: Any) -> bool:
    if field.cpp_type != FieldDescriptor.CPPTYPE_BOOL or field.is_repeated or field.has_presence:
        return False
    return not rules(field).unsupported


def plain(item: Message) -> dict[str, Any]:
    """An object as JSON and YAML show it."""
    from google.protobuf import json_format

    return json_format.MessageToDict(item, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def structured(data: Any, form: str) -> str:
    if form == "json":
        return json.dumps(data, indent=2, ensure_ascii=False)
    import yaml

    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True)).rstrip("\n")
