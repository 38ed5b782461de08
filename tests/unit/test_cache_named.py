"""Who has a name: in a project, and in one network of it, however many there are of either."""

from __future__ import annotations

from uuid import UUID

import pytest

from controlplane.registry import KINDS
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.client import Entry
from controlplane.store.feed import Changed, Listed
from kumihimo.v1 import port_pb2

PORT = KINDS["Port"]
NETWORKS = [str(UUID(int=number)) for number in range(1, 4)]


def port(network: int, number: int, name: str) -> tuple[str, Entry]:
    """Key and entry of a port."""
    message = port_pb2.Port(id=str(UUID(int=network << 64 | number)), project_id="p", name=name)
    return keys.place(PORT, message.id, NETWORKS[network]), Entry(message.SerializeToString(), 1, 1)


@pytest.fixture
def cache() -> Cache:
    """Two ports named web in each of two networks, the second of which has many others; nothing in the third."""
    cache = Cache(None)  # type: ignore[arg-type]  # nothing is read from a store
    made = [port(network, number, "web") for network in (0, 1) for number in (1, 2)]
    cache.take(Listed("", 1, dict([*made, *(port(1, number, "other") for number in range(3, 20))]), 1))
    return cache


def found(cache: Cache, parent: str = "") -> list[tuple[int, int]]:
    """Network and number of the ports of the name."""
    return [divmod(UUID(each).int, 1 << 64) for each in cache.named(PORT, "p", "web", parent)]


def test_of_a_project_and_of_one_network(cache: Cache) -> None:
    assert found(cache) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert found(cache, NETWORKS[0]) == [(0, 1), (0, 2)], "fewer ports than ports of the name"
    assert found(cache, NETWORKS[1]) == [(1, 1), (1, 2)], "more"
    assert found(cache, NETWORKS[2]) == []
    assert cache.named(PORT, "q", "web", NETWORKS[0]) == []


def test_one_that_lost_the_name_or_went_is_not_found(cache: Cache) -> None:
    gone, _ = port(0, 1, "web")
    cache.take(Changed("", 2, [port(1, 2, "www"), (gone, None)], [2, 2]))
    assert [found(cache, network) for network in NETWORKS] == [[(0, 2)], [(1, 1)], []]
