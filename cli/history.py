"""`kumi history`: who changed what, when, and by which request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from cli import options, render, values
from cli.client import Client, connect, is_uuid
from cli.errors import DENIED, CliError
from cli.kinds import kind_named, kinds
from kumihimo.v1 import operations_pb2 as pb

_PAGE = 500
_VERBS = {pb.ACTION_CREATE: "created", pb.ACTION_UPDATE: "updated", pb.ACTION_DELETE: "deleted"}


@click.command(epilog="\b\nExample:\n  kumi history web1 --limit 10")
@click.argument("object_", metavar="[ID_OR_NAME]", default="")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="At most so many; 0: all.")
@options.output
@click.pass_context
def history(ctx: click.Context, object_: str, limit: int, output: str) -> None:
    """Show the changes of an object, deleted ones by their id, or of all; the newest first."""
    with connect(ctx.obj) as api:
        changes = list(_changes(api, _id(api, object_) if object_ else "", limit))
    if output != "table":
        click.echo(render.structured([render.plain(change) for change in changes], output))
        return
    click.echo(render.grid(("revision", "time", "who", "what", "request", "fields"), [_row(change) for change in changes]))


def _id(api: Client, text: str) -> str:
    """The id that a text means: its own, or that of the one object so named. The deleted have no names."""
    if is_uuid(text):
        return text.lower()
    found = []
    for kind in kinds().values():
        try:
            found += [(kind, item) for item in api.named(kind, text)]
        except CliError as error:
            if error.exit_code != DENIED:
                raise
    if len(found) > 1:
        rows = [(kind.noun, item.id, item.project_id) for kind, item in found]
        raise CliError(
            f"{len(found)} objects are named '{text}'; give the id of one of these:",
            detail=render.grid(("kind", "id", "project"), rows),
        )
    return str(found[0][1].id) if found else text


def _changes(api: Client, object_id: str, limit: int) -> Iterator[Any]:
    request = pb.ListChangesRequest(id=object_id, project_id=api.profile.project, page_size=min(limit or _PAGE, _PAGE))
    told = 0
    while True:
        page = api.call("Operations", "ListChanges", request)
        for change in page.items:
            yield change
            told += 1
            if told == limit:
                return
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def _row(change: Any) -> tuple[str, ...]:
    kind = kind_named(change.kind)
    what = f"{_VERBS.get(change.action, 'changed')} {kind.noun if kind else change.kind} {change.name or change.id}"
    time = values.text(change.DESCRIPTOR.fields_by_name["time"], change.time)
    return str(change.revision), time, change.actor, what, change.request_id or change.method, _fields(change)


def _fields(change: Any) -> str:
    """What differs; of what was made or deleted, the fields it had."""
    if change.action != pb.ACTION_UPDATE:
        return ", ".join(field.path for field in change.fields)
    return ", ".join(f"{field.path}: {field.before or 'unset'} -> {field.after or 'unset'}" for field in change.fields)
