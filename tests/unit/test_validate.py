"""The walk over a message: rules of the descriptors, canonical form, every fault."""

from __future__ import annotations

import random
from typing import Any

import pytest

from controlplane.errors import ApiError, Code, Violation, refuse
from controlplane.registry import KINDS, rules
from controlplane.validate import IMMUTABLE, OUTPUT_ONLY, behaves, check, clear_output, is_set
from kumihimo.v1 import network_pb2, node_pb2, port_pb2


def reasons(message: Any, *, operator: bool = True, old: Any = None) -> list[tuple[str, str]]:
    return [(fault.field, fault.reason) for fault in check(message, operator=operator, old=old)]


def test_a_good_message_has_no_fault_and_comes_out_canonical() -> None:
    port = port_pb2.Port(
        id="0192F0C1-7C1E-7B3A-9D4E-5F60718293A4",
        network_id="0192f0c1-7c1e-7b3a-9d4e-5f60718293a5",
        mac_address="FA-16-3E-00-00-01",
        tags=["b", "a"],
        fixed_ips=[port_pb2.FixedIp(ip_address="FD00:0::1")],
    )
    assert reasons(port) == []
    assert port.id == "0192f0c1-7c1e-7b3a-9d4e-5f60718293a4"
    assert port.mac_address == "fa:16:3e:00:00:01"
    assert list(port.tags) == ["a", "b"]
    assert port.fixed_ips[0].ip_address == "fd00::1"


def test_faults_come_in_the_order_of_the_fields_nested_ones_included() -> None:
    subnet = network_pb2.Subnet(
        name="n" * 256,
        tags=["", "a,b"],
        cidr="10.0.0.1/24",
        allocation_pools=[network_pb2.IpRange(start="x")],
        ip_version=5,
        prefix_length=129,
    )
    assert reasons(subnet) == [
        ("name", "STRING_TOO_LONG"),
        ("tags[0]", "STRING_INVALID"),
        ("tags[1]", "STRING_INVALID"),
        ("network_id", "MISSING_FIELD"),
        ("ip_version", "ENUM_INVALID"),
        ("cidr", "CIDR_HOST_BITS_SET"),
        ("prefix_length", "VALUE_OUT_OF_RANGE"),
        ("allocation_pools[0].start", "IP_INVALID"),
        ("allocation_pools[0].end", "MISSING_FIELD"),
    ]


def test_operator_only_and_unsupported_fields() -> None:
    network = network_pb2.Network(segmentation_id=5, external=True, private_vlan=True)
    assert reasons(network) == [("external", "FEATURE_NOT_SUPPORTED"), ("private_vlan", "FEATURE_NOT_SUPPORTED")]
    assert reasons(network, operator=False) == [
        ("segmentation_id", "FIELD_FORBIDDEN"),
        ("external", "FIELD_FORBIDDEN"),
        ("external", "FEATURE_NOT_SUPPORTED"),
        ("private_vlan", "FEATURE_NOT_SUPPORTED"),
    ]
    # What an operator has set may stay when somebody else changes the object.
    assert reasons(network, operator=False, old=network) == []


def test_immutable_fields_may_be_repeated_and_not_changed() -> None:
    old = network_pb2.Network(id="0192f0c1-7c1e-7b3a-9d4e-5f60718293a4", segmentation_id=5)
    assert reasons(old, old=old) == []
    assert reasons(network_pb2.Network(id=old.id, segmentation_id=6), old=old) == [("segmentation_id", "IMMUTABLE_FIELD")]
    assert reasons(network_pb2.Network(id=old.id), old=old) == [("segmentation_id", "IMMUTABLE_FIELD")]


def test_sets_and_unique_entries() -> None:
    assert reasons(node_pb2.Node(id="n", roles=[2, 1, 2])) == [("roles", "DUPLICATE_VALUE")]
    assert reasons(node_pb2.Node(id="n", roles=[0])) == [("roles[0]", "ENUM_INVALID")]
    node = node_pb2.Node(id="n", roles=[2, 1])
    assert reasons(node) == []
    assert list(node.roles) == [1, 2]
    network_id = "0192f0c1-7c1e-7b3a-9d4e-5f60718293a4"
    twice = [port_pb2.FixedIp(ip_address="FD00::1"), port_pb2.FixedIp(ip_address="fd00:0::1"), port_pb2.FixedIp()]
    assert reasons(port_pb2.Port(network_id=network_id, fixed_ips=twice)) == [("fixed_ips[1]", "DUPLICATE_VALUE")]


def test_presence_decides_where_a_field_has_it() -> None:
    fields = node_pb2.Node.DESCRIPTOR.fields_by_name
    assert not is_set(node_pb2.Node(), fields["weight"])
    assert is_set(node_pb2.Node(weight=0), fields["weight"])
    assert not is_set(node_pb2.Node(name=""), fields["name"])
    assert not is_set(node_pb2.Node(tags=[]), fields["tags"])


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_cleared_and_the_rest_stays(kind: str) -> None:
    descriptor = KINDS[kind].descriptor
    message = KINDS[kind].message(name="n", revision=5, creator="c", state=2, conditions=[{"type": "x"}])
    clear_output(message)
    assert [field.name for field, _ in message.ListFields()] == ["name"]
    assert behaves(descriptor.fields_by_name["revision"], OUTPUT_ONLY)
    assert not behaves(descriptor.fields_by_name["name"], OUTPUT_ONLY)


@pytest.mark.parametrize("kind", KINDS)
def test_no_message_whatever_breaks_the_walk(kind: str) -> None:
    chance = random.Random(kind)
    for _ in range(300):
        message = KINDS[kind].message()
        _scribble(message, chance, 3)
        found = check(message, operator=chance.random() < 0.5, old=KINDS[kind].message())
        assert all(fault.message and fault.field and fault.reason for fault in found)
        refuse(found[:0])


def _scribble(message: Any, chance: random.Random, depth: int) -> None:
    texts = ["", "x", "10.0.0.1", "fd00::/64", "a,b", "\x00", "ü" * 300, "FA-16-3E-00-00-01"]
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            of_text = field.message_type.fields_by_name["value"].type == field.TYPE_STRING
            value = chance.choice(texts) if of_text else chance.randrange(200)
            getattr(message, field.name).update({chance.choice(texts): value})
        elif field.message_type is not None:
            if depth and field.is_repeated:
                for _ in range(chance.randrange(3)):
                    _scribble(getattr(message, field.name).add(), chance, depth - 1)
            elif depth:
                _scribble(getattr(message, field.name), chance, depth - 1)
        else:
            is_text = field.type == field.TYPE_STRING
            made = [
                chance.choice(texts)
                if is_text
                else chance.randrange(2)
                if field.type == field.TYPE_BOOL
                else chance.randrange(200)
            ]
            if field.is_repeated:
                getattr(message, field.name).extend(made * chance.randrange(1, 3))
            else:
                setattr(message, field.name, made[0])


def test_one_error_for_all_faults_the_malformed_first() -> None:
    faults = [
        Violation("a", "FEATURE_NOT_SUPPORTED", "a is not", Code.UNIMPLEMENTED),
        Violation("b", "FIELD_FORBIDDEN", "b is not", Code.PERMISSION_DENIED),
        Violation("c", "STRING_TOO_LONG", "c is long"),
        Violation("d", "IP_INVALID", "d is none"),
    ]
    with pytest.raises(ApiError) as caught:
        refuse(faults)
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "STRING_TOO_LONG")
    assert [fault.field for fault in caught.value.violations] == ["c", "d"]
    with pytest.raises(ApiError) as caught:
        refuse(faults[:2])
    assert caught.value.code is Code.PERMISSION_DENIED


def test_immutable_is_what_the_descriptors_say() -> None:
    found = {name for name, field in KINDS["Network"].descriptor.fields_by_name.items() if behaves(field, IMMUTABLE)}
    assert {"id", "project_id", "network_type", "segmentation_id", "physical_network"} <= found
    assert rules(KINDS["Network"].descriptor.fields_by_name["segmentation_id"]).operator_only


def test_a_duration_out_of_its_bounds_is_refused() -> None:
    for seconds, nanos in ((1 << 62, 0), (600, -1), (0, (1 << 31) - 1)):
        subnet = network_pb2.Subnet(network_id="0192f0c1-7c1e-7b3a-9d4e-5f60718293a5", cidr="10.0.0.0/24")
        subnet.dhcp_lease_duration.seconds, subnet.dhcp_lease_duration.nanos = seconds, nanos
        assert reasons(subnet) == [("dhcp_lease_duration", "VALUE_OUT_OF_RANGE")]


def test_every_list_that_a_client_may_fill_has_a_most() -> None:
    """What is done with each entry (Apply looks up names) is bounded by it."""
    for kind in KINDS.values():
        for field in kind.descriptor.fields:
            if field.is_repeated and not behaves(field, OUTPUT_ONLY):
                assert 0 < rules(field).max_items <= 10_000, field.full_name
