"""Races of two API replicas on one etcd: whatever is unique has one owner, and nothing is left half made."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Iterable
from typing import Any

import grpc
import pytest

from controlplane.registry import KINDS
from controlplane.store import client, keys
from kumihimo.v1 import store_pb2
from tests.component import cloud as agent
from tests.component import rows
from tests.component.cloud import Client, Cloud, Refused, consistent, everything, faults, refused
from tests.waiting import until

ROUNDS = 10 if os.environ.get("KUMI_FULL") else 4


async def outcomes(calls: Iterable[Awaitable[Any]]) -> tuple[list[Any], list[Refused]]:
    """(replies, refusals) of calls made at once; anything else that goes wrong is raised."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    odd = [item for item in results if isinstance(item, BaseException) and not isinstance(item, Refused)]
    if odd:
        raise odd[0]
    good = [item for item in results if not isinstance(item, BaseException)]
    return good, [item for item in results if isinstance(item, Refused)]


def turns(number: int, *clients: Client) -> list[Client]:
    return [clients[turn % len(clients)] for turn in range(number)]


async def test_b_prt_03_of_many_who_want_one_address_one_has_it(cloud: Cloud, second_api: Client) -> None:
    network = (await cloud.api.create("Network")).id
    await cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/24")
    for number in range(2, 2 + ROUNDS):
        wanted = [{"ip_address": f"10.0.0.{number}"}]
        made, errors = await outcomes(
            api.create("Port", network_id=network, name="winner", fixed_ips=wanted) for api in turns(8, cloud.api, second_api)
        )
        assert len(made) == 1
        assert {(error.code, error.reason) for error in errors} == {(grpc.StatusCode.ALREADY_EXISTS, "ADDRESS_TAKEN")}
        assert all(made[0].id in error.message for error in errors)
    await consistent(cloud.store)


async def test_b_prt_03_of_many_who_want_one_mac_one_has_it(cloud: Cloud, second_api: Client) -> None:
    network = (await cloud.api.create("Network")).id
    for number in range(ROUNDS):
        mac = f"fa:16:3e:00:00:{number:02x}"
        made, errors = await outcomes(
            api.create("Port", network_id=network, mac_address=mac) for api in turns(8, cloud.api, second_api)
        )
        assert len(made) == 1
        assert {error.reason for error in errors} == {"MAC_TAKEN"}
    await consistent(cloud.store)


async def test_b_net_07_of_many_who_want_one_vni_one_has_it(cloud: Cloud, second_api: Client) -> None:
    for number in range(100, 100 + ROUNDS):
        made, errors = await outcomes(api.create("Network", segmentation_id=number) for api in turns(8, cloud.api, second_api))
        assert len(made) == 1
        assert {error.reason for error in errors} == {"SEGMENT_TAKEN"}
    await consistent(cloud.store)


async def test_networks_made_at_once_have_numbers_of_their_own(cloud: Cloud, second_api: Client) -> None:
    made, errors = await outcomes(api.create("Network") for api in turns(60, cloud.api, second_api))
    assert not errors
    assert len({item.segmentation_id for item in made}) == len({item.key for item in made}) == 60
    await consistent(cloud.store)


async def test_nodes_made_at_once_have_numbers_of_their_own(cloud: Cloud, second_api: Client) -> None:
    made, errors = await outcomes(
        api.create("Node", id=f"n{number}", tunnel_ip=f"192.0.2.{1 + number // 2}")
        for number, api in enumerate(turns(40, cloud.api, second_api))
    )
    assert len(made) == len(errors) == 20
    assert {error.reason for error in errors} == {"ADDRESS_TAKEN"}
    assert len({item.key for item in made}) == 20
    await consistent(cloud.store)


async def test_b_sub_02_200_at_once_fill_a_25_to_the_last_address(cloud: Cloud, second_api: Client) -> None:
    network = (await cloud.api.create("Network")).id
    await cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/25")
    free = 128 - 4  # network, broadcast, gateway, DHCP
    made, errors = await outcomes(api.create("Port", network_id=network) for api in turns(200, cloud.api, second_api))
    assert Counter((error.code, error.reason) for error in errors) == {
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_FREE_ADDRESS"): 200 - free
    }
    assert len({port.fixed_ips[0].ip_address for port in made}) == len(made) == free
    entries = await consistent(cloud.store)
    assert sum(key.startswith(keys.ports(network)) for key in entries) == free
    assert sum(key.startswith(keys.claim(keys.mac_pool(network))) for key in entries) == free + 1


async def test_a_refusal_stands_while_others_write_all_the_time(cloud: Cloud, second_api: Client) -> None:
    """A refused attempt must not be tried until nobody writes any more: on a busy store that never comes."""
    network = await cloud.api.create("Network", segmentation_id=4000)
    stop = asyncio.Event()

    async def write(number: int) -> None:
        while not stop.is_set():
            await cloud.write(client.put(f"{keys.STATUS}busy/{number}", b""))

    writers = [asyncio.create_task(write(number)) for number in range(8)]
    try:
        for _ in range(20):
            error = await refused(second_api.create("Network", segmentation_id=4000))
            assert error.reason == "SEGMENT_TAKEN"
            assert network.id in error.message
    finally:
        stop.set()
        await asyncio.gather(*writers)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["Port", "Subnet"])
async def test_delete_of_a_network_against_create_in_it(cloud: Cloud, second_api: Client, kind: str, force: bool) -> None:
    ends: Counter[str] = Counter()
    for number in range(ROUNDS * 2):
        network = await cloud.api.create("Network")
        fields = {"cidr": "10.0.0.0/24"} if kind == "Subnet" else {}
        one, other = (cloud.api, second_api) if number % 2 else (second_api, cloud.api)
        calls = [one.delete("Network", network.id, force=force), other.create(kind, network_id=network.id, **fields)]
        made, errors = await outcomes(calls[:: 1 if number % 4 < 2 else -1])
        assert {error.reason for error in errors} <= {"RESOURCE_IN_USE", "REFERENCE_NOT_FOUND", "RESOURCE_NOT_FOUND"}
        assert len(made) == (1 if errors else 2)
        left = {key for key in await everything(cloud.store) if network.id in key and key.startswith(keys.NETWORKS)}
        deleted = keys.network(network.id) not in left
        ends["deleted" if deleted else "kept"] += 1
        assert bool(left) != deleted
    await consistent(cloud.store)
    assert sum(ends.values()) == ROUNDS * 2


async def test_delete_of_a_subnet_against_create_of_a_port(cloud: Cloud, second_api: Client) -> None:
    network = (await cloud.api.create("Network")).id
    for number in range(ROUNDS * 2):
        subnet = await cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/24")
        wanted = [{"subnet_id": subnet.id}]
        calls = [
            cloud.api.delete("Subnet", subnet.id),
            second_api.create("Port", network_id=network, fixed_ips=wanted),
        ]
        made, errors = await outcomes(calls[:: 1 if number % 2 else -1])
        assert len(made) == len(errors) == 1
        assert errors[0].reason in ("RESOURCE_IN_USE", "REFERENCE_NOT_FOUND")
        await consistent(cloud.store)
        if errors[0].reason == "RESOURCE_IN_USE":
            await second_api.delete("Port", made[0].id)
            await cloud.api.delete("Subnet", subnet.id)
    await consistent(cloud.store)


async def test_of_overlapping_subnets_made_at_once_one_stays(cloud: Cloud, second_api: Client) -> None:
    network = (await cloud.api.create("Network")).id
    for _ in range(ROUNDS):
        prefixes = ["10.0.0.0/24", "10.0.0.0/16", "10.0.0.128/25", "10.0.0.0/8"]
        made, errors = await outcomes(
            api.create("Subnet", network_id=network, cidr=cidr)
            for cidr, api in zip(prefixes, turns(4, cloud.api, second_api), strict=True)
        )
        assert len(made) == 1
        assert {error.reason for error in errors} == {"CIDR_OVERLAP"}
        assert all(made[0].id in error.message for error in errors)
        await consistent(cloud.store)
        await cloud.api.delete("Subnet", made[0].id)


async def test_deleted_twice_at_once_is_deleted_once(cloud: Cloud, second_api: Client) -> None:
    for kind in (name for name, kind in KINDS.items() if not kind.options.implicit):
        for number in range(3):
            fields: dict[str, Any] = {
                **rows.BASE.get(kind, {}),
                **({"id": f"n{number}"} if KINDS[kind].options.operator_named else {}),
            }
            fields |= await rows.parent(cloud.api, kind)
            if kind == "Subnet":
                fields["cidr"] = "10.0.0.0/24"
            item = await cloud.api.create(kind, **fields)
            made, errors = await outcomes(api.delete(kind, item.id) for api in turns(6, cloud.api, second_api))
            assert len(made) == 1
            assert {error.reason for error in errors} == {"RESOURCE_NOT_FOUND"}
    await consistent(cloud.store)


async def test_a_storm_of_everything_leaves_a_consistent_store(cloud: Cloud, second_api: Client) -> None:
    """C-13: no leaked children; whatever was refused, nothing of it is left."""
    networks = [(await cloud.api.create("Network")).id for _ in range(3)]
    for network in networks:
        await cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/28")

    async def one(number: int, api: Client) -> None:
        network = networks[number % 3]
        try:
            port = await api.create("Port", network_id=network)
            if number % 3 == 0:
                await api.update("Port", port.id, mask=["fixed_ips"], fixed_ips=[{"ip_address": f"10.0.0.{2 + number % 12}"}])
            elif number % 3 == 1:
                await api.update("Port", port.id, mac_address=f"fa:16:3e:00:00:{number % 5:02x}")
            if number % 4 == 0:
                await api.delete("Port", port.id)
            if number % 10 == 9:
                await api.delete("Network", networks[2], force=True)
        except Refused as error:
            error.must_be(
                "ADDRESS_TAKEN",
                "MAC_TAKEN",
                "NO_FREE_ADDRESS",
                "CONCURRENT_CHANGE",
                "REFERENCE_NOT_FOUND",
                "RESOURCE_NOT_FOUND",
            )

    await asyncio.gather(*(one(number, api) for number, api in enumerate(turns(90, cloud.api, second_api))))
    await consistent(cloud.store)
    await cloud.clear()
    await cloud.settled()
    entries = await consistent(cloud.store)
    rest = [key for key in entries if keys.split(key)[0] not in ("apply", "change", "request", "controller", "meta", "quota")]
    assert rest == [keys.NODES_CHANGE] or not rest


# -- release ----------------------------------------------------------------------------------------------------------


async def held(cloud: Cloud, key: str) -> bool:
    return await cloud.store.get(key) is not None


async def test_a_released_vni_goes_to_its_project_at_once_and_to_others_when_nodes_let_go(
    cloud: Cloud, second_api: Client
) -> None:
    """Acknowledged by every live node concerned, and no other; dead nodes are not waited for."""
    await cloud.write(agent.alive("live"), agent.alive("elsewhere"))
    network = await cloud.api.create("Network", project_id="demo", segmentation_id=700)
    later = await cloud.api.create("Network", project_id="demo", segmentation_id=701)
    for item in (network, later):
        await cloud.write(agent.applied("live", item.id, item.revision), agent.applied("gone", item.id, 0))
    for item in (network, later):
        await cloud.api.delete("Network", item.id)
    claim = keys.claim("vxlan", 700)
    for api in (cloud.api, second_api):
        error = await refused(api.create("Network", project_id="other", segmentation_id=700))
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "SEGMENT_TAKEN")
        assert "free again when the nodes have let go" in error.message
    again = await second_api.create("Network", project_id="demo", segmentation_id=700)
    assert again.segmentation_id == 700
    await consistent(cloud.store)
    # The node lets go of both; the one taken again stays with who took it, the other is free.
    await cloud.write(agent.unconcerned("live", network.id), agent.unconcerned("live", later.id))
    await until(lambda: _not(held(cloud, keys.claim("vxlan", 701))), "the number is free")
    assert await held(cloud, claim)
    assert (await refused(cloud.api.create("Network", project_id="other", segmentation_id=700))).reason == "SEGMENT_TAKEN"
    assert (await cloud.api.create("Network", project_id="other", segmentation_id=701)).segmentation_id == 701
    await consistent(cloud.store)


async def _not(answer: Awaitable[bool]) -> bool:
    return not await answer


async def test_a_released_address_waits_for_live_nodes_concerned_and_is_reused_at_once(cloud: Cloud) -> None:
    api = cloud.api
    network = (await api.create("Network")).id
    subnet = (await api.create("Subnet", network_id=network, cidr="10.0.0.0/29")).id
    port = await api.create("Port", network_id=network, fixed_ips=[{"ip_address": "10.0.0.4"}])
    await cloud.write(
        agent.alive("live"),
        agent.applied("live", network, port.revision),
        agent.applied("dead", network, 1),
        agent.alive("unconcerned"),
    )
    gone = await api.delete("Port", port.id)
    claim = keys.claim(keys.ip_pool(network, subnet), "10.0.0.4")
    entry = await cloud.store.get(claim)
    assert entry is not None
    assert store_pb2.Claim.FromString(entry.value).releasing
    # Chosen freely, it is not given out; asked for by name, it is given at once.
    chosen = [(await api.create("Port", network_id=network)).fixed_ips[0].ip_address for _ in range(3)]
    assert "10.0.0.4" not in chosen
    assert (await refused(api.create("Port", network_id=network))).reason == "NO_FREE_ADDRESS"
    again = await api.create("Port", network_id=network, fixed_ips=[{"ip_address": "10.0.0.4"}])
    second = await api.delete("Port", again.id)
    # An acknowledgement of less than the deletion frees nothing: the one that follows it does.
    await cloud.write(agent.applied("live", network, gone.revision))
    marker = await api.create("Network")
    await cloud.api.delete("Network", marker.id)
    await until(lambda: _not(held(cloud, keys.claim("vxlan", marker.segmentation_id))), "the sweep has been")
    assert await held(cloud, claim)
    await cloud.write(agent.applied("live", network, second.revision))
    await until(lambda: _not(held(cloud, claim)), "the address is free")
    assert (await api.create("Port", network_id=network)).fixed_ips[0].ip_address == "10.0.0.4"
    await consistent(cloud.store)


async def test_release_does_not_wait_for_a_node_that_dies(cloud: Cloud) -> None:
    network = await cloud.api.create("Network")
    await cloud.write(agent.alive("dying"), agent.applied("dying", network.id, network.revision))
    await cloud.api.delete("Network", network.id)
    claim = keys.claim("vxlan", network.segmentation_id)
    assert await held(cloud, claim)
    await cloud.write(agent.dead("dying"))
    await until(lambda: _not(held(cloud, claim)), "the number is free")


async def test_a_nodes_number_waits_for_every_live_node(cloud: Cloud) -> None:
    node = await cloud.api.create("Node", id="leaving")
    await cloud.write(agent.alive("staying"), agent.applied_nodes("staying", node.revision), agent.applied_nodes("dead", 0))
    gone = await cloud.api.delete("Node", "leaving")
    claim = keys.claim("node-key", node.key)
    assert await held(cloud, claim)
    assert (await cloud.api.create("Node", id="coming")).key != node.key
    await cloud.write(agent.applied_nodes("staying", gone.revision))
    await until(lambda: _not(held(cloud, claim)), "the number is free")
    await consistent(cloud.store)


# -- the checker itself -----------------------------------------------------------------------------------------------


async def test_the_checker_sees_each_kind_of_fault(cloud: Cloud) -> None:
    network = (await cloud.api.create("Network")).id
    subnet = await cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/24")
    port = await cloud.api.create("Port", network_id=network)
    good = await consistent(cloud.store)
    address = keys.claim(keys.ip_pool(network, subnet.id), port.fixed_ips[0].ip_address)
    for key in (
        address,
        keys.claim(keys.mac_pool(network), port.mac_address),
        keys.index("Port", port.id),
        keys.index("Subnet", subnet.id),
        keys.change_of(keys.scope(network)),
        keys.network(network),
    ):
        assert faults({name: entry for name, entry in good.items() if name != key}), key
    for key in ("/kumihimo/odd", "/other", keys.claim("vxlan", 9), keys.index("Port", "x"), keys.bindings(network) + port.id):
        assert faults({**good, key: good[address]}), key
    assert faults({name: entry for name, entry in good.items() if name != keys.ports(network) + port.id})
