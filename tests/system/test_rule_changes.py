"""Rules that change without end, beside packets that are allowed and packets that are not; agents stay or are replaced."""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest

from agent.model.pipeline import Reason
from deploy.lab import Host, wait_until
from deploy.lab.service import Unit
from kumihimo.v1 import security_pb2 as pb
from tests.policymodel import Probe
from tests.seeds import FULL, seed
from tests.system import probes
from tests.system.cloud import PATIENCE, Api, Cloud, Scene
from tests.system.control import ControlFlow, Watch
from tests.system.guest import KEPT

SECONDS = 60.0 if FULL else 6.0
RATE = 100  # changes a second
WRITERS = 4
UDP, FORBIDDEN = 17, 9
CALLED = 7000
PERIOD = 0.02  # seconds between two new connections
CONNECT = str(Path(__file__).with_name("connect.py"))
SEND = {"direction": pb.DIRECTION_EGRESS, "ethertype": 4}


class Churn:
    """Makes and removes rules of a group, by several callers, at a steady rate."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._until = time.monotonic() + SECONDS
        self._writers = [threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)]
        self._counts = [0] * WRITERS
        self._errors: list[Exception] = []
        self._failed = threading.Event()

    def run(self, meanwhile: Iterable[None]) -> tuple[int, int]:
        """To its end; how many changes it made, and how many steps of `meanwhile` were taken beside them."""
        steps = 0
        for writer in self._writers:
            writer.start()
        for _ in meanwhile:
            if not any(writer.is_alive() for writer in self._writers):
                break
            steps += 1
        for writer in self._writers:
            writer.join()
        assert not self._errors, self._errors
        return sum(self._counts), steps

    def _write(self, number: int) -> None:
        api, chance = Api("admin"), random.Random(f"{seed()}/{number}")
        there: list[Any] = []
        next_at = time.monotonic()
        try:
            # Each change has its time; when one writer fails, all end.
            while next_at < self._until and not self._failed.wait(max(0.0, next_at - time.monotonic())):
                next_at += WRITERS / RATE
                if there and (len(there) > 20 or chance.random() < 0.5):
                    api.delete(there.pop(chance.randrange(len(there))))
                else:
                    there.append(api.create(self._rule(number, chance)))
                self._counts[number] += 1
        except Exception as error:
            self._errors.append(error)
            self._failed.set()
        finally:
            api.client.__exit__()

    def _rule(self, number: int, chance: random.Random) -> pb.SecurityGroupRule:
        """One that says what no other does, and nothing of what is forbidden."""
        low = 10_000 + number * 10_000 + chance.randrange(9_000)
        rule = pb.SecurityGroupRule(
            security_group_id=self._group.id, direction=pb.DIRECTION_INGRESS, ethertype=4, protocol="udp"
        )
        rule.port_range_min, rule.port_range_max = low, low + chance.randrange(900)
        rule.remote_ip_prefix = f"10.{chance.randrange(256)}.{chance.randrange(256)}.0/24"
        return rule


def agents_replaced(cloud: Cloud, hosts: Sequence[Host], programs: Path) -> Iterator[None]:
    """In turn the agent of each host is killed and started again, then another release takes its place, and back."""
    ours, next_ = Unit.read("kumihimo-agent"), Unit.read("kumihimo-agent", programs)
    for before, after, number in itertools.cycle(((ours, ours, SIGKILL), (ours, next_, SIGTERM), (next_, ours, SIGTERM))):
        for host in hosts:
            assert host.agent.unit == before
            host.agent.replace(after, number)
            cloud.wait_alive(host)
            yield


@pytest.mark.parametrize("agents", ["stay", "are replaced"])
def test_a_hundred_changes_a_second_lose_nothing_that_is_allowed_and_let_nothing_else_through(
    scene: Scene, cloud: Cloud, control: ControlFlow, h1: Host, h2: Host, agents: str, programs: Path, restored: None
) -> None:
    network = scene.network()
    ping = {"direction": pb.DIRECTION_INGRESS, "ethertype": 4, "protocol": "icmp"}
    call = {**ping, "protocol": "tcp", "port_range_min": CALLED, "port_range_max": CALLED}
    lasting, changing = scene.group(SEND, ping, call), scene.group()
    sender = scene.vm(network, h1)
    # Of two ports with the same rules one gets what is allowed, the other what is not: its helper keeps so many frames.
    receiver, closed = (scene.vm(network, h2, security_group_ids=[lasting.id, changing.id]) for _ in range(2))
    mark = os.urandom(12)
    forbidden = Probe(sender.ip, closed.ip, UDP, (40_000, FORBIDDEN))
    assert not closed.guest.has(mark)
    sender.guest.repeat(probes.frame(sender.mac, closed.mac, forbidden, mark), period=0.004)
    with receiver.workload.popen([sys.executable, "-I", "-S", CONNECT, "serve", str(CALLED)]) as server:
        server.wait_for("ready")
        calls = [sys.executable, "-I", "-S", CONNECT, "call", receiver.ip, str(CALLED), str(SECONDS), str(PERIOD)]
        with Watch(control, sender, receiver) as watch, sender.workload.popen(calls) as caller:
            replacing = agents == "are replaced"
            changes, replaced = Churn(changing).run(agents_replaced(cloud, (h2, h1), programs) if replacing else ())
            caller.wait(SECONDS + 30)
            made = float(caller.stop())
    print(f"\n{changes} changes in {SECONDS:.0f} s, {replaced} agents replaced, {made:.0f} new connections a second")
    cloud.admin.wait(0, lasting.id, changing.id)
    sender.guest.repeat()
    assert changes > RATE * SECONDS / 2
    assert not replacing or replaced >= 2
    assert watch.lost.ours <= watch.lost.control, watch.lost
    assert made > 0.5 / PERIOD, "a lost packet of a new connection takes a second"
    assert not closed.guest.has(mark)
    assert len(closed.guest.seen()) < KEPT
    wait_until(lambda: closed.drops(Reason.SG_INGRESS) > 0.5 * SECONDS / 0.004, "they have come as far as the filter", PATIENCE)
