"""Shell completion: the script for a shell, and the names of objects where a value is one."""

from __future__ import annotations

from itertools import islice

import click
from click.shell_completion import CompletionItem, get_completion_class

from cli.kinds import Kind
from cli.settings import Settings

_SECONDS = 1.0
_MOST = 100


@click.command(
    epilog="\b\nExample:\n  kumi completion bash > /etc/bash_completion.d/kumi",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    script = get_completion_class(shell)
    assert script is not None, "click knows the three shells"
    click.echo(script(ctx.find_root().command, {}, "kumi", "_KUMI_COMPLETE").source())


def objects(ctx: click.Context, kind: Kind, incomplete: str) -> list[CompletionItem]:
    """Ids and names of a kind that begin with what was typed. Whatever fails, no completion is all that comes of it."""
    from cli import client

    given = ctx.find_root().params
    settings = Settings(given.get("profile") or "", given.get("project") or "")
    try:
        with client.connect(settings) as api:
            api.retry_seconds = ()
            items = list(islice(api.pages(kind, limit=_MOST, timeout=_SECONDS), _MOST))
    except Exception:
        # The terminal belongs to the line that is being typed: not a word may be written to it.
        return []
    named = [CompletionItem(item.name, help=item.id) for item in items if item.name]
    by_id = [CompletionItem(item.id, help=item.name or None) for item in items]
    return [item for item in named + by_id if str(item.value).startswith(incomplete)]
