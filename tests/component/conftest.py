"""What modules share: an etcd without an API, one a module, and a connection a test, which empties it;
an API's client, and a network."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.store import client
from controlplane.store.client import Store
from tests.component.cloud import Client, Cloud, Etcd


@pytest.fixture(scope="module")
async def etcd() -> AsyncIterator[Etcd]:
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
