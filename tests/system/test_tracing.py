"""One trace from what was typed to what the agents did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.lab import Host, wait_until
from tests.system.cloud import PATIENCE, Cloud, Scene


def spans(path: Path, trace_id: str) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [span for span in map(json.loads, lines) if span["trace_id"] == trace_id]


def test_one_trace_leads_from_the_command_to_every_nodes_apply(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host, tmp_path: Path
) -> None:
    network = scene.network()
    for host in (h1, h2):
        scene.vm(network, host)
    typed = tmp_path / "typed.jsonl"
    cloud.lab.kumi("port", "create", network.id, "--name", "traced", env={"KUMI_TRACE_FILE": str(typed)})
    root = json.loads(typed.read_text().splitlines()[0])
    assert (root["name"], root["parent_id"]) == ("kumi port create", None)
    trace_id = root["trace_id"]
    files = {host.name: host.directory / "log-kumihimo" / "trace.jsonl" for host in (cloud.lab.ctl, h1, h2)}

    wait_until(lambda: all(spans(path, trace_id) for path in files.values()), "every process has written its span", PATIENCE)
    served = {span["span_id"]: span for span in spans(files["ctl"], trace_id)}
    entry = [span for span in served.values() if span["parent_id"] == root["span_id"]]
    assert entry, "the API's span is a child of the command's"
    assert any("Create" in span["name"] for span in entry)
    for host in (h1, h2):
        found = [span for span in spans(files[host.name], trace_id) if span["name"] == "agent.apply"]
        # The network, and the security group that has one member more.
        assert {span["attributes"]["scope"].split("/")[2] for span in found} <= {"net", "secgroup"}
        applied = [span for span in found if network.id in span["attributes"]["scope"]]
        assert len(applied) == 1
        assert applied[0]["attributes"]["node"] == host.name
        assert applied[0]["parent_id"] in served, "its parent is the change that the API made"
        assert applied[0]["end"] >= applied[0]["start"] >= root["start"]
    port = cloud.admin.client.find("Port", "traced")
    cloud.admin.delete(port)
