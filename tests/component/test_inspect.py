"""`Nodes.Inspect` of the API: agents that cannot be asked, or are not who they should be."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest

from agent.inspection import service
from agent.inspection.service import Service
from controlplane.admin.authority import Authority, Use
from controlplane.store import keys
from controlplane.store.client import put
from controlplane.tls import node_name
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import store_pb2
from tests.component.certificates import issue, presented, serial
from tests.component.cloud import Cloud, alive, plugged, refused
from tests.waiting import DEADLINE, until

# An address of our own: the port of agents is free there, whoever else runs on this machine.
HERE = f"127.9.{os.getpid() // 254 % 254}.{1 + os.getpid() % 254}"


def says(node: str, address: str = "", **features: str) -> Any:
    status = store_pb2.AgentStatus(version="1", address=address, features=features)
    return put(keys.agent_status(node), status.SerializeToString())


async def inspect(cloud: Cloud, node: str, by: str = "root") -> pb.NodeInspection:
    found: pb.NodeInspection = await cloud.api.call("Nodes", "Inspect", pb.InspectNodeRequest(id=node), f"{by}-token")
    return found


async def test_a_62_what_a_silent_agent_said_last_and_why_it_is_silent(cloud: Cloud) -> None:
    network = await cloud.api.create("Network", name="web")
    await cloud.api.create("Subnet", network_id=network.id, cidr="10.0.0.0/24")
    port = await cloud.api.create("Port", network_id=network.id, name="web1")
    await cloud.api.create("Node", id="h1")
    await cloud.write(plugged("h1", port.id, interface="tap1"))
    found = await inspect(cloud, "h1")
    assert (found.live, found.reason) == (False, "NODE_DEAD")
    (shown,) = found.bridges[0].ports
    assert (shown.name, shown.wired) == ("tap1", True)
    assert [(item.kind, item.name) for item in shown.objects] == [("Port", "web1"), ("Network", "web")]

    await cloud.write(alive("h1"), says("h1", inspect="off: the address is taken"))
    found = await inspect(cloud, "h1")
    assert (found.reason, found.message) == (
        "NOT_LISTENING",
        "the agent of node h1 answers no questions: the address is taken",
    )
    await cloud.write(says("h1"))
    assert (await inspect(cloud, "h1")).message.endswith("it is of a release that answers none")
    await cloud.write(says("h1", f"{HERE}:1"))
    assert (await inspect(cloud, "h1")).reason == "AGENT_SILENT"
    (await refused(inspect(cloud, "no-such"))).must_be("RESOURCE_NOT_FOUND")
    (await refused(inspect(cloud, "h1", by="alice"))).must_be("ROLE_REQUIRED")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """What lets an answer go."""
    monkeypatch.setattr(service, "RECHECK", 0.05)
    return asyncio.Event()


async def test_c_07_only_the_nodes_own_certificate_is_believed(cloud: Cloud, slow: asyncio.Event, tmp_path: Any) -> None:
    assert cloud.etcd.tls is not None, "without certificates nobody is asked"
    for node in ("h1", "h2"):
        await cloud.api.create("Node", id=node)
    told: list[tuple[str, str]] = []

    async def answer(request: Any) -> pb.NodeInspection:
        if request.id == "h2":
            await slow.wait()
        return pb.NodeInspection(node=request.id, live=True)

    async def serve(authority: Authority, name: str) -> asyncio.Task[None]:
        tls = issue(authority, name, Use.NODE)
        told.clear()
        task = asyncio.create_task(
            Service(tls, {"Inspect": answer}, lambda: HERE, lambda where, why: told.append((where, why))).run()
        )

        async def listens() -> bool:
            return bool(told)

        await until(listens, "it listens")
        return task

    async def end(task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    where = f"{HERE}:{service.PORT}"
    await cloud.write(alive("h1"), says("h1", where), alive("h2"), says("h2", where))
    task = await serve(cloud.authority, "h1")
    try:
        assert told == [(where, "")]
        assert (await inspect(cloud, "h1")).live
        cloud.authority.renew("h1")
        new = serial(cloud.authority.certificate("h1"))

        async def shown() -> bool:
            return await presented(where, cloud.authority, node_name("h1")) == new

        await until(shown, "its certificate is taken up")
        assert (await inspect(cloud, "h1")).live
        # h2 says that it is at h1's address, or lets h1's agent stand for its own.
        assert (await inspect(cloud, "h2")).reason == "AGENT_SILENT"
        # A second one cannot have the address, and says so.
        second = await serve(cloud.authority, "h3")
        assert told[0][0] == ""
        assert "cannot be listened on" in told[0][1]
        await end(second)
    finally:
        await end(task)
    other = Authority(tmp_path / "other")
    other.init()
    task = await serve(other, "h1")
    try:
        assert (await inspect(cloud, "h1")).reason == "AGENT_SILENT", "of another authority"
    finally:
        await end(task)
    task = await serve(cloud.authority, "h2")
    try:
        began = time.monotonic()
        found = await inspect(cloud, "h2")
        assert found.reason == "AGENT_SILENT", "an agent that hangs holds nobody for long"
        assert 4 < time.monotonic() - began < 5 + DEADLINE
        slow.set()
        assert (await inspect(cloud, "h2")).live
    finally:
        await end(task)
