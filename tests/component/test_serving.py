"""A server's certificate is replaced beside handshakes of others: the process lives, what was replaced is not shown again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from controlplane import serving, tls
from controlplane.admin.authority import Authority, Use
from controlplane.serving import Certificate
from controlplane.tls import Tls, Watched
from tests.component.certificates import issue, presented, serial
from tests.waiting import running, until

SECONDS = 120.0 if os.environ.get("KUMI_FULL") else 5.0
CLIENTS = 16
PATIENCE = 2.0  # seconds in which this server ends a handshake that stands still


class Renewed:
    """A server whose certificate is looked at all the time, and how often it was replaced."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "ca")
        self.authority.init()
        held = issue(self.authority, "api", Use.API)
        self.certificate = Certificate(Watched(Tls(None, held.certificate, held.key)))
        self.target = f"unix:{folder}/s.sock"
        self.serials = [serial(held.certificate)]

    def renew(self) -> None:
        self.authority.renew("api")
        self.serials.append(serial(self.authority.certificate("api")))

    async def shown(self) -> int:
        """Which of the certificates a new connection is shown, counted from 0."""
        return self.serials.index(await presented(self.target, self.authority))

    def connected(self) -> int:
        """Connections that the server holds."""
        lines = Path("/proc/net/unix").read_text().splitlines()
        return sum(line.endswith(self.target.removeprefix("unix:")) and line.split()[5] == "03" for line in lines)


@pytest.fixture
async def renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Renewed]:
    for module in (serving, tls):
        monkeypatch.setattr(module, "LOOK", 0.01)
    made = Renewed(tmp_path)
    server = grpc.aio.server(options=[("grpc.server_handshake_timeout_ms", int(1000 * PATIENCE))])
    server.add_secure_port(made.target, made.certificate.credentials)
    await server.start()
    async with running(made.certificate.renew(made.target)):
        yield made
    await server.stop(None)


async def test_many_replacements_beside_many_handshakes(renewed: Renewed) -> None:
    """Whoever connects after a certificate was seen is shown that one or a later one, and nobody is refused."""
    end = time.monotonic() + SECONDS
    newest = handshakes = 0
    enough = False

    async def client() -> None:
        nonlocal newest, handshakes
        while not enough:
            least = newest
            found = await renewed.shown()
            assert found >= least, "a certificate that was replaced is shown again"
            newest = max(newest, found)
            handshakes += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
        while time.monotonic() < end or newest < 3:
            renewed.renew()
            await until(lambda: newest == len(renewed.serials) - 1, "the new certificate is shown")
        enough = True
    assert handshakes > CLIENTS * newest / 2, "under many eyes"


async def test_a_handshake_of_the_certificate_before_stands_still_meanwhile(
    renewed: Renewed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So gRPC does not free that one under another thread: not while it is replaced, and not for some time afterwards."""
    made = grpc.ssl_server_certificate_configuration
    connected = []

    def configuration(*arguments: object) -> grpc.ServerCertificateConfiguration:
        connected.append(renewed.connected())
        return made(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(grpc, "ssl_server_certificate_configuration", configuration)
    assert renewed.connected() == 0
    renewed.renew()
    await until(lambda: connected, "it is replaced")
    began = time.monotonic()
    assert connected == [2], "the one that asks, and the one that stands still"
    await until(lambda: renewed.connected() == 0, "it is given up")
    assert time.monotonic() - began > PATIENCE / 2
    assert await renewed.shown() == 1


async def test_a_server_that_does_not_reach_itself_says_so_once_and_keeps_what_it_has(renewed: Renewed) -> None:
    path = Path(renewed.target.removeprefix("unix:"))
    away = path.with_suffix(".away")
    path.rename(away)
    with capture_logs() as logs:
        renewed.renew()

        def told() -> list[str]:
            return [line["event"] for line in logs if line["log_level"] == "warning"]

        await until(told, "it is said")
        path.symlink_to(away)
        assert await renewed.shown() in (0, 1)

        async def shown() -> bool:
            return await renewed.shown() == 1

        await until(shown, "it is replaced once it can be")
    assert told() == ["the certificate is not in place yet: we cannot reach ourselves"]
