"""A flow made by hand beside ours, on the same hosts and the same wire: what it loses, the machine loses.

A bridge of its own on both hosts, joined by a VXLAN port on another UDP port, and a workload on each.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.lab import Background, Host, RunningPing, Workload, wait_until
from tests.system.cloud import PATIENCE, Vm

BRIDGE = "br-ctl"
STREAM = str(Path(__file__).with_name("stream.py"))
TCP_PORT = "5001"
ADDRESS = "172.31.0.{}"
INTERVAL = 0.005  # seconds between two requests
SETTLED = 40  # answers before something is done to the cloud, and after it


class ControlFlow:
    """Two workloads that need nothing of the control plane."""

    def __init__(self, first: Host, second: Host) -> None:
        self.hosts = (first, second)
        self.first = _build(first, second)
        self.second = _build(second, first)
        self.target = ADDRESS.format(second.number)
        wait_until(lambda: self.first.reaches(self.target), "the control flow works", PATIENCE)

    def remove(self) -> None:
        for host in self.hosts:
            host.run(f"ovs-vsctl --if-exists del-br {BRIDGE}\nip link delete vethctl 2>/dev/null || true")
            host.remove_workload("ctl")


def _build(host: Host, peer: Host) -> Workload:
    workload = host.add_workload("ctl")
    host.run(f"""
        ip link add vethctl type veth peer name eth0 netns ctl
        ip link set vethctl up
        ip -n ctl link set eth0 up
        ip -n ctl address add {ADDRESS.format(host.number)}/24 dev eth0
        ip netns exec ctl ethtool -K eth0 tx off >/dev/null
        ovs-vsctl -- add-br {BRIDGE} -- set bridge {BRIDGE} datapath_type={host.datapath} fail_mode=standalone \
            -- add-port {BRIDGE} vethctl -- add-port {BRIDGE} vxctl -- set interface vxctl type=vxlan options:key=7 \
               options:dst_port=4790 options:local_ip={host.underlay} options:remote_ip={peer.underlay}
    """)
    return workload


@dataclass
class Stream:
    """A running TCP stream between two workloads (stream.py)."""

    server: Background
    client: Background

    @classmethod
    def begin(cls, sender: Workload, receiver: Workload, address: str, *seconds: float) -> Stream:
        """At a steady rate until `end`; or as much as can be in so many seconds."""
        server = receiver.popen([sys.executable, "-I", "-S", STREAM, "serve", TCP_PORT])
        server.wait_for("ready")
        client = sender.popen([sys.executable, "-I", "-S", STREAM, "send", address, TCP_PORT, *map(str, seconds)])
        client.wait_for("ready")
        return cls(server, client)

    def end(self) -> dict[str, float]:
        """What came of it: bytes sent and received, segments sent again, the longest silence and the duration in seconds."""
        try:
            sent = json.loads(self.client.stop().splitlines()[-1])
            self.server.wait(PATIENCE)
        finally:
            received = self.server.stop()
        return {**json.loads(received.splitlines()[-1]), "sent": sent["bytes"], "retransmitted": sent["retransmitted"]}

    def rate(self) -> float:
        """Megabits per second of one that ends by itself."""
        self.client.wait(PATIENCE)
        result = self.end()
        return result["bytes"] * 8 / 1e6 / result["seconds"]


@dataclass(frozen=True, slots=True)
class Lost:
    """Requests without an answer between the first and the last that were answered, and the longest gap in seconds."""

    ours: int
    control: int
    sent: int
    gap: float


class Watch:
    """Pings through the cloud and through the control flow at once, each every 5 ms, for as long as it is entered.

    `lost` says what came of it. Only holes count: what is still under way when the ping ends is not lost.
    """

    def __init__(self, control: ControlFlow, sender: Vm, receiver: Vm) -> None:
        self._control = control
        self._ends = (sender, receiver)
        self.lost = Lost(0, 0, 0, 0.0)

    def __enter__(self) -> Watch:
        sender, receiver = self._ends
        self._theirs = self._control.first.start_ping(self._control.target, INTERVAL)
        self._ours = sender.workload.start_ping(receiver.ip, INTERVAL)
        self.more()
        return self

    def more(self, answers: int = SETTLED) -> None:
        """Wait until both have had so many more answers."""
        goals = [(ping, ping.received + answers) for ping in (self._ours, self._theirs)]
        wait_until(lambda: all(ping.received >= goal for ping, goal in goals), "pings are answered", PATIENCE)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self.more()
        finally:
            ours, theirs = _holes(self._ours), _holes(self._theirs)
        self.lost = Lost(ours[0], theirs[0], ours[1], ours[2])
        print(f"\nof {self.lost.sent} pings ours lost {self.lost.ours}, the control flow {self.lost.control}")


def _holes(ping: RunningPing) -> tuple[int, int, float]:
    pings = ping.result()
    answered = pings.answered
    if not answered:
        return pings.sent, pings.sent, pings.sent * INTERVAL
    pairs = itertools.pairwise(answered)
    gap = max((after - before for before, after in pairs), default=1) * INTERVAL
    return answered[-1] - len(set(answered)), answered[-1], gap
