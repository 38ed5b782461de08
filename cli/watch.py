"""`kumi NOUN watch`: every change once, over lost connections too.

A revision may hold many changes, and a connection may be lost between two of them. So a watch resumes from the last
revision that it has heard wholly, and leaves out what it has told of the next one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import click

from cli import render, values
from cli.client import Client
from cli.errors import UNAVAILABLE, CliError
from cli.kinds import Kind
from kumihimo.v1 import resource_pb2

LONGEST_PAUSE = 5.0  # seconds between two attempts to resume


def run(api: Client, kind: Kind, *, filter: str, start: int, initial: bool, form: str) -> None:
    """Print events until interrupted. CliError: the watch cannot begin, or cannot be resumed."""
    for event in _events(api, kind, filter, start, initial):
        if form == "json":
            click.echo(_line(event))
        elif event.type != resource_pb2.EVENT_TYPE_BOOKMARK:
            click.echo(_row(kind, event))


def _events(api: Client, kind: Kind, filter: str, start: int, initial: bool) -> Iterator[Any]:
    request = kind.request("Watch")
    request.filter, request.start_revision, request.include_initial = filter, start, initial
    if kind.owned:
        request.project_id = api.profile.project
    # Whether a watch can be had at all is asked first; and where it begins is known, whatever becomes of it.
    whole = start or _revision(api, kind, filter)
    if not initial:
        request.start_revision = whole
    failures, current = 0, 0
    told: set[str] = set()  # of the revision `current`
    while True:
        try:
            for event in api.stream(kind.service.full_name, "Watch", request):
                failures = 0
                if event.type == resource_pb2.EVENT_TYPE_BOOKMARK:
                    whole, request.include_initial = event.revision, False
                elif event.type != resource_pb2.EVENT_TYPE_INITIAL:
                    if event.revision != current:
                        # Nothing of this kind lies between the two.
                        whole, current = event.revision - 1, event.revision
                        told = set()
                    if event.resource.id in told:
                        continue
                    told.add(event.resource.id)
                yield event
        except CliError as error:
            if error.exit_code != UNAVAILABLE and error.reason != "WATCH_TOO_SLOW":
                raise
            if not failures:
                click.echo(f"kumi: {error.message}; the watch resumes from revision {whole}", err=True)
            failures += 1
        if not request.include_initial:
            request.start_revision = whole
        pause = api.retry_seconds[-1] if api.retry_seconds else 0.0
        time.sleep(min(pause * max(failures, 1), LONGEST_PAUSE))


def _revision(api: Client, kind: Kind, filter: str) -> int:
    request = kind.request("List")
    request.filter, request.page_size = filter, 1
    if kind.owned:
        request.project_id = api.profile.project
    return int(api.call(kind.service.full_name, "List", request).revision)


def _type(event: Any) -> str:
    return str(resource_pb2.EventType.Name(event.type)).removeprefix("EVENT_TYPE_")


def _line(event: Any) -> str:
    said = {"type": _type(event), "revision": event.revision}
    if event.HasField("resource"):
        said["resource"] = render.plain(event.resource)
    return json.dumps(said, ensure_ascii=False)


def _row(kind: Kind, event: Any) -> str:
    fields = event.resource.DESCRIPTOR.fields_by_name
    held = {field.name for field, _ in event.resource.ListFields()}
    cells = [
        f"{name}={values.text(fields[name], getattr(event.resource, name))}" for name in kind.options.columns if name in held
    ]
    return f"{event.revision} {_type(event).lower():<8} {kind.noun} {' '.join(cells)}"
