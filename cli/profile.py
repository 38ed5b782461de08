"""`kumi profile`: where the API is, under a name."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from cli import options, render, settings
from cli.errors import USAGE, CliError


@click.group(epilog="\b\nExample:\n  kumi profile set admin --endpoint 127.0.0.1:7171 --ca ca.pem --token-file token")
def profile() -> None:
    """Where the API is and how to speak to it, under a name."""


@profile.command("list", epilog="\b\nExample:\n  kumi profile list")
@options.output
def list_(output: str) -> None:
    """List the profiles; the current one is marked."""
    config = settings.load()
    if output != "table":
        entries = [
            {"name": name, "current": name == config.current, **asdict(entry)}
            for name, entry in sorted(config.profiles.items())
        ]
        click.echo(render.structured(entries, output))
        return
    rows = [
        ("*" if name == config.current else "", name, entry.endpoint, entry.project)
        for name, entry in sorted(config.profiles.items())
    ]
    click.echo(render.grid(("", "name", "endpoint", "project"), rows))


@profile.command(epilog="\b\nExample:\n  kumi profile show admin")
@click.argument("name", default="")
@options.output
@click.pass_context
def show(ctx: click.Context, name: str, output: str) -> None:
    """Show a profile, by default the current one. The token itself is never shown."""
    name, entry = settings.load().get(name or ctx.obj.profile_name)
    data = {"name": name, **{key: value for key, value in asdict(entry).items() if value}}
    if output != "table":
        click.echo(render.structured(data, output))
    else:
        click.echo(render.grid(("field", "value"), list(data.items())))


@profile.command(
    "set",
    epilog="\b\nExample:\n"
    "  kumi profile set admin --endpoint 127.0.0.1:7171 --ca ca.pem --token-file token --server-name kumi-api",
)
@click.argument("name")
@click.option("--endpoint", metavar="TARGET", help="HOST:PORT or unix:/PATH. TLS always.")
@click.option("--ca", type=click.Path(), help="PEM file that vouches for the server. Default: the public authorities.")
@click.option("--token-file", type=click.Path(), help="File with the token; the token itself is not an option's value.")
@click.option("--server-name", metavar="HOST", help="Name in the server's certificate, if not the endpoint's host.")
@click.option("--project", metavar="ID", help="The project to work in. Default: the token's.")
@click.option("--trace-file", type=click.Path(), help="Append a span of every command to this file.")
def set_(name: str, **given: Any) -> None:
    """Make a profile or change what is given of it; '' unsets. The first one becomes the current one."""
    config = settings.load()
    settings.check_name(name)
    old = config.profiles.get(name, settings.Profile())
    if given["endpoint"] == "" or (not old.endpoint and given["endpoint"] is None):
        raise CliError(f"profile '{name}' needs an --endpoint: HOST:PORT or unix:/PATH", USAGE)
    new = {key: value for key, value in given.items() if value is not None}
    for key in ("ca", "token_file", "trace_file"):
        if new.get(key):
            new[key] = str(Path(new[key]).absolute())
    path = settings.save(config.with_profile(name, replace(old, **new)))
    click.echo(f"profile '{name}' is in {path}")


@profile.command(epilog="\b\nExample:\n  kumi profile use admin")
@click.argument("name")
def use(name: str) -> None:
    """Make a profile the current one."""
    config = settings.load()
    config.get(name)
    settings.save(replace(config, current=name))
    click.echo(f"current profile: {name}")


@profile.command(epilog="\b\nExample:\n  kumi profile delete admin")
@click.argument("name")
def delete(name: str) -> None:
    """Forget a profile. The files it names stay."""
    config = settings.load()
    config.get(name)
    settings.save(config.without(name))
    click.echo(f"profile '{name}' deleted")
