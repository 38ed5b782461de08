"""Nouns, verbs and options come from the descriptors, and become exactly the requests that were meant."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import UUID

import click
import grpc
import pytest
import yaml
from google.protobuf.descriptor import FieldDescriptor

from cli import nouns
from cli.kinds import Kind, is_map, kind_named, kinds, option_name, required, rules, writable
from cli.main import root
from cli.options import FieldOption
from kumihimo.v1 import network_pb2, port_pb2, resource_pb2
from tests.fakes.api import TOKEN, FakeApi, Fault, Kumi

pytest_plugins = ("tests.fakes.api",)

A, B = "0192f0c4-7a3e-7c1d-8f2a-00000000000a", "0192f0c4-7a3e-7c1d-8f2a-00000000000b"
KINDS = list(kinds().values())
FIELDS = [
    pytest.param(kind, field, id=f"{kind.noun}-{field.name}")
    for kind in KINDS
    for field in kind.descriptor.fields
    if writable(field) and field.name != "etag"
]
# Nested messages: what is typed, and what must arrive.
NESTED: dict[str, tuple[str, Any]] = {
    "FixedIp": ("10.0.0.5", port_pb2.FixedIp(ip_address="10.0.0.5")),
    "AddressPair": ("10.0.0.0/28", port_pb2.AddressPair(ip_address="10.0.0.0/28")),
    "DhcpOption": (
        "name=6,value=1.1.1.1,8.8.8.8,ip_version=ipv4",
        port_pb2.DhcpOption(name="6", value="1.1.1.1,8.8.8.8", ip_version="IP_VERSION_IPV4"),
    ),
    "IpRange": ("10.0.0.9-10.0.0.20", network_pb2.IpRange(start="10.0.0.9", end="10.0.0.20")),
    "HostRoute": ("10.9.0.0/16=10.0.0.1", network_pb2.HostRoute(destination="10.9.0.0/16", nexthop="10.0.0.1")),
    "NetworkSegment": (
        "segment=a,network_type=vlan,segmentation_id=7",
        network_pb2.NetworkSegment(segment="a", network_type="NETWORK_TYPE_VLAN", segmentation_id=7),
    ),
}


def _commands(kind: Kind) -> dict[str, click.Command]:
    return nouns.group(kind).commands


def _sample(field: FieldDescriptor) -> tuple[list[str], Any]:
    """Words after the option (none for a switch), and the value that must arrive."""
    if is_map(field):
        assert field.message_type is not None
        number = field.message_type.fields_by_name["value"].cpp_type != FieldDescriptor.CPPTYPE_STRING
        return (["a=-1"], {"a": -1}) if number else (["a=b=c"], {"a": "b=c"})
    if field.message_type is not None and field.message_type.name == "Duration":
        return ["1h30m"], (5400, 0)
    if field.message_type is not None and field.message_type.name == "Timestamp":
        return ["2027-01-01T00:00:00Z"], (1798761600, 0)
    word: str
    value: Any
    if field.message_type is not None:
        word, value = NESTED[field.message_type.name]
    elif field.enum_type is not None:
        last = field.enum_type.values[-1]
        word, value = last.name.removeprefix(field.enum_type.values[0].name[: -len("UNSPECIFIED")]), last.number
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return [], True
    elif field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        word, value = "7", 7
    else:
        word = value = A if rules(field).format == resource_pb2.FORMAT_UUID else "x-1"
    return [word], [value] if field.is_repeated else value


def _plain(field: FieldDescriptor, resource: Any) -> Any:
    value = getattr(resource, field.name)
    if is_map(field):
        return dict(value)
    if field.is_repeated:
        return list(value)
    if field.message_type is not None:
        return value.seconds, value.nanos
    return value


def _needed(kind: Kind, but: FieldDescriptor) -> list[str]:
    """Options for the required fields."""
    return [
        word
        for field in kind.descriptor.fields
        if required(field) and field.name != but.name
        for word in (f"--{option_name(field)}", *_sample(field)[0])
    ]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.noun)
def test_a02_verbs_are_the_methods_of_the_service(kind: Kind) -> None:
    methods = {method.name for method in kind.service.methods}
    assert methods >= set(nouns.VERBS), "a method without a verb is a change that the command line cannot make"
    assert set(_commands(kind)) == set(nouns.verbs(kind)) >= {"create", "show", "list", "watch", "update", "delete"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.noun)
def test_a28_every_writable_field_has_an_option(kind: Kind) -> None:
    def options(verb: str) -> set[str]:
        return {param.field.name for param in _commands(kind)[verb].params if isinstance(param, FieldOption)}

    fields = {field.name for field in kind.descriptor.fields if writable(field)} - {"etag"}
    assert options("create") == fields
    assert options("update") == {field.name for field in kind.changeable}
    assert any("--etag" in param.opts for param in _commands(kind)["update"].params)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.noun)
def test_a28_no_two_options_share_a_name(kind: Kind) -> None:
    for command in _commands(kind).values():
        names = [name for param in command.params for name in (*param.opts, *param.secondary_opts)]
        assert len(names) == len(set(names)), command.name


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_a28_option_of_create_becomes_the_field(kind: Kind, field: FieldDescriptor, kumi: Kumi, api: FakeApi) -> None:
    words, value = _sample(field)
    named = kind_named(rules(field).reference)
    if named is not None and named.options.operator_named:
        api.add(named.noun, id=words[0])  # its id and its name look alike: it is asked for
    result = kumi(kind.noun, "create", *_needed(kind, field), f"--{option_name(field)}", *words)
    assert (result.code, result.err) == (0, "")
    (request,) = api.requests(f"{kind.service.name}/Create")
    assert _plain(field, request.resource) == value
    expected = {field.name, *(each.name for each in kind.descriptor.fields if required(each))}
    assert {given.name for given, _ in request.resource.ListFields()} == expected
    assert re.fullmatch(r"[0-9a-f-]{36}", request.request_id)


@pytest.mark.parametrize(("kind", "field"), [case for case in FIELDS if case.values[1] in case.values[0].changeable])
def test_a28_option_of_update_becomes_the_field_and_its_mask(
    kind: Kind, field: FieldDescriptor, kumi: Kumi, api: FakeApi
) -> None:
    words, value = _sample(field)
    target = "x-1" if kind.options.operator_named else A
    api.add(kind.noun, id=target)
    result = kumi(kind.noun, "update", target, f"--{option_name(field)}", *words)
    assert (result.code, result.err) == (0, "")
    (request,) = api.requests(f"{kind.service.name}/Update")
    assert (request.resource.id, list(request.update_mask.paths)) == (target, [field.name])
    assert _plain(field, request.resource) == value


def test_switches_say_no_too(kumi: Kumi, api: FakeApi) -> None:
    assert kumi("network", "create", "--no-admin-state-up").code == 0
    (request,) = api.requests("Networks/Create")
    assert request.resource.HasField("admin_state_up")
    assert not request.resource.admin_state_up


def test_six_steps_as_the_issue_types_them(kumi: Kumi, api: FakeApi) -> None:
    assert kumi("network", "create", "testnet", "--type", "vxlan", "--segment", "100").code == 0
    assert kumi("subnet", "create", "testnet", "10.0.0.0/24", "--name", "testnet_subnet").code == 0
    assert kumi("port", "create", "testnet", "--ip", "subnet=testnet_subnet,ip_address=10.0.0.5").code == 0
    network, subnet = api.requests("Networks/Create")[0].resource, api.requests("Subnets/Create")[0].resource
    port = api.requests("Ports/Create")[0].resource
    assert (network.name, network.network_type, network.segmentation_id) == ("testnet", 2, 100)
    kept = api.objects["Networks"][0]
    assert (subnet.network_id, subnet.cidr, subnet.name) == (kept.id, "10.0.0.0/24", "testnet_subnet")
    assert port.network_id == kept.id
    assert list(port.fixed_ips) == [port_pb2.FixedIp(subnet_id=api.objects["Subnets"][0].id, ip_address="10.0.0.5")]


def test_positional_arguments_take_the_places_left_by_options(kumi: Kumi, api: FakeApi) -> None:
    assert kumi("subnet", "create", "10.0.0.0/24", "--network", A).code == 0
    resource = api.requests("Subnets/Create")[0].resource
    assert (resource.network_id, resource.cidr) == (A, "10.0.0.0/24")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("port", "create"), "missing argument NETWORK (or option --network); see `kumi port create --help`"),
        (("network", "create", "a", "b"), "unexpected argument 'b'"),
        (("network", "create", "--type", "carrier-pigeon"), "'carrier-pigeon' is not one of vlan, vxlan, gre,"),
        (("network", "create", "--segment", "-3"), "-3 is not between 0 and 4294967295"),
        (("network", "create", "--mtu", "much"), "'much' is not a whole number"),
        (("subnet", "create", A, "--pool", "10.0.0.1"), "'10.0.0.1' is not START-END or start=...,end=..."),
        (("subnet", "create", A, "--dhcp-lease-duration", "soon"), "'soon' is not a duration such as 24h"),
        (("network", "update", A), "nothing to change"),
        (("network", "update", A, "--mtu", "1400", "--clear", "mtu"), "--clear mtu and --mtu exclude each other"),
        (("network", "delete", A, B, "--etag", "x"), "--etag and --request-id go with one object only"),
        (("network", "frobnicate"), "No such command 'frobnicate'"),
        (("network", "create", "--nmae", "x"), "No such option"),
        (("network", "delete", A, "--wait", "--timeout", "-1s"), "waiting has an end"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_bad_usage_is_one_line_and_exit_code_2(words: tuple[str, ...], sentence: str, kumi: Kumi, api: FakeApi) -> None:
    result = kumi(*words)
    assert (result.code, result.out, api.calls) == (2, "", [])
    assert result.err.startswith("kumi: ")
    assert sentence in result.err
    assert result.err.count("\n") == 1


def test_a67_names_and_ids_both_find(kumi: Kumi, api: FakeApi) -> None:
    api.add("network", id=A, name='odd "name" \\ [b]')
    api.add("node", id="node-1", name="first")
    for words in (("network", A), ("network", A.upper()), ("network", 'odd "name" \\ [b]')):
        shown = kumi(words[0], "show", words[1], "-o", "json")
        assert json.loads(shown.out)["id"] == A
    assert "[b]" in kumi("network", "show", A).out
    for name in ("node-1", "first"):
        assert json.loads(kumi("node", "show", name, "-o", "json").out)["id"] == "node-1"


def test_a67_ambiguous_name_is_refused_with_the_candidates(kumi: Kumi, api: FakeApi) -> None:
    for object_id in (A, B):
        api.add("network", id=object_id, name="web")
    for words in (("network", "delete", "web"), ("port", "create", "web")):
        result = kumi(*words)
        assert result.code == 1
        assert result.err.startswith("kumi: 2 networks are named 'web'; give the id of one of these:\n")
        assert A in result.err
        assert B in result.err
        assert "1970" not in result.err, "a time that is not set is not shown"
    assert not api.requests("Networks/Delete")
    assert not api.requests("Ports/Create")


def test_name_with_a_star_is_not_a_pattern(kumi: Kumi, api: FakeApi) -> None:
    api.add("network", id=A, name="web-1")
    result = kumi("network", "show", "web*")
    assert (result.code, result.err) == (4, "kumi: no network has the id or name 'web*'\n")


def test_list_walks_all_pages_and_stops_at_the_limit(kumi: Kumi, api: FakeApi) -> None:
    api.page = 3
    for number in range(8):
        api.add("network", id=f"{A[:-2]}{number:02x}", name=f"n{number}")
    assert len(json.loads(kumi("network", "list", "-o", "json").out)) == 8
    assert len(api.requests("Networks/List")) == 3
    assert len(json.loads(kumi("network", "list", "-o", "json", "--limit", "4").out)) == 4
    assert len(yaml.safe_load(kumi("network", "list", "-o", "yaml", "--filter", 'name = "n2"').out)) == 1
    assert api.requests("Networks/List")[-1].filter == 'name = "n2"'


def test_list_shows_readable_cells(kumi: Kumi, api: FakeApi) -> None:
    api.add(
        "port",
        id=A,
        name="web",
        network_id=B,
        fixed_ips=[port_pb2.FixedIp(subnet_id=B, ip_address="10.0.0.5")],
        binding=[port_pb2.Binding(node="node-1", interface="tap1")],
        state="STATE_ACTIVE",
    )
    header, row = kumi("port", "list").out.splitlines()
    assert header.split() == ["id", "name", "network", "id", "mac", "address", "fixed", "ips", "binding", "state"]
    assert row.split() == [A, "web", B, "10.0.0.5", "node-1", "active"]


def test_rows_are_never_cut_when_piped(kumi: Kumi, api: FakeApi) -> None:
    api.add("network", id=A, name="n" * 255)
    assert "n" * 255 in kumi("network", "list").out


def test_json_names_fields_as_the_contract_does(kumi: Kumi, api: FakeApi) -> None:
    api.add("network", id=A)
    shown = json.loads(kumi("network", "show", A, "-o", "json").out)
    assert {"network_type", "segmentation_id", "subnets", "tags", "revision"} <= set(shown)
    assert "admin_state_up" not in shown, "a field with presence that is not set is not there"


def test_clear_takes_fields_by_either_name(kumi: Kumi, api: FakeApi) -> None:
    result = kumi("subnet", "update", A, "--clear", "dns", "--clear", "disable_gateway", "--name", "", "--etag", "e1")
    assert (result.code, result.err) == (0, "")
    (request,) = api.requests("Subnets/Update")
    assert sorted(request.update_mask.paths) == ["disable_gateway", "dns_nameservers", "name"]
    assert request.resource.etag == "e1"


def test_delete_goes_on_after_a_failure(kumi: Kumi, api: FakeApi) -> None:
    api.faults["Networks/Delete"] = [Fault(grpc.StatusCode.FAILED_PRECONDITION, "RESOURCE_IN_USE", "network is in use")]
    result = kumi("network", "delete", A, B, "--force")
    assert (result.code, result.err) == (1, "kumi: network is in use [RESOURCE_IN_USE]\n")
    assert result.out == f"network {B} deleted\n"
    first, second = api.requests("Networks/Delete")
    assert first.force
    assert first.request_id != second.request_id


def test_delete_may_miss(kumi: Kumi, api: FakeApi) -> None:
    assert kumi("network", "delete", "nothing").code == 4
    assert kumi("network", "delete", "nothing", "--allow-missing").code == 0
    assert not api.requests("Networks/Delete")


def test_wait_names_revision_and_object_and_shows_what_came_of_it(kumi: Kumi, api: FakeApi) -> None:
    result = kumi("network", "create", "a", "--wait", "--timeout", "2m", "-o", "json")
    (request,) = api.requests("Operations/Wait")
    shown = json.loads(result.out)
    assert (list(request.ids), request.timeout.seconds) == ([shown["id"]], 120)
    assert request.revision == int(shown["revision"])
    assert [call.name for call in api.calls] == ["Networks/Create", "Operations/Wait", "Networks/Get"]


def test_wait_that_ends_without_success_keeps_the_object_in_sight(kumi: Kumi, api: FakeApi) -> None:
    api.faults["Operations/Wait"] = [Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "WAIT_TIMEOUT", "node h2 lags")]
    result = kumi("network", "create", "a", "--wait", "-o", "json")
    assert (result.code, result.err) == (7, "kumi: node h2 lags [WAIT_TIMEOUT]\n")
    assert json.loads(result.out)["name"] == "a"


@pytest.mark.parametrize(("count", "named"), [(1, 1), (500, 500), (501, 0)])
def test_wait_after_delete_is_for_the_nodes_of_what_is_gone(kumi: Kumi, api: FakeApi, count: int, named: int) -> None:
    """Of more than the server waits for by name, all nodes are asked."""
    targets = [str(UUID(int=number)) for number in range(1, count + 1)]
    assert kumi("network", "delete", *targets, "--wait").code == 0
    (request,) = api.requests("Operations/Wait")
    assert list(request.ids) == targets[:named]
    assert request.revision > 90


def test_validate_only_changes_and_awaits_nothing(kumi: Kumi, api: FakeApi) -> None:
    for words in (("create", "a"), ("update", A, "--mtu", "1400"), ("delete", A)):
        assert kumi("network", *words, "--validate-only", "--wait").code == 0
    assert all(call.request.validate_only for call in api.calls)
    assert len(api.calls) == 3


def test_every_call_carries_token_and_one_trace(kumi: Kumi, api: FakeApi) -> None:
    kumi("network", "create", "a", "--wait")
    assert {call.metadata["authorization"] for call in api.calls} == {f"Bearer {TOKEN}"}
    (trace,) = {call.metadata["traceparent"] for call in api.calls}
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", trace)


def test_project_goes_where_the_kind_has_one(kumi: Kumi, api: FakeApi) -> None:
    assert kumi("--project", "p1", "network", "create", "a").code == 0
    assert kumi("--project", "p1", "network", "create", "a", "--project-id", "p2").code == 0
    assert kumi("--project", "p1", "network", "list").code == 0
    assert kumi("--project", "p1", "node", "create", "node-1").code == 0
    assert [request.resource.project_id for request in api.requests("Networks/Create")] == ["p1", "p2"]
    assert api.requests("Networks/List")[0].project_id == "p1"
    assert api.requests("Nodes/Create")[0].resource.project_id == ""


def test_unavailable_is_tried_again_with_the_same_request_id(kumi: Kumi, api: FakeApi) -> None:
    away = Fault(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "the store does not answer")
    api.faults["Networks/Create"] = [away, away]
    assert kumi("network", "create", "a").code == 0
    assert len({request.request_id for request in api.requests("Networks/Create")}) == 1
    assert len(api.requests("Networks/Create")) == 3
    api.faults["Networks/List"] = [away, away, away]
    result = kumi("network", "list")
    assert (result.code, result.err) == (6, "kumi: the store does not answer [STORE_UNAVAILABLE]\n")


def test_request_id_may_be_given(kumi: Kumi, api: FakeApi) -> None:
    kumi("network", "create", "a", "--request-id", "mine")
    assert api.requests("Networks/Create")[0].request_id == "mine"


def test_a_quota_is_one_of_a_project_and_its_limits_are_numbers(kumi: Kumi, api: FakeApi) -> None:
    api.add("quota", id="acme", limits={"ports": 5}, usage={"ports": 3, "networks": 0})
    result = kumi("quota", "update", "acme", "--limits", "ports=100", "--limits", "networks=-1")
    assert (result.code, result.err) == (0, "")
    (request,) = api.requests("Quotas/Update")
    assert (request.resource.id, dict(request.resource.limits)) == ("acme", {"ports": 100, "networks": -1})
    assert list(request.update_mask.paths) == ["limits"]
    api.clear()
    api.add("quota", id="acme", limits={"ports": 5}, usage={"ports": 3, "networks": 0})
    assert ["usage", "networks=0,", "ports=3"] in [line.split() for line in kumi("quota", "show", "acme").out.splitlines()]
    assert kumi("quota", "list").out.splitlines()[1].split() == ["acme", "ports=5", "networks=0,", "ports=3"]
    for words in ("ports=many", "ports"):
        assert kumi("quota", "update", "acme", "--limits", words).code == 2


def test_show_and_list_at_a_revision(kumi: Kumi, api: FakeApi) -> None:
    api.add("network", id=A, name="web")
    for words in (("show", A), ("show", "web"), ("list",)):
        assert kumi("network", *words, "--at", "17").code == 0
    assert kumi("network", "show", A, "--at", "-1").code == 2
    assert [call.request.at_revision for call in api.calls] == [17, 17, 17]


def test_commands_of_the_root_are_the_nouns_and_more() -> None:
    context = click.Context(root)
    assert set(kinds()) < set(root.list_commands(context))
