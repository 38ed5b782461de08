"""Security groups on the API: the default group, what stands in the way of an end, what is made at read."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from controlplane.services import quota
from controlplane.services.security import default_id
from controlplane.store import client, keys
from kumihimo.v1 import resource_pb2, security_pb2, store_pb2
from tests.component.cloud import Client, Cloud, alive, applied, consistent, dead, plugged, refused
from tests.component.security import ACTIVE, EGRESS, INGRESS, PENDING, Code, cut, group, members, port, rule, rules_of
from tests.waiting import until

# -- the default group ------------------------------------------------------------------------------------------------


async def test_b_sg_a_port_that_names_none_gets_its_projects_default_group(cloud: Cloud, network: str) -> None:
    made = await port(cloud.api, network)
    own = default_id("demo")
    assert list(made.security_group_ids) == [own]
    assert made.filtered
    found = await cloud.api.get("SecurityGroup", own, by="rita")
    assert (found.name, found.is_default, found.stateful, found.project_id, found.member_count) == (
        "default",
        True,
        True,
        "demo",
        1,
    )
    said = {(item.direction, item.ethertype, item.remote_group_id) for item in await rules_of(cloud.api, own)}
    assert said == {(EGRESS, 4, ""), (EGRESS, 6, ""), (INGRESS, 4, own), (INGRESS, 6, own)}
    await consistent(cloud.store)


async def test_b_sg_sixty_four_first_ports_on_two_replicas_make_one_default_group(cloud: Cloud, second_api: Client) -> None:
    networks = [await cloud.api.create("Network", by="alice") for _ in range(4)]
    for item in networks:
        await cloud.api.create("Subnet", network_id=item.id, cidr="10.0.0.0/24")
    clients = (cloud.api, second_api)
    made = await asyncio.gather(*(port(clients[n % 2], networks[n % 4].id) for n in range(64)))
    assert {tuple(item.security_group_ids) for item in made} == {(default_id("demo"),)}
    assert set(await members(cloud, default_id("demo"))) == {item.id for item in made}
    assert len(await rules_of(cloud.api, default_id("demo"))) == 4
    assert await cut(cloud, default_id("demo")) == 0, "nothing was taken away"
    await consistent(cloud.store)


async def test_b_sg_ports_that_cannot_be_filtered_or_are_a_services_get_none(cloud: Cloud, network: str) -> None:
    for fields, filtered in (
        ({"no_fixed_ips": True}, True),
        ({"port_security_enabled": False}, True),
        ({"device_owner": "network:router"}, False),
    ):
        made = await cloud.api.create("Port", network_id=network, **fields)
        assert (list(made.security_group_ids), made.filtered) == ([], filtered), fields
    own = await cloud.api.create("SecurityGroup", project_id="demo")
    chosen = await cloud.api.create("Port", network_id=network, device_owner="network:vpn", security_group_ids=[own.id])
    assert chosen.filtered
    open_network = await cloud.api.create("Network", by="alice", port_security_enabled=False)
    await cloud.api.create("Subnet", by="alice", network_id=open_network.id, cidr="10.0.0.0/24")
    assert list((await port(cloud.api, open_network.id)).security_group_ids) == []
    error = await refused(port(cloud.api, open_network.id, own))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "INCOMPATIBLE_STATE")
    assert "security_group_ids" in error.message
    await consistent(cloud.store)


async def test_b_sg_the_default_group_comes_and_goes_with_what_it_needs(cloud: Cloud, network: str) -> None:
    api, own = cloud.api, default_id("demo")
    made = await port(api, network)
    for without, again in (
        ({"port_security_enabled": False}, {"port_security_enabled": True}),
        ({"no_fixed_ips": True, "mask": ["no_fixed_ips", "fixed_ips"]}, {"mask": ["no_fixed_ips", "fixed_ips"]}),
    ):
        changed = await api.update("Port", made.id, **without)
        assert list(changed.security_group_ids) == [], "nobody chose it"
        assert await members(cloud, own) == {}
        if "mask" in again:
            again["fixed_ips"] = [{"ip_address": "10.0.0.9"}]
        changed = await api.update("Port", made.id, **again)
        assert list(changed.security_group_ids) == [own]
        assert set(await members(cloud, own)) == {made.id}
    web = await group(api)
    await api.update("Port", made.id, security_group_ids=[web.id])
    for without in ({"port_security_enabled": False}, {"no_fixed_ips": True, "mask": ["no_fixed_ips", "fixed_ips"]}):
        error = await refused(api.update("Port", made.id, **without))
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "INCOMPATIBLE_STATE")
        assert "security_group_ids" in error.message
    # Taken away by somebody, it stays away.
    assert list((await api.update("Port", made.id, mask=["security_group_ids"])).security_group_ids) == []
    assert list((await api.update("Port", made.id, description="x")).security_group_ids) == []
    await consistent(cloud.store)


async def test_b_sg_the_default_group_is_undeletable_and_alone_of_its_name(cloud: Cloud, network: str) -> None:
    api, own = cloud.api, default_id("demo")
    await port(api, network)
    for by in ("alice", "root"):
        for force in (False, True):
            error = await refused(api.delete("SecurityGroup", own, by=by, force=force))
            assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "INCOMPATIBLE_STATE")
            assert "default of project demo" in error.message
    error = await refused(api.update("SecurityGroup", own, by="alice", name="other"))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "IMMUTABLE_FIELD")
    assert (await api.update("SecurityGroup", own, by="alice", description="ours")).description == "ours"
    error = await refused(group(api, "default"))
    assert (error.code, error.reason) == (Code.ALREADY_EXISTS, "NAME_TAKEN")
    # By its id it is what it is: so an export can be applied where it is not yet.
    theirs = await api.create("SecurityGroup", by="bob", id=default_id("other"))
    assert (theirs.name, theirs.is_default) == ("default", True)


async def test_b_sg_a_default_group_counts_in_no_quota(cloud: Cloud, network: str) -> None:
    api = cloud.api
    unlimited = dict.fromkeys(quota.COUNTED, quota.UNLIMITED)
    await api.update("Quota", "demo", limits=unlimited | {"security_groups": 0, "security_group_rules": 0})
    try:
        await port(api, network)
        usage = (await api.get("Quota", "demo")).usage
        assert (usage["security_groups"], usage["security_group_rules"]) == (0, 0)
        error = await refused(group(api))
        assert (error.code, error.reason, error.metadata["quota"]) == (
            Code.RESOURCE_EXHAUSTED,
            "QUOTA_EXCEEDED",
            "security_groups",
        )
        await api.update("Quota", "demo", limits=unlimited | {"security_groups": 1, "security_group_rules": 1})
        error = await refused(group(api))
        assert error.metadata["quota"] == "security_group_rules", "of the two that it begins with"
        assert (await api.list("SecurityGroup", by="alice")).items[0].is_default
        await consistent(cloud.store)
    finally:
        await api.update("Quota", "demo", limits=unlimited)


async def test_b_sg_templates_are_what_later_groups_begin_with(cloud: Cloud, network: str) -> None:
    api = cloud.api

    async def begins_with(name: str) -> list[tuple[Any, ...]]:
        made = await group(api, name)
        assert made.project_id == "demo"
        return [
            (item.direction, item.ethertype, item.protocol, item.remote_group_id == made.id)
            for item in await rules_of(api, made.id)
        ]

    assert sorted(await begins_with("shipped")) == [(EGRESS, 4, "", False), (EGRESS, 6, "", False)]
    ssh = {"direction": INGRESS, "protocol": "tcp", "port_range_min": 22, "port_range_max": 22, "name": "ssh"}
    await api.create("DefaultSecurityGroupRule", used_in_other_groups=True, **ssh)
    # One that says the same, and one for default groups.
    await api.create("DefaultSecurityGroupRule", used_in_other_groups=True, **ssh)
    await api.create("DefaultSecurityGroupRule", used_in_default_group=True, direction=INGRESS, remote_group="PARENT")
    assert await begins_with("by template") == [(INGRESS, 4, "tcp", False)]
    await port(api, network)
    own = default_id("demo")
    assert [(item.direction, item.remote_group_id) for item in await rules_of(api, own)] == [(INGRESS, own)]
    for item in (await api.list("DefaultSecurityGroupRule", by="rita")).items:
        assert (item.state, item.project_id) == (ACTIVE, "")
        await api.delete("DefaultSecurityGroupRule", item.id)
    assert len(await begins_with("shipped again")) == 2
    await consistent(cloud.store)


# -- what stands in the way -------------------------------------------------------------------------------------------


async def test_b_sg_a_group_in_use_is_not_deleted(cloud: Cloud, network: str) -> None:
    api = cloud.api
    web, other, office = (
        await group(api),
        await group(api, "other"),
        await api.create("AddressGroup", by="alice", name="office"),
    )
    made = await port(api, network, web, name="p1")
    naming = await rule(api, other, name="from-web", remote_group_id=web.id)
    office_rule = await rule(api, other, name="from-office", remote_address_group_id=office.id)
    await rule(api, web, remote_group_id=web.id)  # its own does not count
    for kind, target, words in (
        ("SecurityGroup", web, ["in use by 2", "Port p1", "SecurityGroupRule from-web"]),
        ("AddressGroup", office, ["in use by 1", "SecurityGroupRule from-office"]),
    ):
        for force in (False, True):
            error = await refused(api.delete(kind, target.id, by="alice", force=force))
            assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE")
            assert all(word in error.message for word in words), error.message
    await api.delete("Port", made.id)
    error = await refused(api.delete("SecurityGroup", web.id))
    assert "in use by 1: SecurityGroupRule from-web" in error.message
    for item in (naming, office_rule):
        await api.delete("SecurityGroupRule", item.id)
    own = (await rules_of(api, web.id))[0]
    await api.update("SecurityGroupRule", own.id, deletion_protection=True)
    assert (await refused(api.delete("SecurityGroup", web.id))).reason == "DELETION_PROTECTED"
    await api.update("SecurityGroupRule", own.id, mask=["deletion_protection"])
    await api.delete("SecurityGroup", web.id)
    await api.delete("AddressGroup", office.id)
    assert await rules_of(api, web.id) == []
    await consistent(cloud.store)


async def test_b_sg_what_others_have_in_use_is_not_named_to_a_tenant(cloud: Cloud, network: str) -> None:
    """An operator may let one project's rule name another's group; its owner hears that, and not of whom."""
    api, web = cloud.api, await group(cloud.api)
    theirs = await group(api, "theirs", by="bob")
    await rule(api, theirs, by="root", name="secret", remote_group_id=web.id)
    error = await refused(api.delete("SecurityGroup", web.id, by="alice"))
    assert (error.reason, "a rule of another project" in error.message) == ("RESOURCE_IN_USE", True)
    assert "secret" not in f"{error} {error.metadata}"
    assert "secret" in (await refused(api.delete("SecurityGroup", web.id))).message


async def test_b_sg_a_deletion_and_a_new_user_never_both_succeed(cloud: Cloud, second_api: Client, network: str) -> None:
    api = cloud.api
    for turn in range(6):
        web, other = await group(api), await group(api, "other")
        use = port(second_api, network, web) if turn % 2 else rule(second_api, other, remote_group_id=web.id)
        gone, used = await asyncio.gather(api.delete("SecurityGroup", web.id), use, return_exceptions=True)
        assert isinstance(gone, BaseException) != isinstance(used, BaseException)
        await consistent(cloud.store)


async def test_b_sg_stateful_changes_only_while_no_port_has_the_group(cloud: Cloud, network: str) -> None:
    api, web = cloud.api, await group(cloud.api)
    assert not (await api.update("SecurityGroup", web.id, stateful=False)).stateful
    made = await port(api, network, web, name="p1")
    error = await refused(api.update("SecurityGroup", web.id, stateful=True))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE")
    assert "Port p1" in error.message
    assert (await api.update("SecurityGroup", web.id, stateful=False, mode=2)).mode == 2
    await api.delete("Port", made.id)
    assert (await api.update("SecurityGroup", web.id, stateful=True)).stateful


async def test_b_sg_addresses_are_added_and_removed_singly(cloud: Cloud) -> None:
    api = cloud.api
    office = await api.create("AddressGroup", by="alice", name="office", addresses=["10.0.0.0/24"])

    async def call(method: str, *addresses: str, **fields: Any) -> Any:
        request = security_pb2.ChangeAddressesRequest(id=office.id, addresses=addresses, **fields)
        return await api.call("AddressGroups", method, request, "alice-token")

    assert list((await call("AddAddresses", "10.1.0.5/32", "10.0.0.0/24")).addresses) == ["10.0.0.0/24", "10.1.0.5"]
    assert await cut(cloud, office.id, "addrgroup") == 0
    same = await call("AddAddresses", "10.1.0.5")
    assert same.revision == (await api.get("AddressGroup", office.id)).revision
    assert list((await call("RemoveAddresses", "10.9.9.9", validate_only=True)).addresses) == ["10.0.0.0/24", "10.1.0.5"]
    gone = await call("RemoveAddresses", "10.1.0.5", "10.9.9.9")
    assert list(gone.addresses) == ["10.0.0.0/24"]
    assert await cut(cloud, office.id, "addrgroup") == gone.revision
    many = [f"10.2.{n // 250}.{n % 250}" for n in range(999)]
    assert len((await call("AddAddresses", *many)).addresses) == 1000
    error = await refused(call("AddAddresses", "10.3.0.1"))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "TOO_MANY_VALUES")
    error = await refused(call("AddAddresses", "10.3.0.1/8"))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "CIDR_HOST_BITS_SET")
    error = await refused(
        api.call("AddressGroups", "AddAddresses", security_pb2.ChangeAddressesRequest(id=office.id), "alice-token")
    )
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "MISSING_FIELD")
    await asyncio.gather(*(call("RemoveAddresses", address) for address in many[:20]))
    assert len((await api.get("AddressGroup", office.id)).addresses) == 980
    await api.delete("AddressGroup", office.id)
    await consistent(cloud.store)


# -- what is made at read ---------------------------------------------------------------------------------------------


async def test_b_sg_rules_are_shown_to_who_names_them(api: Client, network: str) -> None:
    web = await group(api)
    added = await rule(api, web, protocol="tcp")

    async def get(*paths: str) -> Any:
        request = resource_pb2.GetRequest(id=web.id, read_mask=FieldMask(paths=paths))
        return await api.call("SecurityGroups", "Get", request, "rita-token")

    assert list((await get()).rules) == []
    assert list((await get("name")).rules) == []
    shown = await get("rules", "name")
    assert (shown.name, shown.key, len(shown.rules)) == ("web", 0, 3)
    assert (len((await get("*")).rules), (await get("*")).name) == (3, "web")
    listed = await api.list("SecurityGroup", by="rita", read_mask=FieldMask(paths=["rules"]))
    assert [len(item.rules) for item in listed.items if item.id == web.id] == [3]
    (own,) = [item for item in shown.rules if item.id == added.id]
    assert (own.revision, own.etag, own.normalized_cidr, own.protocol) == (added.revision, added.etag, "0.0.0.0/0", "tcp")


async def test_b_sg_hits_of_a_rule_are_those_of_all_nodes(cloud: Cloud) -> None:
    from uuid import UUID

    web = await group(cloud.api)
    added = await rule(cloud.api, web, protocol="tcp")

    def told(node: str, packets: int, seconds: int) -> Any:
        counters = security_pb2.RuleCounters(packets=packets, bytes=packets * 100)
        counters.last_hit_time.seconds = seconds
        counted = store_pb2.RuleCount(rule=UUID(added.id).bytes, counters=counters)
        return client.put(keys.rule_counters(node), store_pb2.NodeRuleCounters(rules=[counted]).SerializeToString())

    await cloud.write(told("h1", 5, 100), told("h2", 7, 300), told("h3", 1, 200))
    found = (await cloud.api.get("SecurityGroupRule", added.id, by="rita")).counters
    assert (found.packets, found.bytes, found.last_hit_time.seconds) == (13, 1300, 300)
    await cloud.write(client.delete(keys.rule_counters("h2")))
    assert (await cloud.api.get("SecurityGroupRule", added.id)).counters.packets == 6


async def test_b_sg_groups_rules_and_address_groups_wait_for_the_nodes_that_use_them(cloud: Cloud) -> None:
    api, web = cloud.api, await group(cloud.api)
    office = await api.create("AddressGroup", by="alice", name="office")
    added = await rule(api, web, protocol="tcp")
    for kind, item, scope in (
        ("SecurityGroup", web, ("secgroup", web.id)),
        ("SecurityGroupRule", added, ("secgroup", web.id)),
        ("AddressGroup", office, ("addrgroup", office.id)),
    ):
        folder, owner = scope
        await cloud.write(alive("h1"), applied("h1", owner, 1, folder=folder))
        assert (await api.get(kind, item.id, by="rita")).state == PENDING
        error = await refused(api.wait(by="alice", seconds=0.1, ids=[item.id]))
        assert (error.code, error.reason) == (Code.DEADLINE_EXCEEDED, "NOT_YET_APPLIED")
        latest = await cloud.store.get(keys.change_of(keys.scope(owner, folder)))
        assert latest is not None
        await cloud.write(applied("h1", owner, latest.mod_revision, folder=folder))
        await api.wait(by="alice", ids=[item.id])
        assert (await api.get(kind, item.id, by="rita")).state == ACTIVE
    # Of a dead node nothing is waited for.
    await cloud.write(applied("h1", web.id, 1, folder="secgroup"), dead("h1"))
    await api.wait(by="alice", ids=[web.id])


async def test_b_sg_a_port_waits_for_its_groups_too(cloud: Cloud, network: str) -> None:
    api, web = cloud.api, await group(cloud.api)
    await api.create("Node", id="h1")
    made = await port(api, network, web)
    await cloud.write(
        alive("h1"), applied("h1", network, made.revision), applied("h1", web.id, 0, folder="secgroup"), plugged("h1", made.id)
    )

    async def bound() -> bool:
        return bool((await api.get("Port", made.id)).binding)

    await until(bound, "the port is bound")
    latest = await cloud.store.get(keys.change_of(keys.scope(network)))
    assert latest is not None
    await cloud.write(applied("h1", network, latest.mod_revision))
    error = await refused(api.wait(seconds=0.1, ids=[made.id]))
    assert (error.code, error.reason) == (Code.DEADLINE_EXCEEDED, "NOT_YET_APPLIED")
    shown = await api.get("Port", made.id)
    assert shown.state == PENDING
    assert [item.message for item in shown.conditions if item.type == "Filtered"] == [
        f"node h1 has not yet applied SecurityGroup {web.id}"
    ]
    await cloud.write(applied("h1", web.id, made.revision, folder="secgroup"))
    await api.wait(ids=[made.id], active=True)
    assert (await api.get("Port", made.id)).state == ACTIVE
