"""The standard methods, the same for every kind: masks, etags, replays, pages, filters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from controlplane.registry import KINDS
from controlplane.services.kernel import MADE_AT_READ
from controlplane.store import client as operations
from controlplane.store import keys
from controlplane.store.txn import time_ordered_id
from controlplane.validate import IMMUTABLE, OUTPUT_ONLY, REQUIRED, behaves
from kumihimo.v1 import operations_pb2, store_pb2
from tests.component import rows
from tests.component.cloud import Client, Cloud, Refused, consistent, refused, service_of
from tests.waiting import until

Code = grpc.StatusCode
EVERY = [name for name, kind in KINDS.items() if not kind.options.implicit]
Make = Callable[..., Awaitable[Any]]


@pytest.fixture
async def make(api: Client) -> Make:
    """Makes an object of any kind, in a new parent where it needs one."""
    count = 0

    async def one(kind: str, *, by: str = "root", request: dict[str, Any] | None = None, **fields: Any) -> Any:
        nonlocal count
        count += 1
        if KINDS[kind].parent not in fields:
            fields |= await rows.parent(api, kind, by)
        return await api.create(kind, by=by, request=request, **{**rows.sample(kind, count), **fields})

    return one


def needed(item: Any) -> dict[str, Any]:
    """What a full replacement of an object has to state."""
    fields = item.DESCRIPTOR.fields_by_name
    names = [name for name in fields if behaves(fields[name], REQUIRED) and not behaves(fields[name], IMMUTABLE)]
    return {name: getattr(item, name) for name in [*names, *(["cidr"] if "cidr" in fields else [])]}


@pytest.mark.parametrize("kind", EVERY)
async def test_b_prt_01_create_get_list_update_delete(cloud: Cloud, make: Make, kind: str) -> None:
    api = cloud.api
    item = await make(kind, name="one", description="first", tags=["b", "a"])
    assert list(item.tags) == ["a", "b"]
    assert item.creator == item.last_modifier == "root"
    assert item.create_time.ToNanoseconds() > 0
    assert item.revision > 0
    assert item.etag
    assert await api.get(kind, item.id) == item
    listed = (await api.list(kind)).items
    assert [found for found in listed if found.id == item.id] == [item]
    changed = await api.update(kind, item.id, name="two")
    assert (changed.name, changed.description) == ("two", "first")
    assert changed.revision > item.revision
    assert changed.etag != item.etag
    assert changed.create_time == item.create_time
    assert changed.update_time.ToNanoseconds() > item.update_time.ToNanoseconds()
    assert await api.get(kind, item.id) == changed
    gone = await api.delete(kind, item.id)
    assert gone.revision > changed.revision
    for call in (api.get(kind, item.id), api.update(kind, item.id, name="x"), api.delete(kind, item.id)):
        error = await refused(call)
        assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
        assert error.message == f"{kind} {item.id} does not exist"
        assert error.details["ResourceInfo"].resource_type == kind
        assert error.details["ResourceInfo"].resource_name == item.id
    assert item.id not in [found.id for found in (await api.list(kind)).items]
    await consistent(cloud.store)


@pytest.mark.parametrize("kind", EVERY)
async def test_masks(api: Client, make: Make, kind: str) -> None:
    item = await make(kind, name="one", description="first", tags=["a"])
    # None: every field that is set.
    changed = await api.update(kind, item.id, description="second")
    assert (changed.name, changed.description, list(changed.tags)) == ("one", "second", ["a"])
    # Named: what is unset is cleared, what is not named stays.
    changed = await api.update(kind, item.id, mask=["tags", "name"], name="two", description="ignored")
    assert (changed.name, changed.description, list(changed.tags)) == ("two", "second", [])
    # Everything: what is unset goes back to its default; what cannot change stays.
    changed = await api.update(kind, item.id, mask=["*"], name="three", **needed(item))
    assert (changed.name, changed.description) == ("three", "")
    for descriptor in KINDS[kind].descriptor.fields:
        if behaves(descriptor, IMMUTABLE):
            assert getattr(changed, descriptor.name) == getattr(item, descriptor.name)
    for paths in (["colour"], ["name", "tags.x"], ["*", "colour"]):
        error = await refused(api.update(kind, item.id, mask=paths, name="four"))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "FIELD_MASK_INVALID")
        assert "is no field of" in error.message
    assert (await api.get(kind, item.id)).name == "three"
    error = await refused(api.update(kind, ""))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "MISSING_FIELD")


@pytest.mark.parametrize("kind", EVERY)
async def test_output_fields_are_ignored_on_input(api: Client, make: Make, kind: str) -> None:
    fields = {"state": 5, "revision": 9, "creator": "mallory", "conditions": [{"type": "x"}]}
    item = await make(kind, **fields)
    assert (item.state, item.creator) != (5, "mallory")
    assert item.creator == "root"
    assert item.revision > 9 or item.revision != 9
    changed = await api.update(kind, item.id, mask=list(fields), **fields)
    assert changed == await api.get(kind, item.id)
    assert changed.revision == item.revision


async def test_unset_port_security_is_the_networks_value_and_never_off(api: Client, make: Make) -> None:
    port = await make("Port", port_security_enabled=True)
    for mask in (["*"], ["port_security_enabled"]):
        changed = await api.update("Port", port.id, mask=mask)
        assert changed.HasField("port_security_enabled")
        assert changed.port_security_enabled
    open_network = await make("Network", port_security_enabled=False)
    assert not (await make("Port", network_id=open_network.id)).port_security_enabled
    pairs = [{"ip_address": "10.7.0.1/32"}]
    error = await refused(make("Port", network_id=open_network.id, allowed_address_pairs=pairs))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "INCOMPATIBLE_STATE")


@pytest.mark.parametrize("kind", EVERY)
async def test_b_api_05_an_etag_guards_update_and_delete(api: Client, make: Make, kind: str) -> None:
    item = await make(kind)
    changed = await api.update(kind, item.id, name="two", etag=item.etag)
    for call in (api.update(kind, item.id, name="three", etag=item.etag), api.delete(kind, item.id, etag=item.etag)):
        error = await refused(call)
        assert (error.code, error.reason) == (Code.ABORTED, "ETAG_MISMATCH")
        assert error.metadata["etag"] == changed.etag
    await api.delete(kind, item.id, etag=changed.etag)


async def test_b_api_05_no_update_is_lost_in_a_race_of_50_writers(api: Client, second_api: Client, make: Make) -> None:
    item = await make("Network", description="0")

    async def add_one(by: Client) -> None:
        while True:
            seen = await by.get("Network", item.id)
            call = by.update("Network", item.id, description=str(int(seen.description) + 1), etag=seen.etag)
            try:
                await call
            except Refused as error:
                error.must_be("ETAG_MISMATCH", "CONCURRENT_CHANGE")
            else:
                return

    await asyncio.gather(*(add_one((api, second_api)[number % 2]) for number in range(50)))
    assert (await api.get("Network", item.id)).description == "50"


@pytest.mark.parametrize("kind", EVERY)
async def test_deletion_protection(cloud: Cloud, make: Make, kind: str) -> None:
    api = cloud.api
    item = await make(kind, deletion_protection=True, name="kept")
    before = await cloud.settled()
    for force in (False, True):
        error = await refused(api.delete(kind, item.id, force=force))
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "DELETION_PROTECTED")
        assert f"{kind} kept ({item.id})" in error.message
    assert not await cloud.written_since(before)
    await api.update(kind, item.id, mask=["deletion_protection"])
    await api.delete(kind, item.id)


@pytest.mark.parametrize("kind", ["Port", "Subnet"])
async def test_b_net_18_force_does_not_delete_a_protected_child(api: Client, make: Make, kind: str) -> None:
    child = await make(kind, deletion_protection=True, name="kept")
    error = await refused(api.delete("Network", child.network_id, force=True))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "DELETION_PROTECTED")
    assert f"{kind} kept ({child.id})" in error.message
    await api.get(kind, child.id)


async def test_b_net_18_force_deletes_children_and_spares_what_has_an_owner(cloud: Cloud, make: Make) -> None:
    api = cloud.api
    network = await make("Network", name="n")
    subnet = await make("Subnet", network_id=network.id)
    ports = [await make("Port", network_id=network.id) for _ in range(3)]
    owned = await make("Port", network_id=network.id, device_owner="compute:one")
    error = await refused(api.delete("Network", network.id))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE")
    for child in (subnet, *ports, owned):
        assert child.id in error.message
    error = await refused(api.delete("Network", network.id, force=True))
    assert error.metadata["count"] == "1"
    assert owned.id in error.message
    await api.delete("Port", owned.id)
    await api.delete("Network", network.id, force=True)
    for child, kind in [(subnet, "Subnet"), *[(port, "Port") for port in ports]]:
        assert (await refused(api.get(kind, child.id))).code is Code.NOT_FOUND
    entries = await consistent(cloud.store)
    assert not [key for key in entries if network.id in key and not key.startswith(keys.CHANGES)]


async def test_b_net_18_subnets_without_ports_go_with_their_network_unasked(cloud: Cloud, make: Make) -> None:
    """In its transaction, each with its history; a protected one stays, and so does the network."""
    api = cloud.api
    network = await make("Network", by="alice")
    subnets = [await make("Subnet", network_id=network.id, cidr=cidr) for cidr in ("10.0.0.0/24", "fd00::/64")]
    port = await make("Port", network_id=network.id)
    error = await refused(api.delete("Network", network.id, by="alice"))
    assert (error.code, error.reason, error.metadata["count"]) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE", "3")
    await api.delete("Port", port.id)
    await api.update("Subnet", subnets[1].id, deletion_protection=True)
    error = await refused(api.delete("Network", network.id, by="alice"))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "DELETION_PROTECTED")
    assert subnets[1].id in error.message
    await api.get("Subnet", subnets[0].id)
    await api.update("Subnet", subnets[1].id, deletion_protection=False, mask=["deletion_protection"])
    gone = await api.delete("Network", network.id, by="alice")
    for subnet in subnets:
        assert (await refused(api.get("Subnet", subnet.id))).code is Code.NOT_FOUND
        asked = operations_pb2.ListChangesRequest(id=subnet.id, page_size=1)
        (change,) = (await api.call("Operations", "ListChanges", asked, "alice-token")).items
        assert (change.method, change.revision) == ("kumihimo.v1.Networks/Delete", gone.revision)
    entries = await consistent(cloud.store)
    assert not [key for key in entries if network.id in key and not key.startswith(keys.CHANGES)]


async def test_b_prt_16_a_service_port_is_deleted_by_operators_only(api: Client) -> None:
    network = await api.create("Network", by="alice")
    port = await api.create("Port", network_id=network.id, device_owner="network:router", device_id="r1")
    # A member may change what is no operator's.
    assert (await api.update("Port", port.id, by="alice", name="mine")).name == "mine"
    error = await refused(api.update("Port", port.id, by="alice", device_owner="network:dhcp"))
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "FIELD_FORBIDDEN")
    error = await refused(api.delete("Port", port.id, by="alice", force=True))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "OWNED_BY_SERVICE")
    assert "network:router r1" in error.message
    await api.delete("Port", port.id)


@pytest.mark.parametrize("kind", EVERY)
async def test_allow_missing(cloud: Cloud, make: Make, kind: str) -> None:
    api = cloud.api
    fields = {**rows.sample(kind, 0), **await rows.parent(api, kind)}
    fields.pop("id", None)
    new_id = "absent" if KINDS[kind].options.operator_named else time_ordered_id()
    before = await cloud.settled()
    await api.delete(kind, new_id, allow_missing=True)
    assert not await cloud.written_since(before)
    request = {"allow_missing": True, "request_id": f"upsert-{kind}"}
    made = await api.update(kind, new_id, name="made", request=request, **fields)
    assert (made.id, made.name) == (new_id, "made")
    # C-13: the same request again finds the object there, and is still the same request.
    assert await api.update(kind, new_id, name="made", request=request, **fields) == made
    changed = await api.update(kind, new_id, name="changed", request={"allow_missing": True})
    assert changed.create_time == made.create_time
    first = await api.delete(kind, new_id, allow_missing=True, request_id=f"gone-{kind}")
    assert await api.delete(kind, new_id, allow_missing=True, request_id=f"gone-{kind}") == first


@pytest.mark.parametrize("kind", EVERY)
async def test_b_api_11_validate_only_changes_nothing(cloud: Cloud, make: Make, kind: str) -> None:
    api = cloud.api
    item = await make(kind, name="one")
    before = await cloud.settled()
    fields = rows.sample(kind, 100)
    if KINDS[kind].parent:
        fields = {**fields, KINDS[kind].parent: KINDS[kind].parent_of(item)}
    dry = {"validate_only": True, "request_id": f"dry-run-{kind}"}
    planned = await api.create(kind, request=dry, **fields)
    assert (await refused(api.get(kind, planned.id))).code is Code.NOT_FOUND
    assert (await api.update(kind, item.id, name="two", request=dry)).name == "two"
    await api.delete(kind, item.id, validate_only=True)
    await refused(api.update(kind, item.id, name="n" * 256, request=dry))
    assert await api.get(kind, item.id) == item
    assert not await cloud.written_since(before)
    await api.create(kind, request={"request_id": f"dry-run-{kind}"}, **fields)  # the name is not used up by it


@pytest.mark.parametrize("kind", EVERY)
async def test_b_api_09_and_c_13_a_named_request_acts_once(cloud: Cloud, second_api: Client, make: Make, kind: str) -> None:
    api = cloud.api
    name = f"replay-{kind}"
    fields = {**rows.sample(kind, 0), **await rows.parent(api, kind)}

    async def create(by: Client, **changed: Any) -> Any:
        return await by.create(kind, request={"request_id": name}, **{**fields, "name": "one", **changed})

    first = await create(api)
    before = await cloud.settled()
    assert await create(api) == first
    assert await create(second_api) == first
    assert not await cloud.written_since(before)
    error = await refused(create(api, name="two"))
    assert (error.code, error.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert name in error.message
    update = {"request_id": f"{name}-update"}
    changed = await api.update(kind, first.id, name="three", request=update)
    assert await api.update(kind, first.id, name="three", request=update) == changed
    nothing = {"request_id": f"{name}-nothing"}
    same = await api.update(kind, first.id, name="three", request=nothing)
    again = await second_api.update(kind, first.id, name="three", request=nothing)
    assert (again.etag, again.revision) == (same.etag, same.revision) == (changed.etag, changed.revision)
    gone = await api.delete(kind, first.id, request_id=f"{name}-delete")
    assert await second_api.delete(kind, first.id, request_id=f"{name}-delete") == gone
    # The first result, also when the object is gone by now.
    assert (await create(api)).id == first.id
    error = await refused(api.create(kind, request={"request_id": "r" * 65}, **fields))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "STRING_TOO_LONG")
    await consistent(cloud.store)


async def test_b_api_09_twenty_at_once_of_one_request_make_one_object(cloud: Cloud, second_api: Client) -> None:
    clients = (cloud.api, second_api)
    replies = await asyncio.gather(
        *(clients[n % 2].create("Network", name="once", request={"request_id": "crowd"}) for n in range(20))
    )
    assert len({reply.id for reply in replies}) == 1
    listed = (await cloud.api.list("Network", filter='name = "once"')).items
    assert [item.id for item in listed] == [replies[0].id]
    await consistent(cloud.store)


async def test_b_api_09_request_ids_of_two_callers_do_not_meet(api: Client) -> None:
    one = await api.create("Network", by="alice", request={"request_id": "same"})
    other = await api.create("Network", by="bob", request={"request_id": "same"})
    assert one.id != other.id


@pytest.mark.parametrize("kind", EVERY)
async def test_b_api_07_pages_show_everything_exactly_once_under_writes(
    cloud: Cloud, second_api: Client, make: Make, kind: str
) -> None:
    fields = await rows.parent(cloud.api, kind)
    there = {(await make(kind, **fields)).id for _ in range(25)}
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            item = await make(kind, **fields, tags=["passing"])
            await second_api.update(kind, min(there), description=item.id)
            await cloud.api.delete(kind, item.id)

    writer = asyncio.create_task(write())
    try:
        for size in (1, 4, 7):
            seen: Counter[str] = Counter()
            token = ""
            while True:
                page = await cloud.api.list(kind, page_size=size, page_token=token)
                assert len(page.items) <= size
                assert page.revision > 0
                seen.update(item.id for item in page.items)
                token = page.next_page_token
                if not token:
                    break
            assert {item: seen[item] for item in there} == dict.fromkeys(there, 1)
            assert max(seen.values()) == 1
    finally:
        stop.set()
        await writer
    everything = await cloud.api.list(kind, page_size=5000)
    assert there <= {item.id for item in everything.items}
    assert [item.id for item in everything.items] == sorted(item.id for item in everything.items)


async def test_list_refuses_what_is_malformed(api: Client) -> None:
    for request, reason in (
        ({"page_size": -1}, "VALUE_OUT_OF_RANGE"),
        ({"page_token": "?"}, "PAGE_TOKEN_INVALID"),
        ({"page_token": "ü"}, "PAGE_TOKEN_INVALID"),
        ({"filter": "name"}, "FILTER_INVALID"),
        ({"filter": 'colour = "red"'}, "FILTER_INVALID"),
    ):
        error = await refused(api.list("Network", **request))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, reason)


async def test_b_api_07_order_and_field_selection(cloud: Cloud, make: Make) -> None:
    network = await make("Network", name="ordered")
    await make("Subnet", network_id=network.id, cidr="10.0.0.0/24")
    for name in ("b", "a", "c", "a"):
        await make("Port", network_id=network.id, name=name)
    mine = f'network_id = "{network.id}"'
    for order_by, expected in (("name", "aabc"), ("name desc", "cbaa"), ("revision desc", "acab")):
        names, token = "", ""
        while True:
            page = await cloud.api.list("Port", filter=mine, order_by=order_by, page_size=3, page_token=token)
            names += "".join(item.name for item in page.items)
            token = page.next_page_token
            if not token:
                break
        assert names == expected, order_by
    error = await refused(cloud.api.list("Port", order_by="colour"))
    assert error.reason == "ORDER_BY_INVALID"
    items = (await cloud.api.list("Port", filter=mine, read_mask={"paths": ["name"]})).items
    assert all(item.id and item.name and not item.mac_address and not item.fixed_ips for item in items)


async def test_b_api_07_filter(cloud: Cloud, make: Make) -> None:
    api = cloud.api
    network = await make("Network", name='say "hi"', tags=["red", "blue"])
    await make("Network", name="other", tags=["blue"])
    await make("Subnet", network_id=network.id, cidr="10.0.0.0/24")
    port = await make("Port", network_id=network.id, name="web", admin_state_up=False)
    await make("Port", network_id=network.id, name="db")

    async def ids(kind: str, text: str, by: str = "root") -> list[str]:
        return [item.id for item in (await api.list(kind, by=by, filter=text)).items]

    assert await ids("Network", 'name = "say \\"hi\\""') == [network.id]
    assert await ids("Network", 'tags = "red"') == [network.id]
    assert len(await ids("Network", 'tags="blue"')) == 2
    assert await ids("Network", 'tags="blue" AND tags="red"') == [network.id]
    assert await ids("Port", 'fixed_ips.ip_address = "10.0.0.2"') == [port.id]
    assert await ids("Port", f'network_id = "{network.id}" AND admin_state_up = "false"') == [port.id]
    # What is made at read can be asked for too, and shows each caller what it may see.
    assert len(await ids("Port", f'network_id = "{network.id}" AND state = "STATE_DOWN"')) == 2
    assert await ids("Port", 'state = "STATE_ERROR"') == []
    error = await refused(api.list("Node", filter='bridge_mappings.key = "p"'))
    assert error.reason == "FILTER_INVALID"
    error = await refused(api.list("Network", filter='name = "a" XOR name = "b"'))
    assert error.metadata["position"] == "11"
    assert set(await ids("Port", 'fixed_ips.ip_address in_cidr "10.0.0.0/30" AND NOT state = ACTIVE')) >= {port.id}


# -- the server -------------------------------------------------------------------------------------------------------


async def test_health_and_reflection_answer_without_a_token(shared_cloud: Cloud) -> None:
    channel = shared_cloud.api.channel
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING

    async def ask() -> Any:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    names: set[str] = set()
    async for answer in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask(), timeout=20):
        names |= {service.name for service in answer.list_services_response.service}
    assert names >= {f"kumihimo.v1.{service_of(kind)}" for kind in KINDS} | {"kumihimo.v1.Operations"}
    for name in names:
        assert descriptor_pool.Default().FindServiceByName(name)


# -- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVERY)
async def test_unknown_fields_of_a_newer_release_survive_an_update(cloud: Cloud, make: Make, kind: str) -> None:
    item = await make(kind, name="one")
    key = keys.place(KINDS[kind], item.id, KINDS[kind].parent_of(item))
    newer = b"\xc2\x3e\x05later"  # field 1000, five bytes
    entry = await cloud.store.get(key)
    assert entry is not None
    assert newer not in entry.value
    await cloud.write(operations.put(key, entry.value + newer))
    for mask in ([], ["name"], ["*"]):
        await cloud.api.update(kind, item.id, mask=mask, name=f"two {mask}", **needed(item))
        entry = await cloud.store.get(key)
        assert entry is not None
        assert newer in entry.value


@pytest.mark.parametrize("kind", EVERY)
async def test_what_is_observed_is_never_stored(cloud: Cloud, make: Make, kind: str) -> None:
    item = await make(kind)
    changed = await cloud.api.update(kind, item.id, name="two")
    key = keys.place(KINDS[kind], item.id, KINDS[kind].parent_of(item))
    entry = await cloud.store.get(key)
    assert entry is not None
    stored = KINDS[kind].new(entry.value)
    set_fields = {descriptor.name for descriptor, _ in stored.ListFields()}
    assert not set_fields & set(MADE_AT_READ)
    assert entry.mod_revision == changed.revision
    outputs = {descriptor.name for descriptor in KINDS[kind].descriptor.fields if behaves(descriptor, OUTPUT_ONLY)}
    assert set_fields & outputs <= {
        "create_time",
        "update_time",
        "creator",
        "last_modifier",
        "key",
        "dhcp_server_ip",
        "ip_version",
        "is_default",
        "filtered",
    }


async def test_the_change_record_says_who_did_what(cloud: Cloud) -> None:
    network = await cloud.api.create("Network", by="alice", request={"request_id": "recorded"})
    entry = await cloud.store.get(keys.change_of(keys.scope(network.id)))
    assert entry is not None
    assert entry.mod_revision == network.revision
    record = store_pb2.ChangeRecord.FromString(entry.value)
    assert (record.actor, record.request_id, record.method) == ("alice", "recorded", "kumihimo.v1.Networks/Create")
    history = [item for key, item in (await cloud.everything()).items() if key.startswith(keys.change(network.id))]
    assert [item.mod_revision for item in history] == [network.revision]
    record = store_pb2.ChangeRecord.FromString(history[0].value)
    assert (record.actor, record.project_id, record.request_id) == ("alice", "demo", "recorded")
    assert (record.kind, record.id, record.method) == ("Network", network.id, "kumihimo.v1.Networks/Create")
    assert (record.before, KINDS["Network"].new(record.after).segmentation_id) == (b"", network.segmentation_id)


async def test_keys_that_hold_no_resource_are_not_found_by_their_name(api: Client, make: Make) -> None:
    await make("Node")
    for call in (api.get("Node", ".change"), api.delete("Node", ".change"), api.get("Network", "x/port/y")):
        error = await refused(call)
        assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_a_subnet_grows_in_place_and_keeps_its_addresses(cloud: Cloud, make: Make) -> None:
    """B-SUB-15."""
    subnet = await make("Subnet", cidr="10.0.2.0/24")
    port = await make("Port", network_id=subnet.network_id)
    grown = await cloud.api.update("Subnet", subnet.id, cidr="10.0.2.0/23")
    assert grown.cidr == "10.0.2.0/23"
    assert (await cloud.api.get("Port", port.id)).fixed_ips == port.fixed_ips
    fixed_ips = [{"ip_address": "10.0.3.7"}]
    assert (await make("Port", network_id=subnet.network_id, fixed_ips=fixed_ips)).fixed_ips[0].subnet_id == subnet.id
    await consistent(cloud.store)


async def test_b_sub_02_addresses_come_from_the_pools_and_never_the_gateway(cloud: Cloud, make: Make) -> None:
    pools = [{"start": "10.0.0.10", "end": "10.0.0.11"}, {"start": "10.0.0.20", "end": "10.0.0.21"}]
    subnet = await make("Subnet", cidr="10.0.0.0/24", allocation_pools=pools, gateway_ip="10.0.0.15")
    assert subnet.dhcp_server_ip == "10.0.0.21"
    given = [(await make("Port", network_id=subnet.network_id)).fixed_ips[0].ip_address for _ in range(3)]
    assert sorted(given) == ["10.0.0.10", "10.0.0.11", "10.0.0.20"]
    error = await refused(make("Port", network_id=subnet.network_id))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "NO_FREE_ADDRESS")
    # Asked for by address, one outside the pools is given.
    fixed_ips = [{"ip_address": "10.0.0.99"}]
    assert (await make("Port", network_id=subnet.network_id, fixed_ips=fixed_ips)).fixed_ips[0].ip_address == "10.0.0.99"
    await consistent(cloud.store)


async def test_dhcp_switched_off_and_on_gives_its_address_back_and_takes_one(cloud: Cloud, make: Make) -> None:
    subnet = await make("Subnet", cidr="10.0.0.0/24")
    off = await cloud.api.update("Subnet", subnet.id, enable_dhcp=False)
    assert off.dhcp_server_ip == ""
    await cloud.settled()
    await consistent(cloud.store)
    on = await cloud.api.update("Subnet", subnet.id, enable_dhcp=True)
    assert on.dhcp_server_ip == "10.0.0.254"
    await consistent(cloud.store)


async def test_b_prt_03_addresses_asked_for_and_chosen_never_meet(cloud: Cloud, make: Make) -> None:
    subnet = await make("Subnet", cidr="10.0.0.0/29")
    chosen = {"subnet_id": subnet.id}
    wanted = [chosen, {"ip_address": "10.0.0.2"}, chosen, {"ip_address": "10.0.0.3"}]
    port = await make("Port", network_id=subnet.network_id, fixed_ips=wanted)
    given = [fixed.ip_address for fixed in port.fixed_ips]
    assert given[1::2] == ["10.0.0.2", "10.0.0.3"]
    assert set(given) == {"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"}
    changed = await cloud.api.update("Port", port.id, fixed_ips=[{"ip_address": "10.0.0.5"}], mask=["fixed_ips"])
    assert [fixed.ip_address for fixed in changed.fixed_ips] == ["10.0.0.5"]
    await cloud.settled()
    await consistent(cloud.store)
    moved = await cloud.api.update("Port", port.id, mac_address="fa:16:3e:00:00:99")
    assert moved.mac_address == "fa:16:3e:00:00:99"
    await until(lambda: _has_no_claim(cloud, keys.claim(keys.mac_pool(port.network_id), port.mac_address)), "the MAC is free")
    await consistent(cloud.store)


async def _has_no_claim(cloud: Cloud, key: str) -> bool:
    return await cloud.store.get(key) is None


async def test_subnet_delete_is_refused_while_a_port_has_an_address(cloud: Cloud, make: Make) -> None:
    subnet = await make("Subnet", cidr="10.0.0.0/24", name="s")
    port = await make("Port", network_id=subnet.network_id, name="p")
    error = await refused(cloud.api.delete("Subnet", subnet.id))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE")
    assert f"Port p ({port.id})" in error.message
    await cloud.api.delete("Port", port.id)
    await cloud.api.delete("Subnet", subnet.id)
    await consistent(cloud.store)


async def test_a_01_a_child_is_made_in_its_networks_project_or_not_at_all(cloud: Cloud, make: Make) -> None:
    network = await make("Network", by="alice")
    assert (await make("Port", network_id=network.id, no_fixed_ips=True)).project_id == "demo"
    assert (await make("Port", network_id=network.id, no_fixed_ips=True, project_id="demo")).project_id == "demo"
    error = await refused(cloud.api.create("Port", network_id=network.id, no_fixed_ips=True, project_id="other"))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "REFERENCE_NOT_FOUND")
