"""`kumi NOUN METHOD`: methods beside the standard ones become the requests that were meant."""

from __future__ import annotations

import json

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
