"""Kinds follow from the descriptors, and every descriptor follows the conventions that generic code counts on."""

from __future__ import annotations

import pytest
from google.api import field_behavior_pb2

from controlplane.registry import KINDS, Kind, rules
from controlplane.services import RULES
from controlplane.store import keys
from controlplane.validate import OUTPUT_ONLY, behaves
from controlplane.values import CANONICAL
from kumihimo.v1 import resource_pb2 as pb

STANDARD = {
    "id": 1,
    "project_id": 2,
    "name": 3,
    "description": 4,
    "tags": 5,
    "create_time": 6,
    "update_time": 7,
    "revision": 8,
    "etag": 9,
    "creator": 10,
    "last_modifier": 11,
    "deletion_protection": 12,
    "state": 15,
    "conditions": 16,
    "realization": 17,
}
VERBS = {"Create", "Get", "List", "Watch", "Update", "Delete"}


def test_there_is_a_set_of_rules_for_every_kind() -> None:
    assert set(RULES) == set(KINDS)
    tenants = {"Network", "Subnet", "Port", "SubnetPool", "AddressScope", "SecurityGroup", "SecurityGroupRule", "AddressGroup"}
    operators = {"Node", "Quota", "PhysicalNetwork", "NetworkSegmentRange", "Settings", "DefaultSecurityGroupRule"}
    assert set(KINDS) == tenants | operators


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
class TestKind:
    def test_standard_fields_keep_their_numbers_and_own_ones_start_at_20(self, kind: Kind) -> None:
        numbers = {field.name: field.number for field in kind.descriptor.fields}
        assert {name: numbers.get(name) for name in STANDARD} == STANDARD
        own = {name: number for name, number in numbers.items() if name not in (*STANDARD, "expire_time", "admin_state_up")}
        assert min(own.values()) in (20, 21)
        assert numbers.get("expire_time", 13) == 13
        assert numbers.get("admin_state_up", 14) == 14

    def test_standard_fields_have_the_limits_of_their_table(self, kind: Kind) -> None:
        fields = kind.descriptor.fields_by_name
        assert rules(fields["name"]).max_length == 255
        assert rules(fields["description"]).max_length == 1024
        tags = rules(fields["tags"])
        assert (tags.max_items, tags.max_length, tags.set, tags.format) == (50, 255, True, pb.FORMAT_TAG)
        for name in (
            "create_time",
            "update_time",
            "revision",
            "creator",
            "last_modifier",
            "state",
            "conditions",
            "realization",
        ):
            assert behaves(fields[name], OUTPUT_ONLY)

    def test_the_service_has_the_standard_methods(self, kind: Kind) -> None:
        methods = kind.service.methods_by_name
        assert set(methods) >= VERBS
        assert methods["Get"].output_type is methods["Create"].output_type is kind.descriptor
        for verb in ("Create", "Update"):
            names = [field.name for field in methods[verb].input_type.fields]
            assert names[0] == "resource"
            assert {"request_id", "validate_only"} <= set(names)

    def test_enums_start_unspecified_and_references_name_what_could_be_a_kind(self, kind: Kind) -> None:
        for field in kind.descriptor.fields:
            if field.enum_type is not None:
                assert field.enum_type.values[0].number == 0
                assert field.enum_type.values[0].name.endswith("_UNSPECIFIED")
            rule = rules(field)
            assert rule.format in CANONICAL
            if rule.reference:
                assert rule.reference[0].isupper()
                assert field.name.endswith(("_id", "_ids")) or field.name in ("availability_zone_hints", "physical_network")

    def test_columns_arguments_and_parent_are_fields(self, kind: Kind) -> None:
        names = set(kind.descriptor.fields_by_name)
        assert {*kind.options.columns, *kind.options.arguments} <= names
        if kind.options.parent:
            behaviour = kind.descriptor.fields_by_name[kind.options.parent].GetOptions()
            values = set(behaviour.Extensions[field_behavior_pb2.field_behavior])
            assert {field_behavior_pb2.REQUIRED, field_behavior_pb2.IMMUTABLE} <= values

    def test_a_key_tells_which_kind_and_object_it_holds(self, kind: Kind) -> None:
        assert keys.resource(keys.place(kind, "one", "net")) == (kind, "one")


def test_keys_that_hold_no_resource_are_of_no_kind() -> None:
    for key in (
        keys.NODES_CHANGE,
        keys.change_of(keys.scope("n")),
        keys.bindings("n") + "p",
        keys.index("Port", "p"),
        keys.claim("vxlan", 1),
        keys.agent_status("n"),
        keys.FORMAT,
    ):
        assert keys.resource(key) is None
