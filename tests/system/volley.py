"""Many hand-made packets at once between workloads whose kernels are silent, and which of them arrive.

Behind those of each pair goes a frame that is always let through: what has not come when that has come does not come.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

from deploy.lab import wait_until
from tests.policymodel import Policies, Probe
from tests.system import frames, probes
from tests.system.cloud import PATIENCE, Vm

BURST = 25  # frames that the switch is given at once
ATTEMPTS = 3
Shot = tuple[Vm, Vm, Probe]  # sender, receiver, what is sent


def ip(vm: Vm, family: int) -> str:
    """The address of a family that a workload has."""
    return next(str(fixed.ip_address) for fixed in vm.port.fixed_ips if (":" in fixed.ip_address) == (family == 6))


def passes_back(policies: Policies, sender: Vm, receiver: Vm, probe: Probe) -> bool:
    """Whether an answer passes: at an end whose groups are stateful because of what it answers, else by its own rules."""
    by_rule = {sender: policies.may_send(sender.id, probe), receiver: policies.may_receive(receiver.id, probe)}
    return all(
        by_rule[vm] or all(policies.groups[group].stateful for group in policies.ports[vm.id].security_group_ids)
        for vm in (sender, receiver)
    )


def exchange(shots: Sequence[Shot], expected: Sequence[bool], flags: int) -> list[bool]:
    """Send all of it; what has arrived. What was expected and has not is sent again: a busy machine loses some."""
    markers = [os.urandom(12) for _ in shots]
    made = [
        probes.frame(sender.mac, receiver.mac, probe, marker, flags)
        for (sender, receiver, probe), marker in zip(shots, markers, strict=True)
    ]
    for vm in {receiver for _, receiver, _ in shots}:
        vm.guest.clear()
    arrived = [False] * len(shots)
    for attempt in range(ATTEMPTS):
        again = [number for number, found in enumerate(arrived) if not attempt or (expected[number] and not found)]
        by_sender: dict[Vm, list[int]] = defaultdict(list)
        for number in again:
            by_sender[shots[number][0]].append(number)
        for sender, mine in by_sender.items():
            send(sender, shots[mine[0]][1], [made[number] for number in mine])
        seen = settle({shots[number][:2] for number in again})
        for number in again:
            arrived[number] |= markers[number] in seen[shots[number][1]]
    return arrived


def send(sender: Vm, other: Vm, made: Sequence[bytes]) -> None:
    """Send frames, no more at once than the switch takes. other: of the same network."""
    for begin in range(0, len(made), BURST):
        # The switch answers the question behind them when it has taken them all.
        asked = frames.arp(sender.mac, sender.ip, other.ip)
        answered = sender.guest.probe([*made[begin : begin + BURST], asked], {"taken": [(12, "0806"), (20, "0002")]})
        assert answered["taken"]


def settle(pairs: set[tuple[Vm, Vm]]) -> dict[Vm, bytes]:
    """All that each receiver has seen once a last frame of each sender has come to it."""
    # An answer to a question of ARP: nothing but the guards of ARP looks at it.
    last = {pair: os.urandom(12) for pair in pairs}
    seen: dict[Vm, bytes] = {}

    def ended() -> bool:
        missing = [pair for pair in pairs if last[pair] not in seen.get(pair[1], b"")]
        for sender, receiver in missing:
            said = {"op": frames.ARP_REPLY, "target": receiver.mac, "target_mac": receiver.mac}
            sender.guest.send(frames.arp(sender.mac, sender.ip, receiver.ip, **said) + last[sender, receiver])
        seen.update((vm, b"".join(vm.guest.seen())) for vm in {receiver for _, receiver in missing})
        return not missing

    wait_until(ended, "the last frames arrive", PATIENCE)
    return seen
