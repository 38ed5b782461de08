"""Which prefix is free, against counting; and what stands for a prefix in the store."""

from __future__ import annotations

import random
from ipaddress import IPv4Network, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.config import Defaults
from controlplane.errors import ApiError
from controlplane.identity import Caller, Role
from controlplane.registry import KINDS
from controlplane.services import prefixes
from controlplane.services.base import Context
from controlplane.services.defaults import Installation
from controlplane.services.network import NetworkRules
from controlplane.services.segment import RANGES
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.client import Entry
from controlplane.store.commit import Hints
from controlplane.store.feed import Listed
from controlplane.store.txn import Batch, Deferred, Origin, Transaction
from kumihimo.v1 import network_pb2, store_pb2

VLAN, FLAT = network_pb2.NETWORK_TYPE_VLAN, network_pb2.NETWORK_TYPE_FLAT
ORIGIN = Origin("root", "admin", "test")


def filled(*entries: tuple[str, Any]) -> Cache:
    """A cache that holds messages by key."""
    cache = Cache(None)  # type: ignore[arg-type]  # nothing is read from a store
    cache.take(Listed("", 5, {key: Entry(message.SerializeToString(), 5, 5) for key, message in entries}))
    return cache


def context(cache: Cache) -> Context:
    return Context(Caller("root", "admin", Role.OPERATOR), Installation(cache, Defaults()), Defaults(), Hints())


@given(st.integers(0, (1 << 32) - 1), st.integers(0, 32), st.booleans())
def test_a_value_names_its_prefix_and_begins_with_those_around_it(number: int, length: int, six: bool) -> None:
    network = ip_network((number << 96, length), strict=False) if six else ip_network((number, length), strict=False)
    value = prefixes.value_of(network)
    assert prefixes.claimed_by(value) == network
    for shorter in range(length):
        assert value.startswith(prefixes.value_of(network.supernet(new_prefix=shorter)))
    other = ip_network("fd00::/8") if network.version == 4 else ip_network("10.0.0.0/8")
    assert not prefixes.value_of(other).startswith(value[0])


@pytest.mark.parametrize("seed", range(20))
def test_the_first_free_prefix_is_the_one_that_counting_finds(seed: int) -> None:
    chosen = random.Random(seed)
    pools = [IPv4Network("10.0.1.0/25"), IPv4Network("10.0.0.0/26")]
    cache = filled()
    transaction = Transaction(Batch(cache), ORIGIN)
    taken: list[IPv4Network] = []
    while True:
        length = chosen.choice([26, 27, 28, 29, 30])
        candidates = [net for pool in sorted(pools) if pool.prefixlen <= length for net in pool.subnets(new_prefix=length)]
        expected = next((net for net in candidates if not any(net.overlaps(other) for other in taken)), None)
        found = prefixes._next_free(transaction, "prefix/p", pools, length, context(cache))
        assert found == expected
        if found is None:
            break
        assert prefixes.take(transaction, "prefix/p", found, owner="s", project="p", within=25) is None
        taken.append(IPv4Network(found))
    for net in taken:
        for clash in (net, net.supernet(), next(net.subnets())):
            other = prefixes.take(transaction, "prefix/p", clash, owner="x", project="p", within=20)
            assert other is not None
            assert other[0].overlaps(clash)  # type: ignore[arg-type]


def test_attempts_of_one_batch_that_take_what_overlaps_are_not_together() -> None:
    """Not the same prefix, nor one around it or in it; what lies apart is."""
    cache = filled()
    for first, second, together in (
        ("10.0.0.0/24", "10.0.1.0/24", True),
        ("10.0.0.0/24", "10.0.0.0/24", False),
        ("10.0.0.0/24", "10.0.0.0/25", False),
        ("10.0.0.0/25", "10.0.0.0/24", False),
    ):
        batch = Batch(cache)
        one = Transaction(batch, ORIGIN)
        assert prefixes.take(one, "prefix/p", ip_network(first), owner="a", project="p") is None
        batch.include(one)
        other = Transaction(batch, ORIGIN)
        if together:
            assert prefixes.take(other, "prefix/p", ip_network(second), owner="b", project="p") is None
            continue
        with pytest.raises(Deferred):
            prefixes.take(other, "prefix/p", ip_network(second), owner="b", project="p")


# -- types of networks that are not enabled yet -----------------------------------------------------------------------


def made(transaction: Transaction, cache: Cache, **fields: Any) -> Any:
    network = KINDS["Network"].message(project_id="p", **fields)
    NetworkRules().create(transaction, network, context(cache))
    return network


def test_a_vlan_network_has_the_first_range_with_room_and_claims_per_physical_network() -> None:
    make = KINDS["NetworkSegmentRange"].message
    ranges = [
        make(id="1", network_type=VLAN, physical_network="a", minimum=7, maximum=7),
        make(id="2", network_type=VLAN, physical_network="b", minimum=7, maximum=8, projects=["p"]),
        make(id="3", network_type=VLAN, physical_network="c", minimum=1, maximum=9, projects=["q"]),
    ]
    for number, item in enumerate(ranges):
        item.create_time.seconds = number
    cache = filled(*((RANGES + item.id, item) for item in ranges))
    transaction = Transaction(Batch(cache), ORIGIN)
    found = [made(transaction, cache, id=f"n{number}", network_type=VLAN) for number in range(3)]
    assert [(network.physical_network, network.segmentation_id) for network in found] == [("a", 7), ("b", 7), ("b", 8)]
    for network in found:
        value = transaction.puts[keys.claim(f"vlan/{network.physical_network}", network.segmentation_id)][0]
        assert store_pb2.Claim.FromString(value).owner == network.id
    with pytest.raises(ApiError) as refused:
        made(transaction, cache, id="n", network_type=VLAN)
    assert refused.value.reason == "NO_FREE_SEGMENT"
    with pytest.raises(ApiError) as refused:
        made(transaction, cache, id="n", network_type=VLAN, physical_network="c")
    assert (refused.value.reason, "open to project p" in refused.value.message) == ("NO_FREE_SEGMENT", True)
    with pytest.raises(ApiError) as refused:
        made(transaction, cache, id="n", network_type=VLAN, physical_network="a", segmentation_id=7)
    assert refused.value.reason == "SEGMENT_TAKEN"


def test_a_physical_network_carries_one_flat_network() -> None:
    cache = filled()
    transaction = Transaction(Batch(cache), ORIGIN)
    assert made(transaction, cache, id="one", network_type=FLAT, physical_network="a").segmentation_id == 0
    made(transaction, cache, id="two", network_type=FLAT, physical_network="b")
    with pytest.raises(ApiError) as refused:
        made(transaction, cache, id="three", network_type=FLAT, physical_network="a")
    assert refused.value.reason == "SEGMENT_TAKEN"
    assert "physical_network a is taken" in refused.value.message
