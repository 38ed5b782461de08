"""C-08, B-OPS-13: what nodes found is read through the API, by operators, page by page; what they can do stands on the Node."""

from __future__ import annotations

from typing import Any

import grpc

from controlplane.store import client, keys
from kumihimo.v1 import node_pb2, operations_pb2, store_pb2
from tests.component.cloud import Client, Cloud, refused

Code = grpc.StatusCode


async def drift(api: Client, *, by: str = "root", **request: Any) -> Any:
    return await api.call("Operations", "ListDrift", operations_pb2.ListDriftRequest(**request), f"{by}-token")


def report(*names: str) -> bytes:
    items = [node_pb2.Drift(kind="flow", object=name, node="forged", count=1) for name in names]
    return store_pb2.DriftReport(items=items, foreign=0).SerializeToString()


async def test_c_08_what_nodes_found_is_listed_by_node(cloud: Cloud) -> None:
    for name in ("h1", "h2", "h3", "h4"):
        await cloud.api.create("Node", id=name)
    await cloud.write(
        client.put(keys.drift_status("h1"), report("a", "b", "c")),
        client.put(keys.drift_status("h3"), report("d", "e")),
        client.put(keys.drift_status("h4"), b"\xff\xff"),
        client.put(keys.drift_status("stranger"), report("x")),
    )
    everything = await drift(cloud.api)
    assert [(item.node, item.object) for item in everything.items] == [
        ("h1", "a"),
        ("h1", "b"),
        ("h1", "c"),
        ("h3", "d"),
        ("h3", "e"),
    ], "a node speaks for itself alone, and one that says nonsense hurts nobody"
    assert everything.next_page_token == ""
    first = await drift(cloud.api, page_size=2)
    assert [item.object for item in first.items] == ["a", "b", "c"], "what one node found is not divided"
    second = await drift(cloud.api, page_size=2, page_token=first.next_page_token)
    assert [item.object for item in second.items] == ["d", "e"]
    assert [item.object for item in (await drift(cloud.api, node="h3")).items] == ["d", "e"]
    assert not (await drift(cloud.api, node="h2")).items
    error = await refused(drift(cloud.api, node="h9"))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert (await refused(drift(cloud.api, page_size=-1))).reason == "VALUE_OUT_OF_RANGE"
    assert (await refused(drift(cloud.api, by="alice"))).code is Code.PERMISSION_DENIED


async def test_capabilities_and_the_policy_of_drift_stand_on_the_node(cloud: Cloud) -> None:
    await cloud.api.create("Node", id="h1", drift_policy="DRIFT_POLICY_REPORT")
    about = store_pb2.AgentStatus(version="1")
    about.capabilities.add(name="dhcp", on=False, reason="dnsmasq cannot be run")
    await cloud.write(client.put(keys.agent_status("h1"), about.SerializeToString()))
    node = await cloud.api.get("Node", "h1")
    assert node.drift_policy == node_pb2.DRIFT_POLICY_REPORT
    assert [(each.name, each.on, each.reason) for each in node.agent.capabilities] == [("dhcp", False, "dnsmasq cannot be run")]
    changed = await cloud.api.update("Node", "h1", mask=["drift_policy"])
    assert changed.drift_policy == node_pb2.DRIFT_POLICY_UNSPECIFIED
