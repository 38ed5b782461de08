"""`kumi status` says in sentences what is known of a port; `kumi wait` waits for what was asked."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from kumihimo.v1 import port_pb2, resource_pb2
from tests.fakes.api import FakeApi, Fault, Kumi

pytest_plugins = ("tests.fakes.api",)
PORT, NETWORK = "0192f0c4-7a3e-7c1d-8f2a-00000000000a", "0192f0c4-7a3e-7c1d-8f2a-00000000000b"


def _port(api: FakeApi, **fields: Any) -> None:
    known = {
        "id": PORT,
        "name": "web",
        "network_id": NETWORK,
        "mac_address": "fa:16:3e:00:00:01",
        "fixed_ips": [port_pb2.FixedIp(subnet_id=NETWORK, ip_address="10.0.0.5")],
    }
    api.add("port", **(known | fields))


def test_wired(kumi: Kumi, api: FakeApi) -> None:
    _port(
        api,
        state="STATE_ACTIVE",
        binding=[port_pb2.Binding(node="h1", interface="tap1")],
        realization=resource_pb2.Realization(desired_revision=7, realized_revision=7),
    )
    result = kumi("status", "web")
    assert result.code == 0
    assert result.out.splitlines() == [
        f"Port web ({PORT}) has 10.0.0.5 and MAC fa:16:3e:00:00:01 on network {NETWORK}.",
        "It is on node h1 as tap1.",
        "It is wired: applied at revision 7.",
    ]


def test_unattached(kumi: Kumi, api: FakeApi) -> None:
    _port(api, state="STATE_DOWN", name="", fixed_ips=[])
    result = kumi("status", PORT)
    assert result.code == 3
    assert result.out.splitlines() == [
        f"Port {PORT} has no address and MAC fa:16:3e:00:00:01 on network {NETWORK}.",
        "It is on no node: no interface carries its id.",
        "It is not wired: its state is down.",
        f"`kumi attach {PORT} --netns NAME` on a node attaches it.",
    ]


def test_each_reason_why_not(kumi: Kumi, api: FakeApi) -> None:
    _port(
        api,
        state="STATE_PENDING",
        admin_state_up=False,
        binding=[port_pb2.Binding(node="h1", active=True)],
        conditions=[
            resource_pb2.Condition(type="Bound", status=True),
            resource_pb2.Condition(type="Wired", reason="NO_TUNNEL", message="h1 has no tunnel to h2."),
        ],
        realization=resource_pb2.Realization(
            desired_revision=9,
            realized_revision=7,
            lagging=[resource_pb2.NodeLag(node="h1", realized_revision=7, reason="DEAD")],
        ),
    )
    result = kumi("status", "web")
    assert result.code == 3
    assert result.out.splitlines()[1:] == [
        "It is on node h1.",
        "It is not wired: its state is pending.",
        f"It is switched off; `kumi port update {PORT} --admin-state-up` switches it on.",
        "Wired is false: h1 has no tunnel to h2 [NO_TUNNEL].",
        "Node h1 has applied revision 7 of 9 [DEAD].",
    ]


def test_no_such_port(kumi: Kumi, api: FakeApi) -> None:
    result = kumi("status", "web")
    assert (result.code, result.err, len(api.calls)) == (4, "kumi: no port has the id or name 'web'\n", 1)


def test_wait_takes_the_revision_of_the_objects(kumi: Kumi, api: FakeApi) -> None:
    _port(api, revision=8)
    api.add("network", id=NETWORK, revision=12)
    result = kumi("wait", PORT, NETWORK, "--active", "--timeout", "1m")
    assert (result.code, result.out) == (0, "applied at revision 12\n")
    (request,) = api.requests("Operations/Wait")
    assert (list(request.ids), request.revision, request.active) == ([PORT, NETWORK], 12, True)
    assert request.timeout.seconds == 60


def test_wait_for_a_given_revision_looks_nothing_up(kumi: Kumi, api: FakeApi) -> None:
    assert kumi("wait", "--revision", "5").code == 0
    assert [call.name for call in api.calls] == ["Operations/Wait"]


def test_wait_timeout(kumi: Kumi, api: FakeApi) -> None:
    api.faults["Operations/Wait"] = [Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "WAIT_TIMEOUT", "node h2 is at 4")]
    result = kumi("wait", "--revision", "5")
    assert (result.code, result.err) == (7, "kumi: node h2 is at 4 [WAIT_TIMEOUT]\n")


def test_wait_for_nothing_known(kumi: Kumi) -> None:
    assert kumi("wait", PORT).err == f"kumi: no object has the id '{PORT}'\n"
    assert kumi("wait").code == 2


@pytest.mark.parametrize("timeout", ["soon", "-1s"])
def test_wait_needs_an_end(timeout: str, kumi: Kumi) -> None:
    assert kumi("wait", PORT, "--timeout", timeout).code == 2
