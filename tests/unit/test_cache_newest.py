"""The newest change record that a cache knows of: what every commit compares, so that it fails on a restored store."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.client import Entry, Store
from controlplane.store.feed import Changed, Listed

OLD, NEW = keys.change("object", "1"), keys.change("another", "0")


@pytest.fixture
async def cache() -> AsyncIterator[Cache]:
    store = Store(["unix:/nowhere"])
    made = Cache(store)
    made.take(Listed("", 8, {NEW: Entry(b"", 7, 7), OLD: Entry(b"", 5, 5)}, 1))
    yield made
    await store.close()


async def test_it_is_the_last_that_was_made(cache: Cache) -> None:
    assert cache.newest == (NEW, 7)
    cache.take(Changed("", 9, [(keys.change("third", "2"), Entry(b"", 9, 9))], [9]))
    assert cache.newest == (keys.change("third", "2"), 9)


async def test_one_that_is_gone_is_not_asked_for(cache: Cache) -> None:
    """Its lease has run out: a commit that compared it would fail for ever."""
    cache.take(Changed("", 9, [(OLD, None)], [9]))
    assert cache.newest == (NEW, 7)
    cache.take(Changed("", 10, [(NEW, None)], [10]))
    assert cache.newest is None


@pytest.mark.parametrize("cluster", [1, 2], ids=["same-cluster", "restored"])
async def test_a_list_says_anew_which_it_is(cache: Cache, cluster: int) -> None:
    cache.take(Listed("", 11, {OLD: Entry(b"", 5, 5)}, cluster))
    assert cache.newest == (OLD, 5)
    cache.take(Listed("", 12, {}, cluster))
    assert cache.newest is None
