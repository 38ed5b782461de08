"""Commands that other packages bring, by entry point: `attach` is `kumi attach`, `node.join` is `kumi node join`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.errors import CliError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PLUGINS = "kumihimo.commands"


def found(noun: str = "") -> dict[str, EntryPoint]:
    """The commands below a noun, or those that stand alone, by name."""
    from importlib.metadata import entry_points

    named = {plugin.name: plugin for plugin in entry_points(group=PLUGINS)}
    split = {name: name.rpartition(".") for name in named}
    return {last: named[name] for name, (first, _, last) in split.items() if first == noun}


def load(plugin: EntryPoint, *, quiet: bool) -> click.Command | None:
    """A plug-in's command. One that cannot be loaded is a line that names it; while completing it is not there."""
    try:
        command = plugin.load()
        if not isinstance(command, click.Command):
            raise TypeError("it is no click command")
    except Exception as error:
        # Foreign code may fail in any way, and must not take the other commands along.
        if quiet:
            return None
        raise CliError(f"the command '{plugin.name}' ({plugin.value}) cannot be loaded: {error}") from error
    return command
