"""`kumi drift` and `kumi capabilities`: what nodes found changed by others, and what they can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from cli import options, render
from cli.client import Client, connect
from cli.kinds import kind_named
from cli.nouns import ObjectName
from kumihimo.v1 import operations_pb2 as pb

_NODE = kind_named("node")
_PAGE = 500


@click.command(
    epilog="\b\nExample:\n  kumi drift h1\n\nrepaired: put right; reported: left, for the node only reports (drift_policy);"
    " foreign: it stands among ours, is not ours and is never touched."
)
@click.argument("node", type=ObjectName(_NODE), default="", metavar="[NODE]")
@options.output
@click.pass_context
def drift(ctx: click.Context, node: str, output: str) -> None:
    """Show what others changed in the data plane of a node, or of all, and what is foreign there."""
    assert _NODE is not None
    with connect(ctx.obj) as api:
        items = list(_drift(api, api.id_of(_NODE, node) if node else ""))
    columns = ("node", "outcome", "kind", "object", "owner", "difference", "count", "last_time")
    render.listing(items, columns, output)


def _drift(api: Client, node: str) -> Iterator[Any]:
    request = pb.ListDriftRequest(node=node, page_size=_PAGE)
    while True:
        page = api.call("Operations", "ListDrift", request)
        yield from page.items
        request.page_token = page.next_page_token
        if not request.page_token:
            return


@click.command(epilog="\b\nExample:\n  kumi capabilities h1")
@click.argument("node", type=ObjectName(_NODE), default="", metavar="[NODE]")
@options.output
@click.pass_context
def capabilities(ctx: click.Context, node: str, output: str) -> None:
    """Show what a node can do, or each of all, and why it cannot do the rest."""
    assert _NODE is not None
    with connect(ctx.obj) as api:
        nodes = [api.find("Node", node)] if node else list(api.pages(_NODE))
    found = [(each.id, capability) for each in nodes for capability in each.agent.capabilities]
    if output != "table":
        data = [{"node": name, **render.plain(capability)} for name, capability in found]
        click.echo(render.structured(data, output))
        return
    rows = [(name, each.name, "on" if each.on else "off", each.reason) for name, each in found]
    click.echo(render.grid(("node", "capability", "state", "reason"), rows))
