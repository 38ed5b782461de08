"""Each row of the resource tables: the bad value is refused with code, reason and a message that names the field and says
what would be accepted, the store's revision does not move; values on the edge are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from controlplane.registry import KINDS
from controlplane.store.txn import time_ordered_id
from tests.component import dhcp, rows, security_rows
from tests.component.cloud import Client, Cloud, refused
from tests.component.port_rows import EVERY, OWNED, PORT, SUBNET, fixed, pair, pool, standard
from tests.component.rows import (
    DENIED,
    GRE,
    INVALID,
    LATER,
    NOWHERE,
    PRECONDITION,
    TAKEN,
    UNIMPLEMENTED,
    VLAN,
    Edge,
    Row,
)

ROWS = [*standard(), *SUBNET, *PORT, *rows.ROWS, *security_rows.ROWS]


@dataclass
class Place:
    """What the rows stand on: a network with a subnet and a port that hold some values, a node, and how it all began."""

    network: Any = None
    subnet: Any = None
    foreign: Any = None
    base: dict[str, dict[str, Any]] = field(default_factory=dict)


@pytest.fixture(scope="module")
async def place(shared_cloud: Cloud) -> Any:
    api = shared_cloud.api
    found = Place()
    found.network = await api.create("Network", by="alice", segmentation_id=0)
    net = found.network.id
    found.subnet = await api.create("Subnet", name="holder", network_id=net, cidr="10.0.128.0/24")
    await api.create("Port", name="holder", network_id=net, mac_address="fa:16:3e:aa:00:01", **fixed("10.0.128.5"))
    await api.create("Node", id="holder", tunnel_ip="192.0.2.1")
    found.foreign = await api.create("Network", by="bob")
    found.base = {
        "Network": {},
        "Subnet": {"network_id": net, "cidr": "10.0.0.0/24"},
        "Port": {"network_id": net},
        "Node": {"id": "edge"},
        **rows.BASE,
        "SecurityGroupRule": {**rows.BASE["SecurityGroupRule"], "security_group_id": rows.GROUP},
    }
    await rows.holders(api)
    await security_rows.holders(api)
    yield found
    await shared_cloud.clear()


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_row_refuses_what_its_table_refuses(shared_cloud: Cloud, place: Place, row: Row) -> None:
    fields = {**place.base[row.kind], **row.fields}
    if row.by == "bob" and row.kind in ("Subnet", "Port"):
        fields["network_id"] = place.foreign.id
    if row.kind in ("Subnet", "Port") and row.at in ("network_id",):
        fields = {**fields, "network_id": row.fields["network_id"]}
    before = await shared_cloud.settled()
    error = await refused(shared_cloud.api.create(row.kind, by=row.by, **fields))
    assert (error.code, error.reason) == (row.code, row.reason), error
    assert row.says in error.message
    assert row.at.split("[")[0] in error.message
    if row.code in (INVALID, UNIMPLEMENTED) or error.violations:
        assert (row.at, row.reason) in [(at, reason) for at, reason, _ in error.violations] or error.metadata.get(
            "field"
        ) == row.at
    assert not await shared_cloud.written_since(before)


UPPER = NOWHERE.upper()
EDGES = [
    *rows.EDGES,
    *security_rows.EDGES,
    *[Edge(kind, {"name": "ñ" * 255, "description": "d" * 1024}) for kind in EVERY],
    *[Edge(kind, {"description": "one line\nand\tanother"}) for kind in EVERY],
    Edge("Subnet", {"dhcp_lease_duration": {"seconds": 120, "nanos": 500_000_000}}),
    *[Edge(kind, {"tags": ["b", "a" * 255, "c"]}, {"tags": ["a" * 255, "b", "c"]}) for kind in EVERY],
    *[Edge(kind, {"tags": [f"t{number:02}" for number in range(50)]}) for kind in EVERY],
    *[Edge(kind, {"id": UPPER}, {"id": NOWHERE}) for kind in OWNED],
    Edge("Network", {"project_id": "demo"}),
    Edge("Network", {"project_id": "demo"}, by="alice"),
    Edge("Node", {"id": "n" * 63}),
    Edge("Node", {"id": "a.b-c.example"}),
    Edge("Node", {"id": "n"}, {"roles": [1], "availability_zone": "default", "weight": 100, "admin_state_up": True}),
    Edge("Node", {"weight": 0}),
    Edge("Node", {"weight": 1000}),
    Edge("Node", {"roles": [4, 1, 3, 2]}, {"roles": [1, 2, 3, 4]}),
    Edge("Node", {"tunnel_ip": "192.0.2.2"}),
    Edge("Network", {}, {"network_type": 2, "mtu": 1450, "admin_state_up": True, "port_security_enabled": True}),
    Edge("Network", {"mtu": 68}),
    Edge("Network", {"mtu": 1450}),
    Edge("Network", {"segmentation_id": (1 << 24) - 1}),
    Edge("Network", {"dns_domain": "Example.ORG"}, {"dns_domain": "example.org"}),
    Edge("Network", {"admin_state_up": False, "port_security_enabled": False}),
    Edge("Subnet", {"cidr": "11.0.0.0/8"}),
    Edge("Subnet", {"cidr": "11.0.0.9/32"}, {"enable_dhcp": False, "gateway_ip": "", "dhcp_server_ip": ""}),
    Edge("Subnet", {"cidr": "11.0.0.8/31"}, {"enable_dhcp": False, "dhcp_server_ip": ""}),
    Edge("Subnet", {"cidr": "11.0.0.0/24"}, {"ip_version": 4, "gateway_ip": "11.0.0.1", "dhcp_server_ip": "11.0.0.254"}),
    Edge("Subnet", {"gateway_ip": "10.0.0.254"}, {"dhcp_server_ip": "10.0.0.253"}),
    Edge("Subnet", {"disable_gateway": True}, {"gateway_ip": ""}),
    Edge("Subnet", pool(("10.0.0.2", "10.0.0.2"), ("10.0.0.254", "10.0.0.254"))),
    Edge("Subnet", {"dns_nameservers": [f"10.9.9.{number}" for number in (5, 4, 3, 2, 1)]}),
    Edge("Subnet", {"host_routes": [{"destination": f"10.8.{n}.0/24", "nexthop": "10.0.0.9"} for n in range(20)]}),
    Edge("Subnet", {"dhcp_lease_duration": {"seconds": 120}}),
    Edge("Subnet", {"dhcp_lease_duration": {"seconds": -1}}),
    Edge("Port", {"mac_address": "FA-16-3E-00-00-0A"}, {"mac_address": "fa:16:3e:00:00:0a"}),
    Edge("Port", fixed("10.0.128.253")),
    Edge("Port", fixed(*[f"10.0.128.{number}" for number in range(20, 36)])),
    Edge("Port", {"no_fixed_ips": True}, {"fixed_ips": []}),
    Edge("Port", {"device_owner": "network:dhcp", "device_id": "d" * 255}),
    Edge("Port", {"device_owner": "compute:" + "a" * 247}, by="alice"),
    Edge("Port", pair(*[(f"10.7.0.{number}/32", "fa:16:3e:bb:00:01") for number in range(10)])),
    Edge("Port", pair(("0.0.0.0/0", ""))),
    Edge("Port", {"port_security_enabled": False}),
    *dhcp.EDGES,
    Edge("Port", {"dns_name": "Web-1", "dns_domain": "Example.ORG"}, {"dns_name": "web-1", "dns_domain": "example.org"}),
    Edge("Port", {"dns_name": "a" * 63}),
]


@pytest.mark.parametrize("edge", EDGES, ids=str)
async def test_value_on_the_edge_is_accepted(shared_cloud: Cloud, place: Place, edge: Edge) -> None:
    before = await shared_cloud.settled()
    reply = await shared_cloud.api.create(
        edge.kind, by=edge.by, request={"validate_only": True}, **{**place.base[edge.kind], **edge.fields}
    )
    expected = KINDS[edge.kind].message(**{**edge.fields, **edge.stored})
    for name in {**edge.fields, **edge.stored}:
        shown = getattr(reply, name)
        if name == "fixed_ips":
            assert [item.ip_address for item in shown] == [item.ip_address for item in expected.fixed_ips]
        else:
            assert shown == getattr(expected, name), name
    assert not await shared_cloud.written_since(before)


UPDATES = [
    *rows.UPDATES,
    *security_rows.UPDATES,
    # kind, made with, changed to, reason, field, code
    ("Network", {}, {"segmentation_id": 4242}, "IMMUTABLE_FIELD", "segmentation_id", INVALID),
    ("Network", {}, {"network_type": GRE}, "IMMUTABLE_FIELD", "network_type", INVALID),
    ("Network", {}, {"project_id": "other"}, "IMMUTABLE_FIELD", "project_id", INVALID),
    ("Network", {}, {"vlan_transparent": True}, "IMMUTABLE_FIELD", "vlan_transparent", INVALID),
    ("Network", {}, {"mtu": 1451}, "VALUE_OUT_OF_RANGE", "mtu", INVALID),
    ("Network", {}, {"external": True}, LATER, "external", UNIMPLEMENTED),
    ("Subnet", {"cidr": "10.4.0.0/24"}, {"cidr": "10.4.0.0/25"}, "IMMUTABLE_FIELD", "cidr", INVALID),
    ("Subnet", {"cidr": "10.4.0.0/24"}, {"cidr": "10.4.1.0/24"}, "IMMUTABLE_FIELD", "cidr", INVALID),
    ("Subnet", {"cidr": "10.4.0.0/24"}, {"cidr": "10.0.0.0/9"}, "CIDR_OVERLAP", "cidr", TAKEN),
    ("Subnet", {"cidr": "10.4.0.0/24"}, {"ip_version": 6}, "IMMUTABLE_FIELD", "ip_version", INVALID),
    ("Subnet", {"cidr": "10.4.0.0/24"}, {"network_id": NOWHERE}, "IMMUTABLE_FIELD", "network_id", INVALID),
    ("Subnet", {"cidr": "10.4.0.0/24"}, {"prefix_length": 26}, "IMMUTABLE_FIELD", "prefix_length", INVALID),
    ("Subnet", {"cidr": "10.4.0.0/24"}, {"gateway_ip": "10.5.0.1"}, "IP_NOT_IN_SUBNET", "gateway_ip", INVALID),
    ("Subnet", {"cidr": "10.4.0.0/24"}, {"gateway_ip": "10.4.0.9"}, "IP_NOT_IN_SUBNET", "allocation_pools[0]", INVALID),
    ("Port", {}, {"network_id": NOWHERE}, "IMMUTABLE_FIELD", "network_id", INVALID),
    ("Port", {}, {"mac_address": "fa:16:3e:aa:00:01"}, "MAC_TAKEN", "mac_address", TAKEN),
    ("Port", {}, fixed("10.0.128.5"), "ADDRESS_TAKEN", "fixed_ips[0].ip_address", TAKEN),
    ("Port", {}, {"no_fixed_ips": True}, "FIELDS_EXCLUSIVE", "no_fixed_ips", INVALID),
    ("Node", {"id": "edge-u"}, {"weight": 1001}, "VALUE_OUT_OF_RANGE", "weight", INVALID),
    ("Node", {"id": "edge-u"}, {"tunnel_ip": "192.0.2.1"}, "ADDRESS_TAKEN", "tunnel_ip", TAKEN),
]


@pytest.mark.parametrize(
    ("kind", "made", "changed", "reason", "at", "code"), UPDATES, ids=[f"{row[0]}-{row[4]}-{row[3]}" for row in UPDATES]
)
async def test_update_refuses_what_its_table_refuses(
    shared_cloud: Cloud,
    place: Place,
    kind: str,
    made: dict[str, Any],
    changed: dict[str, Any],
    reason: str,
    at: str,
    code: grpc.StatusCode,
) -> None:
    api = shared_cloud.api
    item = await api.create(kind, **{**place.base[kind], **made})
    try:
        before = await shared_cloud.settled()
        error = await refused(api.update(kind, item.id, **changed))
        assert (error.code, error.reason) == (code, reason), error
        assert at.split("[")[0] in error.message
        assert error.message.count(" ") > 3
        assert not await shared_cloud.written_since(before)
        # What is the same may be repeated, immutable or not; nothing is written for it.
        again = KINDS[kind].message()
        again.CopyFrom(item)
        same = await api.update(kind, item.id, **{name: getattr(item, name) for name in changed if name in {"segmentation_id"}})
        assert same.revision == item.revision
        assert not await shared_cloud.written_since(before)
    finally:
        await api.delete(kind, item.id)


async def test_every_violation_is_reported_and_not_the_first_only(api: Client) -> None:
    error = await refused(
        api.create(
            "Subnet", name="n" * 256, tags=["a,b"], network_id="x", cidr="10.0.0.1/24", dhcp_lease_duration={"seconds": 1}
        )
    )
    assert error.code is INVALID
    assert [(at, reason) for at, reason, _ in error.violations] == [
        ("name", "STRING_TOO_LONG"),
        ("tags[0]", "STRING_INVALID"),
        ("network_id", "ID_INVALID"),
        ("cidr", "CIDR_HOST_BITS_SET"),
        ("dhcp_lease_duration", "VALUE_OUT_OF_RANGE"),
    ] or {at for at, _, _ in error.violations} >= {"name", "tags[0]", "network_id", "cidr"}


@pytest.mark.parametrize("by", ["root", "alice"])
async def test_malformed_comes_before_forbidden_and_both_before_unsupported(api: Client, by: str) -> None:
    fields = {"name": "n" * 256, "external": True, "network_type": VLAN}
    error = await refused(api.create("Network", by=by, **fields))
    assert (error.code, error.reason) == (INVALID, "STRING_TOO_LONG")
    error = await refused(api.create("Network", by=by, external=True, flood_unknown=True))
    assert error.code is (UNIMPLEMENTED if by == "root" else DENIED)
    assert {at for at, _, _ in error.violations} == {"external", "flood_unknown"}
    error = await refused(api.create("Network", by=by, name="n" * 256, project_id="other" if by == "alice" else ""))
    assert (error.code, error.reason) == (INVALID, "STRING_TOO_LONG")


async def test_a_huge_fault_still_has_its_code_and_reason(api: Client) -> None:
    """What a message quotes is cut: trailers of more than some kilobytes are dropped by gRPC, and the reason with them."""
    for fields in (
        {"id": "x" * 100_000},
        {"tags": [f"{number},{'ü' * 250}" for number in range(50)]},
        {"dns_domain": "ü" * 255},
    ):
        error = await refused(api.create("Network", **fields))
        assert error.code is INVALID
        assert error.violations
        assert len(error.message) < 1100
    for number in (1, 2, 3):
        error = await refused(api.get("Network", "ü" * 10_000 * number))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_referrers_with_long_names_are_listed(api: Client) -> None:
    network = await api.create("Network", name="ü" * 255)
    for _ in range(25):
        await api.create("Port", network_id=network.id, name="ü" * 255)
    error = await refused(api.delete("Network", network.id))
    assert (error.code, error.reason) == (PRECONDITION, "RESOURCE_IN_USE")
    assert "in use by 25" in error.message
    assert error.metadata["count"] == "25"
    assert error.details["PreconditionFailure"].violations[0].type == "RESOURCE_IN_USE"


async def test_id_taken_names_what_to_do(api: Client) -> None:
    for kind, fields in (("Network", {"id": time_ordered_id()}), ("Node", {"id": "one"})):
        item = await api.create(kind, **fields)
        error = await refused(api.create(kind, id=item.id))
        assert (error.code, error.reason) == (TAKEN, "ID_TAKEN")
        assert item.id in error.message
        assert "leave id out" in error.message or kind == "Node"


async def test_unset_enum_means_the_default_and_is_never_returned(api: Client) -> None:
    network = await api.create("Network", network_type=0)
    port = await api.create("Port", network_id=network.id, vnic_type=0)
    node = await api.create("Node", id="enum")
    for item in (network, port, node):
        for descriptor, value in item.ListFields():
            if descriptor.enum_type is not None:
                assert 0 not in (list(value) if descriptor.is_repeated else [value])
    assert network.network_type == 2
    assert port.vnic_type == 1


async def test_b_net_07_and_a_77_a_taken_segment_names_its_holder(api: Client) -> None:
    await api.create("Network", name="first", segmentation_id=100)
    error = await refused(api.create("Network", segmentation_id=100))
    assert (error.code, error.reason) == (TAKEN, "SEGMENT_TAKEN")
    assert "taken by Network first" in error.message
    error = await refused(api.create("Network", by="alice", segmentation_id=101))
    assert (error.code, error.reason) == (DENIED, "FIELD_FORBIDDEN")
