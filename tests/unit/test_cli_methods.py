"""`kumi NOUN METHOD`: methods beside the standard ones become the requests that were meant."""

from __future__ import annotations

import json
from pathlib import Path

from cli import nouns
from cli.kinds import kinds
from tests.fakes.api import FakeApi, Kumi

pytest_plugins = ("tests.fakes.api",)

POOL, NETWORK = "0192f0c4-7a3e-7c1d-8f2a-00000000000a", "0192f0c4-7a3e-7c1d-8f2a-00000000000b"


def test_every_method_has_a_verb() -> None:
    for kind in kinds().values():
        streams = {method.name for method in kind.service.methods if method.server_streaming}
        without = (streams - set(nouns.VERBS)) | ({nouns.LIVE} & {method.name for method in kind.service.methods})
        assert len(nouns.group(kind).commands) + len(without) == len(kind.service.methods)
        assert set(nouns.group(kind).commands) == set(nouns.verbs(kind))


def test_b_sub_13_prefixes_by_position_and_the_pool_by_name(kumi: Kumi, api: FakeApi) -> None:
    api.add("subnet-pool", id=POOL, name="private")
    result = kumi("subnet-pool", "add-prefixes", "private", "10.0.0.0/16", "10.1.0.0/16", "--validate-only")
    assert (result.code, result.err) == (0, "")
    (request,) = api.requests("SubnetPools/AddPrefixes")
    assert (request.id, list(request.prefixes), request.validate_only) == (POOL, ["10.0.0.0/16", "10.1.0.0/16"], True)
    assert kumi("subnet-pool", "remove-prefixes", POOL, "10.1.0.0/16", "--request-id", "r1").code == 0
    (request,) = api.requests("SubnetPools/RemovePrefixes")
    assert (request.request_id, request.validate_only) == ("r1", False)
    result = kumi("subnet-pool", "add-prefixes", "private")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "PREFIX" in result.err


def test_a_network_is_named_too(kumi: Kumi, api: FakeApi) -> None:
    api.add("subnet-pool", id=POOL, name="private")
    api.add("network", id=NETWORK, name="lan")
    assert kumi("subnet-pool", "onboard", "private", "lan").code == 0
    (request,) = api.requests("SubnetPools/Onboard")
    assert (request.id, request.network_id) == (POOL, NETWORK)


def test_b_net_17_a_report_is_a_table(kumi: Kumi, api: FakeApi) -> None:
    api.add("network", id=NETWORK, name="lan")
    assert kumi("network", "get-ip-availability", "lan").out.split() == [
        "subnet",
        "id",
        "cidr",
        "total",
        "used",
        "free",
        "reserved",
    ]
    assert json.loads(kumi("network", "get-ip-availability", "lan", "-o", "json").out) == []
    assert [request.id for request in api.requests("Networks/GetIpAvailability")] == [NETWORK, NETWORK]


def test_b_prt_06_a_port_is_bound_to_a_node_by_name_and_unbound(kumi: Kumi, api: FakeApi) -> None:
    api.add("port", id=POOL, name="web")
    api.add("node", id="h1")
    result = kumi("port", "bind", "web", "h1")
    assert (result.code, result.err) == (0, "")
    (request,) = api.requests("Ports/Bind")
    assert (request.id, request.node_id) == (POOL, "h1")
    assert kumi("port", "unbind", "web").code == 0
    (request,) = api.requests("Ports/Unbind")
    assert request.id == POOL
    assert (kumi("port", "bind", "web").code, kumi("port", "bind", "web", "h1", "h2").code) == (2, 2)


def test_b_sg_rules_come_from_a_file(kumi: Kumi, api: FakeApi, tmp_path: Path) -> None:
    api.add("security-group", id=POOL, name="web")
    api.add("security-group", id=NETWORK, name="lb")
    file = tmp_path / "rules.yaml"
    file.write_text(
        "- {direction: ingress, protocol: tcp, port_range_min: 443, port_range_max: 443}\n"
        "- {kind: security-group-rule, direction: ingress, remote_group: lb, ethertype: ipv6}\n"
    )
    result = kumi("security-group", "replace-rules", "web", str(file), "--etag", "5", "--validate-only")
    assert (result.code, result.err) == (0, "")
    (request,) = api.requests("SecurityGroups/ReplaceRules")
    assert (request.id, request.etag, request.validate_only) == (POOL, "5", True)
    first, second = request.rules
    assert (first.protocol, first.port_range_min, first.port_range_max) == ("tcp", 443, 443)
    assert (second.remote_group_id, second.ethertype) == (NETWORK, 6)
    file.write_text("[]\n")
    assert kumi("security-group", "replace-rules", "web", str(file)).code == 0
    assert [len(request.rules) for request in api.requests("SecurityGroups/ReplaceRules")] == [2, 0]


def test_b_sg_what_a_file_of_rules_cannot_hold_is_told_with_its_line(kumi: Kumi, api: FakeApi, tmp_path: Path) -> None:
    api.add("security-group", id=POOL, name="web")
    file = tmp_path / "rules.yaml"
    file.write_text("- {direction: sideways}\n- {kind: network, name: lan}\n")
    result = kumi("security-group", "replace-rules", "web", str(file))
    assert result.code == 1
    assert f"{file}:1: " in result.err
    assert f"{file}:2: this is a network; a security-group-rule is accepted" in result.err
    file.write_text("# none\n")
    assert "it holds nothing; [] says that there are none" in kumi("security-group", "replace-rules", "web", str(file)).err
    assert api.requests("SecurityGroups/ReplaceRules") == []
    assert f"{tmp_path}/none: it cannot be read" in kumi("security-group", "replace-rules", "web", f"{tmp_path}/none").err


def test_b_sg_addresses_by_position_and_the_help_shows_some(kumi: Kumi, api: FakeApi) -> None:
    api.add("address-group", id=POOL, name="offices")
    assert kumi("address-group", "add-addresses", "offices", "10.0.0.5", "10.1.0.0/16", "10.2.0.1-10.2.0.9").code == 0
    (request,) = api.requests("AddressGroups/AddAddresses")
    assert list(request.addresses) == ["10.0.0.5", "10.1.0.0/16", "10.2.0.1-10.2.0.9"]
    assert kumi("address-group", "remove-addresses", POOL, "10.0.0.5").code == 0
    (request,) = api.requests("AddressGroups/RemoveAddresses")
    assert (request.id, list(request.addresses)) == (POOL, ["10.0.0.5"])
    assert kumi("address-group", "add-addresses", "offices", "10.0.0.6", "--wait", "--timeout", "5s").code == 0
    assert [list(request.ids) for request in api.requests("Operations/Wait")] == [[POOL]]
    assert kumi("address-group", "add-addresses", "offices", "10.0.0.6", "--wait", "--validate-only").code == 0
    assert len(api.requests("Operations/Wait")) == 1, "nothing was changed"
    assert "add-addresses my-address-group 10.0.0.5 10.1.0.0/16" in kumi("address-group", "add-addresses", "--help").out
    assert "direction: ingress" in kumi("security-group", "replace-rules", "--help").out


def test_b_sg_a_group_is_shown_with_its_rules_as_a_table(kumi: Kumi, api: FakeApi) -> None:
    api.add("security-group", id=POOL, name="web", rules=[{"id": NETWORK, "direction": "DIRECTION_INGRESS", "protocol": "tcp"}])
    result = kumi("security-group", "show", "web")
    assert [list(request.read_mask.paths) for request in api.requests("SecurityGroups/Get")] == [["*"]]
    head, _, table = result.out.partition("\n\n")
    assert "web" in head
    assert NETWORK not in head
    assert [line.split()[:3] for line in table.splitlines()] == [["id", "direction", "ethertype"], [NETWORK, "ingress", "tcp"]]
    assert json.loads(kumi("security-group", "show", "web", "-o", "json").out)["rules"][0]["protocol"] == "tcp"
