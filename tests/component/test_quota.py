"""Quotas: exactly as many as are allowed, whoever asks at once (B-API-03)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc
import pytest

from controlplane.registry import KINDS
from controlplane.services import quota
from controlplane.store import keys
from kumihimo.v1 import store_pb2
from tests.component.cloud import Client, Cloud, consistent, refused
from tests.component.test_api_apply import apply, item
from tests.component.test_api_races import outcomes, turns
from tests.waiting import until

Code = grpc.StatusCode
DEFAULT = quota.COUNTED["subnet_pools"].options.quota
_projects = iter(range(1_000_000))


@pytest.fixture
def project() -> str:
    """A project that nobody has had before."""
    return f"tenant-{next(_projects)}"


def pools(number: int, project: str, *clients: Client) -> list[Any]:
    return [api.create("SubnetPool", project_id=project, prefixes=["10.0.0.0/8"]) for api in turns(number, *clients)]


async def slots(cloud: Cloud, project: str) -> list[int]:
    folder = keys.claim(keys.quota_pool(project, KINDS["SubnetPool"]))
    return sorted(int(key[len(folder) :]) for key in await cloud.everything() if key.startswith(folder))


async def usage(api: Client, project: str) -> int:
    return int((await api.get("Quota", project)).usage["subnet_pools"])


async def exactly(cloud: Cloud, second: Client, project: str, clients: int, wanted: int) -> list[Any]:
    made, errors = await outcomes(pools(clients, project, cloud.api, second))
    assert len(made) == wanted
    assert Counter((error.code, error.reason) for error in errors) == (
        {(Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"): clients - wanted} if wanted < clients else {}
    )
    return made


@pytest.mark.parametrize("limit", [0, 1, 7, 40, 63])
async def test_b_api_03_n_parallel_creators_never_exceed_the_limit_by_one(
    cloud: Cloud, second_api: Client, project: str, limit: int
) -> None:
    await cloud.api.update("Quota", project, limits={"subnet_pools": limit})
    await exactly(cloud, second_api, project, 64, limit)
    assert await slots(cloud, project) == list(range(1, limit + 1))
    for api in (cloud.api, second_api):
        assert await usage(api, project) == limit
    await consistent(cloud.store)


@pytest.mark.parametrize("kind", ["Network", "Subnet", "Port"])
async def test_b_api_03_every_counted_kind_has_its_own(cloud: Cloud, second_api: Client, project: str, kind: str) -> None:
    plural = KINDS[kind].options.plural
    network = (await cloud.api.create("Network", project_id=project)).id
    had = 1 if kind == "Network" else 0
    await cloud.api.update("Quota", project, limits={plural: 10 + had})
    fields = {
        "Network": lambda _: {"project_id": project},
        "Subnet": lambda n: {"network_id": network, "cidr": f"10.{n}.0.0/24"},
        "Port": lambda _: {"network_id": network},
    }[kind]
    made, errors = await outcomes(api.create(kind, **fields(n)) for n, api in enumerate(turns(32, cloud.api, second_api)))
    assert (len(made), {error.reason for error in errors}) == (10, {"QUOTA_EXCEEDED"})
    await consistent(cloud.store)


async def test_a_project_without_a_quota_has_the_defaults_and_a_refusal_says_so(
    cloud: Cloud, second_api: Client, project: str
) -> None:
    await exactly(cloud, second_api, project, DEFAULT + 12, DEFAULT)
    error = await refused(cloud.api.create("SubnetPool", project_id=project, prefixes=["10.0.0.0/8"]))
    text = f"project {project} may have {DEFAULT} subnet pools and has {DEFAULT}; delete some, or ask an operator"
    assert error.message == f"{text} for a higher quota"
    assert dict(error.metadata) == {"quota": "subnet_pools", "limit": str(DEFAULT), "used": str(DEFAULT)}
    assert [item.subject for item in error.details["QuotaFailure"].violations] == ["subnet_pools"]
    dry = {"validate_only": True}
    error = await refused(cloud.api.create("SubnetPool", project_id=project, prefixes=["10.0.0.0/8"], request=dry))
    assert error.reason == "QUOTA_EXCEEDED"


async def test_deletes_give_slots_back(cloud: Cloud, second_api: Client, project: str) -> None:
    await cloud.api.update("Quota", project, limits={"subnet_pools": 12})
    made = await exactly(cloud, second_api, project, 12, 12)
    for turn in range(4):
        gone = [made.pop(turn), made.pop(0), made.pop()]
        await outcomes(
            api.delete("SubnetPool", pool.id) for pool, api in zip(gone, turns(3, second_api, cloud.api), strict=True)
        )
        made += await exactly(cloud, second_api, project, 16, 3)
    assert await slots(cloud, project) == list(range(1, 13))


async def lower_by_quota(api: Client, project: str, limit: int) -> None:
    await api.update("Quota", project, limits={"subnet_pools": limit})


async def lower_by_clearing(api: Client, project: str, limit: int) -> None:
    """Back to the default, which is less."""
    assert limit == DEFAULT
    await api.update("Quota", project, mask=["limits"])


async def lower_by_settings(api: Client, project: str, limit: int) -> None:
    await api.update("Settings", "installation", quotas={"subnet_pools": limit})


@pytest.mark.parametrize(
    ("had", "lower", "limit"),
    [(30, lower_by_quota, 20), (30, lower_by_clearing, DEFAULT), (DEFAULT, lower_by_settings, 8)],
    ids=["quota", "cleared", "settings"],
)
async def test_a_limit_below_what_is_in_use_blocks_until_less_is(
    cloud: Cloud, second_api: Client, project: str, had: int, lower: Any, limit: int
) -> None:
    """Whichever are deleted: those with slots below the limit leave holes, and none of them may be filled too early."""
    try:
        if had != DEFAULT:
            await cloud.api.update("Quota", project, limits={"subnet_pools": had})
        made = await exactly(cloud, second_api, project, had, had)
        by_slot = {}
        for pool in made:
            entry = await cloud.store.get(keys.index("SubnetPool", pool.id))
            assert entry is not None
            by_slot[store_pb2.Index.FromString(entry.value).quota_slot] = pool.id
        await lower(cloud.api, project, limit)
        for used in range(had, limit, -1):  # the lowest slots go first
            await exactly(cloud, second_api, project, 8, 0)
            await cloud.api.delete("SubnetPool", by_slot.pop(min(by_slot)))
            assert await usage(cloud.api, project) == used - 1
        await exactly(cloud, second_api, project, 16, 0)
        for _ in range(5):
            gone = [by_slot.pop(slot) for slot in sorted(by_slot)[:2]]
            await outcomes(cloud.api.delete("SubnetPool", pool) for pool in gone)
            await exactly(cloud, second_api, project, 32, len(gone))
            assert len(await slots(cloud, project)) == limit
            assert max(await slots(cloud, project)) > limit, "which is why it is not enough to look at the slots"
            if len(by_slot) < 4:
                break
        await consistent(cloud.store)
    finally:
        await cloud.api.update("Settings", "installation", mask=["quotas"])
        await cloud.api.delete("Settings", "installation")


async def test_a_limit_that_is_lowered_under_creators_holds_from_then_on(
    cloud: Cloud, second_api: Client, project: str
) -> None:
    await cloud.api.update("Quota", project, limits={"subnet_pools": quota.UNLIMITED})
    stop = asyncio.Event()

    async def create(api: Client) -> int:
        made = 0
        while not stop.is_set():
            good, errors = await outcomes(pools(1, project, api))
            assert {error.reason for error in errors} <= {"QUOTA_EXCEEDED"}
            made += len(good)
        return made

    creators = [asyncio.create_task(create(api)) for api in turns(16, cloud.api, second_api)]
    try:

        async def many() -> bool:
            return await usage(cloud.api, project) > 20

        await until(many, "there are some")
        await cloud.api.update("Quota", project, limits={"subnet_pools": 10})
        after = await slots(cloud, project)
        assert len(after) > 10
        for _ in range(5):
            await exactly(cloud, second_api, project, 8, 0)
    finally:
        stop.set()
        made = sum(await asyncio.gather(*creators))
    assert await slots(cloud, project) == after
    assert made == len(after)
    await consistent(cloud.store)


async def test_limits_that_are_raised_let_in_exactly_the_difference(cloud: Cloud, second_api: Client, project: str) -> None:
    total = 0
    for limit in (3, 10, 11, 30):
        await cloud.api.update("Quota", project, limits={"subnet_pools": limit})
        await exactly(cloud, second_api, project, 40, limit - total)
        total = limit
    await cloud.api.update("Quota", project, limits={"subnet_pools": quota.UNLIMITED})
    await exactly(cloud, second_api, project, 40, 40)
    await consistent(cloud.store)


async def test_an_apply_counts_as_what_it_makes_and_all_or_none_of_it(cloud: Cloud, second_api: Client, project: str) -> None:
    await cloud.api.update("Quota", project, limits={"subnet_pools": 5})

    def some(count: int, name: str) -> list[Any]:
        return [item("SubnetPool", name=f"{name}{n}", prefixes=["10.0.0.0/8"]) for n in range(count)]

    error = await refused(apply(cloud.api, *some(6, "a"), project_id=project))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert await slots(cloud, project) == []
    applied = [apply(api, *some(2, f"{n}-"), project_id=project) for n, api in enumerate(turns(8, cloud.api, second_api))]
    made, errors = await outcomes(applied)
    assert len(made) == 2
    assert {error.reason for error in errors} == {"QUOTA_EXCEEDED"}
    assert await usage(cloud.api, project) == 4
    # One that brings its own room, and one that makes room by what it prunes.
    room = item("Quota", id=project, limits={"subnet_pools": 8})
    await apply(cloud.api, *some(4, "more"), room, project_id=project)
    tagged = [item("SubnetPool", name=f"t{n}", prefixes=["10.0.0.0/8"]) for n in range(8)]
    for pool in (await cloud.api.list("SubnetPool", project_id=project)).items:
        await cloud.api.update("SubnetPool", pool.id, tags=["old"])
    await apply(cloud.api, *tagged, project_id=project, prune_tag="old")
    assert await usage(cloud.api, project) == 8
    await consistent(cloud.store)


async def test_a_reader_sees_the_quota_of_its_project_and_of_no_other(cloud: Cloud, project: str) -> None:
    api = cloud.api
    await api.create("Network", by="alice")
    seen = await api.get("Quota", "demo", by="rita")
    assert (seen.usage["networks"], seen.limits["networks"], seen.effective_limits["networks"]) == (1, -1, -1)
    assert [found.id for found in (await api.list("Quota", by="rita")).items] == ["demo"]
    for object_id in ("other", "admin", project, "a/b", ".x"):
        error = await refused(api.get("Quota", object_id, by="rita"))
        assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
    error = await refused(api.update("Quota", "demo", by="anna", limits={"networks": 5}))
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "ROLE_REQUIRED")
    fresh = await api.get("Quota", project)
    assert (dict(fresh.limits), fresh.effective_limits["subnet_pools"], fresh.revision) == ({}, DEFAULT, 0)


@pytest.mark.parametrize("object_id", ["a/b", ".change", "a/network"])
async def test_no_id_of_a_quota_reaches_another_place_of_the_store(cloud: Cloud, object_id: str) -> None:
    before = await cloud.settled()
    for call in (
        cloud.api.update("Quota", object_id, limits={"ports": 1}),
        cloud.api.create("Quota", id=object_id, limits={"ports": 1}),
        cloud.api.delete("Quota", object_id),
    ):
        assert (await refused(call)).code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT)
    assert not await cloud.written_since(before)


async def test_what_is_no_limit_is_refused(cloud: Cloud, project: str) -> None:
    for limits in ({"sheep": 1}, {"ports": -2}, {"ports": quota.MOST}):
        error = await refused(cloud.api.update("Quota", project, limits=limits))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "VALUE_OUT_OF_RANGE")


async def test_deleted_a_quota_is_the_default_unless_more_is_in_use(cloud: Cloud, second_api: Client, project: str) -> None:
    api = cloud.api
    await api.update("Quota", project, limits={"subnet_pools": DEFAULT + 5})
    made = await exactly(cloud, second_api, project, DEFAULT + 5, DEFAULT + 5)
    error = await refused(api.delete("Quota", project))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "INCOMPATIBLE_STATE")
    assert f"more subnet pools may be in use than the {DEFAULT} of the default" in error.message
    for pool in made:
        await api.delete("SubnetPool", pool.id)
    await api.update("Quota", project, limits={"subnet_pools": DEFAULT})
    await exactly(cloud, second_api, project, 1, 1)
    await api.delete("Quota", project)
    assert (await api.get("Quota", project)).effective_limits["subnet_pools"] == DEFAULT
    await exactly(cloud, second_api, project, 40, DEFAULT - 1)
