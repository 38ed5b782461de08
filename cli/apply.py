"""`kumi apply`: what files say becomes so, in one transaction, or nothing does.

The server is asked first what it would do, which brings every fault with its place in the request; then it is told to do it.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import click

from cli import manifest, options, render
from cli.client import Client, connect
from cli.errors import USAGE, CliError, line, with_field
from cli.kinds import kind_named
from cli.manifest import MOST, Manifest, Place
from kumihimo.v1 import operations_pb2 as pb

APPLY_SECONDS = 120.0
_SIGNS = {pb.ACTION_CREATE: ("+", "green"), pb.ACTION_UPDATE: ("~", "yellow"), pb.ACTION_DELETE: ("-", "red")}
_DONE = {pb.ACTION_CREATE: "created", pb.ACTION_UPDATE: "updated", pb.ACTION_DELETE: "deleted", pb.ACTION_NONE: "unchanged"}


@click.command(
    epilog="\b\nExample:\n"
    "  kumi apply -f cloud.yaml --dry-run\n"
    "  kumi apply -f cloud.yaml --prune team-a --wait\n\n"
    "\b\ncloud.yaml:\n"
    "  - kind: port\n"
    "    name: web1\n"
    "    network: web          # an id, a key or a name\n"
    "    ip: 10.0.0.5\n"
    "  - {kind: network, name: web}\n"
    "  - {kind: subnet, name: web-v4, network: web, cidr: 10.0.0.0/24}\n\n"
    "A field has its name of the reference or that of its option in `kumi NOUN create`. What the file does not state stays "
    "as it is; null unsets."
)
@click.option("-f", "--file", "files", multiple=True, required=True, metavar="FILE", help="YAML or JSON; - is stdin. Several.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--prune", metavar="TAG", default="", help="Delete what carries this tag and is not in the files.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--wait", is_flag=True, help="Return when the nodes concerned have applied the change.")
@options.timeout
@click.option("--request-id", metavar="TEXT", help="Names the request: a repetition does not act twice.")
@options.output
@click.pass_context
def apply(ctx: click.Context, /, files: tuple[str, ...], **params: Any) -> None:
    """Make objects as files say: all of them in one step, in any order, or none."""
    if files.count("-") > 1:
        raise click.UsageError("-f - may be given once: standard input is read once", ctx)
    found = manifest.read(files)
    if len(found.entries) > MOST:
        raise CliError(f"the files hold {len(found.entries)} objects; at most {MOST} are applied in one step", USAGE)
    if found.faults and not found.whole:
        raise CliError("\n".join(found.told()))
    with connect(ctx.obj) as api:
        request = _request(found, api.profile.project, params["prune"])
        plan = _plan(api, found, request)
        if params["dry_run"]:
            _show(plan, params["output"], dry=True)
            return
        _confirm(ctx, plan, params, "-" in files)
        request.request_id = params["request_id"] or str(uuid.uuid4())
        try:
            reply = api.call("Operations", "Apply", request, timeout=APPLY_SECONDS)
        except CliError as error:
            # Somebody was quicker: what is refused now was not when it was planned.
            raise _with_places(error, found) from error
        try:
            if params["wait"] and reply.revision:
                api.wait(reply.revision, timeout=params["timeout"])
        finally:
            _show(reply, params["output"], dry=False)


def _request(found: Manifest, project: str, prune: str) -> Any:
    request = pb.ApplyRequest(project_id=project, prune_tag=prune)
    for entry in found.entries:
        item = request.objects.add(key=entry.key)
        item.resource.Pack(entry.message)
        item.fields.paths.extend(entry.fields)
    return request


def _plan(api: Client, found: Manifest, request: Any) -> Any:
    """What the server would do. CliError tells every fault, the file's own and the server's, with its place."""
    asked = pb.ApplyRequest()
    asked.CopyFrom(request)
    asked.validate_only = True
    try:
        plan = api.call("Operations", "Apply", asked, timeout=APPLY_SECONDS)
    except CliError as error:
        raise CliError("\n".join([*found.told(), error.message]), error.exit_code, reason=error.reason) from error
    faults = [(fault.index, fault.field, fault.message, fault.reason) for fault in plan.faults]
    if faults or found.faults:
        raise CliError("\n".join(_told(found, faults)))
    return plan


def _told(found: Manifest, faults: Iterable[tuple[int, str, str, str]]) -> list[str]:
    """Faults of the server beside the file's own, in the order of the files; index -1: of what is pruned."""
    more: list[tuple[Place, str]] = []
    others = []
    for index, path, message, reason in faults:
        if not 0 <= index < len(found.entries):
            others.append(line(f"--prune: {message}", reason))
            continue
        entry = found.entries[index]
        # A field that could not be read was not sent.
        if path.partition(".")[0].partition("[")[0] not in entry.faulty:
            more.append((entry.at(path), line(f"{entry.label}: {with_field(path, message)}", reason)))
    order = list(dict.fromkeys([*(entry.place.file for entry in found.entries), *(place.file for place, _ in found.faults)]))
    told = sorted([*found.faults, *more], key=lambda fault: (order.index(fault[0].file), fault[0].line))
    return [f"{place}: {text}" for place, text in told] + others


def _with_places(error: CliError, found: Manifest) -> CliError:
    """A refusal whose fields are `objects[3].cidr`, as lines of the file."""
    faults = []
    for path, message, reason in error.faults:
        head, _, rest = path.removeprefix("objects[").partition("]")
        index = int(head) if path.startswith("objects[") and head.isdecimal() else -1
        faults.append((index, rest.removeprefix("."), message.removeprefix(f"{path}: "), reason))
    if not faults:
        return error
    return CliError("\n".join(_told(found, faults)), error.exit_code, reason=error.reason)


def _confirm(ctx: click.Context, plan: Any, params: dict[str, Any], from_stdin: bool) -> None:
    """Ask before something is deleted; where nobody can be asked, --yes says so beforehand."""
    doomed = [item for item in plan.objects if item.action == pb.ACTION_DELETE]
    if not doomed or params["yes"]:
        return
    for item in doomed:
        click.echo(_title(item), err=True)
    if from_stdin or not sys.stdin.isatty():
        raise CliError(f"--prune {params['prune']} deletes these {len(doomed)} objects; --yes says that it may", USAGE)
    click.confirm(f"Delete these {len(doomed)} objects?", abort=True, err=True)


def _show(reply: Any, form: str, *, dry: bool) -> None:
    if form != "table":
        click.echo(render.structured(_plain(reply), form))
        return
    for item in reply.objects:
        if item.action == pb.ACTION_NONE:
            continue
        if dry:
            _colored(_title(item), item.action)
            for change in item.fields:
                _colored(f"    {_change(item, change)}", item.action)
        else:
            click.echo(f"{_DONE[item.action]} {_named(item)}")
    click.echo(_summary(reply.objects, dry))


def _plain(reply: Any) -> dict[str, Any]:
    objects = [
        {
            "action": _DONE[item.action],
            "kind": _noun(item),
            "id": item.id,
            "name": item.name,
            "fields": [{"path": change.path, "before": change.before, "after": change.after} for change in item.fields],
        }
        for item in reply.objects
    ]
    return {"revision": reply.revision, "objects": objects}


def _summary(objects: Sequence[Any], dry: bool) -> str:
    counts = {action: sum(item.action == action for item in objects) for action in _DONE}
    text = ", ".join(f"{counts[action]} {word}" for action, word in _DONE.items())
    return f"{text} (dry run: nothing was done)" if dry else text


def _noun(item: Any) -> str:
    kind = kind_named(item.kind)
    return kind.noun if kind else str(item.kind)


def _named(item: Any) -> str:
    return f"{_noun(item)} {json.dumps(item.name, ensure_ascii=False)} ({item.id})" if item.name else f"{_noun(item)} {item.id}"


def _title(item: Any) -> str:
    return f"{_SIGNS[item.action][0]} {_named(item)}"


def _change(item: Any, change: Any) -> str:
    if item.action == pb.ACTION_CREATE:
        return f"+ {change.path}: {change.after}"
    if item.action == pb.ACTION_DELETE:
        return f"- {change.path}: {change.before}"
    return f"~ {change.path}: {change.before or 'unset'} -> {change.after or 'unset'}"


def _colored(text: str, action: Any) -> None:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    click.echo(text if plain else click.style(text, fg=_SIGNS[action][1]))
