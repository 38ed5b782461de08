"""Where a port shall be: Bind and Unbind, the binder that acts on them, and what the API says meanwhile (B-PRT-06)."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from controlplane.store import keys
from kumihimo.v1 import port_pb2
from tests.component import cloud as agent
from tests.component.cloud import Cloud, consistent, refused
from tests.waiting import until


@pytest.fixture
async def network(cloud: Cloud) -> str:
    """A network; and three nodes, all alive."""
    for node in ("one", "two", "three"):
        await cloud.api.create("Node", id=node)
    await cloud.write(*(agent.alive(node) for node in ("one", "two", "three")))
    return str((await cloud.api.create("Network")).id)


async def bind(cloud: Cloud, port: Any, node: str, **fields: Any) -> Any:
    """Bind to a node; Unbind when node is empty."""
    if node:
        request: Any = port_pb2.BindPortRequest(id=port.id, node_id=node, **fields)
        return await cloud.api.call("Ports", "Bind", request)
    return await cloud.api.call("Ports", "Unbind", port_pb2.UnbindPortRequest(id=port.id, **fields))


async def places(cloud: Cloud, port: Any, *expected: tuple[str, str, bool]) -> Any:
    """Wait until the port shows these places: node, interface, active."""

    async def shown() -> Any:
        found = await cloud.api.get("Port", port.id)
        same = [(place.node, place.interface, place.active) for place in found.binding] == list(expected)
        return found if same else None

    await until(shown, f"the port is at {expected}")
    return await shown()


async def test_b_prt_06_bind_says_how_to_plug_and_leaves_the_port_as_it_is(cloud: Cloud, network: str) -> None:
    port = await cloud.api.create("Port", network_id=network)
    reply = await bind(cloud, port, "two")
    assert (reply.etag, reply.revision, reply.last_modifier) == (port.etag, port.revision, port.last_modifier)
    (place,) = reply.binding
    assert (place.node, place.active, place.vif_type) == ("two", False, "ovs")
    assert dict(place.vif_details) == {"bridge": "br-int", "iface-id": port.id, "mac_address": port.mac_address, "mtu": "1450"}
    await cloud.write(agent.plugged("two", port.id))
    found = await places(cloud, port, ("two", "tap0", True))
    assert dict(found.binding[0].vif_details) == dict(place.vif_details)
    assert found.etag == port.etag
    await consistent(cloud.store)


async def test_b_prt_06_a_port_goes_where_it_was_asked_to_and_nowhere_else(cloud: Cloud, network: str) -> None:
    port = await cloud.api.create("Port", network_id=network)
    await bind(cloud, port, "two")
    await cloud.write(agent.plugged("one", port.id))

    async def says_so() -> bool:
        shown = await cloud.api.get("Port", port.id)
        texts = [condition.message for condition in shown.conditions if condition.reason == "ASKED_ELSEWHERE"]
        return texts == [f"seen on one, and it shall be on two; plug it there, or kumi port unbind {port.id}"]

    await until(says_so, "it is told")
    await places(cloud, port, ("two", "", False))
    # Asked for nothing any more, it may be where it is.
    await bind(cloud, port, "")
    await places(cloud, port, ("one", "tap0", True))


async def test_b_prt_06_b_prt_07_a_move_leaves_no_moment_without_a_place(cloud: Cloud, network: str) -> None:
    port = await cloud.api.create("Port", network_id=network)
    await cloud.write(agent.plugged("one", port.id))
    await places(cloud, port, ("one", "tap0", True))
    # Asked first, plugged later.
    await bind(cloud, port, "two")
    await places(cloud, port, ("one", "tap0", True), ("two", "", False))
    await cloud.write(agent.plugged("two", port.id, interface="tap2"))
    await places(cloud, port, ("two", "tap2", True))
    # Plugged first, as in a live migration, asked later.
    await cloud.write(agent.plugged("three", port.id, interface="tap3"))
    await places(cloud, port, ("two", "tap2", True))
    await bind(cloud, port, "three")
    await places(cloud, port, ("three", "tap3", True))
    history = [await cloud.store.get(keys.bindings(network) + port.id)]
    assert history[0] is not None, "no moment without a place: the key was never deleted"
    assert history[0].create_revision < history[0].mod_revision
    await consistent(cloud.store)
    # Unbound it stays; and where it was is forgotten when it is unplugged there.
    await bind(cloud, port, "")
    await cloud.write(agent.unplugged("one", port.id), agent.unplugged("two", port.id))
    await places(cloud, port, ("three", "tap3", True))
    assert (await cloud.api.get("Port", port.id)).etag == port.etag


async def test_a_dead_hosts_port_is_taken_over_when_it_is_asked_for(cloud: Cloud, network: str) -> None:
    """Evacuation: nobody can say that the host is dead and not only its agent, so somebody must."""
    port = await cloud.api.create("Port", network_id=network)
    await cloud.write(agent.plugged("one", port.id))
    await places(cloud, port, ("one", "tap0", True))
    await cloud.write(agent.dead("one"), agent.plugged("two", port.id, interface="tap2"))
    found = await places(cloud, port, ("one", "tap0", True))
    texts = [condition.message for condition in found.conditions if condition.reason == "PLUGGED_TWICE"]
    assert texts == ["an interface on node two names this port too; it is bound to one and not wired there"]
    await bind(cloud, port, "two")
    await places(cloud, port, ("two", "tap2", True))


async def test_bind_refuses_and_repeats_like_every_change(cloud: Cloud, network: str) -> None:
    port = await cloud.api.create("Port", network_id=network)
    error = await refused(bind(cloud, port, "nowhere"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "REFERENCE_NOT_FOUND")
    assert (await refused(bind(cloud, port, "Not A Node"))).reason == "ID_INVALID"
    before = await cloud.settled()
    await bind(cloud, port, "two", validate_only=True)
    assert not await cloud.written_since(before)
    first = await bind(cloud, port, "two", request_id=port.id)
    at = await cloud.settled()
    again = await bind(cloud, port, "two", request_id=port.id)
    assert (first.id, again.id) == (port.id, port.id)
    await bind(cloud, port, "two")
    assert not await cloud.written_since(at), "asked for already"
    # With the port goes what was asked of it; a node that is deleted asks for nothing.
    other = await cloud.api.create("Port", network_id=network)
    await bind(cloud, other, "three")
    await cloud.api.delete("Node", "three")
    await cloud.write(agent.plugged("one", other.id))
    await places(cloud, other, ("one", "tap0", True))
    await cloud.api.delete("Port", port.id)
    await consistent(cloud.store)
