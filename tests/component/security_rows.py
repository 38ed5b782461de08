"""Rows of the tables of security groups, their rules, address groups and templates (rows.py says what a row is)."""

from __future__ import annotations

from typing import Any

import grpc

from tests.component.cloud import Client
from tests.component.rows import (
    DENIED,
    EXCLUSIVE,
    FAMILY,
    GONE,
    GROUP,
    INVALID,
    NOT_FOUND,
    NOWHERE,
    PRECONDITION,
    TAKEN,
    Edge,
    Row,
)

ADDRESSES = "0192f0c1-7c1e-7b3a-9d4e-000000000006"
PORTS = "PORT_RANGE_INVALID"
TCP = {"protocol": "tcp"}


async def holders(api: Client) -> None:
    """What the rows come into conflict with."""
    await api.create("SecurityGroup", id=GROUP, name="holder")
    await api.create("AddressGroup", id=ADDRESSES, name="holder")
    https = {"port_range_min": 443, "port_range_max": 443}
    rule = {"security_group_id": GROUP, "direction": "DIRECTION_INGRESS", **TCP}
    await api.create("SecurityGroupRule", name="https", **rule, **https)
    await api.create("SecurityGroupRule", name="peers", **rule, remote_group_id=GROUP)


def _range(low: int | None, high: int | None, protocol: str = "tcp") -> dict[str, Any]:
    stated = {"port_range_min": low, "port_range_max": high}
    return {"protocol": protocol} | {name: number for name, number in stated.items() if number is not None}


def _rules(*rows: tuple[dict[str, Any], str, str, str], code: grpc.StatusCode = INVALID) -> list[Row]:
    return [Row("SecurityGroupRule", *row, code=code, label=str(number)) for number, row in enumerate(rows)]


_SHAPES = [
    (_range(0, 5), PORTS, "port_range_min", "1 to 65535 is accepted for tcp"),
    (_range(1, 65536), "VALUE_OUT_OF_RANGE", "port_range_max", "0 to 65535"),
    (_range(-1, 5), "VALUE_OUT_OF_RANGE", "port_range_min", "0 to 65535"),
    (_range(81, 80), PORTS, "port_range_min", "at most port_range_max, which is 80"),
    (_range(80, None, "udp"), "MISSING_FIELD", "port_range_max", "has both ends"),
    (_range(None, 80, "sctp"), "MISSING_FIELD", "port_range_min", "has both ends"),
    (_range(80, 80, ""), PORTS, "port_range_min", "a rule of any protocol has no ports"),
    (_range(80, 80, "esp"), PORTS, "port_range_min", "protocol esp has no ports"),
    (_range(None, 80, "89"), PORTS, "port_range_max", "protocol ospf has no ports"),
    (_range(256, None, "icmp"), PORTS, "port_range_min", "for icmp it is the type, and 0 to 255"),
    (_range(8, 256, "icmp"), PORTS, "port_range_max", "the code, and 0 to 255"),
    (_range(None, 0, "icmp"), "MISSING_FIELD", "port_range_min", "goes with a type"),
    ({"protocol": "tcpx"}, "ENUM_INVALID", "protocol", "a number of 0-255, any, or one of"),
    ({"protocol": "256"}, "ENUM_INVALID", "protocol", "a number of 0-255"),
    ({"protocol": "-1"}, "ENUM_INVALID", "protocol", "a number of 0-255"),
    ({"protocol": "icmpv6"}, FAMILY, "protocol", "ethertype IPV6 is accepted"),
    ({"protocol": "icmp", "ethertype": 6}, FAMILY, "protocol", "ethertype IPV4 is accepted"),
    ({"remote_ip_prefix": "10.0.0.0/24", "ethertype": 6}, FAMILY, "remote_ip_prefix", "a prefix of it is accepted"),
    ({"remote_ip_prefix": "fd00::/64", "ethertype": 4}, FAMILY, "remote_ip_prefix", "a prefix of it is accepted"),
    ({"remote_ip_prefix": "10.0.0.1"}, "CIDR_INVALID", "remote_ip_prefix", "such as 10.0.0.0/24"),
    ({"remote_ip_prefix": "10.0.0.1/24"}, "CIDR_HOST_BITS_SET", "remote_ip_prefix", "10.0.0.0/24 would be accepted"),
]

ROWS = [
    Row("SecurityGroup", {"name": "default"}, "NAME_TAKEN", "name", "take another", TAKEN),
    Row("SecurityGroup", {"mode": 99}, "ENUM_INVALID", "mode", "one of ENFORCE, OBSERVE"),
    *_rules(
        *_SHAPES,
        ({"security_group_id": ""}, "MISSING_FIELD", "security_group_id", "missing"),
        ({"security_group_id": "web"}, "ID_INVALID", "security_group_id", "a UUID such as"),
        ({"direction": 0}, "MISSING_FIELD", "direction", "missing"),
        ({"direction": 3}, "ENUM_INVALID", "direction", "one of INGRESS, EGRESS"),
        ({"ethertype": 5}, "ENUM_INVALID", "ethertype", "IPV4, IPV6 is accepted"),
        ({"remote_group_id": "web"}, "ID_INVALID", "remote_group_id", "a UUID such as"),
        ({"remote_group_id": GROUP, "remote_ip_prefix": "10.0.0.0/8"}, EXCLUSIVE, "remote_group_id", "give one of them"),
        ({"remote_group_id": GROUP, "remote_address_group_id": ADDRESSES}, EXCLUSIVE, "remote_address_group_id", "give one"),
        ({"expire_time": {"seconds": 1}}, "TIME_IN_PAST", "expire_time", "a time in the future"),
        ({"expire_time": {"seconds": 1 << 60}}, "VALUE_OUT_OF_RANGE", "expire_time", "no Timestamp"),
    ),
    *_rules(
        ({"security_group_id": NOWHERE}, GONE, "security_group_id", NOWHERE),
        ({"remote_group_id": NOWHERE}, GONE, "remote_group_id", NOWHERE),
        ({"remote_group_id": ADDRESSES}, GONE, "remote_group_id", ADDRESSES),
        ({"remote_address_group_id": NOWHERE}, GONE, "remote_address_group_id", NOWHERE),
        ({"remote_address_group_id": GROUP}, GONE, "remote_address_group_id", GROUP),
        code=NOT_FOUND,
    ),
    Row("SecurityGroupRule", {}, GONE, "security_group_id", GROUP, NOT_FOUND, "bob"),
    *_rules(
        (_range(443, 443), "RULE_EXISTS", "rule", "SecurityGroup holder"),
        (_range(443, 443, "TCP") | {"name": "other"}, "RULE_EXISTS", "rule", "SecurityGroupRule https"),
        (_range(443, 443, "6") | {"ethertype": 4}, "RULE_EXISTS", "rule", "SecurityGroupRule https"),
        (_range(443, 443) | {"remote_ip_prefix": "0.0.0.0/0"}, "RULE_EXISTS", "rule", "SecurityGroupRule https"),
        (TCP | {"remote_group_id": GROUP.upper()}, "RULE_EXISTS", "rule", "SecurityGroupRule peers"),
        code=TAKEN,
    ),
    *[
        Row("AddressGroup", {"addresses": [text]}, reason, "addresses[0]", says, label=text)
        for text, reason, says in (
            ("nowhere", "IP_INVALID", "no address, prefix or range such as"),
            ("", "IP_INVALID", "no address, prefix or range such as"),
            ("fe80::1%eth0", "IP_INVALID", "the address without it"),
            ("10.0.0.1/24", "CIDR_HOST_BITS_SET", "10.0.0.0/24 would be accepted"),
            ("10.0.0.0/33", "CIDR_INVALID", "such as 10.0.0.0/24"),
            ("10.0.0.9-10.0.0.5", "IP_INVALID", "from a lower to a higher address"),
            ("10.0.0.9-fd00::1", "IP_INVALID", "of one family"),
            ("10.0.0.0/24-10.0.1.0/24", "CIDR_INVALID", "such as"),
            ("10.0.0.1-", "IP_INVALID", "no address, prefix or range such as"),
        )
    ],
    Row(
        "AddressGroup",
        {"addresses": [f"10.0.{n // 250}.{n % 250}" for n in range(1001)]},
        "TOO_MANY_VALUES",
        "addresses",
        "1000",
    ),
    Row("AddressGroup", {"addresses": ["10.0.0.5/32", "10.0.0.5"]}, "DUPLICATE_VALUE", "addresses", "10.0.0.5 twice"),
    Row(
        "AddressGroup", {"addresses": ["10.0.0.0/24", "10.0.0.0-10.0.0.255"]}, "DUPLICATE_VALUE", "addresses", "", label="range"
    ),
    *[Row("DefaultSecurityGroupRule", *row, label=str(number)) for number, row in enumerate(_SHAPES)],
    Row("DefaultSecurityGroupRule", {"remote_group": "web"}, "STRING_INVALID", "remote_group", "PARENT"),
    Row(
        "DefaultSecurityGroupRule",
        {"remote_group": "PARENT", "remote_ip_prefix": "10.0.0.0/8"},
        EXCLUSIVE,
        "remote_group",
        "one",
    ),
    Row(
        "DefaultSecurityGroupRule", {"used_in_other_groups": False}, "MISSING_FIELD", "used_in_default_group", "set one of them"
    ),
    Row("DefaultSecurityGroupRule", {"direction": 0}, "MISSING_FIELD", "direction", "missing"),
    Row("DefaultSecurityGroupRule", {}, "ROLE_REQUIRED", "", "needs the role operator", DENIED, "anna"),
    Row(
        "Port",
        {"security_group_ids": [GROUP], "no_fixed_ips": True},
        "INCOMPATIBLE_STATE",
        "security_group_ids",
        "",
        PRECONDITION,
    ),
    Row("Port", {"security_group_ids": [GROUP]}, GONE, "security_group_ids[0]", GROUP, NOT_FOUND, "bob"),
    Row("Port", {"security_group_ids": [GROUP, GROUP]}, "DUPLICATE_VALUE", "security_group_ids", "twice"),
]

EDGES = [
    Edge("SecurityGroup", {}, {"stateful": True, "mode": 1, "is_default": False, "member_count": 0}),
    Edge("SecurityGroup", {"stateful": False, "mode": 2}),
    Edge("SecurityGroup", {"name": "Default"}, by="alice"),
    *[
        Edge("SecurityGroupRule", fields, stored)
        for fields, stored in (
            ({}, {"ethertype": 4, "protocol": "", "normalized_cidr": "0.0.0.0/0"}),
            (TCP, {"port_range_min": 0}),
            (_range(1, 65535, "UDP"), {"protocol": "udp"}),
            (_range(7, 7, "136"), {"protocol": "udplite"}),
            (_range(7, 7, "dccp"), {}),
            (_range(0, None, "icmp"), {}),
            (_range(255, 255, "icmp"), {}),
            (_range(128, 0, "ipv6-icmp") | {"ethertype": 6}, {"protocol": "icmpv6", "normalized_cidr": "::/0"}),
            ({"protocol": "Any"}, {"protocol": ""}),
            ({"protocol": "0"}, {"protocol": "hopopt"}),
            ({"protocol": "255"}, {}),
            ({"protocol": "089"}, {"protocol": "ospf"}),
            (
                {"remote_ip_prefix": "FD00::/64"},
                {"remote_ip_prefix": "fd00::/64", "ethertype": 6, "normalized_cidr": "fd00::/64"},
            ),
            ({"remote_ip_prefix": "224.0.0.0/4"}, {"normalized_cidr": "224.0.0.0/4"}),
            ({"remote_group_id": GROUP, "ethertype": 6}, {"normalized_cidr": ""}),
            ({"remote_address_group_id": ADDRESSES}, {"normalized_cidr": ""}),
            ({"expire_time": {"seconds": 1 << 33}}, {}),
        )
    ],
    Edge("AddressGroup", {}, {"addresses": []}),
    Edge(
        "AddressGroup",
        {"addresses": ["FD00::5", "10.0.0.5-10.0.0.9", "10.0.0.7/32", "10.1.0.0-10.1.0.255", "224.0.0.251", "0.0.0.0/0"]},
        {"addresses": ["0.0.0.0/0", "10.0.0.5-10.0.0.9", "10.0.0.7", "10.1.0.0/24", "224.0.0.251", "fd00::5"]},
    ),
    Edge("AddressGroup", {"addresses": sorted(f"10.0.{n // 250}.{n % 250}" for n in range(1000))}),
    Edge("DefaultSecurityGroupRule", {"remote_group": "PARENT", "ethertype": 6, "used_in_default_group": True}),
    Edge("Port", {"security_group_ids": [GROUP]}),
]

_RULE = {"protocol": "udp"}
UPDATES: list[tuple[str, dict[str, Any], dict[str, Any], str, str, grpc.StatusCode]] = [
    ("SecurityGroup", {"name": "own"}, {"name": "default"}, "NAME_TAKEN", "name", TAKEN),
    ("SecurityGroup", {"name": "own"}, {"mode": 3}, "ENUM_INVALID", "mode", INVALID),
    *[
        ("SecurityGroupRule", _RULE, changed, "IMMUTABLE_FIELD", next(iter(changed)), INVALID)
        for changed in (
            {"direction": 2},
            {"ethertype": 6},
            {"protocol": "tcp"},
            {"port_range_min": 5},
            {"port_range_max": 5},
            {"remote_ip_prefix": "10.0.0.0/8"},
            {"remote_group_id": GROUP},
            {"remote_address_group_id": ADDRESSES},
            {"security_group_id": NOWHERE},
        )
    ],
    ("SecurityGroupRule", _RULE, {"expire_time": {"seconds": 1}}, "TIME_IN_PAST", "expire_time", INVALID),
    ("AddressGroup", {}, {"addresses": ["x"]}, "IP_INVALID", "addresses[0]", INVALID),
    ("DefaultSecurityGroupRule", {}, {"direction": 2}, "IMMUTABLE_FIELD", "direction", INVALID),
    ("DefaultSecurityGroupRule", {}, {"used_in_default_group": True}, "IMMUTABLE_FIELD", "used_in_default_group", INVALID),
    ("Port", {}, {"security_group_ids": [NOWHERE]}, GONE, "security_group_ids[0]", NOT_FOUND),
    (
        "Port",
        {"security_group_ids": [GROUP]},
        {"port_security_enabled": False},
        "INCOMPATIBLE_STATE",
        "security_group_ids",
        PRECONDITION,
    ),
]
