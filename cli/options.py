"""Fields as click options: the type that parses, completes and describes a field's text, and the shared options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem
from google.protobuf.descriptor import FieldDescriptor

from cli import completion, render, values
from cli.kinds import is_map, kind_named, option_name, rules
from kumihimo.v1 import resource_pb2

_METAVARS = {
    resource_pb2.FORMAT_UUID: "ID",
    resource_pb2.FORMAT_IP: "ADDRESS",
    resource_pb2.FORMAT_CIDR: "CIDR",
    resource_pb2.FORMAT_MAC: "MAC",
    resource_pb2.FORMAT_TAG: "TAG",
}
_MARK = "field_"


class FieldType(click.ParamType[Any]):
    """Text that becomes one value of a field."""

    def __init__(self, field: FieldDescriptor) -> None:
        self.field = field
        self.name = field.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return values.parse(self.field, value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        field, known = self.field, rules(self.field)
        if field.enum_type is not None:
            return f"[{'|'.join(values.choices(field.enum_type))}]"
        if field.message_type is not None:
            if field.message_type.name in ("Duration", "Timestamp"):
                return field.message_type.name.upper()
            return "KEY=VALUE" if is_map(field) else "VALUE"
        if known.reference:
            kind = kind_named(known.reference)
            return kind.noun.upper() if kind else "ID"
        if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
            return "NUMBER"
        return _METAVARS.get(known.format, "TEXT")

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if self.field.enum_type is not None:
            names = values.choices(self.field.enum_type)
            return [CompletionItem(name) for name in names if name.startswith(incomplete.lower())]
        kind = kind_named(rules(self.field).reference)
        return completion.objects(ctx, kind, incomplete) if kind else []


class DurationType(click.ParamType[float]):
    """Text that becomes seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            milli = values.milliseconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if milli < 0:
            self.fail("waiting has an end: give a duration such as 30s or 5m", param, ctx)
        return milli / 1000


class FieldOption(click.Option):
    """The option of a field. Its text for help is made when help is asked for."""

    def __init__(self, field: FieldDescriptor) -> None:
        name, self.field = option_name(field), field
        switch = field.cpp_type == FieldDescriptor.CPPTYPE_BOOL and not field.is_repeated
        # What already says no has no opposite: --clear unsets it.
        flags = f"--{name}" if not switch or name.startswith("no-") else f"--{name}/--no-{name}"
        if switch:
            super().__init__([flags, _MARK + field.name], default=None, is_flag=True)
        else:
            repeated = field.is_repeated
            super().__init__([flags, _MARK + field.name], default=None, type=FieldType(field), multiple=repeated)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.help = help_text(self.field)
        return super().get_help_record(ctx)


def given(params: dict[str, Any]) -> dict[str, Any]:
    """Field name -> parsed value, of the fields whose options were given."""
    found = {name.removeprefix(_MARK): value for name, value in params.items() if name.startswith(_MARK)}
    return {name: value for name, value in found.items() if value is not None and value != ()}


def help_text(field: FieldDescriptor) -> str:
    """What the contract says of a field, how its value is typed, and who may set it."""
    from cli.docs import field_comment

    known = rules(field)
    notes = [field_comment(field)]
    if field.message_type is not None and not is_map(field):
        if field.message_type.name == "Duration":
            notes.append("For example 24h, 120s, -1s (infinite).")
        elif field.message_type.name == "Timestamp":
            notes.append("For example 2027-01-31T12:00:00Z.")
        else:
            notes.append(f"{values.short_form(field.message_type)}.")
    if kind_named(known.reference):
        notes.append("Id or name.")
    if field.is_repeated:
        notes.append("May be given several times; a change replaces all.")
    if known.operator_only:
        notes.append("Operators only.")
    if known.unsupported:
        notes.append("Not acted upon by this release.")
    return " ".join(note for note in notes if note)


Decorator = Callable[[Any], Any]

output = click.option(
    "-o", "--output", type=click.Choice(render.FORMATS), default="table", show_default=True, help="How to print it."
)
filter = click.option("--filter", default="", metavar="TEXT", help='For example: name = "a*" AND NOT tags:"old".')
at = click.option("--at", type=click.IntRange(min=0), default=0, metavar="REVISION", help="As it was at this store revision.")
etag = click.option("--etag", metavar="TEXT", help="Refuse the change if the object has another etag.")
timeout = click.option(
    "--timeout", type=DurationType(), default="30s", show_default=True, help="How long --wait waits, for example 5m."
)
change_options: tuple[Decorator, ...] = (
    click.option("--wait", is_flag=True, help="Return when the nodes concerned have applied the change."),
    timeout,
    click.option("--request-id", metavar="TEXT", help="Names the request: a repetition does not act twice."),
    click.option("--validate-only", is_flag=True, help="Check everything, change nothing."),
    output,
)


def decorate(callback: Any, decorators: Iterable[Decorator]) -> Any:
    """A callback with options; the first stands first in help."""
    for decorator in reversed(list(decorators)):
        callback = decorator(callback)
    return callback
