"""What was dropped last: whom it is told to, and what a flood of it costs."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.inspection.samples import KEPT
from agent.model.pipeline import SAMPLES_A_SECOND, Reason
from deploy.lab import Host, wait_until
from kumihimo.v1 import inspect_pb2
from tests.system import frames, frames6
from tests.system.cloud import Cloud, Scene, Vm, drops

SOON = 10.0  # seconds
FLOOD = 10.0  # seconds
BATCH, PERIOD = 100, 0.002  # frames, and seconds: 50,000 a second, or what the guest can do
MOST_OF_A_CPU = 0.02  # that the agent may take more because of it
TICKS = os.sysconf("SC_CLK_TCK")


def recent(api: Any, vm: Vm) -> list[inspect_pb2.DroppedPacket]:
    return list(api.client.call("Ports", "Explain", inspect_pb2.ExplainPortRequest(id=vm.id)).recent)


def comes(api: Any, vm: Vm, reason: Reason) -> inspect_pb2.DroppedPacket:
    """The newest of that reason, when it is told."""
    told: list[inspect_pb2.DroppedPacket] = []

    def seen() -> bool:
        told[:] = [each for each in recent(api, vm) if each.reason == reason.name]
        return bool(told)

    wait_until(seen, f"{reason.name} is told of", SOON)
    return told[0]


def test_a_dropped_packet_is_told_to_whoever_may_read_its_port(cloud: Cloud, scene: Scene, h1: Host, h2: Host) -> None:
    network = scene.network(cloud.alice)
    closed = scene.group({"direction": "DIRECTION_EGRESS"}, api=cloud.alice)
    a = scene.vm(network, h1, name="a", security_group_ids=[closed.id])
    b = scene.vm(network, h2, name="b", security_group_ids=[closed.id])
    a.guest.send(frames.echo(a.mac, b.mac, "10.0.0.66", b.ip, b"forged"))
    spoofed = comes(cloud.alice, a, Reason.SPOOFED_IP)
    assert not spoofed.received
    packet = spoofed.packet
    assert (packet.eth_src, packet.eth_dst, packet.ip_src, packet.ip_dst) == (a.mac, b.mac, "10.0.0.66", b.ip)
    assert (packet.protocol, packet.icmp_type) == (1, 8)
    assert abs(time.time() - spoofed.time.seconds) < 60
    frame = frames.udp(a.mac, b.mac, a.ip, b.ip, (5, 4789), bytes(500))
    a.guest.send(frame)
    refused = comes(cloud.alice, b, Reason.SG_INGRESS)
    assert (refused.received, refused.length) == (True, len(frame))
    assert (refused.packet.ip_src, refused.packet.source_port, refused.packet.destination_port) == (a.ip, 5, 4789)
    # Each at its own port alone, and without a word of hosts.
    assert not [each for each in recent(cloud.alice, a) if each.reason == "SG_INGRESS"]
    assert not [each for each in recent(cloud.alice, b) if each.reason == "SPOOFED_IP"]
    told = cloud.alice.client.call("Ports", "Explain", inspect_pb2.ExplainPortRequest(id=b.id))
    for word in ("h1", "h2", h1.underlay, h2.underlay, b.tap):
        assert word not in str(told)


@dataclass(frozen=True)
class Cost:
    """Of one flood: CPUs that agent and switch took, packets dropped a second, pings lost."""

    agent: float
    switch: float
    rate: float
    lost: float


def test_a_flood_of_drops_hurts_neither_the_traffic_of_others_nor_the_agent(scene: Scene, h1: Host) -> None:
    network = scene.network()
    flooder, a, b = (scene.vm(network, h1, name=name, **scene.open()) for name in ("flooder", "a", "b"))
    assert a.sees(b)

    def busy() -> tuple[float, float]:
        """Seconds that agent and switch have worked."""
        stat = Path(f"/proc/{h1.agent_pid}/stat").read_text(), h1.run("cat /proc/$(cat /run/openvswitch/ovs-vswitchd.pid)/stat")
        agent, vswitchd = (sum(map(int, text.rpartition(")")[2].split()[11:13])) / TICKS for text in stat)
        return agent, vswitchd

    def measured(reason: Reason, frame: bytes) -> Cost:
        before, began = busy(), time.monotonic()
        counted = drops(h1, flooder.ofport).get(reason, 0)
        flooder.guest.repeat(*[frame] * BATCH, period=PERIOD)
        text = a.workload.run(f"ping -i 0.05 -w {FLOOD:.0f} {b.ip} || true")
        flooder.guest.repeat()
        took = time.monotonic() - began
        agent, vswitchd = ((now - former) / took for now, former in zip(busy(), before, strict=True))
        lost = re.search(r"([\d.]+)% packet loss", text)
        assert lost, text
        return Cost(agent, vswitchd, (drops(h1, flooder.ofport).get(reason, 0) - counted) / took, float(lost[1]))

    # The same flood where nothing is told of the drops: a guest without IPv6 that sends it.
    silent = measured(Reason.IPV6, frames6.echo(flooder.mac, b.mac, "fe80::66", "fe80::67", b"flood"))
    told = measured(Reason.SPOOFED_IP, frames.echo(flooder.mac, b.mac, "10.0.0.66", b.ip, b"flood"))
    print(f"flood of drops, nothing told: {silent}\nflood of drops, told as the meter lets: {told}")
    assert told.rate > 1_000 * SAMPLES_A_SECOND, "it is no flood"
    assert told.lost <= silent.lost + 5, "per cent; machines lose a few by themselves"
    assert told.agent <= silent.agent + MOST_OF_A_CPU
    assert told.switch <= silent.switch * 1.5 + 0.1
    # What another port loses meanwhile is told, and of the flood what the meter lets through.
    flooder.guest.repeat(*[frames.echo(flooder.mac, b.mac, "10.0.0.66", b.ip, b"flood")] * BATCH, period=PERIOD)
    a.guest.send(frames.echo(a.mac, b.mac, "10.0.0.77", b.ip, b"forged"))
    assert comes(scene.cloud.admin, a, Reason.SPOOFED_IP).packet.ip_src == "10.0.0.77"
    flooder.guest.repeat()
    kept = recent(scene.cloud.admin, flooder)
    assert len(kept) == KEPT
    assert kept[0].time.seconds - kept[-1].time.seconds >= KEPT / SAMPLES_A_SECOND / 4
