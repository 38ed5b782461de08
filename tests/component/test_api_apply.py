"""Apply: many objects in one transaction, in any order, all or none (A-22, B-API-12, C-03)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from controlplane.registry import KINDS
from kumihimo.v1 import operations_pb2 as pb
from tests.component.cloud import Client, Cloud, Refused, consistent, refused

Code = grpc.StatusCode


def item(kind: str, key: str = "", fields: Sequence[str] = (), **values: Any) -> pb.ApplyObject:
    """An object of a request."""
    made = pb.ApplyObject(key=key)
    made.resource.Pack(KINDS[kind].message(**values))
    made.fields.paths.extend(fields)
    return made


async def apply(api: Client, *objects: pb.ApplyObject, by: str = "root", **request: Any) -> Any:
    message = pb.ApplyRequest(objects=objects, **request)
    return await api.call("Operations", "Apply", message, f"{by}-token")


def actions(reply: Any) -> dict[str, str]:
    return {found.name or found.id: pb.Action.Name(found.action).removeprefix("ACTION_") for found in reply.objects}


def topology() -> list[pb.ApplyObject]:
    return [
        item("Network", name="front"),
        item("Network", name="back"),
        item("Subnet", name="front-v4", network_id="front", cidr="10.0.0.0/24"),
        item("Subnet", name="back-v4", network_id="back", cidr="10.0.0.0/24"),
        item("Port", name="web", network_id="front", fixed_ips=[{"subnet_id": "front-v4"}]),
        item("Port", name="db", network_id="back", fixed_ips=[{"subnet_id": "back-v4", "ip_address": "10.0.0.9"}]),
    ]


async def test_a_22_any_order_by_names_keys_and_ids(cloud: Cloud) -> None:
    """Whatever the order: the same objects; a second time nothing changes."""
    for seed in range(6):
        objects = topology()
        random.Random(seed).shuffle(objects)
        reply = await apply(cloud.api, *objects, by="alice")
        assert set(actions(reply).values()) == {"CREATE"}
        assert len(reply.objects) == 6
        web = (await cloud.api.list("Port", by="alice", filter='name = "web"')).items[0]
        front = (await cloud.api.list("Network", by="alice", filter='name = "front"')).items[0]
        assert web.network_id == front.id
        assert {found.revision for found in (web, front)} == {reply.revision}
        random.Random(seed + 100).shuffle(objects)
        again = await apply(cloud.api, *objects, by="alice")
        assert set(actions(again).values()) == {"NONE"}
        assert again.revision == 0
        await consistent(cloud.store)
        await cloud.clear()


async def test_b_api_12_a_fault_anywhere_leaves_nothing_and_every_fault_is_told_with_its_place(cloud: Cloud) -> None:
    objects = topology()
    objects[2] = item("Subnet", name="front-v4", network_id="front", cidr="10.0.0.1/24")
    objects[5] = item("Port", name="db", network_id="nowhere")
    objects.append(item("Port", network_id="front"))
    objects.append(pb.ApplyObject())
    await cloud.settled()
    before = await cloud.store.revision()
    error = await refused(apply(cloud.api, *objects, by="alice"))
    assert error.metadata["faults"] == str(len(error.violations))
    places = {place.split(".")[0] for place, _, _ in error.violations}
    assert {"objects[2]", "objects[5]", "objects[6]", "objects[7]"} <= places
    told = await apply(cloud.api, *objects, by="alice", validate_only=True)
    assert [fault.index for fault in told.faults] == sorted(fault.index for fault in told.faults)
    assert {fault.index for fault in told.faults} >= {2, 5, 6, 7}
    assert {fault.reason for fault in told.faults if fault.index == 2} == {"CIDR_HOST_BITS_SET"}
    assert {fault.reason for fault in told.faults if fault.index == 5} == {"REFERENCE_NOT_FOUND"}
    assert not await cloud.written_since(before)


async def test_validate_only_tells_the_plan_and_changes_nothing(cloud: Cloud) -> None:
    await apply(cloud.api, *topology(), by="alice")
    await cloud.settled()
    before = await cloud.store.revision()
    objects = [
        item("Network", name="front", description="new"),
        item("Network", name="third"),
        item("Port", name="web", network_id="front", fields=["network_id", "tags"]),
    ]
    plan = await apply(cloud.api, *objects, by="alice", validate_only=True)
    assert actions(plan) == {"front": "UPDATE", "third": "CREATE", "web": "NONE"}
    change = next(found for found in plan.objects if found.name == "front")
    assert [(field.path, field.before, field.after) for field in change.fields] == [("description", "", "new")]
    assert not await cloud.written_since(before)


async def test_c_03_prune_deletes_what_is_left_out_in_a_safe_order(cloud: Cloud) -> None:
    await apply(cloud.api, *topology(), by="alice", prune_tag="shop")
    other = await cloud.api.create("Network", by="alice", name="not-ours")
    ports = (await cloud.api.list("Port", by="alice")).items
    assert all(list(port.tags) == ["shop"] for port in ports)
    reply = await apply(cloud.api, *topology()[:1], by="alice", prune_tag="shop")
    assert sorted(actions(reply).values()) == ["DELETE"] * 5 + ["NONE"]
    assert {found.name for found in (await cloud.api.list("Network", by="alice")).items} == {"front", "not-ours"}
    assert not (await cloud.api.list("Port", by="alice")).items
    assert not (await cloud.api.list("Subnet", by="alice")).items
    reply = await apply(cloud.api, by="alice", prune_tag="shop")
    assert actions(reply) == {"front": "DELETE"}
    assert (await cloud.api.get("Network", other.id, by="alice")).name == "not-ours"
    await consistent(cloud.store)


async def test_addresses_move_between_objects_of_one_request(cloud: Cloud) -> None:
    """What one object gives up another may take, in the same step."""
    await apply(cloud.api, *topology(), by="alice", prune_tag="t")
    objects = [*topology()[:5], item("Port", name="db2", network_id="back", fixed_ips=[{"ip_address": "10.0.0.9"}])]
    reply = await apply(cloud.api, *objects, by="alice", prune_tag="t")
    assert actions(reply)["db"] == "DELETE"
    assert actions(reply)["db2"] == "CREATE"
    await consistent(cloud.store)


async def test_b_prt_02_500_ports_at_once_all_or_none(cloud: Cloud) -> None:
    network = item("Network", name="wide")
    subnet = item("Subnet", name="wide-v4", network_id="wide", cidr="10.0.0.0/16")
    ports = [item("Port", name=f"p{number}", network_id="wide") for number in range(498)]
    reply = await apply(cloud.api, *ports, subnet, network, by="alice", request_id="five-hundred")
    assert len(reply.objects) == 500
    made = [port async for port in _all(cloud.api, "Port")]
    assert len({port.fixed_ips[0].ip_address for port in made}) == len({port.mac_address for port in made}) == 498
    assert {port.revision for port in made} == {reply.revision}
    assert await apply(cloud.api, *ports, subnet, network, by="alice", request_id="five-hundred") == reply
    error = await refused(apply(cloud.api, *ports, subnet, network, *topology(), by="alice"))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "TOO_MANY_VALUES")
    assert "506" in error.message
    await consistent(cloud.store)


async def _all(api: Client, kind: str) -> Any:
    token = ""
    while True:
        page = await api.list(kind, page_size=1000, page_token=token)
        for found in page.items:
            yield found
        token = page.next_page_token
        if not token:
            return


async def test_names_that_mean_several_or_none_are_faults(cloud: Cloud) -> None:
    for _ in range(2):
        await cloud.api.create("Network", by="alice", name="twin")
    told = await apply(cloud.api, item("Network", name="twin"), by="alice", validate_only=True)
    assert [fault.reason for fault in told.faults] == ["DUPLICATE_VALUE"]
    port = item("Port", name="p", network_id="twin")
    told = await apply(cloud.api, port, by="alice", validate_only=True)
    assert [(fault.reason, fault.field) for fault in told.faults] == [("DUPLICATE_VALUE", "network_id")]
    twice = [item("Network", name="one"), item("Network", name="one")]
    told = await apply(cloud.api, *twice, by="alice", validate_only=True)
    assert told.faults


async def test_policy_and_projects_hold_object_by_object(cloud: Cloud) -> None:
    theirs = await cloud.api.create("Network", by="bob", name="theirs")
    for objects, reason in (
        ([item("Node", id="h9")], "ROLE_REQUIRED"),
        ([item("Network", name="n", segmentation_id=7)], "FIELD_FORBIDDEN"),
        ([item("Network", name="n", project_id="other")], "FIELD_FORBIDDEN"),
        ([item("Port", name="p", network_id=theirs.id)], "REFERENCE_NOT_FOUND"),
        ([item("Network", id=theirs.id, name="mine")], "ID_TAKEN"),
    ):
        error = await refused(apply(cloud.api, *objects, by="alice"))
        assert reason in {found for _, found, _ in error.violations}, (error, error.violations)
    with pytest.raises(Refused, match="ROLE_REQUIRED"):
        await apply(cloud.api, by="rita")


async def test_an_apply_that_meets_other_writers_is_whole(cloud: Cloud, second_api: Client) -> None:
    """Two replicas apply the same file at once: one makes, and the other finds it made."""
    replies = await asyncio.gather(
        *(apply(api, *topology(), by="alice") for api in (cloud.api, second_api, cloud.api, second_api))
    )
    made = [reply for reply in replies if "CREATE" in actions(reply).values()]
    assert len(made) == 1
    assert all(set(actions(reply).values()) == {"NONE"} for reply in replies if reply is not made[0])
    await consistent(cloud.store)
