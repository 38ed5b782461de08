"""`kumi NOUN METHOD`: the methods that a kind has beside the standard ones, made from their request messages.

The object comes first, then each other field of the request by position; a repeated one takes the rest of the line, and one
that holds objects of a kind a file that lists them, as `kumi apply` reads it.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from cli import manifest, options, render, values
from cli.errors import CliError
from cli.kinds import Kind, kind_held, kind_named, rules
from kumihimo.v1 import resource_pb2

# Of the request, those that say how and not what.
_HOW = {"id", "etag", "request_id", "validate_only"}


def verb(method: MethodDescriptor) -> str:
    """add-prefixes for AddPrefixes."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", method.name).lower()


def command(kind: Kind, method: MethodDescriptor, target: click.Argument) -> click.Command:
    """The command of one method. target: the argument that names the object."""
    changes = method.output_type is kind.descriptor
    guarded = "etag" in method.input_type.fields_by_name
    fields = [field for field in method.input_type.fields if field.name not in _HOW]

    def callback(ctx: click.Context, target: str, output: str, **params: Any) -> None:
        from cli import client

        request = kind.request(method.name)
        for field in fields:
            values.assign(request, field, params[field.name])
        if guarded:
            request.etag = params["etag"] or ""
        if changes:
            request.validate_only = params["validate_only"]
            request.request_id = params["request_id"] or str(uuid.uuid4())
        with client.connect(ctx.obj) as api:
            request.id = api.id_of(kind, target)
            api.resolve(request)
            reply = api.call(kind.service.full_name, method.name, request)
            try:
                if changes and params["wait"] and not params["validate_only"]:
                    api.wait(reply.revision, [request.id], timeout=params["timeout"])
            finally:
                _show(reply, changes, output)

    own = options.change_options if changes else (options.output,)
    made = options.decorate(callback, [options.etag, *own] if guarded else own)
    shared = list(reversed(made.__click_params__))
    arguments = [
        click.Argument(
            [field.name],
            metavar=_metavar(field),
            type=_Objects(listed) if (listed := kind_held(field)) else options.FieldType(field),
            nargs=-1 if field.is_repeated and not kind_held(field) else 1,
            required=True,
        )
        for field in fields
    ]
    return click.Command(
        verb(method),
        callback=click.pass_context(made),
        params=[target, *arguments, *shared],
        help=f"{method.name} of a {kind.noun.replace('-', ' ')}.",
        epilog=f"\b\nExample:\n  kumi {kind.noun} {verb(method)} my-{kind.noun} {_example(fields)}".rstrip() + _file(fields),
    )


def _example(fields: list[FieldDescriptor]) -> str:
    """Values to type, where there are some to show, else what they stand for."""
    return " ".join(
        "rules.yaml" if kind_held(field) else _EXAMPLES.get(rules(field).format, _metavar(field)) for field in fields
    )


_EXAMPLES = {resource_pb2.FORMAT_ADDRESSES: "10.0.0.5 10.1.0.0/16 10.2.0.1-10.2.0.9"}


def _file(fields: list[FieldDescriptor]) -> str:
    """What a file that the example names may hold."""
    if not any(map(kind_held, fields)):
        return ""
    return (
        "\n\n\b\nrules.yaml:\n"
        "  - {direction: ingress, protocol: tcp, port_range_min: 443, port_range_max: 443}\n"
        "  - {direction: ingress, remote_group: web}\n"
        "  - {direction: egress}\n"
    )


class _Objects(click.ParamType[Any]):
    """A file that lists objects of one kind."""

    name = "file"

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        found = manifest.listed(value, self.kind)
        if found.faults:
            raise CliError("\n".join(found.told()))
        return [entry.message for entry in found.entries]


def _metavar(field: FieldDescriptor) -> str:
    if kind_held(field):
        return "FILE"
    reference = kind_named(rules(field).reference)
    name = reference.noun if reference else field.name.removesuffix("es") if field.is_repeated else field.name
    return name.upper() + ("..." if field.is_repeated else "")


def _show(reply: Any, is_object: bool, output: str) -> None:
    """An object; of a report its entries."""
    if is_object:
        render.single(reply, output)
        return
    (field,) = reply.DESCRIPTOR.fields
    render.listing(getattr(reply, field.name), [column.name for column in field.message_type.fields], output)
