"""A flow made by hand beside ours, on the same hosts and the same wire: what it loses, the machine loses.

So it does with what is lost while it leaves its programs waiting: whenever a port comes or goes the userspace datapath pauses,
and on a machine that has much else to do the pause is longer than the time between two packets.

A bridge of its own on both hosts, joined by a VXLAN port on another UDP port, and a workload on each.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.lab import Background, Host, Workload, wait_until
from deploy.lab.place import Pings
from tests.system.cloud import PATIENCE, Vm

BRIDGE = "br-ctl"
STREAM = str(Path(__file__).with_name("stream.py"))
STALL = str(Path(__file__).with_name("stall.py"))
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
    """Requests without an answer between the first and the last that were answered, and the longest gap in seconds.

    ours, control: without the gaps for which the machine was too busy.
    """

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
        with contextlib.ExitStack() as stack:
            self._stall = stack.enter_context(Background([sys.executable, "-I", "-S", STALL]))
            self._theirs = stack.enter_context(self._control.first.start_ping(self._control.target, INTERVAL))
            self._ours = stack.enter_context(sender.workload.start_ping(receiver.ip, INTERVAL))
            self.more()
            stack.pop_all()
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
            ours, theirs = self._ours.result(), self._theirs.result()
            stall = float(self._stall.stop().splitlines()[-1])
        self.lost = Lost(_lost(ours, stall), _lost(theirs, stall), ours.sent, _longest(ours))
        print(
            f"\nof {ours.sent} pings ours lost {_lost(ours)}, the control flow {_lost(theirs)}; "
            f"longest gap {self.lost.gap * 1e3:.0f} ms, longest wait of a program {stall * 1e3:.0f} ms"
        )


def _holes(pings: Pings) -> list[int]:
    """Requests in a row without an answer, each time before one that was answered; all, when none was."""
    if not pings.answered:
        return [pings.sent]
    return [after - before - 1 for before, after in itertools.pairwise((0, *sorted(set(pings.answered))))]


def _lost(pings: Pings, stall: float = 0.0) -> int:
    """How many, but for gaps that are no longer than the machine left a program waiting."""
    return sum(hole for hole in _holes(pings) if hole * INTERVAL > stall)


def _longest(pings: Pings) -> float:
    return (max(_holes(pings), default=0) + 1) * INTERVAL
