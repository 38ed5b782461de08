"""What is on a node, live: told by its agent to the API and to operators, and to nobody else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cli import render
from controlplane.tls import node_name
from deploy.lab import Host, LabError, wait_until
from kumihimo.v1 import inspect_pb2, node_pb2
from tests.system.cloud import PATIENCE, Cloud, Scene


def show(cloud: Cloud, *words: str) -> str:
    return cloud.lab.kumi("node", "show", *words)


def live(cloud: Cloud, host: Host) -> dict[str, Any]:
    """What the API answers, as JSON would show it."""
    return render.plain(cloud.admin.client.call("Nodes", "Inspect", inspect_pb2.InspectNodeRequest(id=host.name)))


def ports_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {port["name"]: port for bridge in found["bridges"] for port in bridge["ports"]}


def test_a_62_node_show_tells_what_is_there_and_what_it_belongs_to(
    cloud: Cloud, scene: Scene, h1: Host, h2: Host, tmp_path: Path
) -> None:
    network = scene.network()
    here, there = scene.vm(network, h1, name="web1"), scene.vm(network, h2)
    h1.run("ovs-vsctl add-br br-odd -- add-port br-odd odd0 tag=7 -- set interface odd0 type=internal")
    try:
        wait_until(lambda: live(cloud, h1)["live"] is True, "the agent answers", PATIENCE)
        found = live(cloud, h1)
        assert found["notes"] == []
        ports = ports_of(found)
        tap = ports[here.tap]
        assert (tap["purpose"], tap["wired"], tap["ofport"]) == ("workload", True, here.ofport)
        assert [(item["kind"], item["id"], item["name"]) for item in tap["objects"]] == [
            ("Port", here.id, "web1"),
            ("Network", network.id, network.name),
        ]
        assert tap["segment"] == f"vxlan {network.segmentation_id}"
        assert ports["kumi-vxlan"]["purpose"] == "tunnel"
        assert ports["kumi-vxlan"]["options"]["local_ip"] == h1.underlay
        (service,) = [port for port in ports.values() if port["purpose"] == "service"]
        assert service["objects"] == [{"kind": "Network", "id": network.id, "name": network.name}]
        assert (ports["odd0"]["managed"], ports["odd0"]["tag"]) == (False, 7)
        assert [(item["service"], item["running"]) for item in found["namespaces"]] == [("dhcp", True)]
        (peer,) = found["peers"]
        assert (peer["node"], peer["address"], peer["resolved"]) == ("h2", h2.underlay, True)

        picture = tmp_path / "h1.svg"
        text = show(cloud, "h1", "--svg", str(picture))
        assert f"{here.tap}" in text
        assert f"Port web1 · Network {network.name} · vxlan {network.segmentation_id}" in text
        texts = {item.text for item in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}title")}
        assert f"{here.tap} wired" in texts
        assert any(text and text.startswith(f"Port web1 · Network {network.name}") for text in texts)

        # It is live: what goes is gone at once, and what is not as it should be is told.
        here.unplug()
        assert here.tap not in ports_of(live(cloud, h1))
        cloud.admin.delete(there.port, force=True)
        wait_until(lambda: ports_of(live(cloud, h2))[there.tap]["reason"] == "PORT_UNKNOWN", "it is told", PATIENCE)
    finally:
        h1.run("ovs-vsctl --if-exists del-br br-odd")


# Asks an agent, from where it runs: ADDRESS NODE AUTHORITY NAME; NAME: of the certificate, empty: none.
ASK = """
import sys, grpc, pathlib
from kumihimo.v1 import inspect_pb2, inspect_pb2_grpc
address, node, folder, name = sys.argv[1:]
read = lambda file: pathlib.Path(folder, file).read_bytes()
pair = (read(name + ".key"), read(name + ".crt")) if name else (None, None)
options = [("grpc.ssl_target_name_override", node)]
with grpc.secure_channel(address, grpc.ssl_channel_credentials(read("ca.crt"), *pair), options) as channel:
    try:
        reply = inspect_pb2_grpc.AgentStub(channel).Inspect(inspect_pb2.InspectNodeRequest(), timeout=10)
        print(reply.node)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""


def ask(cloud: Cloud, host: Host, name: str, of: str = "") -> str:
    """What a caller with that certificate gets from the agent itself: the node's id, or the refusal."""
    words = [f"{host.management}:7444", node_name(of or host.name), str(cloud.lab.files.ca.parent), name]
    return cloud.lab.ctl.run([sys.executable, "-c", ASK, *words])


def listening(host: Host) -> list[str]:
    """Addresses on which something of ours listens."""
    found = [line.split()[3] for line in host.run("ss -Hltn").splitlines()]
    return [place.replace("[::ffff:", "").replace("]", "") for place in found if place.endswith(":7444")]


def test_c_07_an_agent_answers_api_and_root_only_and_listens_nowhere_else(
    cloud: Cloud, scene: Scene, h1: Host, h2: Host
) -> None:
    wait_until(lambda: listening(h1) == [f"{h1.management}:7444"], "it listens at its management address", PATIENCE)
    assert cloud.admin.get(node_pb2.Node(id="h1")).agent.address == f"{h1.management}:7444"
    assert ask(cloud, h1, "root") == "h1"
    assert ask(cloud, h1, "api") == "h1"
    assert ask(cloud, h1, "h2") == "PERMISSION_DENIED node-h2 may not ask; kumi-api and root may"
    assert ask(cloud, h1, "etcd").startswith("PERMISSION_DENIED etcd may not ask")
    assert ask(cloud, h1, "").startswith("UNAVAILABLE"), "without a certificate there is no handshake"
    assert ask(cloud, h1, "root", of="h2").startswith("UNAVAILABLE"), "it is h1 and nobody else"
    assert cloud.alice.client  # a member may not ask the API either
    assert "ROLE_REQUIRED" in refusal(cloud, "--profile", "alice", "node", "show", "h1", "--live")

    # another address by a setting, without a restart.
    pid = h1.agent_pid
    cloud.admin.update(node_pb2.Node(id="h1", management_ip=h1.underlay), "management_ip")
    wait_until(lambda: listening(h1) == [f"{h1.underlay}:7444"], "it listens there", PATIENCE)
    cloud.admin.update(node_pb2.Node(id="h1", management_ip="192.168.77.7"), "management_ip")

    def told() -> str:
        return str(cloud.admin.get(node_pb2.Node(id="h1")).agent.features["inspect"])

    wait_until(lambda: "no address of this host" in told(), "it says that it cannot", PATIENCE)
    assert listening(h1) == []
    assert "[NOT_LISTENING]" in show(cloud, "h1")
    cloud.admin.update(node_pb2.Node(id="h1"), "management_ip")
    wait_until(lambda: listening(h1) == [f"{h1.management}:7444"], "it is back", PATIENCE)
    assert h1.agent_pid == pid


def test_a_62_of_a_silent_agent_its_last_words_are_told(cloud: Cloud, scene: Scene, h1: Host) -> None:
    here = scene.vm(scene.network(), h1, name="web1")
    wait_until(lambda: live(cloud, h1)["live"] is True, "the agent answers", PATIENCE)
    h1.kill_agent()
    found = live(cloud, h1)
    assert (found["live"], found["reason"]) == (False, "AGENT_SILENT")
    assert ports_of(found)[here.tap]["objects"][0]["name"] == "web1"
    assert "as it was heard of last: the agent of node h1 at" in show(cloud, "h1")


def refusal(cloud: Cloud, *words: str) -> str:
    with pytest.raises(LabError) as refused:
        cloud.lab.kumi(*words)
    return str(refused.value)
