"""B-SUB-07: ports that are there when a subnet whose guests form their addresses comes, or goes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controlplane.services import formed
from controlplane.store import keys
from controlplane.store.client import put
from controlplane.values import eui64, prefix
from kumihimo.v1 import store_pb2
from tests.component.cloud import Cloud, consistent, refused
from tests.component.rows import PRECONDITION
from tests.component.test_api_apply import actions, apply, item
from tests.component.test_api_six import SLAAC, STATEFUL, STATELESS, ips, network
from tests.waiting import until

SIX, FOUR = "fd00:1::/64", "10.0.0.0/16"
MANY = formed.FEW + 10


def own(port: Any, cidr: str = SIX) -> str:
    """The address that a guest of the port forms."""
    return eui64(prefix(cidr), port.mac_address)


async def ports_of(cloud: Cloud, network_id: str) -> dict[str, Any]:
    found = await cloud.api.list("Port", filter=f'network_id = "{network_id}"', page_size=1000)
    return {port.name or port.id: port for port in found.items}


async def crowded(cloud: Cloud, number: int) -> tuple[Any, Any]:
    """A network with so many ports, and its subnet."""
    made, (subnet,) = await network(cloud.api, {"cidr": FOUR})
    await apply(cloud.api, *(item("Port", name=f"p{number}", network_id=made.id) for number in range(number)))
    return made, subnet


@pytest.mark.parametrize("mode", [SLAAC, STATELESS])
async def test_a_subnet_made_later_gives_ports_their_address_and_takes_it_away_again(cloud: Cloud, mode: int) -> None:
    api = cloud.api
    made, (four,) = await network(api, {"cidr": FOUR})
    bare, _ = await network(api)
    stated = {"fixed_ips": [{"subnet_id": four.id, "ip_address": "10.0.0.9"}]}
    for name, fields in {
        "chosen": {},
        "stated": stated,
        "none": {"no_fixed_ips": True},
        "service": {"device_owner": "network:router"},
        "unguarded": {"port_security_enabled": False},
    }.items():
        await api.create("Port", name=name, network_id=made.id, **fields)
    await api.create("Port", name="bare", network_id=bare.id)
    before = await ports_of(cloud, made.id)

    managed = await api.create("Subnet", network_id=made.id, cidr="fd00:2::/64", ipv6_ra_mode=STATEFUL)
    assert {name: ips(port) for name, port in (await ports_of(cloud, made.id)).items()} == {
        name: ips(port) for name, port in before.items()
    }, "where addresses are chosen, ports are asked"
    await api.delete("Subnet", managed.id)

    subnet = await api.create("Subnet", network_id=made.id, cidr=SIX, ipv6_ra_mode=mode)
    after = await ports_of(cloud, made.id)
    for name in ("chosen", "stated", "unguarded"):
        assert ips(after[name]) == [*ips(before[name]), own(after[name])], name
        assert after[name].revision == subnet.revision, "with the subnet"
    for name in ("none", "service"):
        assert ips(after[name]) == ips(before[name]), name
    alone = await api.create("Subnet", network_id=bare.id, cidr=SIX)
    (only,) = (await ports_of(cloud, bare.id)).values()
    assert ips(only) == [own(only)]
    assert len(only.security_group_ids) == 1, "what has an address is filtered"
    await cloud.settled()
    await consistent(cloud.store)

    await api.delete("Subnet", subnet.id)
    await api.delete("Subnet", alone.id)
    assert {name: ips(port) for name, port in (await ports_of(cloud, made.id)).items()} == {
        name: ips(port) for name, port in before.items()
    }
    assert ips((await ports_of(cloud, bare.id))["bare"]) == []
    await cloud.settled()
    await consistent(cloud.store)


async def test_the_only_address_of_a_port_with_chosen_groups_keeps_its_subnet(cloud: Cloud) -> None:
    made, (subnet,) = await network(cloud.api, {"cidr": SIX})
    group = await cloud.api.create("SecurityGroup", project_id=made.project_id)
    port = await cloud.api.create("Port", name="held", network_id=made.id, security_group_ids=[group.id])
    error = await refused(cloud.api.delete("Subnet", subnet.id))
    assert (error.code, error.reason) == (PRECONDITION, "RESOURCE_IN_USE")
    assert "held" in error.message
    await cloud.api.delete("Port", port.id)
    await cloud.api.delete("Subnet", subnet.id)
    await consistent(cloud.store)


async def test_many_ports_get_theirs_soon_and_those_made_meanwhile_too(cloud: Cloud) -> None:
    made, _ = await crowded(cloud, MANY)
    # Ports that come at the same time are of before or of after: none falls between.
    subnet, *_ = await asyncio.gather(
        cloud.api.create("Subnet", network_id=made.id, cidr=SIX),
        *(cloud.api.create("Port", network_id=made.id) for _ in range(20)),
    )

    async def all_have() -> bool:
        found = await ports_of(cloud, made.id)
        return len(found) == MANY + 20 and all(own(port) in ips(port) for port in found.values())

    await until(all_have, "every port has its address")
    found = await ports_of(cloud, made.id)
    assert {len(ips(port)) for port in found.values()} == {2}
    assert found["p0"].last_modifier == "addresses"
    note = keys.forming(subnet.id)

    async def done() -> bool:
        return not await cloud.store.get(note)

    await until(done, "the note is gone")
    # Another holder that finds it once more changes nothing.
    mark = await cloud.store.revision()
    await cloud.write(put(note, store_pb2.Index(parent_id=made.id).SerializeToString()))
    await until(done, "it is gone again")
    assert max(port.revision for port in (await ports_of(cloud, made.id)).values()) <= mark
    await cloud.settled()
    await consistent(cloud.store)
    await cloud.api.delete("Subnet", subnet.id)
    assert {len(ips(port)) for port in (await ports_of(cloud, made.id)).values()} == {1}
    await cloud.settled()
    await consistent(cloud.store)


async def test_a_note_of_a_subnet_that_is_gone_goes_too(cloud: Cloud) -> None:
    made, _ = await crowded(cloud, MANY)
    subnet = await cloud.api.create("Subnet", network_id=made.id, cidr=SIX)
    await cloud.api.delete("Subnet", subnet.id)
    note = keys.forming(subnet.id)
    await cloud.write(put(note, store_pb2.Index(parent_id=made.id).SerializeToString()))

    async def gone() -> bool:
        return not await cloud.store.get(note)

    await until(gone, "the note is gone")
    assert {len(ips(port)) for port in (await ports_of(cloud, made.id)).values()} == {1}
    await consistent(cloud.store)


async def test_c_03_an_apply_that_states_chosen_addresses_keeps_those_that_guests_form(cloud: Cloud) -> None:
    def wanted(*more: Any) -> list[Any]:
        port = item("Port", name="web", network_id="front", fixed_ips=[{"subnet_id": "v4", "ip_address": "10.0.0.9"}])
        return [item("Network", name="front"), item("Subnet", name="v4", network_id="front", cidr=FOUR), port, *more]

    six = item("Subnet", name="v6", network_id="front", cidr=SIX)
    await apply(cloud.api, *wanted(), by="alice")
    for expected in (
        {"v6": "CREATE", "front": "NONE", "v4": "NONE"},
        {"v6": "NONE", "front": "NONE", "v4": "NONE", "web": "NONE"},
    ):
        reply = await apply(cloud.api, *wanted(six), by="alice")
        assert expected.items() <= actions(reply).items(), actions(reply)
        (web,) = (await cloud.api.list("Port", by="alice", filter='name = "web"')).items
        assert ips(web) == ["10.0.0.9", own(web)]
    await consistent(cloud.store)
