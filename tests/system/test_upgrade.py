"""Rehearsal of docs/upgrade.md: another release under traffic, API first, then agent by agent, and back again.

Pings every 5 ms and a TCP stream pass meanwhile, beside the same through a flow made by hand on the same hosts and wire.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

from deploy.lab import Host, wait_until
from deploy.lab.service import Unit
from kumihimo.v1 import node_pb2, port_pb2
from tests.system.cloud import PATIENCE, Cloud, Scene
from tests.system.conftest import NEXT
from tests.system.control import ControlFlow, Stream, Watch

TIMES = 100 if os.environ.get("KUMI_FULL") == "1" else 3
"""How many times an agent is replaced, in a row."""
SERVERS = ["pgrep", "-f", "[d]nsmasq --conf-file="]
"""What finds the servers, and not a dnsmasq that is only asked for its version."""


def version_of(cloud: Cloud, host: Host) -> str:
    return str(cloud.admin.get(node_pb2.Node(id=host.name)).agent.version)


def releases(cloud: Cloud, kumi: Path) -> list[str]:
    """What `kumi doctor` of a release says of other releases."""
    found = json.loads(cloud.lab.ctl.run([str(kumi), "doctor", "-o", "json"], check=False))["findings"]
    return [item["object"] for item in found if "is of release" in item["what"]]


def test_c_07_upgrade_and_rollback_under_traffic_lose_no_more_than_a_flow_made_by_hand(
    cloud: Cloud, scene: Scene, h1: Host, h2: Host, control: ControlFlow, programs: Path, restored: None
) -> None:
    network = scene.network()
    here, there = scene.vm(network, h1), scene.vm(network, h2)
    ours, next_ = version_of(cloud, h1), NEXT
    assert ours != next_
    # Preflight.
    tree = Path(sys.prefix) / "bin"
    assert releases(cloud, tree / "kumi") == []
    units = {ours: Unit.read("kumihimo-agent"), next_: Unit.read("kumihimo-agent", programs)}
    streams = [
        Stream.begin(here.workload, there.workload, there.ip),
        Stream.begin(control.first, control.second, control.target),
    ]
    with Watch(control, here, there) as watch:
        # API first: it reads what agents of both releases write.
        cloud.lab.api.replace(Unit.read("kumihimo-api", programs))
        assert releases(cloud, programs / "kumi") == ["Node h1", "Node h2", "Node h3"]
        for turn in range(TIMES):
            host = (h1, h2)[turn % 2]
            wanted = next_ if turn % 4 < 2 else ours  # both forward, both back, ...
            dnsmasq = host.run(SERVERS)
            host.agent.replace(units[wanted])
            wait_until(lambda: version_of(cloud, host) == wanted, f"{host.name} runs {wanted}", PATIENCE)  # noqa: B023
            cloud.wait_alive(host)
            assert host.run(SERVERS) == dnsmasq, "what it started runs on"
            # What changes after is applied by the one that runs now.
            touched = cloud.admin.update(port_pb2.Port(id=here.id, description=f"{turn}"), "description")
            cloud.admin.wait(touched.revision, here.id, active=True)
    results = [stream.end() for stream in streams]
    print(f"\n{TIMES} replacements of agents; TCP ours {results[0]}, the control flow's {results[1]}")
    # Where the machine is so busy that it loses of both, two equal flows differ by chance.
    assert watch.lost.ours <= watch.lost.control + 3 * math.sqrt(watch.lost.control), watch.lost
    for result in results:
        assert result["bytes"] == result["sent"] > 0
    # A loaded machine makes either send again what was only late; what a gap of 50 ms loses would be twice as much.
    assert results[0]["retransmitted"] <= 2 * results[1]["retransmitted"] + 5, results
    assert here.workload.ping(there.ip, count=3, interval=0.05).received == 3
