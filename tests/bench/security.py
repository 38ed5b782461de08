"""Security groups in the lab, on real packets: from a rule to its effect, and what filtering costs what passes.

Baselines are made by hand on the same hosts, in turns with ours: flows that forward and no more, and flows that track
connections in one zone and accept them all.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from deploy.lab import Workload, wait_until
from kumihimo.v1 import network_pb2, security_pb2
from tests.bench.crowd import FEW, MANY, PATIENCE, add_elsewhere, fill
from tests.bench.figures import Figure
from tests.bench.place import measured
from tests.system.cloud import Cloud, Scene, Vm
from tests.system.control import BRIDGE, ControlFlow, Stream

ROUNDS = 20
RULES = 1000
REPLACEMENTS = 5
INTERVAL = 0.002  # seconds between two requests: the resolution of what is seen of packets
SILENCE = 0.1  # seconds without an answer, after which there is none any more
CONNECT = str(Path(__file__).parents[1] / "system" / "connect.py")
PORT = "7000"
# One zone, and everything is accepted: the least that tracks connections.
TRACKING = """
table=0,priority=10,ip actions=ct(table=1)
table=0,priority=0 actions=NORMAL
table=1,ct_state=+trk+new,ip actions=ct(commit),NORMAL
table=1,ct_state=+trk+est,ip actions=NORMAL
"""


def measure() -> list[Figure]:
    """All figures of this module."""
    with measured() as (cloud, scene, control):
        return _measure(cloud, scene, control)


def _measure(cloud: Cloud, scene: Scene, control: ControlFlow) -> list[Figure]:
    network = scene.network(cidr="10.0.0.0/16")
    add_elsewhere(cloud)
    group, many = (cloud.admin.create(security_pb2.SecurityGroup(name=name)) for name in ("bench", "many"))
    first, second = (scene.vm(network, host, security_group_ids=[group.id, many.id]) for host in cloud.hosts)
    figures = []
    for known in (FEW, MANY):
        fill(cloud, network, known)
        allowed, ended = [], []
        for _ in range(ROUNDS):
            rule, seconds = _allow(cloud, group, first, second)
            allowed.append(seconds)
            ended.append(_end(cloud, rule, first, second))
        figures += [
            Figure(f"rule created to effective, {known:,} known", "ms", allowed, [], "none", "≤ 20 ms"),
            Figure(f"rule removed to effective, {known:,} known", "ms", ended, [], "none", "≤ 50 ms"),
        ]
    figures.append(_replaced(cloud, many))
    cloud.admin.create(_rule(group, "tcp"))
    cloud.admin.wait(0)
    return [*figures, *_through(first, second, control)]


def _rule(group: Any, protocol: str, **fields: Any) -> security_pb2.SecurityGroupRule:
    ingress, ipv4 = security_pb2.DIRECTION_INGRESS, network_pb2.IP_VERSION_IPV4
    return security_pb2.SecurityGroupRule(
        security_group_id=group.id, direction=ingress, ethertype=ipv4, protocol=protocol, **fields
    )


def _allow(cloud: Cloud, group: Any, first: Vm, second: Vm) -> tuple[Any, float]:
    """A rule that lets pings through, and the milliseconds from asking for it to the first that was answered."""
    with first.workload.start_ping(second.ip, INTERVAL) as ping:
        began = time.monotonic()
        rule = cloud.admin.create(_rule(group, "icmp"))
        wait_until(lambda: ping.received > 0, "it answers", PATIENCE, interval=0.001)
        found = (time.monotonic() - began) * 1000
        ping.result()
    return rule, found


def _end(cloud: Cloud, rule: Any, first: Vm, second: Vm) -> float:
    """Milliseconds from asking for the end of a rule to the last request of a running ping that was answered."""
    with first.workload.start_ping(second.ip, INTERVAL) as ping:
        wait_until(lambda: ping.received > 0, "it answers", PATIENCE, interval=0.001)
        began, last, seen = time.monotonic(), 0.0, ping.received
        cloud.admin.delete(rule)
        while time.monotonic() < max(began, last) + SILENCE:
            if (now := ping.received) != seen:
                seen, last = now, time.monotonic()
        ping.result()
    return max(0.0, last - began) * 1000


def _replaced(cloud: Cloud, group: Any) -> Figure:
    """All rules of a group by others, until every node has them."""
    found = []
    for turn in range(REPLACEMENTS):
        request = security_pb2.ReplaceSecurityGroupRulesRequest(id=group.id, request_id=os.urandom(8).hex())
        for number in range(RULES):
            port = 1 + turn * RULES + number
            request.rules.append(_rule(group, "udp", port_range_min=port, port_range_max=port))
        began = time.monotonic()
        changed = cloud.admin.client.call("kumihimo.v1.SecurityGroups", "ReplaceRules", request, timeout=60)
        cloud.admin.wait(changed.revision, group.id)
        found.append((time.monotonic() - began) * 1000)
    return Figure(f"{RULES:,} rules replaced, until applied", "ms", found, [], "none", "≤ 1,000 ms")


def _through(first: Vm, second: Vm, control: ControlFlow) -> list[Figure]:
    """Streams and new connections across the hosts, in turns with the same by hand."""
    for vm in (first, second):
        vm.stop()  # its helper reads every frame
    for host in control.hosts:
        host.run(["ip", "-n", "ctl", "link", "set", "eth0", "mtu", str(first.mtu)])
        host.run(["ip", "link", "set", "vethctl", "mtu", str(first.mtu)])
    ours = (first.workload, second.workload, second.ip)
    by_hand = (control.first, control.second, control.target)
    rates = [(Stream.begin(*ours, 1.0).rate(), Stream.begin(*by_hand, 1.0).rate()) for _ in range(ROUNDS)]
    for host in control.hosts:
        host.run(["ovs-vsctl", "set", "bridge", BRIDGE, "protocols=OpenFlow13"])
        host.run(["ovs-ofctl", "-O", "OpenFlow13", "replace-flows", BRIDGE, "-"], input=TRACKING)
    tracked = [(Stream.begin(*ours, 1.0).rate(), Stream.begin(*by_hand, 1.0).rate()) for _ in range(ROUNDS)]
    calls = [(_calls(*ours), _calls(*by_hand)) for _ in range(ROUNDS)]
    return [
        _beside("TCP across hosts, filtered", "Mbit/s", rates, "hand-made flows", "≥ 0.95 of it"),
        _beside("TCP across hosts, filtered", "Mbit/s", tracked, "hand-made flows that track", ""),
        _beside("new TCP connections, one after the other", "/s", calls, "hand-made flows that track", "≥ 0.8 of it"),
    ]


def _beside(name: str, unit: str, pairs: list[tuple[float, float]], beside: str, aim: str) -> Figure:
    return Figure(name, unit, [pair[0] for pair in pairs], [pair[1] for pair in pairs], beside, aim)


def _calls(caller: Workload, called: Workload, address: str) -> float:
    """Connections a second."""
    with called.popen([sys.executable, "-I", "-S", CONNECT, "serve", PORT]) as server:
        server.wait_for("ready")
        return float(caller.run([sys.executable, "-I", "-S", CONNECT, "call", address, PORT, "1"]))
