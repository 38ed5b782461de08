"""Segment ranges and physical networks: numbers come from the ranges that are open to the project, exactly (B-NET-08)."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import grpc
import pytest

from controlplane.services.segment import SEGMENTS
from controlplane.store import keys
from kumihimo.v1 import network_pb2
from tests.component import cloud as agent
from tests.component.cloud import Client, Cloud, consistent, refused
from tests.component.test_api_apply import actions, apply, item
from tests.component.test_api_controllers import reports
from tests.component.test_api_races import outcomes, turns
from tests.waiting import until

Code = grpc.StatusCode
VXLAN, VLAN, GRE, GENEVE, FLAT, LOCAL = (
    network_pb2.NetworkType.Value(f"NETWORK_TYPE_{name}") for name in ("VXLAN", "VLAN", "GRE", "GENEVE", "FLAT", "LOCAL")
)
ROUNDS = 10 if os.environ.get("KUMI_FULL") else 3


async def make_range(api: Client, minimum: int, maximum: int, *projects: str, **fields: Any) -> Any:
    given = {"network_type": VXLAN, "minimum": minimum, "maximum": maximum, "projects": projects, **fields}
    return await api.create("NetworkSegmentRange", **given)


async def numbers(api: Client, project: str, count: int) -> list[int]:
    return [(await api.create("Network", project_id=project)).segmentation_id for _ in range(count)]


def spans(found: Any) -> list[tuple[int, int]]:
    return [(span.minimum, span.maximum) for span in found]


async def test_b_net_08_numbers_come_from_the_ranges_open_to_the_project(cloud: Cloud) -> None:
    api = cloud.api
    await make_range(api, 100, 102, "demo")
    await make_range(api, 200, 201, "demo", "other")
    await make_range(api, 1, 4000, network_type=GRE)
    assert set(await numbers(api, "demo", 3)) == {100, 101, 102}
    assert set(await numbers(api, "demo", 1) + await numbers(api, "other", 1)) == {200, 201}
    for project, said in (("demo", "100 to 102, 200 to 201"), ("other", "every number of 200 to 201 is in use for VXLAN")):
        error = await refused(api.create("Network", project_id=project))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "NO_FREE_SEGMENT")
        assert said in error.message
    error = await refused(api.create("Network"))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "NO_FREE_SEGMENT")
    assert "no range of VXLAN numbers is open to project admin" in error.message
    # By name an operator may have any.
    assert (await api.create("Network", segmentation_id=5000)).segmentation_id == 5000
    # A range more, at run time, helps at once.
    more = await make_range(api, 300, 300)
    assert await numbers(api, "admin", 1) == [300]
    more = await api.update("NetworkSegmentRange", more.id, maximum=301)
    assert await numbers(api, "other", 1) == [301]
    await consistent(cloud.store)


async def test_without_a_range_of_the_type_an_overlay_has_all_its_numbers(cloud: Cloud) -> None:
    await make_range(cloud.api, 1, 4000, network_type=GRE)
    low, high = SEGMENTS[VXLAN]
    (number,) = await numbers(cloud.api, "demo", 1)
    assert low <= number <= high


async def test_b_net_08_what_is_in_use_cannot_be_taken_out_of_a_range(cloud: Cloud) -> None:
    api = cloud.api
    found = await make_range(api, 100, 119, "demo", "other", name="tenants")
    low = await api.create("Network", project_id="demo", name="low", segmentation_id=101)
    high = await api.create("Network", project_id="other", name="high", segmentation_id=118)
    await api.create("Network", project_id="admin", segmentation_id=119)  # no network that the range serves
    now = await api.get("NetworkSegmentRange", found.id)
    assert (spans(now.used), spans(now.available)) == ([(101, 101), (118, 119)], [(100, 100), (102, 117)])
    before = await cloud.settled()
    for change, user in (
        ({"minimum": 102}, low),
        ({"maximum": 117}, high),
        ({"minimum": 110, "maximum": 112}, low),
        ({"projects": ["demo"]}, high),
        ({"projects": ["other", "third"]}, low),
    ):
        error = await refused(api.update("NetworkSegmentRange", found.id, mask=list(change), **change))
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE")
        assert f"Network {user.name} ({user.id}) with {user.segmentation_id}" in error.message
    error = await refused(api.delete("NetworkSegmentRange", found.id))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE")
    assert f"NetworkSegmentRange tenants ({found.id}) is in use by 2: " in error.message
    assert not await cloud.written_since(before)
    await api.update("NetworkSegmentRange", found.id, minimum=101, maximum=118)
    await api.update("NetworkSegmentRange", found.id, mask=["projects"])
    await api.delete("Network", low.id)
    await api.delete("Network", high.id)
    await api.delete("NetworkSegmentRange", found.id)


async def test_b_net_08_40_creators_on_two_replicas_empty_a_range(cloud: Cloud, second_api: Client) -> None:
    await make_range(cloud.api, 1000, 1029)
    made, errors = await outcomes(api.create("Network") for api in turns(40, cloud.api, second_api))
    assert sorted(network.segmentation_id for network in made) == list(range(1000, 1030))
    assert {error.reason for error in errors} == {"NO_FREE_SEGMENT"}
    await consistent(cloud.store)


@pytest.mark.parametrize("change", ["shrink", "close", "delete"])
async def test_a_number_that_is_drawn_against_a_range_that_ends(cloud: Cloud, second_api: Client, change: str) -> None:
    """Either the network has its number and the range stays, or the range is without it and the network has another."""
    ends: Counter[str] = Counter()
    for turn in range(ROUNDS * 2):
        await make_range(cloud.api, 1, 9, "nobody")  # or, without any, every number would be free
        found = await make_range(cloud.api, 500, 501, "demo")
        await second_api.list("NetworkSegmentRange")
        one, other = (cloud.api, second_api) if turn % 2 else (second_api, cloud.api)
        match change:
            case "shrink":
                ended = one.update("NetworkSegmentRange", found.id, minimum=501)
            case "close":
                ended = one.update("NetworkSegmentRange", found.id, projects=["other"])
            case _:
                ended = one.delete("NetworkSegmentRange", found.id)
        calls = [ended, *(other.create("Network", project_id="demo") for _ in range(2))]
        made, errors = await outcomes(calls[:: 1 if turn % 4 < 2 else -1])
        assert {error.reason for error in errors} <= {"RESOURCE_IN_USE", "NO_FREE_SEGMENT"}
        drawn = {item.segmentation_id for item in made if item.DESCRIPTOR.name == "Network"}
        left = (await cloud.api.list("NetworkSegmentRange", filter=f'id = "{found.id}"')).items
        if left and "demo" in left[0].projects:
            assert drawn <= set(range(left[0].minimum, left[0].maximum + 1)), "only what the range still has"
            ends["kept" if left[0].minimum == 500 else "shrunk"] += 1
        else:
            assert not drawn & {500, 501}, "nothing of what nobody may have any more"
            ends["ended"] += 1
        await consistent(cloud.store)
        await cloud.clear()
        await cloud.settled()
    assert sum(ends.values()) == ROUNDS * 2


async def test_of_ranges_made_at_once_that_overlap_one_stays(cloud: Cloud, second_api: Client) -> None:
    for _ in range(ROUNDS):
        made, errors = await outcomes(
            make_range(api, 100 + number, 110 + number, *projects)
            for number, (api, projects) in enumerate(
                zip(turns(4, cloud.api, second_api), [("a", "b"), ("b", "c"), (), ("b",)], strict=True)
            )
        )
        assert len(made) == 1
        assert {(error.code, error.reason) for error in errors} == {(Code.ALREADY_EXISTS, "SEGMENT_TAKEN")}
        assert all(made[0].id in error.message for error in errors)
        await cloud.api.delete("NetworkSegmentRange", made[0].id)
    await make_range(cloud.api, 100, 110, "a")
    await make_range(cloud.api, 100, 110, "b")


async def test_a_tenant_sees_ranges_and_no_other_tenant(cloud: Cloud) -> None:
    api = cloud.api
    found = await make_range(api, 100, 110, "demo", "other", "secret")
    await api.update("NetworkSegmentRange", found.id, name="renamed")
    for by in ("alice", "rita"):
        views = [
            await api.get("NetworkSegmentRange", found.id, by=by),
            (await api.list("NetworkSegmentRange", by=by)).items[0],
            (await api.list("NetworkSegmentRange", by=by, at_revision=found.revision)).items[0],
        ]
        for seen in views:
            assert (list(seen.projects), spans(seen.used), spans(seen.available)) == (["demo"], [], [])
    assert (await api.list("NetworkSegmentRange", by="alice", filter='projects:"secret"')).items == []


# -- physical networks ------------------------------------------------------------------------------------------------


async def test_physical_networks_and_the_nodes_on_them(cloud: Cloud) -> None:
    api = cloud.api
    await api.create("PhysicalNetwork", id="physnet1", mtu=9000)
    await api.create("Node", id="n1", bridge_mappings={"physnet1": "br-ex"})
    await api.create("Node", id="n2")
    assert list((await api.get("PhysicalNetwork", "physnet1")).nodes) == ["n1"]
    await api.update("Node", "n2", bridge_mappings={"physnet1": "eth1"})
    assert list((await api.get("PhysicalNetwork", "physnet1")).nodes) == ["n1", "n2"]
    seen = await api.get("PhysicalNetwork", "physnet1", by="alice")
    assert (seen.mtu, list(seen.nodes)) == (9000, []), "hosts are shown to operators only"
    vlans = await make_range(api, 1, 100, network_type=VLAN, physical_network="physnet1")
    error = await refused(api.delete("PhysicalNetwork", "physnet1"))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE")
    assert f"in use by 3: NetworkSegmentRange {vlans.id}, Node n1, Node n2" in error.message
    await api.delete("NetworkSegmentRange", vlans.id)
    await api.update("Node", "n1", mask=["bridge_mappings"])
    await api.delete("Node", "n2")
    await api.delete("PhysicalNetwork", "physnet1")
    error = await refused(api.update("Node", "n1", bridge_mappings={"physnet1": "br-ex"}))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "REFERENCE_NOT_FOUND")


@pytest.mark.parametrize("user", ["Node", "NetworkSegmentRange"])
async def test_a_physical_network_that_is_deleted_against_who_names_it(cloud: Cloud, second_api: Client, user: str) -> None:
    for turn in range(ROUNDS):
        await cloud.api.create("PhysicalNetwork", id="p")
        named = (
            second_api.create("Node", id="n", bridge_mappings={"p": "br-ex"})
            if user == "Node"
            else make_range(second_api, 1, 100, network_type=VLAN, physical_network="p")
        )
        calls = [cloud.api.delete("PhysicalNetwork", "p"), named]
        made, errors = await outcomes(calls[:: 1 if turn % 2 else -1])
        assert len(made) == len(errors) == 1
        assert errors[0].reason in ("RESOURCE_IN_USE", "REFERENCE_NOT_FOUND")
        await cloud.clear()
        await cloud.settled()


async def test_b_net_12_the_physical_network_bounds_the_mtu_of_what_it_carries(cloud: Cloud) -> None:
    api = cloud.api
    await api.create("PhysicalNetwork", id="wide", mtu=9000)
    await api.create("PhysicalNetwork", id="plain")
    await make_range(api, 100, 100, network_type=VLAN, physical_network="wide")
    network = await api.create("Network", network_type=VLAN)
    assert (network.physical_network, network.segmentation_id, network.mtu) == ("wide", 100, 9000)
    flat = await api.create("Network", network_type=FLAT, physical_network="plain")
    assert flat.mtu == 1500
    for fields, mtu, most in (
        ({"network_type": FLAT, "physical_network": "wide"}, 9001, 9000),
        ({"network_type": VLAN, "physical_network": "plain", "segmentation_id": 7}, 1501, 1500),
        ({"network_type": VLAN, "physical_network": "plain", "segmentation_id": 7}, 67, 1500),
    ):
        error = await refused(api.create("Network", mtu=mtu, **fields))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "VALUE_OUT_OF_RANGE")
        assert f"mtu is {mtu}; 68 to {most} is accepted for physical network {fields['physical_network']}" in error.message
    error = await refused(api.update("Network", flat.id, mtu=1501))
    assert error.reason == "VALUE_OUT_OF_RANGE"
    # A lower one of the wire leaves networks as they are, until somebody changes theirs.
    await api.update("PhysicalNetwork", "wide", mtu=4000)
    assert (await api.update("Network", network.id, name="kept")).mtu == 9000
    assert (await api.update("Network", network.id, mask=["mtu"])).mtu == 4000
    await consistent(cloud.store)


async def test_b_net_07_what_is_taken_of_a_wire_names_its_holder(cloud: Cloud) -> None:
    api = cloud.api
    await api.create("PhysicalNetwork", id="p")
    await api.create("PhysicalNetwork", id="q")
    for fields, what in (
        ({"network_type": FLAT}, "physical_network p"),
        ({"network_type": VLAN, "segmentation_id": 7}, "segmentation_id 7"),
    ):
        holder = await api.create("Network", name=f"first {what}", physical_network="p", **fields)
        error = await refused(api.create("Network", physical_network="p", **fields))
        assert (error.code, error.reason) == (Code.ALREADY_EXISTS, "SEGMENT_TAKEN")
        assert f"{what} is taken by Network first {what} ({holder.id})" in error.message
        assert (await api.create("Network", physical_network="q", **fields)).segmentation_id == holder.segmentation_id
        error = await refused(api.create("Network", by="anna", physical_network="p", **fields))
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "FIELD_FORBIDDEN")
    await consistent(cloud.store)


async def test_b_net_12_types_and_family_of_the_underlay_decide_the_default_mtu(cloud: Cloud) -> None:
    """Underlay less overhead: VXLAN and Geneve 50, GRE 42, and 20 more over IPv6."""
    api, kinds = cloud.api, {VXLAN: 50, GENEVE: 50, GRE: 42, LOCAL: 0}
    for version, more in ((4, 0), (6, 20)):
        await api.update("Settings", keys.INSTALLATION, underlay_ip_version=version)
        for kind, overhead in kinds.items():
            most = 1500 - (overhead + more if overhead else 0)
            assert (await api.create("Network", network_type=kind)).mtu == most
            error = await refused(api.create("Network", network_type=kind, mtu=most + 1))
            assert f"68 to {most} is accepted" in error.message
    await api.delete("Settings", keys.INSTALLATION)


async def test_tunnel_addresses_are_of_one_family(cloud: Cloud) -> None:
    api = cloud.api
    await api.create("Node", id="old", tunnel_ip="192.0.2.1")
    error = await refused(api.create("Node", id="new", tunnel_ip="fd00::1"))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "IP_INVALID")
    assert "the underlay of this installation is of IPv4, so an IPv4 address is accepted" in error.message
    error = await refused(api.update("Settings", keys.INSTALLATION, underlay_ip_version=6))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE")
    assert "Node old" in error.message
    await api.delete("Node", "old")
    await api.update("Settings", keys.INSTALLATION, underlay_ip_version=6)
    assert (await api.create("Node", id="new", tunnel_ip="FD00::0001")).tunnel_ip == "fd00::1"
    await cloud.write(reports("bare", "192.0.2.9", "fd00::1", "fd00::2"))
    await api.create("Node", id="bare")

    async def chosen() -> str:
        return str((await api.get("Node", "bare")).tunnel_ip)

    assert await until(chosen, "an address is chosen") == "fd00::2", "of the family, and free"
    unset = api.update("Settings", keys.INSTALLATION, mask=["underlay_ip_version"])
    for call in (unset, api.delete("Settings", keys.INSTALLATION)):
        assert (await refused(call)).reason == "RESOURCE_IN_USE"
    await api.delete("Node", "new")
    await api.delete("Node", "bare")
    await api.delete("Settings", keys.INSTALLATION)


async def test_a_mapping_stays_while_a_port_of_the_node_is_on_it(cloud: Cloud) -> None:
    api = cloud.api
    await api.create("PhysicalNetwork", id="p")
    await api.create("PhysicalNetwork", id="q")
    await api.create("Node", id="n1", bridge_mappings={"p": "eth1", "q": "eth2"})
    network = await api.create("Network", network_type=FLAT, physical_network="p")
    port = await api.create("Port", network_id=network.id, no_fixed_ips=True)
    await cloud.write(agent.plugged("n1", port.id))

    async def bound() -> bool:
        return bool((await api.get("Port", port.id)).binding)

    await until(bound, "the port is bound")
    await api.update("Node", "n1", bridge_mappings={"p": "br-ex"})
    error = await refused(api.update("Node", "n1", mask=["bridge_mappings"]))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE")
    assert f"Port {port.id} on p" in error.message
    await cloud.write(agent.unplugged("n1", port.id))

    async def unbound() -> bool:
        return not await bound()

    await until(unbound, "the port is unbound")
    await api.update("Node", "n1", mask=["bridge_mappings"])


async def test_a_22_what_the_underlay_is_made_of_in_one_request(cloud: Cloud) -> None:
    objects = [
        item("Node", id="n1", bridge_mappings={"p": "br-ex"}),
        item("NetworkSegmentRange", name="vlans", network_type=VLAN, physical_network="p", minimum=1, maximum=9),
        item("Network", name="net"),
        item("NetworkSegmentRange", name="overlay", network_type=VXLAN, minimum=70, maximum=70),
        item("PhysicalNetwork", id="p"),
    ]
    for turn in range(5):
        ordered = objects[turn:] + objects[:turn]
        assert set(actions(await apply(cloud.api, *ordered)).values()) == {"CREATE"}
        assert set(actions(await apply(cloud.api, *reversed(ordered))).values()) == {"NONE"}
        assert [network.segmentation_id for network in (await cloud.api.list("Network")).items] == [70]
        await cloud.clear()
        await cloud.settled()
