"""`kumi drift` and `kumi capabilities`."""

from __future__ import annotations

import json

from kumihimo.v1 import node_pb2, operations_pb2
from tests.fakes.api import FakeApi, Kumi

pytest_plugins = ("tests.fakes.api",)
LAST = "h1"


def _drift(node: str, name: str, outcome: int) -> node_pb2.Drift:
    drift = node_pb2.Drift(
        node=node, kind="flow", object=name, owner="Network n1", difference="it was missing", outcome=outcome, count=2
    )
    drift.last_time.FromJsonString("2026-11-25T12:00:00Z")
    return drift


def test_c_08_drift_is_a_table_or_data_over_all_pages(kumi: Kumi, api: FakeApi) -> None:
    pages = [
        operations_pb2.ListDriftResponse(items=[_drift("h1", "table=1", 1)], next_page_token=LAST),
        operations_pb2.ListDriftResponse(items=[_drift("h2", "table=2", 3)]),
    ]
    api.replies["Operations/ListDrift"] = [*pages, *pages]
    header, first, second = kumi("drift").out.splitlines()
    assert header.split() == ["node", "outcome", "kind", "object", "owner", "difference", "count", "last", "time"]
    assert first.split() == [
        "h1",
        "repaired",
        "flow",
        "table=1",
        "Network",
        "n1",
        "it",
        "was",
        "missing",
        "2",
        first.split()[-1],
    ]
    assert second.split()[:2] == ["h2", "foreign"]
    assert [request.page_token for request in api.requests("Operations/ListDrift")] == ["", LAST]
    api.add("node", id="h1")
    found = json.loads(kumi("drift", "h1", "-o", "json").out)
    assert [each["object"] for each in found] == ["table=1", "table=2"]
    assert {request.node for request in api.requests("Operations/ListDrift")[2:]} == {"h1"}


def test_capabilities_are_told_with_their_reason(kumi: Kumi, api: FakeApi) -> None:
    told = [{"name": "ipv6", "on": True, "reason": "the kernel speaks IPv6"}, {"name": "dhcp", "reason": "no dnsmasq"}]
    api.add("node", id="h1", agent={"capabilities": told})
    api.add("node", id="h2")
    header, *rows = kumi("capabilities").out.splitlines()
    assert header.split() == ["node", "capability", "state", "reason"]
    assert [row.split(maxsplit=3) for row in rows] == [
        ["h1", "ipv6", "on", "the kernel speaks IPv6"],
        ["h1", "dhcp", "off", "no dnsmasq"],
    ]
    assert json.loads(kumi("capabilities", "h1", "-o", "json").out)[1] == {
        "node": "h1",
        "name": "dhcp",
        "on": False,
        "reason": "no dnsmasq",
    }
