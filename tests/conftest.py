"""What several test modules share: one control plane for the whole run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.component.cloud import Client, Cloud


@pytest_asyncio.fixture(scope="session")
async def shared_cloud() -> AsyncIterator[Cloud]:
    """An etcd and an API that live as long as the run; use `cloud`, which is empty at first."""
    async with Cloud() as cloud:
        yield cloud


@pytest_asyncio.fixture(scope="session")
async def second_api(shared_cloud: Cloud) -> Client:
    """A second replica of the API on the same etcd."""
    return await shared_cloud.replica()


@pytest_asyncio.fixture
async def cloud(shared_cloud: Cloud) -> AsyncIterator[Cloud]:
    """The shared control plane; what a test leaves in it is deleted."""
    yield shared_cloud
    await shared_cloud.clear()
