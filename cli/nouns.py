"""`kumi NOUN create|show|list|update|delete|watch`, made from the descriptors: no kind is named here."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor

from cli import completion, methods, options, plugins, render, values
from cli.errors import DENIED, NOT_FOUND, UNAVAILABLE, CliError
from cli.kinds import Kind, kind_held, kind_named, option_name, required, rules
from kumihimo.v1 import resource_pb2


class ObjectName(click.ParamType[str]):
    """Id or name of an object, completed from the API."""

    name = "object"

    def __init__(self, kind: Kind | None) -> None:
        self.kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        return completion.objects(ctx, self.kind, incomplete) if self.kind else []


class Noun(click.Group):
    """The verbs of a kind: those of its service, and those that other packages bring."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(dict.fromkeys([*super().list_commands(ctx), *plugins.found(self.name or "")]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if own := super().get_command(ctx, cmd_name):
            return own
        plugin = plugins.found(self.name or "").get(cmd_name)
        return plugins.load(plugin, quiet=ctx.resilient_parsing) if plugin else None


def group(kind: Kind) -> click.Group:
    """The commands of one kind: a verb for each method that its service has."""
    from cli.docs import message_comment

    noun = Noun(
        kind.noun,
        help=message_comment(kind.descriptor) or f"{kind.plural.capitalize()}.",
        epilog=f"\b\nExample:\n  kumi {kind.noun} list",
    )
    for method in kind.service.methods:
        if method.name in VERBS:
            noun.add_command(VERBS[method.name][1](kind))
        elif method.name in OWN:
            noun.add_command(OWN[method.name](kind))
        elif method.name != LIVE and not method.server_streaming:
            noun.add_command(methods.command(kind, method, _target(kind)))
    return noun


def verbs(kind: Kind) -> list[str]:
    """The names of a kind's commands."""
    return [
        VERBS[method.name][0] if method.name in VERBS else methods.verb(method)
        for method in kind.service.methods
        if method.name in VERBS or (method.name != LIVE and not method.server_streaming)
    ]


def _command(
    kind: Kind, verb: str, help: str, example: str, callback: Any, params: Sequence[click.Parameter] = ()
) -> click.Command:
    """A command whose callback has the shared options already."""
    shared = list(reversed(getattr(callback, "__click_params__", ())))
    return click.Command(
        verb,
        callback=click.pass_context(callback),
        params=[*params, *shared],
        help=help,
        epilog=f"\b\nExample:\n  kumi {kind.noun} {verb} {example}".rstrip(),
    )


def _create(kind: Kind) -> click.Command:
    arguments = [kind.descriptor.fields_by_name[name] for name in kind.options.arguments]

    def callback(ctx: click.Context, positional: tuple[str, ...], **params: Any) -> None:
        from cli import client

        given = options.given(params)
        _place(ctx, arguments, positional, given)
        request = kind.request("Create")
        with client.connect(ctx.obj) as api:
            if kind.owned:
                request.resource.project_id = api.profile.project
            for name, value in given.items():
                values.assign(request.resource, kind.descriptor.fields_by_name[name], value)
            api.resolve(request.resource)
            _change(api, kind, "Create", request, params)

    usage = " ".join(_metavar(field) if required(field) else f"[{_metavar(field)}]" for field in arguments)
    # Of several arguments, the one that names an object comes first.
    first = next((kind_named(rules(field).reference) for field in arguments), None)
    params = [
        click.Argument(["positional"], nargs=-1, metavar=usage, type=ObjectName(first)),
        *(options.FieldOption(field) for field in kind.settable),
    ]
    words = [_sample(kind, field) for field in arguments]
    for field in kind.settable:
        if required(field) and field not in arguments and field.name != "id":
            words.append(f"--{option_name(field)} {_sample(kind, field)}")
    if "name" not in kind.options.arguments and not kind.options.operator_named:
        words.append(f"--name my-{kind.noun}")
    example = " ".join(words)
    shared = options.decorate(callback, options.change_options)
    return _command(kind, "create", f"Create a {kind.options.singular}.", example, shared, params)


def _place(ctx: click.Context, arguments: Sequence[FieldDescriptor], positional: Sequence[str], given: dict[str, Any]) -> None:
    """Put the positional values into the fields they stand for: those not given as an option, in their order."""
    places = [field for field in arguments if field.name not in given]
    if len(positional) > len(places):
        raise click.UsageError(f"unexpected argument '{positional[len(places)]}'", ctx)
    for field, text in zip(places, positional, strict=False):
        given[field.name] = options.FieldType(field).convert(text, None, ctx)
    for field in arguments:
        if required(field) and field.name not in given:
            raise click.UsageError(f"missing argument {_metavar(field)} (or option --{option_name(field)})", ctx)


def _show(kind: Kind) -> click.Command:
    has_live = LIVE in kind.service.methods_by_name
    holds_others = any(map(kind_held, kind.descriptor.fields))

    def callback(ctx: click.Context, target: str, at: int, output: str, **params: Any) -> None:
        from cli import client, live

        wanted = params.get("live")
        if at and (wanted or params.get("svg")):
            raise click.UsageError("what was is not live: leave --at out", ctx)
        with client.connect(ctx.obj) as api:
            item = api.find(kind.name, target, at)
            if holds_others and not at:
                item = api.get(kind, item.id, whole=True)
            found = None
            if has_live and not at and (params["svg"] or (output == "table" if wanted is None else wanted)):
                found = live.ask(api, kind, item.id)
        if params.get("svg"):
            live.draw(found, params["svg"])
        live.show(item, found, output)

    own = [options.at, options.output]
    if has_live:
        own = [
            click.option("--live/--no-live", default=None, help="Also what is there now.  [default: in tables]"),
            click.option("--svg", metavar="FILE", default="", help="Draw what is there now."),
            *own,
        ]
    shared = options.decorate(callback, own)
    return _command(kind, "show", f"Show a {kind.options.singular}.", _mine(kind), shared, [_target(kind)])


def _list(kind: Kind) -> click.Command:
    def callback(ctx: click.Context, filter: str, order_by: str, limit: int, at: int, output: str) -> None:
        from cli import client

        with client.connect(ctx.obj) as api:
            items = list(api.pages(kind, filter=filter, order_by=order_by, limit=limit, at=at))
        render.listing(items, kind.options.columns, output)

    own = [
        options.filter,
        click.option("--order-by", default="", metavar="FIELDS", help="Fields to order by, for example name desc."),
        click.option("--limit", type=click.IntRange(min=0), default=0, help="At most so many. Default: all."),
        options.at,
        options.output,
    ]
    return _command(
        kind, "list", f"List {kind.plural}.", "--filter 'name = \"a*\"' --order-by 'name desc'", options.decorate(callback, own)
    )


def _update(kind: Kind) -> click.Command:
    changeable = {field.name: field for field in kind.changeable}

    def callback(ctx: click.Context, target: str, clear: tuple[str, ...], etag: str | None, **params: Any) -> None:
        from cli import client

        given = options.given(params)
        both = sorted(set(clear) & set(given))
        if both:
            raise click.UsageError(f"--clear {both[0]} and --{option_name(changeable[both[0]])} exclude each other", ctx)
        if not given and not clear:
            raise click.UsageError("nothing to change: give an option of a field, or --clear FIELD", ctx)
        request = kind.request("Update")
        request.update_mask.paths.extend([*given, *clear])
        request.resource.etag = etag or ""
        for name, value in given.items():
            values.assign(request.resource, changeable[name], value)
        with client.connect(ctx.obj) as api:
            api.resolve(request.resource)
            request.resource.id = api.id_of(kind, target)
            _change(api, kind, "Update", request, params)

    own = [
        click.option(
            "--clear",
            multiple=True,
            type=FieldName(changeable.values()),
            help="Unset a field. May be given several times.",
        ),
        options.etag,
        *options.change_options,
    ]
    params = [_target(kind), *(options.FieldOption(field) for field in changeable.values())]
    shared = options.decorate(callback, own)
    example = f"{_mine(kind)} --description 'for tests' --wait"
    return _command(kind, "update", f"Change the given fields of a {kind.options.singular}.", example, shared, params)


class FieldName(click.Choice[str]):
    """A field, by its own name or by its option's."""

    def __init__(self, fields: Any) -> None:
        self.by_option = {option_name(field): field.name for field in fields}
        super().__init__(sorted(self.by_option.values()))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(self.by_option.get(value, value), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "FIELD"


def _delete(kind: Kind) -> click.Command:
    def callback(ctx: click.Context, targets: tuple[str, ...], **params: Any) -> None:
        from cli import client

        if len(targets) > 1 and (params["etag"] or params["request_id"]):
            raise click.UsageError("--etag and --request-id go with one object only", ctx)
        done: list[dict[str, Any]] = []
        failed: list[CliError] = []
        with client.connect(ctx.obj) as api:
            for target in targets:
                try:
                    done.append(_remove(api, kind, target, params))
                except CliError as error:
                    failed.append(error)
                    if error.exit_code in (DENIED, UNAVAILABLE):
                        break
            _tell(kind, [entry for entry in done if entry], params)
            revision = max((entry["revision"] for entry in done if entry), default=0)
            if params["wait"] and revision and not params["validate_only"]:
                ids = [entry["id"] for entry in done if entry]
                api.wait(revision, ids if len(ids) <= client.MOST_WAITED_FOR else (), timeout=params["timeout"])
        if failed:
            details = "\n".join(error.detail for error in failed if error.detail)
            raise CliError("\n".join(error.message for error in failed), failed[0].exit_code, detail=details)

    own = [
        click.option("--etag", metavar="TEXT", help="Refuse if the object has another etag."),
        click.option("--force", is_flag=True, help="Also delete what it owns, and what is in use."),
        click.option("--allow-missing", is_flag=True, help="Succeed when there is no such object."),
        *options.change_options,
    ]
    targets = click.Argument(["targets"], nargs=-1, required=True, metavar="ID_OR_NAME...", type=ObjectName(kind))
    shared = options.decorate(callback, own)
    return _command(kind, "delete", f"Delete {kind.plural}.", f"{_mine(kind)} --wait", shared, [targets])


def _remove(api: Any, kind: Kind, target: str, params: dict[str, Any]) -> dict[str, Any]:
    """Delete one object; what became of it, or nothing if it was allowed to be missing."""
    request = kind.request("Delete")
    try:
        request.id = api.id_of(kind, target)
    except CliError as error:
        if params["allow_missing"] and error.exit_code == NOT_FOUND:
            return {}
        raise
    request.etag = params["etag"] or ""
    request.force, request.allow_missing = params["force"], params["allow_missing"]
    request.validate_only = params["validate_only"]
    request.request_id = params["request_id"] or str(uuid.uuid4())
    reply = api.call(kind.service.full_name, "Delete", request)
    return {"id": request.id, "revision": reply.revision}


def _tell(kind: Kind, done: Sequence[dict[str, Any]], params: dict[str, Any]) -> None:
    if params["output"] != "table":
        click.echo(render.structured(done, params["output"]))
        return
    what = "can be deleted" if params["validate_only"] else "deleted"
    for entry in done:
        click.echo(f"{kind.options.singular} {entry['id']} {what}")


def _change(api: Any, kind: Kind, method: str, request: Any, params: dict[str, Any]) -> None:
    """Send a Create or Update, wait if asked to, and print what came of it."""
    request.validate_only = params["validate_only"]
    request.request_id = params["request_id"] or str(uuid.uuid4())
    item = api.call(kind.service.full_name, method, request)
    try:
        if params["wait"] and not params["validate_only"]:
            api.wait(item.revision, [item.id], timeout=params["timeout"])
            item = api.get(kind, item.id)
    finally:
        # The change is made, also where the waiting failed: its id must not be lost.
        render.single(item, params["output"])


def _watch(kind: Kind) -> click.Command:
    def callback(ctx: click.Context, filter: str, start: int, initial: bool, output: str) -> None:
        from cli import client, watch

        if start and initial:
            raise click.UsageError("--from and --initial exclude each other", ctx)
        with client.connect(ctx.obj) as api:
            watch.run(api, kind, filter=filter, start=start, initial=initial, form=output)

    own = [
        options.filter,
        click.option(
            "--from", "start", type=click.IntRange(min=0), default=0, metavar="REVISION", help="Begin after this revision."
        ),
        click.option("--initial", is_flag=True, help="Tell first what is there."),
        click.option(
            "-o",
            "--output",
            type=click.Choice(["table", "json"]),
            default="table",
            show_default=True,
            help="How to print it; json: an object a line, with type and revision.",
        ),
    ]
    shared = options.decorate(callback, own)
    return _command(kind, "watch", f"Tell each change of {kind.plural} as it happens, until interrupted.", "--initial", shared)


def _explain(kind: Kind) -> click.Command:
    from cli import trace

    return trace.explain(kind, _target(kind))


def _target(kind: Kind) -> click.Argument:
    return click.Argument(["target"], metavar="ID_OR_NAME", type=ObjectName(kind))


def _metavar(field: FieldDescriptor) -> str:
    return option_name(field).upper().replace("-", "_")


def _mine(kind: Kind) -> str:
    return f"{kind.noun}-1" if kind.options.operator_named else f"my-{kind.noun}"


def _sample(kind: Kind, field: FieldDescriptor) -> str:
    """A value for an example."""
    known = rules(field)
    if known.reference:
        other = kind_named(known.reference)
        return f"my-{other.noun if other else known.reference.lower()}"
    if field.enum_type is not None:
        return values.choices(field.enum_type)[0]
    if known.format == resource_pb2.FORMAT_CIDR:
        return "10.0.0.0/24"
    return _mine(kind) if field.name in ("id", "name") else _metavar(field)


# The method that tells what is there now: a part of `show`.
LIVE = "Inspect"

# Methods of some kinds that have commands of their own.
OWN: dict[str, Callable[[Kind], click.Command]] = {"Explain": _explain}

# Method of the service -> its verb, and what makes the command.
VERBS: dict[str, tuple[str, Callable[[Kind], click.Command]]] = {
    "Create": ("create", _create),
    "Get": ("show", _show),
    "List": ("list", _list),
    "Update": ("update", _update),
    "Delete": ("delete", _delete),
    "Watch": ("watch", _watch),
}
