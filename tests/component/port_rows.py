"""Rows of the tables of subnets and ports, and of the fields that all kinds have (rows.py holds those of the other kinds)."""

from __future__ import annotations

from typing import Any

from tests.component import dhcp, rows
from tests.component.rows import (
    DENIED,
    GONE,
    LATER,
    NOT_FOUND,
    NOWHERE,
    PRECONDITION,
    TAKEN,
    UNIMPLEMENTED,
    Row,
)

EVERY = ("Network", "Subnet", "Port", "Node", *rows.BASE)
OWNED = (
    "Network",
    "Subnet",
    "Port",
    "SubnetPool",
    "AddressScope",
    "SecurityGroup",
    "SecurityGroupRule",
    "AddressGroup",
)


def standard() -> list[Row]:
    """Section 2, for every kind that has the field."""
    rows = []
    for kind in EVERY:
        rows += [
            Row(kind, {"name": "n" * 256}, "STRING_TOO_LONG", "name", "at most 255"),
            Row(kind, {"name": "a\tb"}, "STRING_INVALID", "name", "printable text"),
            Row(kind, {"description": "d" * 1025}, "STRING_TOO_LONG", "description", "at most 1024"),
            Row(kind, {"description": "a bell \a"}, "STRING_INVALID", "description", "control character", label="bell"),
            Row(kind, {"tags": [f"t{number}" for number in range(51)]}, "TOO_MANY_VALUES", "tags", "at most 50"),
            Row(kind, {"tags": [""]}, "STRING_INVALID", "tags[0]", "1-255 characters"),
            Row(kind, {"tags": ["a", "b,c"]}, "STRING_INVALID", "tags[1]", "no comma"),
            Row(kind, {"tags": ["t" * 256]}, "STRING_TOO_LONG", "tags[0]", "at most 255"),
            Row(kind, {"tags": ["b", "a", "b"]}, "DUPLICATE_VALUE", "tags", "b twice"),
        ]
    for kind in OWNED:
        rows += [
            Row(kind, {"id": "x"}, "ID_INVALID", "id", "a UUID such as"),
            Row(kind, {"id": NOWHERE.replace("-", "")}, "ID_INVALID", "id", "a UUID such as", label="bare"),
            Row(kind, {"project_id": "p" * 65}, "STRING_TOO_LONG", "project_id", "at most 64"),
            Row(kind, {"project_id": "demo"}, "FIELD_FORBIDDEN", "project_id", "other only", DENIED, "bob"),
        ]
    rows += [
        Row("Node", {"id": ""}, "MISSING_FIELD", "id", "missing"),
        Row("Node", {"id": "Node_1"}, "ID_INVALID", "id", "1-63 characters of a-z"),
        Row("Node", {"id": "n" * 64}, "ID_INVALID", "id", "1-63 characters", label="long"),
        Row("Node", {"id": "-a"}, "ID_INVALID", "id", "begin and end with one", label="dash"),
        Row("Node", {"id": "a."}, "ID_INVALID", "id", "begin and end with one", label="dot"),
        Row("Node", {"id": ".change"}, "ID_INVALID", "id", "begin and end with one", label="layout"),
    ]
    return rows


V6 = "fd00::/64"


def pool(*bounds: tuple[str, str]) -> dict[str, Any]:
    return {"allocation_pools": [{"start": start, "end": end} for start, end in bounds]}


SUBNET = [
    Row("Subnet", {"network_id": ""}, "MISSING_FIELD", "network_id", "missing"),
    Row("Subnet", {"network_id": "net"}, "ID_INVALID", "network_id", "a UUID such as"),
    Row("Subnet", {"network_id": NOWHERE}, GONE, "network_id", NOWHERE, NOT_FOUND),
    Row("Subnet", {"ip_version": 6}, "IP_FAMILY_MISMATCH", "ip_version", "leave it out"),
    Row("Subnet", {"ip_version": 5}, "ENUM_INVALID", "ip_version", "IPV4, IPV6 is accepted"),
    Row("Subnet", {"cidr": ""}, "MISSING_FIELD", "cidr", "for example 10.0.0.0/24"),
    Row("Subnet", {"cidr": "10.0.0.0"}, "CIDR_INVALID", "cidr", "such as 10.0.0.0/24", label="no-length"),
    Row("Subnet", {"cidr": "10.0.0.0/33"}, "CIDR_INVALID", "cidr", "such as 10.0.0.0/24", label="long"),
    Row("Subnet", {"cidr": "10.0.0.0/255.255.255.0"}, "CIDR_INVALID", "cidr", "such as", label="mask"),
    Row("Subnet", {"cidr": "010.0.0.0/24"}, "CIDR_INVALID", "cidr", "such as", label="leading-zero"),
    Row("Subnet", {"cidr": "10.0.0.1/24"}, "CIDR_HOST_BITS_SET", "cidr", "10.0.0.0/24 would be accepted"),
    Row("Subnet", {"cidr": "10.0.0.0/7"}, "CIDR_INVALID", "cidr", "/8 to /32 is accepted", label="wide"),
    Row("Subnet", {"cidr": "2000::/2"}, "CIDR_HOST_BITS_SET", "cidr", "::/2 would be accepted", label="v6"),
    Row("Subnet", {"cidr": "::/2"}, "CIDR_INVALID", "cidr", "/3 to /128 is accepted", label="v6-wide"),
    Row("Subnet", {"cidr": "224.1.0.0/16"}, "CIDR_INVALID", "cidr", "multicast", label="multicast"),
    Row("Subnet", {"cidr": "169.254.0.0/16"}, "CIDR_INVALID", "cidr", "link-local", label="link-local"),
    Row("Subnet", {"cidr": "127.0.0.0/24"}, "CIDR_INVALID", "cidr", "loopback", label="loopback"),
    Row("Subnet", {"cidr": "10.0.128.0/17"}, "CIDR_OVERLAP", "cidr", "overlaps 10.0.128.0/24 of Subnet holder", TAKEN),
    Row("Subnet", {"subnet_pool_id": "pool"}, "ID_INVALID", "subnet_pool_id", "a UUID such as"),
    Row("Subnet", {"subnet_pool_id": NOWHERE, "cidr": ""}, GONE, "subnet_pool_id", NOWHERE, NOT_FOUND),
    Row("Subnet", {"prefix_length": 26}, "FIELDS_EXCLUSIVE", "prefix_length", "give a cidr instead"),
    Row("Subnet", {"prefix_length": 129}, "VALUE_OUT_OF_RANGE", "prefix_length", "0 to 128"),
    Row("Subnet", {"prefix_length": 26, "subnet_pool_id": NOWHERE}, "FIELDS_EXCLUSIVE", "prefix_length", "cidr", label="both"),
    Row("Subnet", {"gateway_ip": "10.0.1.1"}, "IP_NOT_IN_SUBNET", "gateway_ip", "10.0.0.1 to 10.0.0.254"),
    Row("Subnet", {"gateway_ip": "10.0.0.0"}, "IP_NOT_IN_SUBNET", "gateway_ip", "10.0.0.1 to", label="network-address"),
    Row("Subnet", {"gateway_ip": "10.0.0.255"}, "IP_NOT_IN_SUBNET", "gateway_ip", "to 10.0.0.254", label="broadcast"),
    Row("Subnet", {"gateway_ip": "fd00::1"}, "IP_NOT_IN_SUBNET", "gateway_ip", "10.0.0.1 to", label="family"),
    Row("Subnet", {"gateway_ip": "10.0.0.01"}, "IP_INVALID", "gateway_ip", "such as 10.0.0.5"),
    Row("Subnet", {"gateway_ip": "0.0.0.0"}, "IP_INVALID", "gateway_ip", "unicast", label="unspecified"),  # noqa: S104
    Row(
        "Subnet",
        {"gateway_ip": "10.0.0.9", **pool(("10.0.0.5", "10.0.0.20"))},
        "IP_NOT_IN_SUBNET",
        "allocation_pools[0]",
        "leave",
    ),
    Row("Subnet", {"gateway_ip": "10.0.0.1", "disable_gateway": True}, "FIELDS_EXCLUSIVE", "gateway_ip", "exclude each other"),
    Row("Subnet", pool(*[("10.0.0.5", "10.0.0.5")] * 65), "TOO_MANY_VALUES", "allocation_pools", "at most 64"),
    Row("Subnet", pool(("10.0.0.5", "10.0.1.5")), "IP_NOT_IN_SUBNET", "allocation_pools[0]", "10.0.0.1 to 10.0.0.254"),
    Row("Subnet", pool(("10.0.0.0", "10.0.0.5")), "IP_NOT_IN_SUBNET", "allocation_pools[0]", "10.0.0.1 to", label="edge"),
    Row("Subnet", pool(("10.0.0.9", "10.0.0.5")), "IP_INVALID", "allocation_pools[0]", "start must not be after end"),
    Row("Subnet", pool(("10.0.0.9", "")), "MISSING_FIELD", "allocation_pools[0].end", "missing"),
    Row("Subnet", pool(("10.0.0.x", "10.0.0.9")), "IP_INVALID", "allocation_pools[0].start", "such as 10.0.0.5"),
    Row(
        "Subnet",
        pool(("10.0.0.5", "10.0.0.9"), ("10.0.0.9", "10.0.0.12")),
        "DUPLICATE_VALUE",
        "allocation_pools[1]",
        "must be disjoint",
    ),
    Row(
        "Subnet",
        {"dns_nameservers": [f"10.9.9.{number}" for number in range(1, 7)]},
        "TOO_MANY_VALUES",
        "dns_nameservers",
        "at most 5",
        label="B-SUB-03",
    ),
    Row("Subnet", {"dns_nameservers": ["10.9.9.9", "fd00::53"]}, "IP_FAMILY_MISMATCH", "dns_nameservers[1]", "IPv4"),
    Row("Subnet", {"dns_nameservers": ["10.9.9.9", "10.9.9.9"]}, "DUPLICATE_VALUE", "dns_nameservers[1]", "twice"),
    Row("Subnet", {"dns_nameservers": ["resolver"]}, "IP_INVALID", "dns_nameservers[0]", "such as 10.0.0.5"),
    Row(
        "Subnet",
        {"host_routes": [{"destination": f"10.8.{number}.0/24", "nexthop": "10.0.0.9"} for number in range(21)]},
        "TOO_MANY_VALUES",
        "host_routes",
        "at most 20",
        label="B-SUB-03",
    ),
    Row(
        "Subnet",
        {"host_routes": [{"destination": "10.8.0.0/24", "nexthop": f"10.0.0.{last}"} for last in (8, 9)]},
        "DUPLICATE_VALUE",
        "host_routes[1]",
        "twice",
    ),
    Row("Subnet", {"host_routes": [{"destination": V6, "nexthop": "fd00::1"}]}, "IP_FAMILY_MISMATCH", "host_routes[0]", "IPv4"),
    Row(
        "Subnet",
        {"host_routes": [{"destination": "10.8.0.0/24", "nexthop": "fd00::1"}]},
        "IP_FAMILY_MISMATCH",
        "host_routes[0]",
        "IPv4",
        label="mixed",
    ),
    Row("Subnet", {"host_routes": [{"nexthop": "10.0.0.9"}]}, "MISSING_FIELD", "host_routes[0].destination", "missing"),
    Row(
        "Subnet",
        {"cidr": "10.0.0.0/31", "enable_dhcp": True},
        "INCOMPATIBLE_STATE",
        "enable_dhcp",
        "must be false",
        PRECONDITION,
    ),
    Row(
        "Subnet",
        {"cidr": "10.0.0.1/32", "enable_dhcp": True},
        "INCOMPATIBLE_STATE",
        "enable_dhcp",
        "false",
        PRECONDITION,
        label="32",
    ),
    Row(
        "Subnet", {"dhcp_lease_duration": {"seconds": 119}}, "VALUE_OUT_OF_RANGE", "dhcp_lease_duration", "120 to 4294967294 s"
    ),
    Row(
        "Subnet", {"dhcp_lease_duration": {"seconds": -2}}, "VALUE_OUT_OF_RANGE", "dhcp_lease_duration", "-1 s for", label="neg"
    ),
    Row(
        "Subnet",
        {"dhcp_lease_duration": {"seconds": 300, "nanos": 5}},
        "VALUE_OUT_OF_RANGE",
        "dhcp_lease_duration",
        "whole",
        label="ns",
    ),
    Row("Subnet", {"ipv6_ra_mode": 2}, "FIELDS_EXCLUSIVE", "ipv6_ra_mode", "for IPv6 subnets"),
    Row("Subnet", {"ipv6_ra_mode": 99}, "ENUM_INVALID", "ipv6_ra_mode", "one of NONE, SLAAC"),
    Row("Subnet", {"ipv6_address_mode": 2}, "FIELDS_EXCLUSIVE", "ipv6_ra_mode", "for IPv6 subnets", label="address-mode"),
    Row(
        "Subnet",
        {"cidr": V6, "ipv6_ra_mode": 2, "ipv6_address_mode": 3},
        "FIELDS_EXCLUSIVE",
        "ipv6_address_mode",
        "must be equal",
    ),
    Row("Subnet", {"cidr": "fd00::/65", "ipv6_ra_mode": 2}, "VALUE_OUT_OF_RANGE", "ipv6_address_mode", "need a /64"),
    Row("Subnet", {"segment": "a"}, LATER, "segment", "leave it out", UNIMPLEMENTED),
    Row("Subnet", {"service_types": [f"compute:{n}" for n in range(17)]}, "TOO_MANY_VALUES", "service_types", "at most 16"),
    Row("Subnet", {"service_types": ["compute:a"]}, LATER, "service_types", "leave it out", UNIMPLEMENTED),
    Row("Subnet", {"dns_publish_fixed_ip": True}, LATER, "dns_publish_fixed_ip", "leave it out", UNIMPLEMENTED),
]


def pair(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"allowed_address_pairs": [{"ip_address": ip, "mac_address": mac} for ip, mac in pairs]}


def fixed(*addresses: str) -> dict[str, Any]:
    return {"fixed_ips": [{"ip_address": address} for address in addresses]}


def option(*names: str) -> dict[str, Any]:
    return {"extra_dhcp_opts": [{"name": name, "value": "v"} for name in names]}


PORT = [
    Row("Port", {"network_id": ""}, "MISSING_FIELD", "network_id", "missing"),
    Row("Port", {"network_id": NOWHERE}, GONE, "network_id", NOWHERE, NOT_FOUND),
    Row("Port", {"mac_address": "fa:16:3e:00:00"}, "MAC_INVALID", "mac_address", "such as fa:16:3e:12:34:56"),
    Row("Port", {"mac_address": "fa:16-3e:00:00:01"}, "MAC_INVALID", "mac_address", "such as", label="mixed"),
    Row("Port", {"mac_address": "01:00:5e:00:00:01"}, "MAC_INVALID", "mac_address", "even first octet", label="multicast"),
    Row("Port", {"mac_address": "00:00:00:00:00:00"}, "MAC_INVALID", "mac_address", "leave it out", label="zero"),
    Row(
        "Port",
        {"mac_address": "FA-16-3E-AA-00-01"},
        "MAC_TAKEN",
        "mac_address",
        "is taken by Port holder",
        TAKEN,
        label="B-PRT-03",
    ),
    Row("Port", fixed(*["10.0.128.9"] * 17), "TOO_MANY_VALUES", "fixed_ips", "at most 16"),
    Row("Port", fixed("10.0.128.9", "10.0.128.9"), "DUPLICATE_VALUE", "fixed_ips[1]", "10.0.128.9 twice"),
    Row("Port", fixed("10.0.129.9"), "IP_NOT_IN_SUBNET", "fixed_ips[0].ip_address", "10.0.128.0/24"),
    Row("Port", fixed("10.0.128.255"), "IP_NOT_IN_SUBNET", "fixed_ips[0].ip_address", "10.0.128.0/24", label="broadcast"),
    Row("Port", fixed("10.0.128.0"), "IP_NOT_IN_SUBNET", "fixed_ips[0].ip_address", "10.0.128.0/24", label="network"),
    Row("Port", fixed("fd00::9"), "IP_NOT_IN_SUBNET", "fixed_ips[0].ip_address", "10.0.128.0/24", label="family"),
    Row("Port", fixed("10.0.0.256"), "IP_INVALID", "fixed_ips[0].ip_address", "such as 10.0.0.5"),
    Row("Port", fixed("fe80::1%eth0"), "IP_INVALID", "fixed_ips[0].ip_address", "without %eth0", label="zone"),
    Row("Port", fixed("127.0.0.1"), "IP_INVALID", "fixed_ips[0].ip_address", "unicast", label="loopback"),
    Row("Port", fixed("239.0.0.1"), "IP_INVALID", "fixed_ips[0].ip_address", "unicast", label="multicast"),
    Row(
        "Port", fixed("10.0.128.5"), "ADDRESS_TAKEN", "fixed_ips[0].ip_address", "taken by Port holder", TAKEN, label="B-PRT-03"
    ),
    Row("Port", fixed("10.0.128.254"), "ADDRESS_TAKEN", "fixed_ips[0].ip_address", "DHCP service", TAKEN, label="dhcp"),
    Row("Port", {"fixed_ips": [{}]}, "MISSING_FIELD", "fixed_ips[0]", "subnet_id, ip_address or both"),
    Row("Port", {"fixed_ips": [{"subnet_id": NOWHERE}]}, GONE, "fixed_ips[0].subnet_id", NOWHERE, NOT_FOUND),
    Row("Port", {"fixed_ips": [{"subnet_id": "s"}]}, "ID_INVALID", "fixed_ips[0].subnet_id", "a UUID such as"),
    Row("Port", {"no_fixed_ips": True, **fixed("10.0.128.9")}, "FIELDS_EXCLUSIVE", "no_fixed_ips", "exclude each other"),
    Row("Port", {"device_id": "d" * 256}, "STRING_TOO_LONG", "device_id", "at most 255"),
    Row("Port", {"device_owner": "d" * 256}, "STRING_TOO_LONG", "device_owner", "at most 255"),
    Row(
        "Port", {"device_owner": "network:dhcp"}, "FIELD_FORBIDDEN", "device_owner", "for services and operators", DENIED, "bob"
    ),
    Row("Port", {"security_group_ids": [NOWHERE]}, GONE, "security_group_ids[0]", NOWHERE, NOT_FOUND),
    Row("Port", {"security_group_ids": ["web"]}, "ID_INVALID", "security_group_ids[0]", "a UUID such as"),
    Row(
        "Port",
        {"security_group_ids": [f"{NOWHERE[:-2]}{number:02x}" for number in range(33)]},
        "TOO_MANY_VALUES",
        "security_group_ids",
        "at most 32",
    ),
    Row(
        "Port",
        {"security_group_ids": [NOWHERE], "port_security_enabled": False},
        "INCOMPATIBLE_STATE",
        "security_group_ids",
        "leave it empty",
        PRECONDITION,
    ),
    Row(
        "Port",
        {"port_security_enabled": False, **pair(("10.0.128.9/32", ""))},
        "INCOMPATIBLE_STATE",
        "allowed_address_pairs",
        "leave it empty",
        PRECONDITION,
    ),
    Row(
        "Port",
        pair(*[(f"10.7.0.{n}/32", "") for n in range(11)]),
        "TOO_MANY_VALUES",
        "allowed_address_pairs",
        "10",
        label="B-PRT-04",
    ),
    Row("Port", pair(("10.7.0.1/32", ""), ("10.7.0.1/32", "")), "DUPLICATE_VALUE", "allowed_address_pairs[1]", "twice"),
    Row("Port", pair(("", "")), "MISSING_FIELD", "allowed_address_pairs[0].ip_address", "missing"),
    Row("Port", pair(("10.7.0.1/24", "")), "CIDR_HOST_BITS_SET", "allowed_address_pairs[0].ip_address", "10.7.0.0/24 would"),
    Row("Port", pair(("10.7.0.1", "")), "CIDR_INVALID", "allowed_address_pairs[0].ip_address", "such as"),
    Row("Port", pair(("224.0.0.0/24", "")), "CIDR_INVALID", "allowed_address_pairs[0]", "multicast"),
    Row(
        "Port",
        pair(("0.0.0.0/0", "fa:16:3e:bb:00:01")),
        "CIDR_INVALID",
        "allowed_address_pairs[0]",
        "port_security_enabled false",
    ),
    Row("Port", pair(("10.7.0.1/32", "x")), "MAC_INVALID", "allowed_address_pairs[0].mac_address", "such as"),
    Row("Port", option(*[f"{number}" for number in range(1, 66)]), "TOO_MANY_VALUES", "extra_dhcp_opts", "at most 64"),
    Row("Port", option(""), "MISSING_FIELD", "extra_dhcp_opts[0].name", "missing"),
    Row(
        "Port",
        {"extra_dhcp_opts": [{"name": "a", "value": "v" * 256}]},
        "STRING_TOO_LONG",
        "extra_dhcp_opts[0].value",
        "at most 255",
    ),
    *dhcp.ROWS,
    Row("Port", {"dns_name": "a.b"}, "STRING_INVALID", "dns_name", "RFC 1123"),
    Row("Port", {"dns_name": "a" * 64}, "STRING_TOO_LONG", "dns_name", "at most 63"),
    Row("Port", {"dns_name": "host-10-0-0-5"}, "STRING_INVALID", "dns_name", "follows from an address"),
    Row("Port", {"dns_domain": "a."}, "STRING_INVALID", "dns_domain", "'a' would be accepted"),
    Row("Port", {"qos_policy_id": NOWHERE}, GONE, "qos_policy_id", NOWHERE, NOT_FOUND),
    Row("Port", {"vnic_type": 99}, "ENUM_INVALID", "vnic_type", "one of NORMAL"),
    Row("Port", {"vnic_type": "VNIC_TYPE_DIRECT"}, LATER, "vnic_type", "NORMAL is accepted", UNIMPLEMENTED),
    Row("Port", {"private_vlan_kind": 1}, LATER, "private_vlan_kind", "leave it out", UNIMPLEMENTED),
    Row("Port", {"private_vlan_community": "c" * 65}, "STRING_TOO_LONG", "private_vlan_community", "at most 64"),
    Row("Port", {"propagate_uplink_status": False}, LATER, "propagate_uplink_status", "leave it out", UNIMPLEMENTED),
    Row("Port", {"numa_affinity_policy": 99}, "ENUM_INVALID", "numa_affinity_policy", "one of REQUIRED"),
    Row("Port", {"numa_affinity_policy": 1}, LATER, "numa_affinity_policy", "leave it out", UNIMPLEMENTED),
    Row("Port", {"hints": {f"k{number}": "v" for number in range(17)}}, "TOO_MANY_VALUES", "hints", "at most 16"),
    Row("Port", {"hints": {"a\x01": "v"}}, "STRING_INVALID", "hints['a\\x01']", "printable text"),
    Row("Port", {"hints": {"ovs.tx-steering": "hash"}}, LATER, "hints", "leave it out", UNIMPLEMENTED),
]
