"""A node in a large cloud, on real packets: what a plug, a change and a start cost with 10 known ports and with 10,000.

All ports are of one network, which both hosts of the lab have a port of; the many are on a third node that exists in the
store alone. Baselines are made by hand on the same hosts, in turns with ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from deploy.lab import Host, wait_until
from kumihimo.v1 import port_pb2
from tests.bench.crowd import FEW, MANY, PATIENCE, add_elsewhere, apply, fill
from tests.bench.figures import Figure
from tests.bench.node import applied, plug, plug_by_hand
from tests.bench.place import measured
from tests.crowd import Crowd
from tests.system.cloud import Cloud, Scene, Vm
from tests.system.control import BRIDGE, ControlFlow

ROUNDS = 20
STARTS = 5
AT_ONCE = 200


def measure() -> list[Figure]:
    """All figures of this module."""
    with measured() as (cloud, scene, control):
        return list(_measure(cloud, scene, control))


def _measure(cloud: Cloud, scene: Scene, control: ControlFlow) -> Iterator[Figure]:
    idle = _resident(cloud.hosts[1])
    network = scene.network(cidr="10.0.0.0/16")
    yield from _at_once(cloud, scene, control)
    add_elsewhere(cloud)
    first, second, _ = (scene.vm(network, host) for host in (*cloud.hosts, cloud.hosts[1]))
    wait_until(lambda: first.workload.reaches(second.ip), "both answer", PATIENCE)  # as in node.py
    for known in (FEW, MANY):
        fill(cloud, network, known)
        pairs = [(plug(first, second), plug_by_hand(control)) for _ in range(ROUNDS)]
        ours, by_hand = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        yield Figure(
            f"plug to first answer across hosts, {known:,} known", "ms", ours, by_hand, "on hand-made flows", "≤ 50 ms"
        )
        yield from applied(cloud, first, f", {known:,} known")
        compiled = _compile(known)
        yield Figure(f"compile of one changed port and of it as a member, {known:,} known", "ms", compiled, [], "none", "flat")
    yield Figure("agent start, 10,000 remote ports known", "ms", _starts(cloud, first), [], "none", "≤ 10,000 ms")
    yield Figure("agent resident, idle", "MB", [idle], [], "none", "≤ 80 MB")
    yield Figure("agent resident, 10,000 known", "MB", [_resident(cloud.hosts[1])], [], "none", "≤ 150 MB")


def _starts(cloud: Cloud, vm: Vm) -> list[float]:
    """Milliseconds from the start of an agent until it has applied what changed while it was away."""
    found = []
    for number in range(STARTS):
        vm.host.agent.kill()
        pair = port_pb2.AddressPair(ip_address=f"10.201.0.{number + 1}/32")
        changed = cloud.admin.update(port_pb2.Port(id=vm.id, allowed_address_pairs=[pair]), "allowed_address_pairs")
        began = time.monotonic()
        vm.host.agent.start()
        cloud.admin.wait(changed.revision, vm.id, timeout=PATIENCE)
        found.append((time.monotonic() - began) * 1000)
    return found


def _resident(host: Host) -> float:
    """Megabytes that the agent holds."""
    lines = Path(f"/proc/{host.agent.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def _at_once(cloud: Cloud, scene: Scene, control: ControlFlow) -> Iterator[Figure]:
    """So many ports plugged by one command; and an agent that starts with them."""
    host = cloud.hosts[1]
    network = scene.network(cidr="10.1.0.0/16")
    ports = apply(cloud, network, AT_ONCE)
    # What the kernel says by itself on 200 links would be flooded to 200 by the hand-made bridge.
    host.run(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
    links = "\n".join(f"link add kb{number} type veth peer name kp{number}" for number in range(AT_ONCE))
    host.run(["ip", "-batch", "-"], input=links, timeout=60)
    host.run(
        "for link in $(seq 0 " + str(AT_ONCE - 1) + "); do ip link set kb$link up; ip link set kp$link up; done", timeout=60
    )
    ours, by_hand = [], []
    for _ in range(STARTS):
        began = time.monotonic()
        host.run(["ovs-vsctl", "--no-wait", *_plugs("br-int", ports)])
        cloud.admin.wait(0, *ports, active=True, timeout=PATIENCE)
        ours.append((time.monotonic() - began) * 1000)
        host.run(["ovs-vsctl", *_unplugs("br-int")])
        cloud.admin.wait(0, timeout=PATIENCE)
        began = time.monotonic()
        host.run(["ovs-vsctl", *_plugs(BRIDGE, ports)])
        by_hand.append((time.monotonic() - began) * 1000)
        host.run(["ovs-vsctl", *_unplugs(BRIDGE)], timeout=120)
    beside = "ovs-vsctl alone, until they are in a bridge"
    yield Figure(f"{AT_ONCE} ports plugged at once, until all are ACTIVE", "ms", ours, by_hand, beside, "≤ 2,000 ms")
    host.run(["ovs-vsctl", "--no-wait", *_plugs("br-int", ports)])
    cloud.admin.wait(0, *ports, active=True, timeout=PATIENCE)
    vm = scene.vm(network, host)
    yield Figure(f"agent start, {AT_ONCE} wired ports", "ms", _starts(cloud, vm), [], "none", "≤ 2,000 ms")
    host.run(["ovs-vsctl", *_unplugs("br-int")])
    scene.remove(vm)
    wait_until(lambda: not any(port.binding for port in cloud.admin.list(port_pb2.Port)), "none is bound", PATIENCE)
    cloud.admin.delete(network, force=True)


def _plugs(bridge: str, ports: list[str]) -> list[str]:
    found: list[str] = []
    for number, port in enumerate(ports):
        link = f"kb{number}"
        found += ["--", "add-port", bridge, link, "--", "set", "interface", link, f"external_ids:iface-id={port}"]
    return found


def _unplugs(bridge: str) -> list[str]:
    return [word for number in range(AT_ONCE) for word in ("--", "del-port", bridge, f"kb{number}")]


def _compile(known: int) -> list[float]:
    """Milliseconds that the agent's pure part takes for one changed port of a network and group that have so many."""
    crowd = Crowd(known)
    crowd.engine.run()
    found = []
    for number in range(ROUNDS):
        began = time.perf_counter()
        crowd.change(0, f"10.9.0.{number}")
        found.append((time.perf_counter() - began) * 1000)
    return found
