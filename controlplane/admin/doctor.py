"""`kumi doctor`: what is wrong with an installation, and what to do about it. Changes nothing.

Reads etcd directly, at one revision, so it works while no API does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.admin.common import act, config_option, loaded, place

if TYPE_CHECKING:
    from controlplane.admin.examination import Report


@click.command(epilog="\b\nExample:\n  kumi doctor\n  kumi doctor -o json | jq .findings")
@config_option
@click.option(
    "-o", "--output", type=click.Choice(("table", "json")), default="table", show_default=True, help="How to print it."
)
def doctor(config: Path, output: str) -> int:
    """Look for leaks, orphans and whatever else is wrong. Exit code 0: nothing; 1: findings, each with what to do."""
    # Loading a command for its help must not load gRPC.
    from controlplane.admin.examination import examine, look_at_certificates
    from controlplane.config import read_toml

    etcd = place(config)
    settings = loaded(config).store
    report = act(examine(etcd, settings))
    look_at_certificates(report, config, read_toml(config), datetime.now(UTC))
    if output == "json":
        shown = {"healthy": not report.findings, "about": report.about, "findings": [asdict(item) for item in report.findings]}
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        for line in _table(report):
            click.echo(line)
    return 1 if report.findings else 0


def _table(report: Report) -> Iterator[str]:
    yield from (f"{name.replace('_', ' ')}: {_shown(value)}" for name, value in report.about.items())
    for number, item in enumerate(report.findings, 1):
        yield ""
        yield f"{number}. {item.what}"
        yield f"   at: {item.key}" + (f" ({item.object})" if item.object and item.object not in item.key else "")
        yield f"   do: {item.todo}"
    yield ""
    count = len(report.findings)
    yield f"{count} finding{'s' if count > 1 else ''}" if count else "healthy: nothing was found"


def _shown(value: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in value.items()) if isinstance(value, Mapping) else str(value)
