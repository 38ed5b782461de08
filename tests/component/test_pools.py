"""Subnet pools and address scopes: prefixes that never overlap, whoever asks, and are given back (B-SUB-11 to B-SUB-13)."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_network
from itertools import pairwise
from typing import Any

import grpc
import pytest

from controlplane.registry import KINDS
from controlplane.store import keys
from kumihimo.v1 import operations_pb2
from tests.component.cloud import Client, Cloud, consistent, refused
from tests.component.test_api_apply import actions, apply, item
from tests.component.test_api_races import outcomes, turns

Code = grpc.StatusCode
ROUNDS = 10 if os.environ.get("KUMI_FULL") else 4


async def disjoint(store: Any, cidrs: Iterable[str]) -> None:
    """No two of the prefixes overlap, and the store agrees."""
    ordered = sorted(ip_network(text) for text in cidrs)
    assert not [(one, other) for one, other in pairwise(ordered) if one.overlaps(other)]
    await consistent(store)


async def held(cloud: Cloud, pool: str) -> int:
    return sum(key.startswith(keys.claim(keys.prefix_pool(pool))) for key in await cloud.everything())


@pytest.fixture
async def network(cloud: Cloud) -> str:
    return str((await cloud.api.create("Network", by="alice")).id)


async def test_b_sub_11_a_subnet_without_cidr_gets_the_next_free_prefix(cloud: Cloud, network: str) -> None:
    api = cloud.api
    pool = await api.create(
        "SubnetPool", by="alice", prefixes=["10.0.2.0/23", "10.0.0.0/24"], default_prefix_length=25, max_prefix_length=28
    )

    async def subnet(**fields: Any) -> Any:
        return await api.create("Subnet", by="alice", network_id=network, subnet_pool_id=pool.id, **fields)

    first = await subnet()
    assert (first.cidr, first.gateway_ip, first.prefix_length) == ("10.0.0.0/25", "10.0.0.1", 0)
    assert first.dhcp_server_ip == "10.0.0.126"
    assert (await subnet(prefix_length=26)).cidr == "10.0.0.128/26"
    assert (await subnet(prefix_length=24)).cidr == "10.0.2.0/24", "no /24 is left in the first prefix"
    assert (await subnet(prefix_length=28)).cidr == "10.0.0.192/28"
    assert (await subnet(cidr="10.0.3.128/26")).cidr == "10.0.3.128/26"
    assert (await subnet()).cidr == "10.0.3.0/25"
    error = await refused(subnet())
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "NO_FREE_PREFIX")
    assert f"SubnetPool {pool.id} has no free /25 left in 10.0.0.0/24, 10.0.2.0/23" in error.message
    # What is given back is the next that is free.
    await api.delete("Subnet", first.id, by="alice")
    assert (await subnet()).cidr == "10.0.0.0/25"
    await disjoint(cloud.store, [item.cidr for item in (await api.list("Subnet")).items])
    await api.delete("Network", network, force=True)
    assert await held(cloud, pool.id) == 0


async def test_b_sub_11_a_dry_run_takes_nothing(cloud: Cloud, network: str) -> None:
    pool = await cloud.api.create("SubnetPool", by="alice", prefixes=["10.0.0.0/16"], default_prefix_length=24)
    fields = {"network_id": network, "subnet_pool_id": pool.id}
    for _ in range(2):
        planned = await cloud.api.create("Subnet", by="alice", request={"validate_only": True}, **fields)
        assert planned.cidr == "10.0.0.0/24"
    assert await held(cloud, pool.id) == 0


async def test_b_sub_11_32_creators_on_two_replicas_fill_a_pool_to_the_last(
    cloud: Cloud, second_api: Client, network: str
) -> None:
    pool = (await cloud.api.create("SubnetPool", by="alice", prefixes=["10.0.0.0/24"], default_prefix_length=29)).id
    for _ in range(3):
        made, errors = await outcomes(
            api.create("Subnet", by="alice", network_id=network, subnet_pool_id=pool)
            for api in turns(40, cloud.api, second_api)
        )
        assert len(made) == 32
        assert Counter(error.reason for error in errors) == {"NO_FREE_PREFIX": 8}
        await disjoint(cloud.store, [item.cidr for item in made])
        gone, errors = await outcomes(
            api.delete("Subnet", item.id) for item, api in zip(made, turns(32, cloud.api, second_api), strict=True)
        )
        assert len(gone) == 32
        assert not errors
        assert await held(cloud, pool) == 0


async def test_b_sub_11_prefixes_of_all_lengths_asked_for_and_chosen_never_overlap(cloud: Cloud, second_api: Client) -> None:
    """In networks of their own, where nothing but the pool keeps them apart."""
    pool = (await cloud.api.create("SubnetPool", by="alice", prefixes=["10.0.0.0/20"])).id
    networks = [(await cloud.api.create("Network", by="alice")).id for _ in range(8)]
    for turn in range(3):
        wanted = [
            {"cidr": f"10.0.{number % 16}.{64 * (number % 3)}/26"} if number % 4 == 0 else {"prefix_length": 22 + number % 7}
            for number in range(turn, turn + 64)
        ]
        made, errors = await outcomes(
            api.create("Subnet", by="alice", network_id=networks[number % 8], subnet_pool_id=pool, **wanted[number])
            for number, api in enumerate(turns(64, cloud.api, second_api))
        )
        assert {error.reason for error in errors} <= {"CIDR_OVERLAP", "NO_FREE_PREFIX"}
        assert len(made) >= 4, "the pool has room for four of the largest, and each of these for more of the others"
        await disjoint(cloud.store, [item.cidr for item in made])
        for subnet in made:
            await cloud.api.delete("Subnet", subnet.id)


async def test_of_prefixes_of_a_pool_that_contain_each_other_one_is_given(cloud: Cloud, second_api: Client) -> None:
    pool = (await cloud.api.create("SubnetPool", prefixes=["10.0.0.0/8"])).id
    networks = [(await cloud.api.create("Network")).id for _ in range(6)]
    cidrs = ["10.1.0.0/16", "10.1.128.0/17", "10.0.0.0/12", "10.1.128.0/24", "10.1.128.0/24", "10.1.128.64/26"]
    winners: Counter[str] = Counter()
    for turn in range(ROUNDS):
        calls = [
            api.create("Subnet", network_id=network, subnet_pool_id=pool, cidr=cidr)
            for cidr, network, api in zip(cidrs, networks, turns(6, cloud.api, second_api), strict=True)
        ]
        made, errors = await outcomes(calls[turn % 6 :] + calls[: turn % 6])
        assert len(made) == 1
        assert {(error.code, error.reason) for error in errors} == {(Code.ALREADY_EXISTS, "CIDR_OVERLAP")}
        assert all(f"{made[0].cidr} of Subnet {made[0].id}" in error.message for error in errors)
        winners[made[0].cidr] += 1
        await consistent(cloud.store)
        await cloud.api.delete("Subnet", made[0].id)
    assert len(winners) > 1


@pytest.mark.parametrize("quota", [0, 64, 1024, 1100])
async def test_b_sub_11_a_project_takes_its_quota_and_not_one_address_more(
    cloud: Cloud, second_api: Client, quota: int
) -> None:
    pool = (await cloud.api.create("SubnetPool", prefixes=["10.0.0.0/16"], default_prefix_length=26, default_quota=quota)).id
    mine, theirs = [(await cloud.api.create("Network", project_id=project)).id for project in ("demo", "other")]
    made, errors = await outcomes(
        api.create("Subnet", network_id=mine, subnet_pool_id=pool) for api in turns(32, cloud.api, second_api)
    )
    assert len(made) == quota // 64
    assert {(error.code, error.reason) for error in errors} == {(Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")}
    assert f"project demo may have {quota} addresses of SubnetPool {pool}, has {quota // 64 * 64} and asks for 64" in str(
        errors[0]
    )
    if quota == 1100:
        await cloud.api.create("Subnet", network_id=mine, subnet_pool_id=pool, prefix_length=29)
        await cloud.api.create("Subnet", network_id=theirs, subnet_pool_id=pool)
    if made:
        await cloud.api.delete("Subnet", made[0].id)
        await cloud.api.create("Subnet", network_id=mine, subnet_pool_id=pool)
        assert (await refused(cloud.api.create("Subnet", network_id=mine, subnet_pool_id=pool))).reason == "QUOTA_EXCEEDED"
    await disjoint(cloud.store, [item.cidr for item in (await cloud.api.list("Subnet")).items])


async def test_a_subnet_of_a_pool_grows_in_it(cloud: Cloud, network: str) -> None:
    api = cloud.api
    pool = await api.create("SubnetPool", prefixes=["10.0.0.0/22"], default_prefix_length=24, default_quota=1024)
    first, second = [await api.create("Subnet", network_id=network, subnet_pool_id=pool.id) for _ in range(2)]
    other = (await api.create("Network")).id
    error = await refused(api.update("Subnet", first.id, cidr="10.0.0.0/23"))
    assert (error.code, error.reason) == (Code.ALREADY_EXISTS, "CIDR_OVERLAP")
    error = await refused(api.update("Subnet", first.id, mask=["cidr"]))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "MISSING_FIELD")
    await api.delete("Subnet", second.id)
    assert (await api.update("Subnet", first.id, cidr="10.0.0.0/23")).cidr == "10.0.0.0/23"
    await consistent(cloud.store)
    assert (await api.create("Subnet", network_id=other, subnet_pool_id=pool.id)).cidr == "10.0.2.0/24"
    error = await refused(api.update("Subnet", first.id, cidr="10.0.0.0/21"))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "CIDR_INVALID")


# -- scopes -----------------------------------------------------------------------------------------------------------


async def test_b_sub_12_prefixes_of_a_scope_never_overlap(cloud: Cloud, second_api: Client) -> None:
    """Of pools made, enlarged or brought in at once; other scopes, and pools of none, do not care."""
    api = cloud.api
    scope, other = [(await api.create("AddressScope", ip_version=4)).id for _ in range(2)]
    outside = await api.create("SubnetPool", prefixes=["10.1.0.0/16"])
    small = await api.create("SubnetPool", prefixes=["10.200.0.0/16"], address_scope_id=scope)
    for _ in range(ROUNDS):
        calls = [
            api.create("SubnetPool", prefixes=["10.0.0.0/8"], address_scope_id=scope),
            second_api.create("SubnetPool", prefixes=["10.1.0.0/24"], address_scope_id=scope),
            api.update("SubnetPool", outside.id, address_scope_id=scope),
            method(second_api, "AddPrefixes", id=small.id, prefixes=["10.1.0.0/17"]),
            api.create("SubnetPool", prefixes=["10.0.0.0/8"], address_scope_id=other),
            second_api.create("SubnetPool", prefixes=["10.1.0.0/16"]),
        ]
        made, errors = await outcomes(calls)
        assert len(made) == 3
        assert {(error.code, error.reason) for error in errors} == {(Code.ALREADY_EXISTS, "CIDR_OVERLAP")}
        assert all("in the same address scope" in error.message for error in errors)
        await consistent(cloud.store)
        for pool in made:
            if pool.id not in (outside.id, small.id):
                await api.delete("SubnetPool", pool.id)
        await api.update("SubnetPool", outside.id, mask=["address_scope_id"])
        await api.update("SubnetPool", small.id, prefixes=["10.200.0.0/16"])
        await consistent(cloud.store)
    error = await refused(api.delete("AddressScope", scope))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE")
    assert f"in use by 1: SubnetPool {small.id}" in error.message
    await api.delete("SubnetPool", small.id)
    await api.delete("AddressScope", scope)


async def test_b_sub_12_a_holder_of_another_project_is_not_named(cloud: Cloud) -> None:
    api = cloud.api
    scope = (await api.create("AddressScope", by="alice", ip_version=4)).id
    await api.create("SubnetPool", project_id="other", name="secret", prefixes=["10.0.0.0/8"], address_scope_id=scope)
    error = await refused(api.create("SubnetPool", by="alice", prefixes=["10.1.0.0/16"], address_scope_id=scope))
    assert error.reason == "CIDR_OVERLAP"
    assert "a SubnetPool of another project" in error.message
    assert "secret" not in str(error)
    error = await refused(api.delete("AddressScope", scope, by="alice"))
    assert "secret" not in str(error)


async def test_a_pool_against_the_deletion_of_its_scope(cloud: Cloud, second_api: Client) -> None:
    for turn in range(ROUNDS):
        scope = (await cloud.api.create("AddressScope", ip_version=4)).id
        calls = [
            cloud.api.delete("AddressScope", scope),
            second_api.create("SubnetPool", prefixes=["10.0.0.0/8"], address_scope_id=scope),
        ]
        made, errors = await outcomes(calls[:: 1 if turn % 2 else -1])
        assert len(made) == len(errors) == 1
        assert errors[0].reason in ("RESOURCE_IN_USE", "REFERENCE_NOT_FOUND")
        await consistent(cloud.store)


@pytest.mark.parametrize("by_update", [False, True])
async def test_of_many_default_pools_one_of_each_family_is(cloud: Cloud, second_api: Client, by_update: bool) -> None:
    api = cloud.api
    pools = [await api.create("SubnetPool", prefixes=[f"10.{n}.0.0/16"]) for n in range(8)] if by_update else []
    calls = [
        each.update("SubnetPool", pools[n].id, is_default=True)
        if by_update
        else each.create("SubnetPool", prefixes=[f"10.{n}.0.0/16"], is_default=True)
        for n, each in enumerate(turns(8, api, second_api))
    ]
    made, errors = await outcomes(calls)
    assert len(made) == 1
    assert {(error.code, error.reason) for error in errors} == {(Code.ALREADY_EXISTS, "DEFAULT_TAKEN")}
    assert all(made[0].id in error.message for error in errors)
    six = await api.create("SubnetPool", prefixes=["fd00::/48"], is_default=True)
    await consistent(cloud.store)
    await api.delete("SubnetPool", six.id)
    await api.update("SubnetPool", made[0].id, mask=["is_default"])
    await api.create("SubnetPool", prefixes=["10.99.0.0/16", "10.98.0.0/16"], is_default=True)
    await api.create("SubnetPool", prefixes=["fd00::/48"], is_default=True)
    await consistent(cloud.store)


# -- prefixes come and go ---------------------------------------------------------------------------------------------


async def method(api: Client, name: str, *, by: str = "root", **fields: Any) -> Any:
    request = KINDS["SubnetPool"].request(name)(**fields)
    return await api.call("SubnetPools", name, request, f"{by}-token")


async def test_b_sub_13_prefixes_are_added_and_removed_all_or_none(cloud: Cloud, network: str) -> None:
    api = cloud.api
    pool = (await api.create("SubnetPool", by="alice", name="p", prefixes=["10.0.0.0/16"], default_prefix_length=24)).id
    more = await method(api, "AddPrefixes", by="alice", id=pool, prefixes=["10.2.0.0/16", "10.1.0.0/16"], request_id="more")
    assert list(more.prefixes) == ["10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16"]
    assert (
        await method(api, "AddPrefixes", by="alice", id=pool, prefixes=["10.2.0.0/16", "10.1.0.0/16"], request_id="more")
        == more
    )
    again = await method(api, "AddPrefixes", by="alice", id=pool, prefixes=["10.1.0.0/16"])
    assert again.revision == more.revision
    subnet = await api.create("Subnet", by="alice", network_id=network, name="s", subnet_pool_id=pool, cidr="10.1.5.0/24")
    before = await cloud.settled()
    for name, prefixes, reason, said in (
        ("AddPrefixes", ["10.3.0.0/16", "10.1.0.0/20"], "CIDR_OVERLAP", "which overlap"),
        ("AddPrefixes", ["fd00::/48"], "IP_FAMILY_MISMATCH", "one family"),
        ("AddPrefixes", ["10.0.0.1/16"], "CIDR_HOST_BITS_SET", "10.0.0.0/16 would be accepted"),
        ("AddPrefixes", [], "MISSING_FIELD", "prefixes is missing"),
        ("RemovePrefixes", ["10.2.0.0/16", "10.1.0.0/16"], "RESOURCE_IN_USE", f"in use by 1: Subnet s ({subnet.id})"),
        ("RemovePrefixes", ["10.2.0.0/16", "10.2.0.0/17"], "REFERENCE_NOT_FOUND", "of 10.0.0.0/16, 10.1.0.0/16, 10.2.0.0/16"),
        ("RemovePrefixes", ["10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16"], "INCOMPATIBLE_STATE", "delete the pool"),
    ):
        error = await refused(method(api, name, by="alice", id=pool, prefixes=prefixes))
        assert error.reason == reason
        assert said in error.message
        assert not await cloud.written_since(before)
    error = await refused(method(api, "AddPrefixes", by="bob", id=pool, prefixes=["10.9.0.0/16"]))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
    planned = await method(api, "RemovePrefixes", by="alice", id=pool, prefixes=["10.2.0.0/16"], validate_only=True)
    assert list(planned.prefixes) == ["10.0.0.0/16", "10.1.0.0/16"]
    assert not await cloud.written_since(before)
    left = await method(api, "RemovePrefixes", by="alice", id=pool, prefixes=["10.2.0.0/16"])
    assert list(left.prefixes) == ["10.0.0.0/16", "10.1.0.0/16"]
    # A prefix may be replaced by one that holds all that subnets have of it.
    assert list((await api.update("SubnetPool", pool, prefixes=["10.0.0.0/16", "10.1.4.0/22"])).prefixes)[1] == "10.1.4.0/22"
    assert (await refused(api.update("SubnetPool", pool, prefixes=["10.1.4.0/24"]))).reason == "RESOURCE_IN_USE"
    await consistent(cloud.store)
    error = await refused(api.delete("SubnetPool", pool, by="alice"))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE")
    assert f"SubnetPool p ({pool}) is in use by 1: Subnet s ({subnet.id})" in error.message


@pytest.mark.parametrize("whole", [False, True])
async def test_a_prefix_that_is_taken_against_its_removal(cloud: Cloud, second_api: Client, network: str, whole: bool) -> None:
    """Of the prefix, or of the whole pool."""
    ends: Counter[str] = Counter()
    for turn in range(ROUNDS * 2):
        pool = (await cloud.api.create("SubnetPool", prefixes=["10.0.0.0/24", "10.1.0.0/24"])).id
        gone = (
            cloud.api.delete("SubnetPool", pool)
            if whole
            else method(cloud.api, "RemovePrefixes", id=pool, prefixes=["10.1.0.0/24"])
        )
        calls = [gone, second_api.create("Subnet", network_id=network, subnet_pool_id=pool, cidr="10.1.0.0/25")]
        made, errors = await outcomes(calls[:: 1 if turn % 2 else -1])
        assert len(made) == len(errors) == 1
        assert errors[0].reason in ("RESOURCE_IN_USE", "CIDR_INVALID", "REFERENCE_NOT_FOUND")
        ends[errors[0].reason] += 1
        await consistent(cloud.store)
        for subnet in (await cloud.api.list("Subnet")).items:
            await cloud.api.delete("Subnet", subnet.id)
    assert sum(ends.values()) == ROUNDS * 2


async def test_b_sub_13_a_network_is_taken_into_a_pool_and_its_ports_stay_as_they_are(cloud: Cloud, network: str) -> None:
    api = cloud.api
    inside = await api.create("Subnet", by="alice", network_id=network, name="in", cidr="10.0.5.0/24")
    added = await api.create("Subnet", by="alice", network_id=network, name="add", cidr="172.16.0.0/24")
    port = await api.create("Port", by="alice", network_id=network, fixed_ips=[{"subnet_id": inside.id}])
    scope = (await api.create("AddressScope", by="alice", ip_version=4)).id
    pool = (await api.create("SubnetPool", by="alice", prefixes=["10.0.0.0/16"], address_scope_id=scope)).id
    error = await refused(method(api, "Onboard", by="alice", id=pool, network_id=pool))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "REFERENCE_NOT_FOUND")
    error = await refused(method(api, "Onboard", by="bob", id=pool, network_id=network))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
    reply = await method(api, "Onboard", by="alice", id=pool, network_id=network)
    assert list(reply.prefixes) == ["10.0.0.0/16", "172.16.0.0/24"]
    for before in (inside, added):
        after = await api.get("Subnet", before.id, by="alice")
        assert (after.subnet_pool_id, after.cidr, after.gateway_ip) == (pool, before.cidr, before.gateway_ip)
        history = await api.call("Operations", "ListChanges", operations_pb2.ListChangesRequest(id=before.id), "alice-token")
        assert [change.path for change in history.items[0].fields] == ["subnet_pool_id"]
    now = await api.get("Port", port.id, by="alice")
    assert (now.revision, now.etag, now.fixed_ips) == (port.revision, port.etag, port.fixed_ips)
    await consistent(cloud.store)
    # What it holds is held: nobody else gets it, and it does not go while a subnet has it.
    other = (await api.create("Network", by="alice")).id
    error = await refused(api.create("Subnet", by="alice", network_id=other, subnet_pool_id=pool, cidr="10.0.5.0/25"))
    assert error.reason == "CIDR_OVERLAP"
    error = await refused(method(api, "RemovePrefixes", by="alice", id=pool, prefixes=["172.16.0.0/24"]))
    assert error.reason == "RESOURCE_IN_USE"
    again = await method(api, "Onboard", by="alice", id=pool, network_id=network)
    assert again.revision == reply.revision
    second = (await api.create("SubnetPool", by="alice", prefixes=["10.0.0.0/16"])).id
    error = await refused(method(api, "Onboard", by="alice", id=second, network_id=network))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "INCOMPATIBLE_STATE")
    await api.delete("Network", network, by="alice", force=True)
    await cloud.settled()
    await consistent(cloud.store)
    assert await held(cloud, pool) == 0


async def test_two_pools_that_take_in_one_network_at_once(cloud: Cloud, second_api: Client) -> None:
    for _ in range(ROUNDS):
        network = (await cloud.api.create("Network")).id
        subnet = await cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/24")
        pools = [(await cloud.api.create("SubnetPool", prefixes=[f"10.{n}.0.0/16"])).id for n in range(2)]
        made, errors = await outcomes(
            method(api, "Onboard", id=pool, network_id=network)
            for pool, api in zip(pools, (cloud.api, second_api), strict=True)
        )
        assert [error.reason for error in errors] == ["INCOMPATIBLE_STATE"]
        assert (await cloud.api.get("Subnet", subnet.id)).subnet_pool_id == made[0].id
        await consistent(cloud.store)


# -- together ---------------------------------------------------------------------------------------------------------


async def test_a_22_pool_scope_subnet_and_network_in_one_request_in_any_order(cloud: Cloud) -> None:
    objects = [
        item("Subnet", name="lan", network_id="net", subnet_pool_id="private", prefix_length=26),
        item("Subnet", name="dmz", network_id="net", subnet_pool_id="private"),
        item("SubnetPool", name="private", prefixes=["10.0.0.0/16"], default_prefix_length=24, address_scope_id="inside"),
        item("Network", name="net"),
        item("AddressScope", name="inside", ip_version="IP_VERSION_IPV4"),
    ]
    for turn in range(5):
        ordered = objects[turn:] + objects[:turn]
        reply = await apply(cloud.api, *ordered, by="alice")
        assert set(actions(reply).values()) == {"CREATE"}
        subnets = {found.name: found.cidr for found in (await cloud.api.list("Subnet", by="alice")).items}
        assert {text.rpartition("/")[2] for text in subnets.values()} == {"24", "26"}
        await disjoint(cloud.store, subnets.values())
        again = await apply(cloud.api, *reversed(ordered), by="alice")
        assert set(actions(again).values()) == {"NONE"}
        await cloud.clear()


async def test_a_22_more_subnets_than_a_pool_has_room_for_are_none(cloud: Cloud) -> None:
    objects = [item("Network", name="net"), item("SubnetPool", name="p", prefixes=["10.0.0.0/24"], default_prefix_length=26)]
    objects += [item("Subnet", name=f"s{n}", network_id="net", subnet_pool_id="p") for n in range(5)]
    error = await refused(apply(cloud.api, *objects, by="alice"))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "NO_FREE_PREFIX")
    assert error.violations[0][0].startswith("objects[6]")
    assert (await cloud.api.list("SubnetPool", by="alice")).items == []
    await apply(cloud.api, *objects[:-1], by="alice")
    await consistent(cloud.store)


async def test_b_sub_16_an_address_of_a_port_that_nobody_attaches_is_reserved(cloud: Cloud, second_api: Client) -> None:
    """A port is a reservation of its address and MAC: neither is given to anybody else."""
    api = cloud.api
    network = (await api.create("Network")).id
    await api.create("Subnet", network_id=network, cidr="10.0.0.0/28")
    mac = "fa:16:3e:00:00:01"
    vip = await api.create("Port", network_id=network, name="vip", mac_address=mac, fixed_ips=[{"ip_address": "10.0.0.5"}])
    made, errors = await outcomes(each.create("Port", network_id=network) for each in turns(20, api, second_api))
    assert len(made) == 14 - 3
    assert {error.reason for error in errors} == {"NO_FREE_ADDRESS"}
    assert "10.0.0.5" not in {port.fixed_ips[0].ip_address for port in made}
    assert mac not in {port.mac_address for port in made}
    assert (await refused(api.create("Port", network_id=network, mac_address=mac))).reason == "MAC_TAKEN"
    assert (await api.get("Port", vip.id)).fixed_ips[0].ip_address == "10.0.0.5"


async def test_b_net_17_the_report_equals_a_count_of_the_ports_addresses(cloud: Cloud, network: str) -> None:
    api = cloud.api
    pools = [{"start": "10.0.0.10", "end": "10.0.0.19"}]
    small = await api.create("Subnet", by="alice", network_id=network, cidr="10.0.0.0/24", allocation_pools=pools)
    empty = await api.create("Subnet", by="alice", network_id=network, cidr="10.1.0.0/16", enable_dhcp=False)
    ports = [await api.create("Port", by="alice", network_id=network, fixed_ips=[{"subnet_id": small.id}]) for _ in range(4)]
    await api.create("Port", by="alice", network_id=network, fixed_ips=[{"ip_address": "10.0.0.77"}])
    request = KINDS["Network"].request("GetIpAvailability")(id=network)

    async def report(by: str = "rita") -> dict[str, tuple[int, ...]]:
        reply = await api.call("Networks", "GetIpAvailability", request, f"{by}-token")
        return {
            found.subnet_id: tuple(int(text) for text in (found.total, found.used, found.free, found.reserved))
            for found in reply.subnets
        }

    found = await report()
    # Of ten addresses of the pool DHCP has one and ports four; a fifth port has one from outside of it.
    assert found[small.id] == (254, 5, 5, 244)
    assert found[empty.id] == (65534, 0, 65533, 1)
    await asyncio.gather(*(api.delete("Port", port.id, by="alice") for port in ports))
    await cloud.settled()
    assert (await report())[small.id] == (254, 1, 9, 244)
    error = await refused(api.call("Networks", "GetIpAvailability", request, "bob-token"))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
