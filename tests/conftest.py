"""What several test modules share: one control plane for the whole run; how hypothesis chooses."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest_asyncio
from hypothesis import HealthCheck, settings

from tests.component.cloud import Client, Cloud

# The same examples each time, new ones in the long run. How long one takes says what else the machine has to do.
settings.register_profile(
    "kumihimo", derandomize=not os.environ.get("KUMI_FULL"), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kumihimo")


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
