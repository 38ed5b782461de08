"""`kumi NOUN METHOD`: the methods that a kind has beside the standard ones, made from their request messages.

The object comes first, then each other field of the request by position; a repeated one takes the rest of the line.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from cli import options, render, values
from cli.kinds import Kind, kind_named, rules

# Of the request, those that say how and not what.
_HOW = {"id", "request_id", "validate_only"}


def verb(method: MethodDescriptor) -> str:
    """add-prefixes for AddPrefixes."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", method.name).lower()


def command(kind: Kind, method: MethodDescriptor, target: click.Argument) -> click.Command:
    """The command of one method. target: the argument that names the object."""
    changes = method.output_type is kind.descriptor
    fields = [field for field in method.input_type.fields if field.name not in _HOW]

    def callback(ctx: click.Context, target: str, output: str, **params: Any) -> None:
        from cli import client

        request = kind.request(method.name)
        for field in fields:
            values.assign(request, field, params[field.name])
        if changes:
            request.validate_only = params["validate_only"]
            request.request_id = params["request_id"] or str(uuid.uuid4())
        with client.connect(ctx.obj) as api:
            request.id = api.id_of(kind, target)
            api.resolve(request)
            _show(api.call(kind.service.full_name, method.name, request), changes, output)

    named = " ".join(_metavar(field) for field in fields)
    made = options.decorate(callback, (*options.change_options[2:4], options.output) if changes else [options.output])
    shared = list(reversed(made.__click_params__))
    arguments = [
        click.Argument(
            [field.name],
            metavar=_metavar(field),
            type=options.FieldType(field),
            nargs=-1 if field.is_repeated else 1,
            required=True,
        )
        for field in fields
    ]
    return click.Command(
        verb(method),
        callback=click.pass_context(made),
        params=[target, *arguments, *shared],
        help=f"{method.name} of a {kind.noun.replace('-', ' ')}.",
        epilog=f"\b\nExample:\n  kumi {kind.noun} {verb(method)} my-{kind.noun} {named}".rstrip(),
    )


def _metavar(field: FieldDescriptor) -> str:
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
