"""C-07, A-19: two releases on one store. A later one is known by fields that this one has never heard of: they stay."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controlplane.registry import KINDS
from controlplane.store import client, keys
from kumihimo.v1 import network_pb2
from tests.component.cloud import Client, Cloud, consistent

# A field of a later release: number 3000, length-delimited, "later"; in a message and in one nested in it.
LATER = bytes.fromhex("c2bb0105") + b"later"


def unknown(message: Any) -> bytes:
    """What of a message's own fields this release does not know."""
    rest = type(message)()
    rest.CopyFrom(message)
    for field, _ in message.ListFields():
        rest.ClearField(field.name)
    return bytes(rest.SerializeToString())


async def made_later(cloud: Cloud, key: str, kind: str) -> None:
    """What a later release stores: the object, with its field in it and in every nested message."""
    entry = await cloud.store.get(key)
    assert entry is not None
    message = KINDS[kind].new(entry.value)
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for item in value if field.is_repeated else [value]:
            item.MergeFromString(LATER)
    written = await cloud.store.transact(
        [client.modified_at(key, entry.mod_revision)], [client.put(key, message.SerializeToString() + LATER)]
    )
    assert written.succeeded


async def all_kinds(api: Client) -> dict[str, tuple[str, str]]:
    """One object of each kind: (its key, its id)."""
    network = await api.create("Network", name="n")
    subnet = await api.create("Subnet", network_id=network.id, cidr="10.0.0.0/24", name="n")
    port = await api.create("Port", network_id=network.id, name="n")
    node = await api.create("Node", id="later", tunnel_ip="192.0.2.77")
    quota = await api.update("Quota", network.id, limits={"ports": 7})
    scope = await api.create("AddressScope", ip_version=network_pb2.IP_VERSION_IPV4, name="n")
    pool = await api.create("SubnetPool", prefixes=["10.9.0.0/16"], name="n")
    physical = await api.create("PhysicalNetwork", id="later")
    numbers = await api.create("NetworkSegmentRange", network_type=network_pb2.NETWORK_TYPE_GRE, minimum=5, maximum=9, name="n")
    settings = await api.update("Settings", "installation", name="n")
    group = await api.create("SecurityGroup", name="n")
    rule = await api.create("SecurityGroupRule", security_group_id=group.id, direction="DIRECTION_INGRESS", name="n")
    office = await api.create("AddressGroup", addresses=["10.0.0.5"], name="n")
    template = await api.create("DefaultSecurityGroupRule", direction="DIRECTION_INGRESS", used_in_other_groups=True, name="n")
    others = {
        "SecurityGroup": group,
        "AddressGroup": office,
        "DefaultSecurityGroupRule": template,
        "AddressScope": scope,
        "SubnetPool": pool,
        "PhysicalNetwork": physical,
        "NetworkSegmentRange": numbers,
        "Settings": settings,
    }
    return {
        **{kind: (keys.place(KINDS[kind], item.id), item.id) for kind, item in others.items()},
        "Quota": (keys.place(KINDS["Quota"], quota.id), quota.id),
        "Network": (keys.network(network.id), network.id),
        "Subnet": (keys.subnets(network.id) + subnet.id, subnet.id),
        "SecurityGroupRule": (keys.rules(group.id) + rule.id, rule.id),
        "Port": (keys.ports(network.id) + port.id, port.id),
        "Node": (keys.node(node.id), node.id),
    }


@pytest.fixture(autouse=True)
async def default_settings(cloud: Cloud) -> AsyncIterator[None]:
    """What is changed of the installation is put back."""
    yield
    await cloud.api.delete("Settings", "installation")


async def read(cloud: Cloud, key: str, kind: str) -> Any:
    entry = await cloud.store.get(key)
    assert entry is not None
    return KINDS[kind].new(entry.value)


async def test_a_later_release_finds_its_fields_after_updates_by_this_one(cloud: Cloud, second_api: Client) -> None:
    made = await all_kinds(cloud.api)
    assert set(made) == set(KINDS), "every kind has its turn"
    chance = random.Random(5)
    for kind, (key, _) in made.items():
        await made_later(cloud, key, kind)
    for turn in range(12):
        for kind, (key, object_id) in made.items():
            api = chance.choice((cloud.api, second_api))
            changed = await api.update(kind, object_id, mask=["description"], description=f"turn {turn}")
            assert changed.description == f"turn {turn}"
            message = await read(cloud, key, kind)
            assert message.description == f"turn {turn}"
            assert unknown(message) == LATER, kind
    port = await read(cloud, made["Port"][0], "Port")
    assert [unknown(fixed) for fixed in port.fixed_ips] == [LATER]
    await consistent(cloud.store)


@pytest.mark.parametrize("mask", [["name"], []], ids=["mask", "no-mask"])
async def test_whatever_the_mask_unknown_fields_stay_and_are_not_doubled(cloud: Cloud, mask: list[str]) -> None:
    made = await all_kinds(cloud.api)
    for kind, (key, object_id) in made.items():
        await made_later(cloud, key, kind)
        if kind != "Node":
            await cloud.api.update(kind, object_id, mask=mask, name="renamed")
        assert unknown(await read(cloud, key, kind)) == LATER, kind
