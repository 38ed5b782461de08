"""Rows of the resource tables of the kinds that are not in a network, and what a row is (test_api_rows.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import grpc

from controlplane.registry import KINDS
from tests.component.cloud import Client

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
TAKEN = grpc.StatusCode.ALREADY_EXISTS

NOWHERE = "0192f0c1-7c1e-7b3a-9d4e-5f60718293a4"


@dataclass(frozen=True)
class Row:
    """One fault. at: path of the field. says: a piece of the message that tells what would be accepted."""

    kind: str
    fields: dict[str, Any]
    reason: str
    at: str
    says: str = ""
    code: grpc.StatusCode = INVALID
    by: str = "root"
    label: str = ""

    def __str__(self) -> str:
        return f"{self.kind}-{self.at}-{self.reason}{'-' + self.label if self.label else ''}"


@dataclass(frozen=True)
class Edge:
    """A value on the edge that is accepted. stored: what comes of it, when that differs."""

    kind: str
    fields: dict[str, Any]
    stored: dict[str, Any] = field(default_factory=dict)
    by: str = "root"

    def __str__(self) -> str:
        return f"{self.kind}-{'-'.join(self.fields)}"


EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
GONE, EXCLUSIVE, RANGE, FAMILY = "REFERENCE_NOT_FOUND", "FIELDS_EXCLUSIVE", "VALUE_OUT_OF_RANGE", "IP_FAMILY_MISMATCH"
# Made once, for all rows (`holders`).
POOL, FULL, SCOPE, SIX = (f"0192f0c1-7c1e-7b3a-9d4e-0000000000{last}" for last in ("01", "02", "03", "04"))
GROUP = "0192f0c1-7c1e-7b3a-9d4e-000000000005"
VXLAN = "NETWORK_TYPE_VXLAN"
GRE, VLAN, FLAT, LOCAL, GENEVE = (f"NETWORK_TYPE_{name}" for name in ("GRE", "VLAN", "FLAT", "LOCAL", "GENEVE"))
LATER = "FEATURE_NOT_SUPPORTED"

# What a row's fields are added to.
BASE: dict[str, dict[str, Any]] = {
    "PhysicalNetwork": {"id": "edge"},
    "NetworkSegmentRange": {"network_type": VXLAN, "minimum": 10_000, "maximum": 10_099},
    "AddressScope": {"ip_version": 4},
    "SubnetPool": {"prefixes": ["10.16.0.0/16"]},
    "Settings": {"id": "installation"},
    "SecurityGroup": {},
    "SecurityGroupRule": {"direction": "DIRECTION_INGRESS"},
    "AddressGroup": {},
    "DefaultSecurityGroupRule": {"direction": "DIRECTION_INGRESS", "used_in_other_groups": True},
}


async def parent(api: Client, kind: str, by: str = "root", **fields: Any) -> dict[str, str]:
    """The field of a child that names its parent, which is made; nothing for kinds that have none."""
    found = KINDS[kind]
    return {found.parent: (await api.create(found.parent_kind, by=by, **fields)).id} if found.parent else {}


def sample(kind: str, number: int) -> dict[str, Any]:
    """What the object of a number needs of its own beside its base; children need a parent too."""
    match kind:
        case "Node" | "PhysicalNetwork":
            return {"id": f"{kind.lower()}-{number}"}
        case "Subnet":
            return {"cidr": f"10.{number}.0.0/24"}
        case "NetworkSegmentRange":
            first = 1_000_000 + 10 * number
            return {**BASE[kind], "minimum": first, "maximum": first + 9}
        case "SecurityGroupRule":
            return {**BASE[kind], "protocol": "tcp", "port_range_min": number + 1, "port_range_max": number + 1}
    return BASE.get(kind, {})


async def holders(api: Client) -> None:
    """What the rows come into conflict with."""
    await api.create("PhysicalNetwork", id="holder")
    await api.create("NetworkSegmentRange", name="holder", network_type=VXLAN, minimum=1, maximum=9_999)
    await api.create("NetworkSegmentRange", name="one", projects=["one"], network_type=VXLAN, minimum=20_000, maximum=20_999)
    await api.create("NetworkSegmentRange", name="v", physical_network="holder", network_type=VLAN, minimum=1, maximum=100)
    await api.create("AddressScope", id=SCOPE, name="holder", ip_version=4)
    await api.create("AddressScope", id=SIX, ip_version=6)
    lengths = {"min_prefix_length": 24, "max_prefix_length": 28}
    await api.create("SubnetPool", id=POOL, name="holder", prefixes=["10.200.0.0/16"], address_scope_id=SCOPE, **lengths)
    await api.create("SubnetPool", id=FULL, name="full", is_default=True, prefixes=["10.201.0.0/24"])
    network = (await api.create("Network")).id
    await api.create("Subnet", name="pooled", network_id=network, subnet_pool_id=POOL, cidr="10.200.1.0/28")


def _pool(*rows: tuple[dict[str, Any], str, str, str], code: grpc.StatusCode = INVALID, by: str = "root") -> list[Row]:
    return [Row("SubnetPool", fields, reason, at, says, code, by, str(n)) for n, (fields, reason, at, says) in enumerate(rows)]


NETWORK = [
    Row("Network", {"network_type": 99}, "ENUM_INVALID", "network_type", "one of VLAN, VXLAN"),
    Row(
        "Network", {"network_type": VLAN, "segmentation_id": 7}, "MISSING_FIELD", "physical_network", "goes with", label="vlan"
    ),
    Row("Network", {"network_type": FLAT, "physical_network": "p"}, GONE, "physical_network", "p", NOT_FOUND, label="flat"),
    Row("Network", {"network_type": "NETWORK_TYPE_VXLAN"}, "FIELD_FORBIDDEN", "network_type", "leave it out", DENIED, "anna"),
    Row("Network", {"network_type": FLAT}, "MISSING_FIELD", "physical_network", "needs one"),
    Row("Network", {"physical_network": "phys1"}, "FIELDS_EXCLUSIVE", "physical_network", "for VLAN and FLAT"),
    Row("Network", {"physical_network": "p" * 65}, "STRING_TOO_LONG", "physical_network", "at most 64"),
    Row("Network", {"network_type": VLAN, "physical_network": "a_b"}, "ID_INVALID", "physical_network", "characters of a-z"),
    Row("Network", {"physical_network": "p"}, "FIELDS_EXCLUSIVE", "physical_network", "has none", INVALID, "bob"),
    Row("Network", {"segmentation_id": 1 << 24}, "VALUE_OUT_OF_RANGE", "segmentation_id", "1 to 16777215 is accepted"),
    Row("Network", {"network_type": VLAN, "segmentation_id": 4095}, "VALUE_OUT_OF_RANGE", "segmentation_id", "1 to 4094"),
    Row("Network", {"network_type": GENEVE, "segmentation_id": 1 << 24}, "VALUE_OUT_OF_RANGE", "segmentation_id", "16777215"),
    Row("Network", {"network_type": LOCAL, "segmentation_id": 5}, "VALUE_OUT_OF_RANGE", "segmentation_id", "leave it out"),
    Row("Network", {"segmentation_id": 100}, "FIELD_FORBIDDEN", "segmentation_id", "leave it out", DENIED, "anna"),
    Row(
        "Network",
        {"segments": [{"segment": "a"}], "segmentation_id": 5},
        "FIELDS_EXCLUSIVE",
        "segments",
        "the one or the other",
    ),
    Row("Network", {"segments": [{}] * 65}, "TOO_MANY_VALUES", "segments", "at most 64"),
    Row("Network", {"segments": [{"network_type": 99}]}, "ENUM_INVALID", "segments[0].network_type", "one of VLAN"),
    Row("Network", {"segments": [{"segment": "a"}]}, LATER, "segments", "leave it out", UNIMPLEMENTED),
    Row("Network", {"external": True}, LATER, "external", "leave it out", UNIMPLEMENTED),
    Row("Network", {"external": True}, "FIELD_FORBIDDEN", "external", "leave it out", DENIED, "anna"),
    Row("Network", {"mtu": 67}, "VALUE_OUT_OF_RANGE", "mtu", "68 to 1450 is accepted", label="B-NET-12"),
    Row("Network", {"mtu": 1451}, "VALUE_OUT_OF_RANGE", "mtu", "68 to 1450 is accepted", label="B-NET-12-large"),
    Row("Network", {"mtu": 0}, "VALUE_OUT_OF_RANGE", "mtu", "68 to 1450 is accepted", label="zero"),
    Row("Network", {"mtu": -1}, "VALUE_OUT_OF_RANGE", "mtu", "68 to 1450 is accepted", label="negative"),
    Row("Network", {"network_type": GRE, "mtu": 1459}, "VALUE_OUT_OF_RANGE", "mtu", "68 to 1458", label="gre"),
    Row("Network", {"dns_domain": "example.org."}, "STRING_INVALID", "dns_domain", "'example.org' would be accepted"),
    Row("Network", {"dns_domain": "a..b"}, "STRING_INVALID", "dns_domain", "RFC 1123"),
    Row("Network", {"dns_domain": "a" * 256}, "STRING_TOO_LONG", "dns_domain", "at most 255"),
    Row("Network", {"dns_domain": "a" * 64 + ".org"}, "STRING_INVALID", "dns_domain", "RFC 1123", label="label"),
    Row("Network", {"qos_policy_id": "gold"}, "ID_INVALID", "qos_policy_id", "a UUID such as"),
    Row("Network", {"qos_policy_id": NOWHERE}, GONE, "qos_policy_id", NOWHERE, NOT_FOUND),
    Row("Network", {"availability_zone_hints": [f"z{n}" for n in range(9)]}, "TOO_MANY_VALUES", "availability_zone_hints", "8"),
    Row("Network", {"availability_zone_hints": ["z", "z"]}, "DUPLICATE_VALUE", "availability_zone_hints", "twice"),
    Row("Network", {"availability_zone_hints": ["z1"]}, GONE, "availability_zone_hints[0]", "z1", NOT_FOUND),
    Row("Network", {"is_default": True}, LATER, "is_default", "leave it out", UNIMPLEMENTED),
    Row("Network", {"vlan_transparent": True}, LATER, "vlan_transparent", "leave it out", UNIMPLEMENTED),
    Row("Network", {"private_vlan": True}, LATER, "private_vlan", "leave it out", UNIMPLEMENTED),
    Row("Network", {"flood_unknown": True}, LATER, "flood_unknown", "leave it out", UNIMPLEMENTED),
    Row("Network", {"flood_unknown": True}, "FIELD_FORBIDDEN", "flood_unknown", "leave it out", DENIED, "anna"),
]

NODE = [
    Row("Node", {"roles": [99]}, "ENUM_INVALID", "roles[0]", "one of COMPUTE"),
    Row("Node", {"roles": [0]}, "ENUM_INVALID", "roles[0]", "one of COMPUTE", label="unspecified"),
    Row("Node", {"roles": [1, 1]}, "DUPLICATE_VALUE", "roles", "twice"),
    Row("Node", {"roles": [1, 2, 3, 4, 1]}, "TOO_MANY_VALUES", "roles", "at most 4"),
    Row("Node", {"availability_zone": "Z_1"}, "ID_INVALID", "availability_zone", "characters of a-z"),
    Row("Node", {"tunnel_ip": "10.0.0"}, "IP_INVALID", "tunnel_ip", "such as 10.0.0.5"),
    Row("Node", {"tunnel_ip": "255.255.255.255"}, "IP_INVALID", "tunnel_ip", "unicast", label="broadcast"),
    Row("Node", {"tunnel_ip": "192.0.2.1"}, "ADDRESS_TAKEN", "tunnel_ip", "is taken by Node holder", TAKEN),
    Row("Node", {"tunnel_ip": "fd00::1"}, "IP_INVALID", "tunnel_ip", "an IPv4 address is accepted"),
    Row("Node", {"datapath_type": 1}, LATER, "datapath_type", "leave it out", UNIMPLEMENTED),
    Row("Node", {"datapath_type": 99}, "ENUM_INVALID", "datapath_type", "one of SYSTEM"),
    Row("Node", {"tunnel_types": [2, 1]}, "ENUM_INVALID", "tunnel_types[0]", "VLAN, which is no tunnel; one of VXLAN, GRE"),
    Row("Node", {"tunnel_types": [99]}, "ENUM_INVALID", "tunnel_types[0]", "one of VLAN", label="unknown"),
    Row("Node", {"tunnel_types": [2, 2]}, "DUPLICATE_VALUE", "tunnel_types", "twice"),
    Row("Node", {"bridge_mappings": {f"p{n}": "br" for n in range(65)}}, "TOO_MANY_VALUES", "bridge_mappings", "at most 64"),
    Row("Node", {"bridge_mappings": {"p": "br-ex"}}, GONE, "bridge_mappings", "PhysicalNetwork p", NOT_FOUND),
    Row("Node", {"bridge_mappings": {"P!": "br-ex"}}, GONE, "bridge_mappings", "PhysicalNetwork P!", NOT_FOUND, label="slug"),
    Row("Node", {"bridge_mappings": {"p": "eth1", "q": "eth1"}}, "DUPLICATE_VALUE", "bridge_mappings", "p and q are both"),
    Row("Node", {"bridge_mappings": {"p": ""}}, "STRING_INVALID", "bridge_mappings", "of 1-15 characters"),
    Row("Node", {"bridge_mappings": {"p": "b" * 16}}, "STRING_INVALID", "bridge_mappings", "of 1-15", label="long"),
    Row("Node", {"weight": 1001}, "VALUE_OUT_OF_RANGE", "weight", "0 to 1000 is accepted"),
    Row("Node", {"weight": -1}, "VALUE_OUT_OF_RANGE", "weight", "0 to 1000 is accepted", label="negative"),
]

RANGES = [
    Row("NetworkSegmentRange", {"network_type": 0}, "MISSING_FIELD", "network_type", "missing"),
    Row("NetworkSegmentRange", {"network_type": 99}, "ENUM_INVALID", "network_type", "one of VLAN"),
    Row(
        "NetworkSegmentRange",
        {"network_type": 5},
        "ENUM_INVALID",
        "network_type",
        "FLAT has no numbers; one of VLAN",
        label="flat",
    ),
    Row("NetworkSegmentRange", {"network_type": VLAN, "minimum": 1, "maximum": 9}, "MISSING_FIELD", "physical_network", "VLAN"),
    Row("NetworkSegmentRange", {"physical_network": "holder"}, EXCLUSIVE, "physical_network", "for VLAN; a range of VXLAN"),
    Row("NetworkSegmentRange", {"physical_network": "A_B"}, "ID_INVALID", "physical_network", "characters of a-z"),
    Row(
        "NetworkSegmentRange",
        {"network_type": VLAN, "physical_network": "nowhere", "minimum": 1, "maximum": 9},
        GONE,
        "physical_network",
        "PhysicalNetwork nowhere",
        NOT_FOUND,
    ),
    Row("NetworkSegmentRange", {"minimum": 0}, "MISSING_FIELD", "minimum", "missing"),
    Row("NetworkSegmentRange", {"maximum": 0}, "MISSING_FIELD", "maximum", "missing"),
    Row("NetworkSegmentRange", {"minimum": 10_100}, RANGE, "minimum", "at most maximum, which is 10099"),
    Row("NetworkSegmentRange", {"maximum": 1 << 24}, RANGE, "maximum", "1 to 16777215 is accepted for VXLAN"),
    Row(
        "NetworkSegmentRange",
        {"network_type": VLAN, "physical_network": "holder", "minimum": 200, "maximum": 4095},
        RANGE,
        "maximum",
        "1 to 4094",
        label="vlan",
    ),
    Row("NetworkSegmentRange", {"projects": ["p"] * 2}, "DUPLICATE_VALUE", "projects", "p twice"),
    Row("NetworkSegmentRange", {"projects": ["p" * 65]}, "STRING_TOO_LONG", "projects[0]", "at most 64"),
    Row("NetworkSegmentRange", {"projects": [f"p{n}" for n in range(1001)]}, "TOO_MANY_VALUES", "projects", "at most 1000"),
    *[
        Row("NetworkSegmentRange", fields, "SEGMENT_TAKEN", "minimum", f"NetworkSegmentRange {name}", TAKEN, label=label)
        for label, name, fields in (
            ("all", "holder", {"minimum": 9_999}),
            ("all-some", "holder", {"minimum": 1, "maximum": 1, "projects": ["demo"]}),
            ("some-all", "one", {"minimum": 20_500, "maximum": 30_000}),
            ("some", "one", {"minimum": 20_500, "maximum": 30_000, "projects": ["one", "two"]}),
            ("vlan", "v", {"network_type": VLAN, "physical_network": "holder", "minimum": 100, "maximum": 100}),
        )
    ],
    Row("NetworkSegmentRange", {}, "ROLE_REQUIRED", "", "needs the role operator", DENIED, "anna"),
]

PHYSICAL = [
    Row("PhysicalNetwork", {"id": ""}, "MISSING_FIELD", "id", "missing"),
    Row("PhysicalNetwork", {"id": "A b"}, "ID_INVALID", "id", "1-63 characters of a-z"),
    Row("PhysicalNetwork", {"mtu": 67}, RANGE, "mtu", "68 to 9216 is accepted"),
    Row("PhysicalNetwork", {"mtu": 9217}, RANGE, "mtu", "68 to 9216 is accepted", label="large"),
    Row("PhysicalNetwork", {"mtu": 0}, RANGE, "mtu", "68 to 9216 is accepted", label="zero"),
    Row("PhysicalNetwork", {}, "ROLE_REQUIRED", "", "needs the role operator", DENIED, "anna"),
]

SCOPES = [
    Row("AddressScope", {"ip_version": 0}, "MISSING_FIELD", "ip_version", "missing"),
    Row("AddressScope", {"ip_version": 5}, "ENUM_INVALID", "ip_version", "IPV4, IPV6 is accepted"),
]

POOLS = [
    *_pool(
        ({"prefixes": []}, "MISSING_FIELD", "prefixes", "missing"),
        ({"prefixes": ["10.0.0.0"]}, "CIDR_INVALID", "prefixes[0]", "such as 10.0.0.0/24"),
        ({"prefixes": ["10.0.0.1/24"]}, "CIDR_HOST_BITS_SET", "prefixes[0]", "10.0.0.0/24 would be accepted"),
        ({"prefixes": ["224.0.0.0/8"]}, "CIDR_INVALID", "prefixes[0]", "multicast"),
        ({"prefixes": ["fe80::/64"]}, "CIDR_INVALID", "prefixes[0]", "link-local"),
        ({"prefixes": ["10.0.0.0/24", "10.0.0.0/24"]}, "DUPLICATE_VALUE", "prefixes", "twice"),
        ({"prefixes": ["10.0.0.0/24", "fd00::/48"]}, FAMILY, "prefixes[1]", "a pool has one family"),
        ({"prefixes": [f"10.0.{n}.0/24" for n in range(256)] + ["11.0.0.0/8"]}, "TOO_MANY_VALUES", "prefixes", "at most 256"),
        ({"min_prefix_length": 7}, RANGE, "min_prefix_length", "8 to 32 is accepted"),
        ({"max_prefix_length": 33}, RANGE, "max_prefix_length", "8 to 32 is accepted"),
        ({"max_prefix_length": 129}, RANGE, "max_prefix_length", "0 to 128 is accepted"),
        ({"min_prefix_length": 26, "max_prefix_length": 25}, RANGE, "min_prefix_length", "8 to 25 is accepted"),
        ({"min_prefix_length": 24, "default_prefix_length": 23}, RANGE, "default_prefix_length", "24 to 32"),
        ({"max_prefix_length": 24, "default_prefix_length": 25}, RANGE, "default_prefix_length", "8 to 24"),
        ({"default_quota": -1}, RANGE, "default_quota", "0 to"),
        ({"address_scope_id": "scope"}, "ID_INVALID", "address_scope_id", "a UUID such as"),
        ({"address_scope_id": SIX}, FAMILY, "address_scope_id", "one of IPv4 is accepted"),
    ),
    *_pool(({"prefixes": ["10.0.0.0/24", "10.0.0.128/25"]}, "CIDR_OVERLAP", "prefixes", "which overlap"), code=TAKEN),
    *_pool(({"address_scope_id": NOWHERE}, GONE, "address_scope_id", NOWHERE), code=NOT_FOUND),
    *_pool(
        (
            {"address_scope_id": SCOPE, "prefixes": ["10.200.9.0/24"]},
            "CIDR_OVERLAP",
            "prefixes",
            "10.200.0.0/16 of SubnetPool holder",
        ),
        ({"address_scope_id": SCOPE, "prefixes": ["10.0.0.0/8"]}, "CIDR_OVERLAP", "prefixes", "10.200.0.0/16 of SubnetPool"),
        ({"is_default": True}, "DEFAULT_TAKEN", "is_default", "SubnetPool full"),
        code=TAKEN,
    ),
    *_pool(({"is_default": True}, "FIELD_FORBIDDEN", "is_default", "leave it out"), code=DENIED, by="anna"),
]

POOLED = [
    Row("Subnet", {"cidr": "", "subnet_pool_id": POOL, "ip_version": 6}, "IP_FAMILY_MISMATCH", "ip_version", "leave it"),
    Row("Subnet", {"cidr": "", "subnet_pool_id": POOL, "prefix_length": 8}, "VALUE_OUT_OF_RANGE", "prefix_length", "/24"),
    Row("Subnet", {"subnet_pool_id": POOL, "cidr": "10.200.0.0/29"}, "VALUE_OUT_OF_RANGE", "cidr", "/24 to /28"),
    Row("Subnet", {"subnet_pool_id": POOL, "cidr": "10.9.0.0/24"}, "CIDR_INVALID", "cidr", "one inside 10.200", label="out"),
    Row(
        "Subnet",
        {"subnet_pool_id": POOL, "cidr": "10.200.1.0/24"},
        "CIDR_OVERLAP",
        "cidr",
        "10.200.1.0/28 of Subnet pooled",
        TAKEN,
        label="pool",
    ),
    Row("Subnet", {"cidr": "", "subnet_pool_id": FULL}, "NO_FREE_PREFIX", "SubnetPool", "no free /8", EXHAUSTED),
]

SETTINGS = [
    Row("Settings", {"id": "other"}, "ID_INVALID", "id", "one Settings, with the id installation"),
    Row("Settings", {"network_type": 99}, "ENUM_INVALID", "network_type", "one of VLAN"),
    Row("Settings", {"underlay_ip_version": 5}, "ENUM_INVALID", "underlay_ip_version", "one of IPV4, IPV6"),
    Row("Settings", {"underlay_mtu": 575}, RANGE, "underlay_mtu", "576 to 9216 is accepted"),
    Row("Settings", {"underlay_mtu": 9217}, RANGE, "underlay_mtu", "576 to 9216 is accepted", label="large"),
    Row("Settings", {"dns_domain": "a..b"}, "STRING_INVALID", "dns_domain", "RFC 1123"),
    Row("Settings", {"mac_base": "fa:16"}, "MAC_INVALID", "mac_base", "fa:16:3e would be accepted"),
    Row("Settings", {"mac_base": "01:16:3e"}, "MAC_INVALID", "mac_base", "fa:16:3e would be accepted", label="multicast"),
    Row("Settings", {"mac_base": "fa:16:3e:"}, "STRING_TOO_LONG", "mac_base", "at most 8"),
    Row("Settings", {"availability_zone": "Z 1"}, "ID_INVALID", "availability_zone", "characters of a-z"),
    Row("Settings", {"quotas": {"sheep": 3}}, RANGE, "quotas", "nothing is counted as 'sheep'"),
    Row("Settings", {"quotas": {"ports": -2}}, RANGE, "quotas", "-1 (any number) to"),
    Row("Settings", {}, "ROLE_REQUIRED", "", "needs the role operator", DENIED, "anna"),
]

ROWS = [*NETWORK, *NODE, *PHYSICAL, *RANGES, *SCOPES, *POOLS, *POOLED, *SETTINGS]

EDGES = [
    Edge("PhysicalNetwork", {"mtu": 68}),
    Edge("PhysicalNetwork", {"mtu": 9216}),
    Edge("PhysicalNetwork", {"id": "p" * 63}, {"mtu": 1500}),
    Edge("NetworkSegmentRange", {"minimum": 10_000, "maximum": (1 << 24) - 1, "projects": ["demo"]}),
    Edge(
        "NetworkSegmentRange",
        {"minimum": 20_000, "maximum": 20_000, "projects": ["two", "three"]},
        {"projects": ["three", "two"]},
    ),
    Edge("NetworkSegmentRange", {"network_type": VLAN, "physical_network": "holder", "minimum": 101, "maximum": 4094}),
    Edge("NetworkSegmentRange", {"network_type": "NETWORK_TYPE_GRE", "minimum": 1, "maximum": (1 << 32) - 1}),
    Edge("AddressScope", {"ip_version": 6}, by="alice"),
    Edge("SubnetPool", {}, {"min_prefix_length": 8, "max_prefix_length": 32, "default_prefix_length": 8, "ip_version": 4}),
    Edge(
        "SubnetPool",
        {"prefixes": ["fd00:1::/48", "fd00::/48"]},
        {"prefixes": ["fd00:1::/48", "fd00::/48"], "min_prefix_length": 64, "max_prefix_length": 128, "ip_version": 6},
    ),
    Edge(
        "SubnetPool",
        {"prefixes": [f"10.0.{n}.0/24" for n in range(256)]},
        {"prefixes": sorted(f"10.0.{n}.0/24" for n in range(256))},
    ),
    Edge("SubnetPool", {"default_quota": 0}),
    Edge("SubnetPool", {"prefixes": ["fd00::/48"], "is_default": True, "address_scope_id": SIX}),
    Edge("SubnetPool", {"prefixes": ["10.200.0.0/16"]}, by="alice"),
    Edge(
        "Subnet", {"cidr": "", "subnet_pool_id": POOL}, {"cidr": "10.200.0.0/24", "gateway_ip": "10.200.0.1", "ip_version": 4}
    ),
    Edge("Subnet", {"cidr": "", "subnet_pool_id": POOL, "prefix_length": 28}, {"cidr": "10.200.0.0/28"}),
    Edge("Subnet", {"cidr": "10.200.2.0/24", "subnet_pool_id": POOL, "prefix_length": 24}),
    Edge("Settings", {"mac_base": "FA-16-3D", "dns_domain": "A.Example"}, {"mac_base": "fa:16:3d", "dns_domain": "a.example"}),
    Edge("Settings", {"underlay_mtu": 9216, "network_type": VXLAN, "quotas": {"ports": -1, "networks": 0}}),
]

# kind, made with, changed to, reason, field, code
UPDATES: list[tuple[str, dict[str, Any], dict[str, Any], str, str, grpc.StatusCode]] = [
    ("PhysicalNetwork", {"id": "edge-u"}, {"mtu": 67}, RANGE, "mtu", INVALID),
    ("NetworkSegmentRange", {}, {"network_type": "NETWORK_TYPE_GRE"}, "IMMUTABLE_FIELD", "network_type", INVALID),
    ("NetworkSegmentRange", {}, {"minimum": 9_999}, "SEGMENT_TAKEN", "minimum", TAKEN),
    ("NetworkSegmentRange", {"projects": ["p"]}, {"maximum": 20_000, "projects": ["one"]}, "SEGMENT_TAKEN", "maximum", TAKEN),
    ("AddressScope", {}, {"ip_version": 6}, "IMMUTABLE_FIELD", "ip_version", INVALID),
    ("SubnetPool", {}, {"prefixes": ["fd00::/48"]}, FAMILY, "prefixes[0]", INVALID),
    ("SubnetPool", {}, {"address_scope_id": SIX}, FAMILY, "address_scope_id", INVALID),
    ("SubnetPool", {}, {"is_default": True}, "DEFAULT_TAKEN", "is_default", TAKEN),
    ("SubnetPool", {"address_scope_id": SCOPE}, {"prefixes": ["10.0.0.0/8"]}, "CIDR_OVERLAP", "prefixes", TAKEN),
    ("SubnetPool", {"prefixes": ["10.200.0.0/16"]}, {"address_scope_id": SCOPE}, "CIDR_OVERLAP", "prefixes", TAKEN),
    ("Subnet", {"cidr": "10.200.4.0/24", "subnet_pool_id": POOL}, {"cidr": "10.200.4.0/23"}, RANGE, "cidr", INVALID),
    ("Subnet", {"cidr": "10.200.1.16/28", "subnet_pool_id": POOL}, {"cidr": "10.200.1.0/27"}, "CIDR_OVERLAP", "cidr", TAKEN),
    ("Subnet", {"cidr": "10.4.0.0/24"}, {"subnet_pool_id": POOL}, "IMMUTABLE_FIELD", "subnet_pool_id", INVALID),
    ("Settings", {}, {"underlay_mtu": 575}, RANGE, "underlay_mtu", INVALID),
]
