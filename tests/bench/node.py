"""Nodes in the lab, on real packets: from the plug to the first answer across hosts, and from a change to applied.

Baseline of the plug: the same interface plugged into a hand-made bridge whose flows are there already, in turns with ours.
"""

from __future__ import annotations

import time

from deploy.lab import wait_until
from kumihimo.v1 import operations_pb2, port_pb2
from tests.bench.figures import Figure
from tests.bench.place import measured
from tests.system.cloud import PATIENCE, Cloud, Vm
from tests.system.control import BRIDGE, ControlFlow, Stream

ROUNDS = 20
INTERVAL = 0.002  # seconds between two requests: the resolution of the plug's figure


def measure() -> list[Figure]:
    """All figures of this module."""
    with measured() as (cloud, scene, control):
        network = scene.network()
        first, second = (scene.vm(network, host) for host in cloud.hosts)
        # Another port of the network keeps its namespace and DHCP service: the plug of one port is measured.
        scene.vm(network, cloud.hosts[1])
        ours, baseline = [], []
        # Who asks for a MAC and is not answered asks again after a second: neither way is to pay for that.
        wait_until(lambda: first.workload.reaches(second.ip), "both answer", PATIENCE)
        for _ in range(ROUNDS):
            ours.append(plug(first, second))
            baseline.append(plug_by_hand(control))
        return [
            Figure("plug to first answer across hosts", "ms", ours, baseline, "the same on hand-made flows", "≤ 50 ms"),
            *applied(cloud, first),
            traced(cloud, first, second),
            _throughput(first, second, control),
        ]


def plug(first: Vm, second: Vm) -> float:
    host, tap = second.host, second.tap
    host.run(["ovs-vsctl", "del-port", "br-int", tap])
    # The end of what the unplug makes others do is not the plug's.
    wait_until(lambda: not second.api.get(port_pb2.Port(id=second.id)).binding, "it is bound nowhere", PATIENCE)
    second.api.wait(0)
    add = ["ovs-vsctl", "--no-wait", "add-port", "br-int", tap]
    return _first_answer(first, second.ip, [*add, "--", "set", "interface", tap, f"external_ids:iface-id={second.id}"])


def plug_by_hand(control: ControlFlow) -> float:
    host = control.hosts[1]
    host.run(["ovs-vsctl", "del-port", BRIDGE, "vethctl"])
    return _first_answer(control, control.target, ["ovs-vsctl", "--no-wait", "add-port", BRIDGE, "vethctl"])


def _first_answer(source: Vm | ControlFlow, target: str, plug: list[str]) -> float:
    """Milliseconds from the start of the plugging command to the sending of the first request that was answered."""
    workload = source.workload if isinstance(source, Vm) else source.first
    host = source.host if isinstance(source, Vm) else source.hosts[0]
    peer = next(other for other in host.lab.hosts.values() if other is not host)
    with workload.start_ping(target, INTERVAL) as ping:
        began = time.monotonic()
        peer.run(plug)
        wait_until(lambda: ping.received > 0, "it answers", PATIENCE, interval=0.001)
        found = (time.monotonic() - began) * 1000
        ping.result()
    return found


def applied(cloud: Cloud, vm: Vm, known: str = "") -> list[Figure]:
    """An address is given to a port: the wait for it at the client, alone and with the update."""
    waits, both = [], []
    for number in range(ROUNDS):
        pair = port_pb2.AddressPair(ip_address=f"10.200.0.{number + 1}/32")
        began = time.monotonic()
        changed = cloud.admin.update(port_pb2.Port(id=vm.id, allowed_address_pairs=[pair]), "allowed_address_pairs")
        acknowledged = time.monotonic()
        cloud.admin.wait(changed.revision, vm.id)
        ended = time.monotonic()
        waits.append((ended - acknowledged) * 1000)
        both.append((ended - began) * 1000)
    return [
        Figure(f"change to applied (Wait after Update){known}", "ms", waits, [], "none", "≤ 20 ms"),
        Figure(f"Update and Wait{known}", "ms", both, [], "none", ""),
    ]


def traced(cloud: Cloud, first: Vm, second: Vm) -> Figure:
    """A trace over two hosts, both directions, at the client."""
    took = []
    request = operations_pb2.TraceRequest(from_port_id=first.id, to_port_id=second.id, protocol="tcp", destination_port=80)
    for _ in range(ROUNDS):
        began = time.monotonic()
        cloud.admin.client.call("Operations", "Trace", request)
        took.append((time.monotonic() - began) * 1000)
    return Figure("trace over two hosts, both directions", "ms", took, [], "none", "≤ 300 ms")


def _throughput(first: Vm, second: Vm, control: ControlFlow) -> Figure:
    """One TCP stream across the hosts, in turns with the same over hand-made flows of the same MTU."""
    for vm in (first, second):
        vm.stop()  # its helper reads every frame, which costs half of what the stream could have
    for host in control.hosts:
        host.run(["ip", "-n", "ctl", "link", "set", "eth0", "mtu", str(first.mtu)])
        host.run(["ip", "link", "set", "vethctl", "mtu", str(first.mtu)])
    ways = [(first.workload, second.workload, second.ip), (control.first, control.second, control.target)]
    rates: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for way, found in zip(ways, rates, strict=True):
            found.append(Stream.begin(*way, 1.0).rate())
    return Figure("TCP across hosts", "Mbit/s", *rates, "hand-made flows", "≥ 0.95 of it")
