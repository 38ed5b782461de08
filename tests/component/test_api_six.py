"""IPv6 subnets and the addresses that ports have of them."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from kumihimo.v1 import network_pb2, port_pb2
from tests.component.cloud import Client, Cloud, consistent, refused
from tests.component.rows import INVALID, LATER, PRECONDITION, TAKEN, UNIMPLEMENTED

NONE, SLAAC, STATEFUL, STATELESS = 1, 2, 3, 4  # Ipv6Mode
MAC, FORMED = "fa:16:3e:00:00:11", "f816:3eff:fe00:11"
OTHER_MAC, OTHER_FORMED = "fa:16:3e:00:00:12", "f816:3eff:fe00:12"


async def network(api: Client, *subnets: dict[str, Any], **fields: Any) -> tuple[Any, list[Any]]:
    made = await api.create("Network", **fields)
    return made, [await api.create("Subnet", network_id=made.id, **each) for each in subnets]


def ips(port: Any) -> list[str]:
    return [fixed.ip_address for fixed in port.fixed_ips]


@pytest.mark.parametrize(
    ("fields", "mode", "served"),
    [
        ({}, SLAAC, True),
        ({"ipv6_ra_mode": SLAAC}, SLAAC, True),
        ({"ipv6_address_mode": STATELESS}, STATELESS, True),
        ({"ipv6_ra_mode": STATEFUL, "cidr": "fd00:1::/96"}, STATEFUL, True),
        ({"ipv6_ra_mode": STATEFUL, "cidr": "fd00:1::/56", "enable_dhcp": False}, STATEFUL, False),
        ({"ipv6_ra_mode": NONE}, NONE, False),
        ({"ipv6_ra_mode": NONE, "cidr": "fd00:1::9/128"}, NONE, False),
        ({"ipv6_ra_mode": SLAAC, "enable_dhcp": False}, SLAAC, False),
        ({"gateway_ip": "fe80::1"}, SLAAC, True),
    ],
)
async def test_b_sub_01_an_ipv6_subnet_has_both_modes(api: Client, fields: dict[str, Any], mode: int, served: bool) -> None:
    _, (subnet,) = await network(api, {"cidr": "fd00:1::/64", **fields})
    assert (subnet.ip_version, subnet.ipv6_ra_mode, subnet.ipv6_address_mode) == (6, mode, mode)
    assert (subnet.enable_dhcp, bool(subnet.dhcp_server_ip)) == (served, served)


ROWS: list[tuple[dict[str, Any], str, str, str, grpc.StatusCode]] = [
    ({"cidr": "fd00::/65"}, "VALUE_OUT_OF_RANGE", "ipv6_address_mode", "DHCPV6_STATEFUL or NONE is accepted", INVALID),
    ({"cidr": "fd00::/63", "ipv6_ra_mode": STATELESS}, "VALUE_OUT_OF_RANGE", "ipv6_address_mode", "need a /64", INVALID),
    ({"ipv6_ra_mode": NONE, "enable_dhcp": True}, "INCOMPATIBLE_STATE", "enable_dhcp", "must be false", PRECONDITION),
    ({"cidr": "fd00::/63", "ipv6_ra_mode": STATEFUL}, "INCOMPATIBLE_STATE", "enable_dhcp", "/64 to /126", PRECONDITION),
    ({"cidr": "fd00::/127", "ipv6_ra_mode": STATEFUL}, "INCOMPATIBLE_STATE", "enable_dhcp", "must be false", PRECONDITION),
    ({"ip_version": 4}, "IP_FAMILY_MISMATCH", "ip_version", "leave it out", INVALID),
    ({"cidr": "fe80::/64"}, "CIDR_INVALID", "cidr", "link-local", INVALID),
    ({"cidr": "ff02::/64"}, "CIDR_INVALID", "cidr", "multicast", INVALID),
    ({"gateway_ip": "fd00:0:0:1::1"}, "IP_NOT_IN_SUBNET", "gateway_ip", "is accepted", INVALID),
    ({"gateway_ip": "10.0.0.1"}, "IP_NOT_IN_SUBNET", "gateway_ip", "is accepted", INVALID),
    ({"dns_nameservers": ["10.9.9.9"]}, "IP_FAMILY_MISMATCH", "dns_nameservers[0]", "IPv6", INVALID),
    ({"host_routes": [{"destination": "fd01::/64", "nexthop": "fd00::9"}]}, LATER, "host_routes", "empty", UNIMPLEMENTED),
    (
        {"allocation_pools": [{"start": "fd00::10", "end": "fd00:0:0:1::10"}]},
        "IP_NOT_IN_SUBNET",
        "allocation_pools[0]",
        "inside",
        INVALID,
    ),
]


@pytest.mark.parametrize(("fields", "reason", "at", "says", "code"), ROWS, ids=[f"{row[2]}-{row[1]}" for row in ROWS])
async def test_row_refuses_what_its_table_refuses(
    api: Client, fields: dict[str, Any], reason: str, at: str, says: str, code: grpc.StatusCode
) -> None:
    made, _ = await network(api)
    error = await refused(api.create("Subnet", network_id=made.id, **{"cidr": "fd00::/64", **fields}))
    assert (error.code, error.reason) == (code, reason), error
    assert says in error.message
    assert at in [place for place, _, _ in error.violations]


async def test_b_sub_01_a_dual_stack_port_has_one_address_of_each_family(api: Client) -> None:
    four, managed = {"cidr": "10.0.0.0/24"}, {"cidr": "fd00:2::/64", "ipv6_ra_mode": STATEFUL}
    made, _ = await network(api, four, {"cidr": "10.0.1.0/24"}, managed, {**managed, "cidr": "fd00:3::/64"})
    assert ips(await api.create("Port", network_id=made.id)) == ["10.0.0.2", "fd00:2::2"]
    made, _ = await network(api, {"cidr": "fd00:1::/64"}, four, managed)
    port = await api.create("Port", network_id=made.id, mac_address=MAC)
    assert ips(port) == ["10.0.0.2", f"fd00:1::{FORMED}"], "guests make theirs in the SLAAC subnet"
    given = [{"ip_address": "fd00:2::5"}, {"ip_address": f"fd00:1::{FORMED.replace('11', '12')}"}, {"ip_address": "10.0.0.9"}]
    port = await api.create("Port", network_id=made.id, mac_address=OTHER_MAC, fixed_ips=given)
    assert ips(port) == ["fd00:2::5", f"fd00:1::{OTHER_FORMED}", "10.0.0.9"]


@pytest.mark.parametrize("mode", [SLAAC, STATELESS])
async def test_b_sub_07_only_the_address_that_guests_form(cloud: Cloud, mode: int) -> None:
    api = cloud.api
    made, (subnet,) = await network(api, {"cidr": "fd00:1::/64", "ipv6_ra_mode": mode})
    place = {"network_id": made.id, "mac_address": MAC}
    for wanted in ("fd00:1::5", f"fd00:1::{OTHER_FORMED}"):
        error = await refused(api.create("Port", **place, fixed_ips=[{"ip_address": wanted}]))
        assert (error.code, error.reason) == (INVALID, "IP_NOT_IN_SUBNET")
        assert f"fd00:1::{FORMED} is accepted" in error.message
    twice = await refused(api.create("Port", **place, fixed_ips=[{"subnet_id": subnet.id}] * 2))
    assert (twice.code, twice.reason) == (INVALID, "DUPLICATE_VALUE")
    port = await api.create("Port", **place, fixed_ips=[{"subnet_id": subnet.id}])
    assert ips(port) == [f"fd00:1::{FORMED}"]
    await consistent(cloud.store)
    moved = await api.update("Port", port.id, mac_address=OTHER_MAC)
    assert ips(moved) == [f"fd00:1::{OTHER_FORMED}"], "it follows the MAC"
    await cloud.settled()
    await consistent(cloud.store)
    assert ips(await api.create("Port", **place)) == [f"fd00:1::{FORMED}"], "the former address is free"


async def test_b_sub_07_a_formed_address_is_not_taken_from_a_port_that_keeps_others(cloud: Cloud) -> None:
    made, (four, six) = await network(cloud.api, {"cidr": "10.0.0.0/24"}, {"cidr": "fd00:1::/64"})
    port = await cloud.api.create("Port", network_id=made.id, mac_address=MAC)
    error = await refused(cloud.api.update("Port", port.id, fixed_ips=[{"ip_address": "10.0.0.9"}]))
    assert (error.code, error.reason) == (PRECONDITION, "INCOMPATIBLE_STATE")
    assert f"fd00:1::{FORMED}" in error.message
    stated = [{"ip_address": "10.0.0.9"}, {"ip_address": f"fd00:1::{FORMED}"}]
    assert ips(await cloud.api.update("Port", port.id, fixed_ips=stated)) == ["10.0.0.9", f"fd00:1::{FORMED}"]
    both = {"mac_address": OTHER_MAC, "fixed_ips": [{"subnet_id": four.id}, {"subnet_id": six.id}]}
    assert ips(await cloud.api.update("Port", port.id, **both)) == ["10.0.0.9", f"fd00:1::{OTHER_FORMED}"]
    none = await cloud.api.update("Port", port.id, no_fixed_ips=True, mask=["no_fixed_ips", "fixed_ips"])
    assert ips(none) == []
    await cloud.settled()
    await consistent(cloud.store)


async def test_b_sub_02_addresses_of_a_large_pool_are_given_out_one_by_one(cloud: Cloud) -> None:
    made, (subnet,) = await network(cloud.api, {"cidr": "fd00::/64", "ipv6_ra_mode": STATEFUL})
    assert (subnet.gateway_ip, subnet.dhcp_server_ip) == ("fd00::1", "fd00::ffff:ffff:ffff:ffff")
    ports = [await cloud.api.create("Port", network_id=made.id) for _ in range(3)]
    assert [ips(port) for port in ports] == [["fd00::2"], ["fd00::3"], ["fd00::4"]]
    given = await cloud.api.create("Port", network_id=made.id, fixed_ips=[{"ip_address": "FD00:0::0:A"}])
    assert ips(given) == ["fd00::a"]
    taken = await refused(cloud.api.create("Port", network_id=made.id, fixed_ips=[{"ip_address": "fd00::a"}]))
    assert (taken.code, taken.reason) == (TAKEN, "ADDRESS_TAKEN")
    reply = await cloud.api.call("Networks", "GetIpAvailability", network_pb2.GetIpAvailabilityRequest(id=made.id))
    found = reply.subnets[0]
    total = 2**64 - 1
    assert (found.total, found.used, found.free, found.reserved) == (str(total), "4", str(total - 6), "2")
    await consistent(cloud.store)


async def test_an_ipv6_subnet_and_a_small_mtu_exclude_each_other(api: Client) -> None:
    small, _ = await network(api, mtu=1279)
    error = await refused(api.create("Subnet", network_id=small.id, cidr="fd00::/64"))
    assert (error.code, error.reason) == (INVALID, "VALUE_OUT_OF_RANGE")
    assert "1280" in error.message
    await api.update("Network", small.id, mtu=1280)
    await api.create("Subnet", network_id=small.id, cidr="fd00::/64")
    error = await refused(api.update("Network", small.id, mtu=1279))
    assert (error.code, error.reason, error.metadata["field"]) == (INVALID, "VALUE_OUT_OF_RANGE", "mtu")
    assert "1280" in error.message


async def test_b_prt_04_pairs_of_ipv6(api: Client) -> None:
    made, _ = await network(api, {"cidr": "fd00::/64"})

    def pair(ip: str, mac: str = "") -> dict[str, Any]:
        return {"allowed_address_pairs": [port_pb2.AddressPair(ip_address=ip, mac_address=mac)]}

    for ip in ("fd00::/65", "fd00::9/128", "::/0", "fe80::1/128"):
        port = await api.create("Port", network_id=made.id, **pair(ip))
        assert port.allowed_address_pairs[0].ip_address == ip
    for ip, mac in (("ff02::/16", ""), ("::/0", MAC)):
        error = await refused(api.create("Port", network_id=made.id, **pair(ip, mac)))
        assert (error.code, error.reason) == (INVALID, "CIDR_INVALID")


async def test_b_sub_11_a_pool_gives_ipv6_prefixes(cloud: Cloud) -> None:
    pool = await cloud.api.create("SubnetPool", prefixes=["fd00::/48"])
    made, subnets = await network(cloud.api, {"subnet_pool_id": pool.id}, {"subnet_pool_id": pool.id})
    assert [subnet.cidr for subnet in subnets] == ["fd00::/64", "fd00:0:0:1::/64"]
    assert len(ips(await cloud.api.create("Port", network_id=made.id))) == 2
    await consistent(cloud.store)
