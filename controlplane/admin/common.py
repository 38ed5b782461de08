"""What the operator's commands share: where etcd is, and how failures become one line and an exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from controlplane.config import Config, etcd_tls, read_toml, strings
from controlplane.errors import BadConfig, StoreUnavailable
from controlplane.tls import Tls

if TYPE_CHECKING:
    from controlplane.store.client import Store

T = TypeVar("T")

UNAVAILABLE = 6  # exit code, as everywhere in `kumi`

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/kumihimo/api.toml"),
    show_default=True,
    help="The API's configuration, which says where etcd is.",
)


class Failure(click.ClickException):
    """A failure told in one line."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares the default on the class


@dataclass(frozen=True, slots=True)
class Place:
    """Where etcd is, and how it and we know each other."""

    addresses: tuple[str, ...]
    tls: Tls | None

    def store(self, address: str) -> Store:
        """One member of it."""
        from controlplane.store.client import Store  # loading a command for its help must not load gRPC

        try:
            return Store([address], self.tls)
        except BadConfig as error:
            raise Failure(str(error)) from None


def place(config: Path) -> Place:
    """Where etcd is. The rest of the file does not matter here: who restores may have nothing else yet."""
    try:
        raw = read_toml(config)
        return Place(strings(config, raw, "etcd"), etcd_tls(config, raw))
    except BadConfig as error:
        raise Failure(str(error)) from None


def loaded(config: Path) -> Config:
    """The whole configuration."""
    from controlplane.config import load

    try:
        return load(config)
    except BadConfig as error:
        raise Failure(str(error)) from None


def act(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end."""
    try:
        return asyncio.run(work)
    except StoreUnavailable as error:
        raise Failure(str(error), UNAVAILABLE) from None
