"""`kumi export`: everything as one file that `kumi apply` makes again, the same to the byte.

All lists are read at one revision, so the file shows one moment. What only the server sets is left out, and so are secrets,
and for a caller who is no operator what only operators may set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor

from cli import values
from cli.client import Client, connect
from cli.errors import DENIED, USAGE, CliError
from cli.kinds import Kind, is_map, kinds, rules, writable
from cli.render import structured

_HEAD = "# Made by `kumi export`; `kumi apply -f FILE` makes it so.\n"


@click.command(
    epilog="\b\nExample:\n"
    "  kumi export > mine.yaml\n"
    "  kumi --project acme export > acme.yaml\n"
    "  kumi export --all > installation.yaml",
)
@click.option("--all", "everything", is_flag=True, help="Of all projects, nodes and quotas too. Operators only.")
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True, help="How to print it.")
@click.pass_context
def export(ctx: click.Context, everything: bool, output: str) -> None:
    """Print the project's objects as a file for `kumi apply`, as they were at one moment."""
    with connect(ctx.obj) as api:
        operator, revision = _begin(api, everything)
        if operator and not everything and not api.profile.project:
            raise CliError("whose objects? `kumi --project ID export` exports a project's, `kumi export --all` all", USAGE)
        found = list(_objects(api, everything, operator, revision))
    objects = [_plain(kind, item, operator) for kind, item in found]
    if output == "json":
        click.echo(structured(objects, "json"))
        return
    secrets = sorted({f"{kind.noun}.{name}" for kind, item in found for name in _secrets(kind)})
    note = f"# Secrets are not in it: {', '.join(secrets)}.\n" if secrets else ""
    body = "\n".join(structured([entry], "yaml") for entry in objects) or "[]"
    click.echo(_HEAD + note + body)


def _begin(api: Client, everything: bool) -> tuple[bool, int]:
    """(whether the caller is an operator, the revision to read at): operators alone may list what is the installation's."""
    nodes = kinds()["node"]
    request = nodes.request("List")
    request.page_size = 1
    try:
        return True, int(api.call(nodes.service.full_name, "List", request).revision)
    except CliError as error:
        if error.reason != "ROLE_REQUIRED":
            raise
        if everything:
            raise CliError(f"--all is for operators: {error.message}", DENIED, reason=error.reason) from error
    networks = kinds()["network"]
    request = networks.request("List")
    request.page_size, request.project_id = 1, api.profile.project
    return False, int(api.call(networks.service.full_name, "List", request).revision)


def in_order() -> list[Kind]:
    """All kinds, each after those that its fields refer to."""
    found: list[Kind] = []

    def visit(kind: Kind, above: tuple[Kind, ...]) -> None:
        if kind in found or kind in above:
            return
        for field in kind.descriptor.fields:
            other = next((each for each in kinds().values() if each.name == rules(field).reference), None)
            if other is not None:
                visit(other, (*above, kind))
        found.append(kind)

    # The installation's own first, then what limits the projects.
    for kind in sorted(kinds().values(), key=lambda kind: (kind.owned, _of_project(kind), kind.name)):
        visit(kind, ())
    return found


def _of_project(kind: Kind) -> bool:
    return not (kind.options.operator_named or kind.options.unowned)


def _objects(api: Client, everything: bool, operator: bool, revision: int) -> Iterator[tuple[Kind, Any]]:
    for kind in in_order():
        if not everything and (not _of_project(kind) or (not kind.owned and not operator)):
            continue
        project = "" if everything else api.profile.project
        for item in api.pages(kind, at=revision, project=project):
            yield kind, item


def _secrets(kind: Kind) -> list[str]:
    return [field.name for field in kind.descriptor.fields if rules(field).secret]


def _plain(kind: Kind, item: Any, operator: bool) -> dict[str, Any]:
    """An object as the file states it: fields that hold something, and lists that are empty, which have defaults too."""
    stated: dict[str, Any] = {"kind": kind.noun}
    for field in kind.settable:
        known = rules(field)
        if known.secret or (known.operator_only and not operator):
            continue
        if field.is_repeated:
            if not known.unsupported or len(getattr(item, field.name)):
                stated[field.name] = _value(field, getattr(item, field.name))
        elif item.HasField(field.name) if field.has_presence else getattr(item, field.name):
            stated[field.name] = _value(field, getattr(item, field.name))
    return stated


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and is_map(field):
        entry = field.message_type.fields_by_name["value"]
        return {key: _one(entry, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_one(field, item) for item in value]
    return _one(field, value)


def _one(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return values.text(field, value) if not field.is_repeated else values.text(field, [value])
    if field.message_type is None:
        return value
    if field.message_type.name in ("Duration", "Timestamp"):
        return values.text(field, value)
    return {inner.name: _value(inner, part) for inner, part in value.ListFields() if writable(inner)}
