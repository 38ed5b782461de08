"""Binder, registrar and Wait on a real etcd: nodes are played by writing what an agent writes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from controlplane.store import client, keys
from controlplane.store.txn import time_ordered_id
from kumihimo.v1 import port_pb2, resource_pb2, store_pb2
from tests.component import cloud as agent
from tests.component.cloud import Client, Cloud, Refused, consistent, refused
from tests.waiting import until

ACTIVE, DOWN, PENDING = resource_pb2.STATE_ACTIVE, resource_pb2.STATE_DOWN, resource_pb2.STATE_PENDING


@pytest.fixture
async def network(cloud: Cloud) -> str:
    """A network; and two nodes, both alive."""
    for node in ("one", "two"):
        await cloud.api.create("Node", id=node)
    await cloud.write(agent.alive("one"), agent.alive("two"))
    return str((await cloud.api.create("Network")).id)


async def bound(cloud: Cloud, port: Any, node: str, interface: str = "tap0") -> None:
    """Wait until the binding of a port says so, "" for nowhere."""

    async def is_so() -> bool:
        entry = await cloud.store.get(keys.bindings(port.network_id) + port.id)
        found = port_pb2.Binding.FromString(entry.value) if entry else None
        if found is None:
            return node == ""
        return (found.node, found.interface) == (node, interface)

    await until(is_so, f"the port is bound to {node or 'nothing'}")


async def test_b_prt_06_a_port_is_bound_where_it_is_plugged_and_unbound_when_unplugged(cloud: Cloud, network: str) -> None:
    port = await cloud.api.create("Port", network_id=network)
    assert (port.state, port.conditions[0].reason) == (DOWN, "NOT_ATTACHED")
    await cloud.write(agent.plugged("one", port.id, interface="tap7"))
    await bound(cloud, port, "one", "tap7")
    shown = await cloud.api.get("Port", port.id)
    assert [(item.node, item.interface) for item in shown.binding] == [("one", "tap7")]
    assert (shown.etag, shown.revision) == (port.etag, port.revision)
    await cloud.write(agent.plugged("one", port.id, interface="tap8"))
    await bound(cloud, port, "one", "tap8")
    await consistent(cloud.store)
    error = await refused(cloud.api.delete("Port", port.id))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PORT_IN_USE")
    error = await refused(cloud.api.update("Port", port.id, mac_address="fa:16:3e:00:00:01"))
    assert error.reason == "PORT_IN_USE"
    error = await refused(cloud.api.delete("Network", network, force=True))
    assert error.reason == "RESOURCE_IN_USE"
    await cloud.write(agent.unplugged("one", port.id))
    await bound(cloud, port, "")
    assert (await cloud.api.update("Port", port.id, mac_address="fa:16:3e:00:00:01")).mac_address == "fa:16:3e:00:00:01"
    await consistent(cloud.store)
    await cloud.api.delete("Port", port.id)


async def test_a_port_follows_its_workload_to_another_node(cloud: Cloud, network: str) -> None:
    port = await cloud.api.create("Port", network_id=network)
    await cloud.write(agent.plugged("one", port.id))
    await bound(cloud, port, "one")
    # Plugged twice: it stays, and says that it is.
    await cloud.write(agent.plugged("two", port.id, interface="tap2"))

    async def says_so() -> bool:
        shown = await cloud.api.get("Port", port.id)
        return "PLUGGED_TWICE" in [condition.reason for condition in shown.conditions]

    await until(says_so, "the port says that it is plugged twice")
    await bound(cloud, port, "one")
    # A dead agent's port stays as well: its traffic goes on.
    await cloud.write(agent.dead("one"))
    later = await cloud.api.create("Port", network_id=network)
    await cloud.write(agent.plugged("two", later.id))
    await bound(cloud, later, "two")
    await bound(cloud, port, "one")
    shown = await cloud.api.get("Port", port.id)
    assert "NODE_DEAD" in [condition.reason for condition in shown.conditions]
    await cloud.write(agent.alive("one"))
    await cloud.write(agent.unplugged("one", port.id))
    await bound(cloud, port, "two", "tap2")
    await consistent(cloud.store)


async def test_a_node_that_is_not_registered_takes_no_port(cloud: Cloud, network: str) -> None:
    port, other = [await cloud.api.create("Port", network_id=network) for _ in range(2)]
    await cloud.write(agent.alive("stranger"), agent.plugged("stranger", port.id))
    await cloud.write(agent.plugged("two", other.id))
    await bound(cloud, other, "two")
    await bound(cloud, port, "")
    assert (await cloud.api.get("Port", port.id)).conditions[0].reason == "NOT_YET_BOUND"
    await cloud.api.create("Node", id="stranger")
    await bound(cloud, port, "stranger")
    await consistent(cloud.store)


async def test_a_status_that_comes_before_its_port_binds_it(cloud: Cloud, network: str) -> None:
    port_id = time_ordered_id()
    await cloud.write(agent.plugged("one", port_id))
    port = await cloud.api.create("Port", id=port_id, network_id=network)
    await bound(cloud, port, "one")
    await cloud.api.delete("Port", port.id, force=True)
    entries = await consistent(cloud.store)
    assert keys.bound_to("one", port.id) not in entries


async def test_a_node_is_deleted_when_nothing_is_bound_or_by_force_when_dead(cloud: Cloud, network: str) -> None:
    port = await cloud.api.create("Port", network_id=network)
    await cloud.write(agent.plugged("one", port.id))
    await bound(cloud, port, "one")
    error = await refused(cloud.api.delete("Node", "one"))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RESOURCE_IN_USE")
    assert port.id in error.message
    error = await refused(cloud.api.delete("Node", "one", force=True))
    assert error.reason == "INCOMPATIBLE_STATE"
    await cloud.write(agent.dead("one"))
    await until(lambda: _is_dead(cloud, "one"), "the node is dead")
    await cloud.api.delete("Node", "one", force=True)
    await bound(cloud, port, "")
    entries = await consistent(cloud.store)
    assert not [key for key in entries if key.startswith(keys.status("one"))]
    await cloud.api.delete("Node", "two")


async def _is_dead(cloud: Cloud, node: str) -> bool:
    return not (await cloud.api.get("Node", node)).agent.alive


async def test_many_ports_move_at_once_and_back(cloud: Cloud, second_api: Client, network: str) -> None:
    ports = [await cloud.api.create("Port", network_id=network) for _ in range(60)]
    await cloud.write(*(agent.plugged("one", port.id) for port in ports))
    for port in ports:
        await bound(cloud, port, "one")
    await cloud.write(
        *(operation for port in ports for operation in (agent.unplugged("one", port.id), agent.plugged("two", port.id)))
    )
    await asyncio.gather(
        *(api.delete("Port", port.id, force=True) for port, api in zip(ports[:20], [second_api] * 20, strict=True))
    )
    for port in ports[20:]:
        await bound(cloud, port, "two")
    await consistent(cloud.store)


# -- registrar --------------------------------------------------------------------------------------------------------


def reports(node: str, *addresses: str) -> Any:
    return client.put(keys.agent_status(node), store_pb2.AgentStatus(version="1", underlay_ips=addresses).SerializeToString())


async def tunnel_of(cloud: Cloud, node: str) -> str:
    return str((await cloud.api.get("Node", node)).tunnel_ip)


async def test_a_node_without_tunnel_ip_gets_the_first_free_address_it_reports(cloud: Cloud) -> None:
    await cloud.api.create("Node", id="given", tunnel_ip="192.0.2.1")
    await cloud.api.create("Node", id="bare")
    assert "NO_TUNNEL_IP" in [item.reason for item in (await cloud.api.get("Node", "bare")).conditions]
    await cloud.write(reports("bare", "fd00::1", "nonsense", "127.0.0.1", "192.0.2.1", "192.0.2.2", "192.0.2.3"))
    assert await until(lambda: tunnel_of(cloud, "bare"), "an address is chosen") == "192.0.2.2"
    # What an operator has set stays as it is; the report may come before the node.
    await cloud.write(reports("given", "192.0.2.9"), reports("late", "192.0.2.2", "192.0.2.4"))
    await cloud.api.create("Node", id="late")
    assert await until(lambda: tunnel_of(cloud, "late"), "an address is chosen") == "192.0.2.4"
    assert await tunnel_of(cloud, "given") == "192.0.2.1"
    entries = await consistent(cloud.store)
    assert entries[keys.NODES_CHANGE].mod_revision == entries[keys.node("late")].mod_revision


# -- wait -------------------------------------------------------------------------------------------------------------


async def test_wait_returns_when_all_live_nodes_concerned_applied_and_not_before(cloud: Cloud, network: str) -> None:
    item = await cloud.api.get("Network", network)
    await cloud.write(agent.applied("one", network, 0), agent.applied("two", network, 0))
    for nodes in (("one",), ("one", "two")):
        error = await refused(cloud.api.wait(revision=item.revision, ids=[network], seconds=0.05))
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        for node in nodes[-1:]:
            await cloud.write(agent.applied(node, network, item.revision))
    assert (await cloud.api.wait(revision=item.revision, ids=[network])).revision >= item.revision
    # 100 times: change, ask, and let the second node be the last.
    for turn in range(50):
        changed = await cloud.api.update("Network", network, description=str(turn))
        waiting = asyncio.create_task(cloud.api.wait(revision=changed.revision, ids=[network]))
        await cloud.write(agent.applied("one", network, changed.revision))
        assert (await refused(cloud.api.wait(revision=changed.revision, ids=[network], seconds=0.0))).metadata == {
            "two": "NOT_YET_APPLIED"
        }
        assert not waiting.done()
        last = await cloud.write(agent.applied("two", network, changed.revision))
        assert (await waiting).revision >= last


async def test_wait_names_the_laggards_with_their_reasons(cloud: Cloud, network: str) -> None:
    item = await cloud.api.get("Network", network)
    broken = store_pb2.ObjectError(object=f"port/{network}", reason="FLOW_REFUSED", message="table 3 takes no such match")
    await cloud.write(
        agent.applied("one", network, 1), agent.applied("two", network, 2, broken), agent.applied("dead", network, 0)
    )
    error = await refused(cloud.api.wait(revision=item.revision, ids=[network], seconds=0.1))
    assert error.metadata == {"one": "NOT_YET_APPLIED", "two": "FLOW_REFUSED"}
    assert f"node one has applied revision 1 of {item.revision}" in error.message
    assert "node two: port/" in error.message
    assert "table 3 takes no such match" in error.message
    # A tenant hears why, and of no host.
    theirs = await cloud.api.create("Network", by="alice")
    await cloud.write(agent.applied("one", theirs.id, 0))
    error = await refused(cloud.api.wait(by="alice", revision=theirs.revision, ids=[theirs.id], seconds=0.1))
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "NOT_YET_APPLIED" in error.message
    assert "one" not in error.message
    assert error.metadata == {}


async def test_wait_reports_dead_nodes_and_does_not_wait_for_them(cloud: Cloud, network: str) -> None:
    item = await cloud.api.get("Network", network)
    await cloud.write(agent.applied("one", network, item.revision), agent.applied("dead", network, 1))
    reply = await cloud.api.wait(revision=item.revision, ids=[network])
    assert [(lag.node, lag.reason) for lag in reply.dead] == [("dead", "NODE_DEAD")]
    # One that dies meanwhile ends the waiting.
    await cloud.write(agent.applied("two", network, 0))
    waiting = asyncio.create_task(cloud.api.wait(revision=item.revision, ids=[network]))
    await refused(cloud.api.wait(revision=item.revision, ids=[network], seconds=0.05))
    assert not waiting.done()
    await cloud.write(agent.dead("two"))
    assert {lag.node for lag in (await waiting).dead} == {"dead", "two"}


async def test_wait_for_a_deleted_network_ends_when_no_live_node_concerns_itself(cloud: Cloud, network: str) -> None:
    item = await cloud.api.get("Network", network)
    await cloud.write(agent.applied("one", network, item.revision), agent.applied("dead", network, 0))
    gone = await cloud.api.delete("Network", network)
    for ids in ([], [network]):
        error = await refused(cloud.api.wait(revision=gone.revision, ids=ids, seconds=0.05))
        assert error.metadata == {"one": "NOT_YET_REMOVED"}
    # Having applied a later revision is not having removed it.
    await cloud.write(agent.applied("one", network, gone.revision + 100))
    error = await refused(cloud.api.wait(revision=gone.revision, ids=[network], seconds=0.05))
    assert error.metadata == {"one": "NOT_YET_REMOVED"}
    await cloud.write(agent.unconcerned("one", network))
    await cloud.api.wait(revision=gone.revision, ids=[network])


async def test_wait_for_what_is_deleted_asks_the_nodes_of_its_network_and_groups_alone(cloud: Cloud, network: str) -> None:
    """Another network's nodes may lag as long as they like; of what was never there, or is another's, all are asked."""
    other = await cloud.api.create("Network")
    await cloud.write(agent.applied("two", other.id, 1))
    await cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/24")
    port = await cloud.api.create("Port", network_id=network)
    (group,) = port.security_group_ids
    await cloud.write(agent.applied("one", network, 1), agent.applied("one", group, 2, folder="secgroup"))

    async def lags(gone: Any, object_id: str, by: str = "root") -> str:
        error = await refused(cloud.api.wait(by=by, revision=gone.revision, ids=[object_id], seconds=0.05))
        return error.message

    gone = await cloud.api.delete("Port", port.id)
    text = await lags(gone, port.id)
    assert "node one has applied revision 1 of " in text
    assert "node one has applied revision 2 of " in text
    assert "node two" not in text
    await cloud.write(agent.applied("one", network, gone.revision))
    assert "node one has applied revision 1 of " not in await lags(gone, port.id)
    await cloud.write(agent.applied("one", group, gone.revision, folder="secgroup"))
    await cloud.api.wait(revision=gone.revision, ids=[port.id])
    assert "NOT_YET_APPLIED" in await lags(gone, port.id, by="bob")
    assert "node two has applied revision 1 of " in await lags(gone, "0192f0c1-7c1e-7b3a-9d4e-5f60718293a4")
    # A network's ports leave their groups with it.
    await cloud.api.create("Port", network_id=network)
    gone = await cloud.api.delete("Network", network, force=True)
    assert "node one has not yet removed it" in await lags(gone, network)
    await cloud.write(agent.unconcerned("one", network))
    assert "node one has applied revision" in await lags(gone, network)
    await cloud.write(agent.applied("one", group, gone.revision, folder="secgroup"))
    await cloud.api.wait(revision=gone.revision, ids=[network])


async def test_wait_for_everything_covers_the_node_scope(cloud: Cloud, network: str) -> None:
    node = await cloud.api.update("Node", "one", description="changed")
    await cloud.write(agent.applied_nodes("one", node.revision), agent.applied_nodes("two", node.revision - 1))
    for ids in ([], ["one"]):
        error = await refused(cloud.api.wait(revision=node.revision, ids=ids, seconds=0.05))
        assert error.metadata == {"two": "NOT_YET_APPLIED"}
    await cloud.api.wait(revision=node.revision, ids=[network])
    await cloud.write(agent.applied_nodes("two", node.revision))
    await cloud.api.wait(revision=node.revision)


async def test_b_prt_15_wait_active_returns_when_the_port_is_wired_at_its_revision(cloud: Cloud, network: str) -> None:
    port = await cloud.api.create("Port", network_id=network)

    async def not_yet(reason: str) -> None:
        error = await refused(cloud.api.wait(ids=[port.id], active=True, seconds=0.05))
        assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, reason)
        assert (await cloud.api.get("Port", port.id)).state != ACTIVE

    await not_yet("NOT_ATTACHED")
    await cloud.api.wait(ids=[port.id])  # without it, being where it should be is enough
    await cloud.write(agent.plugged("one", port.id, wired=False))
    await bound(cloud, port, "one")
    await not_yet("NOT_YET_APPLIED")
    await cloud.write(agent.plugged("one", port.id), agent.applied("one", network, port.revision))
    await not_yet("NOT_YET_APPLIED")  # the binding is later than that
    waiting = asyncio.create_task(cloud.api.wait(ids=[port.id], active=True))
    await cloud.write(agent.applied("one", network, await cloud.store.revision()))
    await waiting
    shown = await cloud.api.get("Port", port.id)
    assert shown.state == ACTIVE
    changed = await cloud.api.update("Port", port.id, description="changed")
    assert changed.state == PENDING
    off = await cloud.api.update("Port", port.id, admin_state_up=False)
    assert off.state == DOWN
    # A tenant sees what became of it, and no host.
    assert (await cloud.api.get("Port", port.id)).binding[0].node == "one"


async def test_a_tenant_sees_no_host(cloud: Cloud, network: str) -> None:
    theirs = await cloud.api.create("Network", by="alice")
    port = await cloud.api.create("Port", by="alice", network_id=theirs.id)
    await cloud.write(agent.plugged("one", port.id), agent.applied("one", theirs.id, 0), agent.applied("dead", theirs.id, 0))
    await bound(cloud, port, "one")
    for kind, item in (("Port", port), ("Network", theirs)):
        shown = str(await cloud.api.get(kind, item.id, by="alice"))
        listed = str((await cloud.api.list(kind, by="alice")).items)
        for text in (shown, listed):
            for secret in ('"one"', '"dead"', "tap0", "node one"):
                assert secret not in text
    assert (await cloud.api.list("Port", by="alice", filter='binding.node = "one"')).items == []
    assert [item.id for item in (await cloud.api.list("Port", filter='binding.node = "one"')).items] == [port.id]


async def test_wait_refuses_what_is_malformed(cloud: Cloud) -> None:
    now = await cloud.settled()
    for request, reason, code in (
        ({"seconds": -1}, "VALUE_OUT_OF_RANGE", grpc.StatusCode.INVALID_ARGUMENT),
        ({"seconds": 601}, "VALUE_OUT_OF_RANGE", grpc.StatusCode.INVALID_ARGUMENT),
        ({"ids": ["x"] * 501}, "TOO_MANY_VALUES", grpc.StatusCode.INVALID_ARGUMENT),
        ({"revision": now + 1000}, "REVISION_IN_FUTURE", grpc.StatusCode.OUT_OF_RANGE),
    ):
        error = await refused(cloud.api.wait(**request))
        assert (error.code, error.reason) == (code, reason)


# -- the process ------------------------------------------------------------------------------------------------------


async def test_b_api_09_a_replay_and_controllers_outlive_their_replica() -> None:
    """The API killed and started: the same answer to the same request; another replica binds."""
    async with Cloud() as cloud:
        first = await cloud.api.create("Network", name="kept", request={"request_id": "before"})
        page = await cloud.api.create("Network")
        token = (await cloud.api.list("Network", page_size=1)).next_page_token
        other = await cloud.replica()
        cloud.replicas[0].kill()
        node = await other.create("Node", id="one")
        port = await other.create("Port", network_id=first.id)
        await cloud.write(agent.alive("one"), agent.plugged("one", port.id))
        await bound(cloud, port, "one")
        await cloud.replicas[0].begin()
        again = await cloud.api.create("Network", name="kept", request={"request_id": "before"})
        assert (again.id, again.etag, again.revision) == (first.id, first.etag, first.revision)
        assert [item.id for item in (await cloud.api.list("Network", page_token=token)).items] == [page.id]
        assert node.key
        # etcd killed and started: both answer again, and agree.
        cloud.etcd.kill()
        error = await refused(cloud.api.create("Network", request={"request_id": "while away"}))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert error.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
        await cloud.etcd.begin()

        async def answers(api: Client) -> bool:
            try:
                await api.create("Network", request={"request_id": "while away"})
            except Refused as failure:
                failure.must_be("STORE_UNAVAILABLE")
                return False
            return True

        for api in (cloud.api, other):
            await until(lambda api=api: answers(api), "the API answers again")
        assert (await cloud.api.list("Network")).items == (await other.list("Network")).items
        assert len((await other.list("Network")).items) == 3
        await consistent(cloud.store)


async def test_b_net_a_network_is_in_the_zones_of_the_nodes_that_serve_it(cloud: Cloud, network: str) -> None:
    await cloud.api.update("Node", "one", availability_zone="east")
    await cloud.api.update("Node", "two", availability_zone="west")
    assert (await cloud.api.get("Network", network)).availability_zones == []
    await cloud.write(agent.applied("one", network, 1), agent.applied("two", network, 1), agent.applied("gone", network, 1))
    assert (await cloud.api.get("Network", network)).availability_zones == ["east", "west"]
    await cloud.write(agent.unconcerned("two", network), agent.dead("one"))
    assert (await cloud.api.get("Network", network)).availability_zones == ["east"]
    assert [item.id for item in (await cloud.api.list("Network", filter='availability_zones = "east"')).items] == [network]


async def test_a_port_says_since_when_it_is_attached_and_wired(cloud: Cloud, network: str) -> None:
    port = await cloud.api.create("Port", network_id=network)

    async def since(kind: str) -> int:
        """In ms; 0: it is not said."""
        shown = await cloud.api.get("Port", port.id)
        return next(item.last_transition_time.ToMilliseconds() for item in shown.conditions if item.type == kind)

    began = time.time_ns() // 1_000_000
    assert await since("Attached") == 0
    await cloud.write(agent.plugged("one", port.id, since=7))
    await bound(cloud, port, "one")
    attached = await since("Attached")
    assert began <= attached <= time.time_ns() // 1_000_000
    assert await since("Wired") == 7000
    # It moves, and is attached all the while; of an agent of an earlier release is not known since when it has it wired.
    await cloud.write(agent.plugged("two", port.id), agent.unplugged("one", port.id))
    await bound(cloud, port, "two")
    assert (await since("Attached"), await since("Wired")) == (attached, 0)
    (place,) = (await cloud.api.get("Port", port.id)).binding
    assert place.attach_time.ToMilliseconds() == attached
    await cloud.write(agent.unplugged("two", port.id))
    await bound(cloud, port, "")
    assert await since("Attached") == 0
    await cloud.write(agent.plugged("two", port.id, wired=False, since=9))
    await bound(cloud, port, "two")
    assert await since("Attached") > attached
    assert await since("Wired") == 9000
    # Switched off: since its node has it unwired, which is not known as long as that has it wired.
    await cloud.api.update("Port", port.id, admin_state_up=False, mask=["admin_state_up"])
    assert await since("Wired") == 9000
    await cloud.write(agent.plugged("two", port.id, since=11))
    assert await since("Wired") == 0


async def test_a_node_was_never_heard_of_since_it_was_made(cloud: Cloud) -> None:
    node = await cloud.api.create("Node", id="new")
    (said,) = (item for item in (await cloud.api.get("Node", "new")).conditions if item.type == "AgentAlive")
    assert (said.reason, said.last_transition_time) == ("NEVER_SEEN", node.create_time)
