"""What modules share that look at etcd without an API: one a module, and a connection a test, which empties it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.store import client
from controlplane.store.client import Store
from tests.component.cloud import Etcd


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
