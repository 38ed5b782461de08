"""`kumi pki`: certificates for a lab or a small installation, in a folder of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from controlplane.admin.authority import CA_DAYS, DAYS, Authority, AuthorityError, Issued, Use

_folder = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=True))
_name = click.argument("name", metavar="NAME")


@click.group()
def pki() -> None:
    """Make and renew the certificates by which API, nodes and etcd know each other.

    DIR holds ca.crt, ca.key and NAME.crt, NAME.key of each certificate. Keep it on a machine of your own: who has ca.key
    is whoever they like. Hosts get ca.crt and the two files of their own.

    \b
    Example:
      kumi pki init /root/kumihimo-ca
      kumi pki issue /root/kumihimo-ca etcd1 --for etcd --san 192.0.2.10
      kumi pki issue /root/kumihimo-ca api1 --for api --san api.example.org
      kumi pki issue /root/kumihimo-ca h1 --for node
    """


@pki.command(epilog="\b\nExample:\n  kumi pki init /root/kumihimo-ca")
@_folder
def init(folder: Path) -> None:
    """Make a certificate authority in DIR, valid for ten years."""
    made = _act(Authority(folder).init)
    click.echo(f"{made.certificate} and {made.key}, valid until {_day(made.not_after)}; keep the key to yourself")


@pki.command(epilog="\b\nExample:\n  kumi pki issue /root/kumihimo-ca h1 --for node --days 90")
@_folder
@_name
@click.option("--for", "use", required=True, type=click.Choice([use.value for use in Use]), help="What it is for.")
@click.option("--san", "sans", multiple=True, metavar="NAME|ADDRESS", help="One more name it is reached by; may be repeated.")
@click.option("--days", default=DAYS, show_default=True, type=click.IntRange(1, CA_DAYS), help="How long it is valid.")
def issue(folder: Path, name: str, use: str, sans: tuple[str, ...], days: int) -> None:
    """Make a key and a certificate called NAME; files that exist are never overwritten.

    For a node NAME is the node's id. etcd and API may have any number of certificates, one for each host.
    To replace a key that got into wrong hands, delete both files and issue them again.
    """
    made = _act(lambda: Authority(folder).issue(name, Use(use), sans, days))
    click.echo(f"{made.certificate} and {made.key} for {made.user}, valid until {_day(made.not_after)}")


@pki.command(epilog="\b\nExample:\n  kumi pki renew /root/kumihimo-ca h1")
@_folder
@_name
@click.option("--days", type=click.IntRange(1, CA_DAYS), help="How long it is valid.  [default: as long as the last one]")
def renew(folder: Path, name: str, days: int | None) -> None:
    """Give the certificate NAME new dates; the key stays. `ca` renews the authority's own.

    Put NAME.crt in the place of the old one on its host: API, agents and etcd take it up without a restart.
    """
    made = _act(lambda: Authority(folder).renew(name, days))
    click.echo(f"{made.certificate} for {made.user}, valid until {_day(made.not_after)}")


@pki.command("list", epilog="\b\nExample:\n  kumi pki list /root/kumihimo-ca -o json")
@_folder
@click.option("-o", "--output", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_(folder: Path, form: str) -> None:
    """Show all certificates: what they are for, the names they carry, when they end."""
    items: list[Issued] = _act(Authority(folder).list)
    if form == "json":
        click.echo(json.dumps([_plain(item) for item in items], indent=2))
        return
    rows = [("NAME", "FOR", "USER", "NAMES", "VALID UNTIL")]
    rows += [(item.name, item.use, item.user, " ".join(item.names), _day(item.not_after)) for item in items]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _act(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except AuthorityError as error:
        raise click.ClickException(str(error)) from None


def _plain(item: Issued) -> dict[str, Any]:
    return {
        "name": item.name,
        "for": item.use,
        "user": item.user,
        "names": list(item.names),
        "not_after": item.not_after.isoformat(),
        "certificate": str(item.certificate),
        "key": str(item.key),
    }


def _day(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
