"""Crowds that want addresses, MACs and segments of one pool: each has its own, to the last one, and then nobody."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.services.quota import COUNTED, UNLIMITED
from controlplane.store import keys
from tests.chaos.exactly import crowd, exactly
from tests.component.cloud import Client, Cloud, consistent, everything, refused
from tests.seeds import FULL

AT_ONCE = 64
FREE = 1024 - 4  # of a /22: network, broadcast, gateway, DHCP
FIRST = 900


@pytest.fixture
def replicas(cloud: Cloud, second_api: Client) -> list[Client]:
    return [cloud.api, second_api]


async def test_b_sub_02_900_at_once_then_as_many_as_are_left_then_one_more(cloud: Cloud, replicas: list[Client]) -> None:
    network = (await cloud.api.create("Network")).id
    await cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/22")

    async def create(api: Client, number: int) -> Any:
        return await api.create("Port", network_id=network, request={"request_id": f"{network}/{number}"})

    async def again(api: Client, number: int) -> Any:
        return await api.create("Port", network_id=network, request={"request_id": f"{network}/more/{number}"})

    made, errors = await crowd(replicas, create, FIRST, FIRST)
    assert not errors, errors[0]
    made += await exactly(FREE - FIRST, replicas, again, reason="NO_FREE_ADDRESS", more=0, at_once=FREE - FIRST)
    before = await cloud.settled()
    for api in replicas:
        error = await refused(api.create("Port", network_id=network, request={"request_id": f"{network}/last"}))
        error.must_be("NO_FREE_ADDRESS")
        assert error.code.name == "RESOURCE_EXHAUSTED"
    left = await consistent(cloud.store)
    # What was refused left nothing: neither a claim, nor a record of the change or of the request.
    assert not await cloud.written_since(before)
    assert len({port.fixed_ips[0].ip_address for port in made}) == len({port.mac_address for port in made}) == FREE
    assert sum(key.startswith(keys.ports(network)) for key in left) == FREE
    # One that goes makes room for exactly one.
    await replicas[0].delete("Port", made[0].id)
    await cloud.settled()
    await exactly(1, replicas, lambda api, _: api.create("Port", network_id=network), reason="NO_FREE_ADDRESS", more=9)
    await consistent(cloud.store)


async def test_b_net_07_networks_of_a_crowd_have_segments_of_their_own(cloud: Cloud, replicas: list[Client]) -> None:
    number = 600 if FULL else 150
    made, errors = await crowd(replicas, lambda api, _: api.create("Network"), number, AT_ONCE)
    assert not errors, errors[0]
    assert len({item.segmentation_id for item in made}) == len({item.key for item in made}) == number
    entries = await consistent(cloud.store)
    assert sum(key.startswith(keys.claim("vxlan")) for key in entries) >= number


async def test_b_sub_02_a_crowd_that_wants_more_than_there_is_gets_exactly_what_there_is(
    cloud: Cloud, replicas: list[Client]
) -> None:
    network = (await cloud.api.create("Network")).id
    await cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/25")
    free = 128 - 4
    made = await exactly(
        free,
        replicas,
        lambda api, _: api.create("Port", network_id=network),
        reason="NO_FREE_ADDRESS",
        more=60,
        at_once=AT_ONCE,
    )
    assert len({port.fixed_ips[0].ip_address for port in made}) == free
    entries = await everything(cloud.store)
    assert sum(key.startswith(keys.claim(keys.mac_pool(network))) for key in entries) == free + 1
    await consistent(cloud.store)


@pytest.mark.parametrize(
    ("kind", "plural", "most"), [("Network", "networks", 40), ("Port", "ports", 100), ("Subnet", "subnets", 30)]
)
async def test_a_quota_holds_to_the_last_one(cloud: Cloud, replicas: list[Client], kind: str, plural: str, most: int) -> None:
    """64 clients, two replicas: exactly as many as the quota says, whatever goes and comes again meanwhile."""
    parents = [(await cloud.api.create("Network", project_id="demo")).id for _ in range(0 if kind == "Network" else 30)]
    fields: Any = {
        "Network": lambda number: {},
        "Port": lambda number: {"network_id": parents[number % 30]},
        "Subnet": lambda number: {"network_id": parents[number % 30], "cidr": f"10.{number}.0.0/24"},
    }[kind]
    await cloud.api.update("Quota", "demo", limits={plural: most})
    try:

        async def create(api: Client, number: int) -> Any:
            return await api.create(
                kind, by="alice", request={"request_id": f"{parents[:1]}{plural}/{number}"}, **fields(number)
            )

        made = await exactly(most, replicas, create, reason="QUOTA_EXCEEDED", more=64, at_once=AT_ONCE)
        await consistent(cloud.store)

        async def replace(api: Client, number: int) -> Any:
            await api.delete(kind, made[number].id, by="alice")
            return await api.create(kind, by="alice", **fields(200 + number))

        # Each gives its own back before it asks again: there is always room for it.
        again, errors = await crowd(replicas, replace, most // 2, AT_ONCE)
        assert not errors, errors[0]
        assert len(again) == most // 2
        (await refused(cloud.api.create(kind, by="alice", **fields(255)))).must_be("QUOTA_EXCEEDED")
        shown = await cloud.api.get("Quota", "demo")
        assert (shown.usage[plural], shown.effective_limits[plural]) == (most, most)
        await consistent(cloud.store)
    finally:
        await cloud.api.update("Quota", "demo", limits=dict.fromkeys(COUNTED, UNLIMITED))
