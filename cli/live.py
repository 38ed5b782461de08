"""What is on a node now, as a tree for people, beside the object in JSON and YAML, and as a picture (cli/picture.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from cli import render
from cli.client import Client
from cli.errors import CliError
from cli.kinds import Kind


def ask(api: Client, kind: Kind, object_id: str) -> Any:
    """What is there now; where nobody answers, what was heard last, and why."""
    return api.call(kind.service.full_name, "Inspect", kind.request("Inspect").__class__(id=object_id))


def show(item: Any, found: Any | None, form: str) -> None:
    """Print an object and, where it was asked for, what is there now."""
    if found is None:
        render.single(item, form)
    elif form == "table":
        render.single(item, form)
        click.echo("\n" + "\n".join(tree(found)))
    else:
        click.echo(render.structured({**render.plain(item), "live": render.plain(found)}, form))


def draw(found: Any, file: str) -> None:
    """Write the picture. CliError: it cannot be written."""
    from cli import picture

    try:
        Path(file).write_text(picture.svg(found), encoding="utf-8")
    except OSError as error:
        raise CliError(f"{file} cannot be written: {error.strerror}") from error


def title(found: Any) -> str:
    """When this was so, or why it is not known."""
    if found.live:
        return f"{found.node}, as it is at {found.time.ToJsonString()}"
    return f"{found.node}, as it was heard of last: {found.message} [{found.reason}]"


def tree(found: Any) -> Iterator[str]:
    """Lines of a tree: bridges with their ports, namespaces, other nodes."""
    yield title(found)
    for bridge in found.bridges:
        kind = f" ({bridge.datapath_type})" if bridge.datapath_type else ""
        yield from _branch(f"{bridge.name}{kind}{'' if bridge.managed else ', not ours'}", map(_port, bridge.ports))
    if found.namespaces:
        yield from _branch("namespaces", ((item.name, _service(item), named(item.objects)) for item in found.namespaces))
    if found.peers:
        rows = ((peer.node, peer.address, way(peer), shared(peer)) for peer in found.peers)
        yield from _branch("other nodes of its networks", rows)
    if found.left_out:
        yield f"and {found.left_out} more ports"
    yield from (f"not known: {note}" for note in found.notes)


def _port(port: Any) -> tuple[str, ...]:
    number = f"port {port.ofport}" if port.ofport else "no port"
    return port.name, number, state(port), " · ".join(filter(None, [named(port.objects), port.segment]))


def state(port: Any) -> str:
    """What a port is for and whether it does that, in a few words."""
    if port.error:
        return f"error: {port.error}"
    if port.purpose == "workload":
        return "wired" if port.wired else f"not wired: {port.reason}" if port.reason else "not wired"
    words = [port.purpose or port.type, f"tag {port.tag}" if port.tag else ""]
    options = port.options
    if "local_ip" in options:
        words.append(f"{port.type} from {options['local_ip']}")
    if "peer" in options:
        words.append(f"to {options['peer']}")
    return " ".join(filter(None, words))


def _service(item: Any) -> str:
    return f"{item.service} {'runs' if item.running else 'does not run'}"


def way(peer: Any) -> str:
    """Whether it is known how to reach another node."""
    return "resolved" if peer.resolved else "not resolved"


def shared(peer: Any) -> str:
    """The networks that another node has a part in, as far as they are told."""
    more = peer.shared - len(peer.objects)
    return named(peer.objects) + (f" · and {more} more" if more > 0 else "")


def named(objects: Iterable[Any]) -> str:
    """Objects by kind and name, or by id."""
    return " · ".join(f"{item.kind} {item.name or item.id}" for item in objects)


def _branch(head: str, rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A head and its rows in columns, with the lines of a tree before them."""
    yield head
    cells = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{'└─' if number == len(cells) - 1 else '├─'} {text}".rstrip()
