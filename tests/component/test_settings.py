"""Settings: the installation's defaults change for every replica at once, and no transaction mixes old and new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from tests.component.cloud import Client, Cloud, consistent, refused
from tests.component.test_api_apply import apply, item

Code = grpc.StatusCode
HERE = "installation"


@pytest_asyncio.fixture(scope="module")
async def own() -> AsyncIterator[Cloud]:
    """A control plane of one's own, whose file says one thing that is not built in."""
    async with Cloud('[defaults]\ndns_domain = "file.example"\n') as cloud:
        await cloud.replica()
        yield cloud


@pytest_asyncio.fixture(scope="module")
async def second(own: Cloud) -> Client:
    return Client(own.replicas[1])


@pytest.fixture
async def api(own: Cloud) -> AsyncIterator[Client]:
    yield own.api
    await own.clear()
    fields = ["network_type", "underlay_mtu", "underlay_ip_version", "dns_domain", "mac_base", "availability_zone", "quotas"]
    await own.api.update("Settings", HERE, mask=fields)


async def test_it_is_there_from_the_beginning_and_shows_what_is_in_force(api: Client) -> None:
    settings = await api.get("Settings", HERE)
    assert (settings.id, settings.dns_domain, settings.underlay_mtu) == (HERE, "", 0)
    now = settings.in_force
    assert (now.dns_domain, now.underlay_mtu, now.mac_base, now.availability_zone) == (
        "file.example",
        1500,
        "fa:16:3e",
        "default",
    )
    assert dict(now.quotas)["subnet_pools"] == 20
    changed = await api.update("Settings", HERE, underlay_mtu=9000, quotas={"ports": 7})
    assert (changed.in_force.underlay_mtu, changed.in_force.quotas["ports"], changed.dns_domain) == (9000, 7, "")
    assert (await api.get("Settings", HERE)) == changed
    assert [found.id for found in (await api.list("Settings")).items] == [HERE]
    error = await refused(api.get("Settings", "other"))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
    error = await refused(api.get("Settings", HERE, by="anna"))
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "ROLE_REQUIRED")


async def test_they_replace_those_of_the_file_on_every_replica_at_once(own: Cloud, api: Client, second: Client) -> None:
    """What one replica has acknowledged, the other one goes by in the very next call."""
    network = await api.create("Network")
    assert (network.dns_domain, network.mtu) == ("file.example", 1450)
    for turn in range(20):
        one, other = (api, second) if turn % 2 else (second, api)
        await one.update(
            "Settings",
            HERE,
            dns_domain=f"d{turn}.example",
            underlay_mtu=2000 + turn,
            mac_base=f"02:00:{turn:02x}",
            availability_zone=f"z{turn}",
        )
        network, port, node = await asyncio.gather(
            other.create("Network"),
            other.create("Port", network_id=network.id, no_fixed_ips=True),
            other.create("Node", id=f"n{turn}"),
        )
        assert (network.dns_domain, network.mtu) == (f"d{turn}.example", 1950 + turn)
        assert port.mac_address.startswith(f"02:00:{turn:02x}:")
        assert node.availability_zone == f"z{turn}"
    await own.replica()  # a replica that starts later
    third = Client(own.replicas[-1])
    assert (await third.create("Network")).dns_domain == "d19.example"
    await third.channel.close()
    await api.update("Settings", HERE, mask=["dns_domain"])
    assert (await second.create("Network")).dns_domain == "file.example"
    await consistent(own.store)


async def test_no_object_is_made_half_by_the_old_and_half_by_the_new(api: Client, second: Client) -> None:
    stop = asyncio.Event()

    async def change() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            await api.update("Settings", HERE, dns_domain=f"d{turn % 2}.example", underlay_mtu=2000 + 100 * (turn % 2))

    changer = asyncio.create_task(change())
    try:
        made = [await second.create("Network") for _ in range(40)]
        made += await asyncio.gather(*(each.create("Network") for each in (api, second) * 20))
    finally:
        stop.set()
        await changer
    pairs = {(network.dns_domain, network.mtu) for network in made[1:]}
    assert pairs <= {("d0.example", 1950), ("d1.example", 2050), ("file.example", 1450)}
    assert len(pairs) > 1


async def test_a_lower_underlay_mtu_lets_networks_keep_theirs(api: Client) -> None:
    await api.update("Settings", HERE, underlay_mtu=9000)
    network = await api.create("Network")
    assert network.mtu == 8950
    await api.update("Settings", HERE, underlay_mtu=1500)
    assert (await api.update("Network", network.id, name="renamed")).mtu == 8950
    error = await refused(api.update("Network", network.id, mtu=8949))
    assert (error.reason, "68 to 1450 is accepted" in error.message) == ("VALUE_OUT_OF_RANGE", True)


async def test_an_apply_goes_by_the_settings_that_it_brings(api: Client) -> None:
    await apply(api, item("Network", name="n"), item("Settings", id=HERE, dns_domain="apply.example"))
    assert (await api.list("Network")).items[0].dns_domain == "apply.example"


async def test_deleted_they_are_those_of_the_file_unless_more_was_allowed(api: Client) -> None:
    await api.update("Settings", HERE, dns_domain="gone.example", quotas={"ports": 3})
    await api.delete("Settings", HERE)
    assert (await api.get("Settings", HERE)).in_force.dns_domain == "file.example"
    assert (await api.list("Settings")).items == []
    changed = await api.update("Settings", HERE, quotas={"ports": 1000})
    assert dict(changed.former_quotas) == {}
    changed = await api.update("Settings", HERE, quotas={"ports": 10})
    assert dict(changed.former_quotas) == {"ports": 1000}
    error = await refused(api.delete("Settings", HERE))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "INCOMPATIBLE_STATE")
    assert "more ports are or were allowed" in error.message
    raised: dict[str, Any] = {"quotas": {"ports": 1000}}
    assert dict((await api.update("Settings", HERE, **raised)).former_quotas) == {}
