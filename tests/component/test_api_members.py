"""What security groups hold of ports, when they are cut, and the controllers that keep both right."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from controlplane.registry import KINDS
from controlplane.services.security import default_id
from controlplane.store import client, keys
from kumihimo.v1 import port_pb2, store_pb2
from tests.component.cloud import Client, Cloud, alive, consistent
from tests.component.security import cut, group, members, port, rule, rules_of
from tests.waiting import until

# -- members and cuts -------------------------------------------------------------------------------------------------


async def test_c_01_a_group_holds_all_that_its_ports_send_from(cloud: Cloud, network: str) -> None:
    api, web = cloud.api, await group(cloud.api)
    mac = "fa:16:3e:00:00:05"
    made = await port(
        api,
        network,
        web,
        mac_address=mac,
        allowed_address_pairs=[
            {"ip_address": "10.0.0.200/32"},
            {"ip_address": "10.9.0.0/24"},
            {"ip_address": "fd00::200/128", "mac_address": "fa:16:3e:00:00:09"},
        ],
    )
    (four, six) = [item.ip_address for item in made.fixed_ips]
    assert set((await members(cloud, web.id))[made.id]) == {
        four,
        six,
        "10.0.0.200",
        "10.9.0.0/24",
        "fd00::200",
        "fe80::f816:3eff:fe00:5",
        "fe80::f816:3eff:fe00:9",
    }
    changed = await api.update(
        "Port",
        made.id,
        mask=["allowed_address_pairs", "fixed_ips", "no_fixed_ips"],
        fixed_ips=[{"ip_address": four}, {"ip_address": six}],
    )
    assert set((await members(cloud, web.id))[made.id]) == {four, six, "fe80::f816:3eff:fe00:5"}
    changed = await api.update("Port", made.id, mac_address="fa:16:3e:00:00:06")
    assert "fe80::f816:3eff:fe00:6" in (await members(cloud, web.id))[made.id]
    assert {item.ip_address for item in changed.fixed_ips} <= set((await members(cloud, web.id))[made.id])
    only_four = await api.create("Network", by="alice")
    await api.create("Subnet", by="alice", network_id=only_four.id, cidr="10.1.0.0/24")
    single = await port(api, only_four.id, web)
    assert (await members(cloud, web.id))[single.id] == [single.fixed_ips[0].ip_address]
    await consistent(cloud.store)


async def test_c_01_a_cut_is_made_by_what_is_taken_away_and_by_nothing_else(cloud: Cloud, network: str) -> None:
    api, web = cloud.api, await group(cloud.api)
    before = await cut(cloud, web.id)
    assert before == 0
    # What is added, or only said otherwise.
    made = await port(api, network, web, name="p")
    added = await rule(api, web, protocol="tcp")
    await api.update("SecurityGroupRule", added.id, description="x")
    await api.update("SecurityGroup", web.id, description="x")
    await api.update("Port", made.id, description="x", allowed_address_pairs=[{"ip_address": "10.0.0.200/32"}])
    assert await cut(cloud, web.id) == before

    async def takes_away(call: Any) -> None:
        nonlocal before
        reply = await call
        after = await cut(cloud, web.id)
        assert after == reply.revision > before
        before = after

    await takes_away(api.update("Port", made.id, mask=["allowed_address_pairs"]))
    await takes_away(api.update("Port", made.id, mac_address="fa:16:3e:00:00:07"))
    await takes_away(api.delete("SecurityGroupRule", added.id))
    await takes_away(api.update("SecurityGroup", web.id, mode="SECURITY_GROUP_MODE_OBSERVE"))
    other = await group(api, "other")
    await takes_away(api.update("Port", made.id, security_group_ids=[other.id]))
    await takes_away(api.update("SecurityGroup", web.id, stateful=False))
    await api.update("Port", made.id, security_group_ids=[other.id, web.id])
    assert await cut(cloud, web.id) == before
    assert await cut(cloud, other.id) == 0
    await takes_away(api.delete("Port", made.id))
    made = await port(api, network, web)
    await takes_away(api.delete("Network", network, force=True))
    assert await members(cloud, web.id) == {}
    await api.delete("SecurityGroup", web.id)
    entries = await consistent(cloud.store)
    assert not [key for key in entries if web.id in key and not key.startswith(keys.CHANGES) and "claim/group-key" not in key]


async def test_c_01_a_deleted_groups_number_is_free_when_the_nodes_have_let_go(cloud: Cloud) -> None:
    web = await group(cloud.api)
    claim, scope = keys.claim("group-key", web.key), keys.scope(web.id, "secgroup")
    told = keys.scope_status("h1", scope)
    await cloud.write(alive("h1"), client.put(told, store_pb2.Applied(revision=1).SerializeToString()))
    await cloud.api.delete("SecurityGroup", web.id)
    entry = await cloud.store.get(claim)
    assert entry is not None
    assert store_pb2.Claim.FromString(entry.value).releasing
    assert (await group(cloud.api, "next")).key != web.key
    await cloud.write(client.delete(told))

    async def free() -> bool:
        return await cloud.store.get(claim) is None

    await until(free, "the number is free")


async def test_c_01_members_and_rules_of_64_clients_on_two_replicas_are_exact(cloud: Cloud, second_api: Client) -> None:
    """Ports join, leave and go, and rules come and go, all at once: what groups hold, their cuts and every claim are exact."""
    api = cloud.api
    networks = [await api.create("Network", by="alice") for _ in range(4)]
    for item in networks:
        await api.create("Subnet", by="alice", network_id=item.id, cidr="10.0.0.0/22")
    groups = [await group(api, f"g{number}") for number in range(3)]
    last: dict[str, int] = {item.id: 0 for item in groups}  # the last revision that took something from a group

    def took(group_ids: list[str], revision: int) -> None:
        last.update({group_id: max(last[group_id], revision) for group_id in group_ids})

    async def one(number: int, by: Client) -> Any:
        mine = [groups[number % 3], groups[(number + 1) % 3]]
        made = await port(by, networks[number % 4].id, *mine)
        added = await rule(by, mine[0], protocol="tcp", port_range_min=number + 1, port_range_max=number + 1)
        if number % 2:
            gone = await by.delete("SecurityGroupRule", added.id, by="alice")
            took([mine[0].id], gone.revision)
        if number % 4 == 1:
            gone = await by.delete("Port", made.id, by="alice")
            took([item.id for item in mine], gone.revision)
            return None
        if number % 4 == 2:
            made = await by.update("Port", made.id, by="alice", security_group_ids=[mine[1].id])
            took([mine[0].id], made.revision)
        return made

    clients = (api, second_api)
    left = [item for item in await asyncio.gather(*(one(n, clients[n % 2]) for n in range(64))) if item is not None]
    for item in groups:
        held = await members(cloud, item.id)
        assert set(held) == {made.id for made in left if item.id in made.security_group_ids}
        assert (await api.get("SecurityGroup", item.id)).member_count == len(held)
        assert await cut(cloud, item.id) == last[item.id]
    assert len((await api.list("SecurityGroupRule", by="alice", filter='protocol = "tcp"')).items) == 32
    await consistent(cloud.store)


async def test_c_01_one_of_many_equal_rules_is_made(cloud: Cloud, second_api: Client) -> None:
    web = await group(cloud.api)
    clients = (cloud.api, second_api)
    replies = await asyncio.gather(*(rule(clients[n % 2], web, protocol="tcp") for n in range(16)), return_exceptions=True)
    made = [reply for reply in replies if not isinstance(reply, BaseException)]
    assert len(made) == 1
    for reply in replies:
        if isinstance(reply, BaseException):
            reply.must_be("RULE_EXISTS")  # type: ignore[attr-defined]
            assert made[0].id in str(reply)
    await consistent(cloud.store)


# -- controllers ------------------------------------------------------------------------------------------------------


async def test_b_sg_an_expired_rule_goes_by_itself_and_history_says_so(cloud: Cloud) -> None:
    api, web = cloud.api, await group(cloud.api)
    end = time.time() + 4
    until_then = {"seconds": int(end), "nanos": int(end % 1 * 1e9)}
    short = await rule(api, web, protocol="tcp", expire_time=until_then, deletion_protection=True)
    long = await rule(api, web, protocol="udp", expire_time={"seconds": 1 << 33})
    kept = await rule(api, web, protocol="sctp", expire_time=until_then)
    await api.update("SecurityGroupRule", kept.id, mask=["expire_time"])

    async def gone() -> bool:
        return short.id not in [item.id for item in await rules_of(api, web.id)]

    await until(gone, "the rule has expired")
    assert time.time() >= end
    assert {long.id, kept.id} <= {item.id for item in await rules_of(api, web.id)}
    from kumihimo.v1 import operations_pb2

    changes = await api.call("Operations", "ListChanges", operations_pb2.ListChangesRequest(id=short.id), "rita-token")
    assert [(item.actor, item.action) for item in changes.items] == [
        ("expiry", operations_pb2.ACTION_DELETE),
        ("alice", operations_pb2.ACTION_CREATE),
    ]
    assert await cut(cloud, web.id) == changes.items[0].revision
    await api.update("SecurityGroupRule", long.id, expire_time={"seconds": int(time.time()) + 4})

    async def both_gone() -> bool:
        return long.id not in [item.id for item in await rules_of(api, web.id)]

    await until(both_gone, "the rule has expired too")
    await consistent(cloud.store)


async def stored_by_a_release_before(cloud: Cloud, made: port_pb2.Port, **fields: Any) -> Any:
    """What makes of a stored port one that an API without security groups has written."""
    key = keys.ports(made.network_id) + made.id
    entry = await cloud.store.get(key)
    assert entry is not None
    before = port_pb2.Port.FromString(entry.value)
    before.ClearField("filtered")
    before.ClearField("security_group_ids")
    before.MergeFrom(port_pb2.Port(**fields))
    return client.put(key, before.SerializeToString())


async def test_b_sg_stored_ports_of_before_get_their_projects_default_group(cloud: Cloud, network: str) -> None:
    api, own = cloud.api, default_id("demo")
    made = [await port(api, network) for _ in range(20)]
    service = await api.create("Port", network_id=network, device_owner="network:dhcp")
    bare = await port(api, network, no_fixed_ips=True)
    old = [await stored_by_a_release_before(cloud, item) for item in (*made, bare)]
    await cloud.write(client.delete(keys.members(own), prefix=True), *old)

    async def all_filtered() -> bool:
        items = (await api.list("Port", filter=f'network_id = "{network}"')).items
        return all(item.filtered for item in items if item.id != service.id)

    await until(all_filtered, "every port is filtered")
    for item in made:
        found = await api.get("Port", item.id)
        assert (list(found.security_group_ids), found.last_modifier) == ([own], "members")
    assert list((await api.get("Port", bare.id)).security_group_ids) == []
    assert not (await api.get("Port", service.id)).filtered
    assert set(await members(cloud, own)) == {item.id for item in made}
    await consistent(cloud.store)
    # And so does one that is changed before the controller comes to it.
    await cloud.settled()


async def test_b_sg_what_a_release_before_does_to_ports_reaches_their_groups(cloud: Cloud, network: str) -> None:
    """An API that knows no members deletes and changes ports during an upgrade: what it leaves would let strangers in."""
    api, web = cloud.api, await group(cloud.api)
    gone, moved, fine = [await port(api, network, web) for _ in range(3)]
    entry = await cloud.store.get(keys.ports(network) + moved.id)
    assert entry is not None
    changed = port_pb2.Port.FromString(entry.value)
    changed.allowed_address_pairs.add(ip_address="10.0.0.99/32")
    before = await cut(cloud, web.id)
    index = await cloud.store.get(keys.index("Port", gone.id))
    assert index is not None
    slot = store_pb2.Index.FromString(index.value).quota_slot
    claims = [keys.claim(keys.mac_pool(network), gone.mac_address), keys.claim(keys.quota_pool("demo", KINDS["Port"]), slot)]
    claims += [keys.claim(keys.ip_pool(network, item.subnet_id), item.ip_address) for item in gone.fixed_ips]
    doomed = [keys.ports(network) + gone.id, keys.index("Port", gone.id), *claims]
    await cloud.write(client.put(keys.ports(network) + moved.id, changed.SerializeToString()), *map(client.delete, doomed))

    async def mended() -> bool:
        held = await members(cloud, web.id)
        return gone.id not in held and "10.0.0.99" in held[moved.id]

    await until(mended, "the group holds what the ports say")
    assert set(await members(cloud, web.id)) == {moved.id, fine.id}
    assert await cut(cloud, web.id) > before
    await consistent(cloud.store)
