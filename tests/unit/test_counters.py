"""What a node tells of its ports: whose it is, from the workload's point of view, and how much of it in how much time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from uuid import UUID

import pytest

from agent.drivers.openflow.codec import PortStats
from agent.facts.model import Interface
from agent.mirror.state import State
from agent.model.flow import Flow, match
from agent.model.pipeline import REASON, REASONS_OF_SENDER, SOURCE, TARGET, CookieKind, Reason, Table, cookie
from agent.reconcile import counters
from agent.reconcile.counters import counted, counted_rules
from controlplane.store import keys
from kumihimo.v1 import node_pb2, store_pb2

A, B, C = (f"00000000-0000-7000-8000-00000000000{last}" for last in "abc")


def dropped(reason: int, ofport: int | None, packets: int) -> tuple[Flow, int, int]:
    where = {REASON: reason} if ofport is None else {REASON: reason, SOURCE: ofport}
    return Flow(Table.DROP, 100, match(**where), (), 0), packets, packets * 60


def test_b_prt_05_drops_and_traffic_are_those_of_the_port() -> None:
    told = counted(
        {11: A, 12: B, 13: C},
        {11: PortStats(5, 7, 500, 700), 12: PortStats(0, 0, 0, 0), 99: PortStats(1, 1, 1, 1)},
        [
            dropped(Reason.SPOOFED_IP, 11, 3),
            dropped(Reason.VLAN_TAG, 11, 1),
            dropped(Reason.SPOOFED_IP, 13, 2),
            dropped(Reason.SPLIT_HORIZON, None, 9),
            dropped(4711, 11, 9),
            dropped(Reason.SPOOFED_MAC, 55, 9),
        ],
    )
    first, second = told.ports
    assert (str(UUID(bytes=first.port)), str(UUID(bytes=second.port))) == (A, C), "B has nothing to tell"
    assert dict(first.counters.drops) == {"SPOOFED_IP": 3, "VLAN_TAG": 1}
    assert (first.counters.rx_packets, first.counters.rx_bytes) == (7, 700), "what the switch sent, the workload received"
    assert (first.counters.tx_packets, first.counters.tx_bytes) == (5, 500)
    assert dict(second.counters.drops) == {"SPOOFED_IP": 2}


def test_what_a_port_costs_is_bounded() -> None:
    """The figure of the module's first lines, and the worst case."""
    busy = {n: PortStats(10**9, 10**9, 10**12, 10**12) for n in range(200)}
    ports = {n: f"00000000-0000-7000-8000-{n:012x}" for n in range(200)}
    assert counted(ports, busy, []).ByteSize() / 200 < 55
    worst = [dropped(reason, n, 10**9) for n in range(200) for reason in REASONS_OF_SENDER]
    assert counted(ports, busy, worst).ByteSize() / 200 < 500


def test_what_both_ends_may_suffer_counts_for_the_one_where_it_was() -> None:
    def invalid(packets: int, **where: int) -> tuple[Flow, int, int]:
        return Flow(Table.DROP, 100, match(**{REASON: Reason.CT_INVALID}, **where), (), 0), packets, packets * 60

    told = counted({11: A}, {}, [invalid(3, **{SOURCE: 11, TARGET: 0}), invalid(4, **{TARGET: 11})])
    assert dict(told.ports[0].counters.drops) == {"CT_INVALID": 7}


def test_b_sg_11_hits_are_those_of_all_flows_of_a_rule_and_have_the_time_of_the_last() -> None:
    def hit(rule: str, packets: int) -> tuple[Flow, int, int]:
        return Flow(Table.RULES, 100, (), (), cookie(CookieKind.RULE, rule)), packets, packets * 60

    shared = Flow(Table.RULES, 50, (), (), cookie(CookieKind.GROUP, A)), 9, 900
    first = counted_rules([A, B, C], [hit(A, 3), hit(A, 4), hit(B, 1), shared], store_pb2.NodeRuleCounters(), 1000.7)
    assert [(UUID(bytes=each.rule), each.counters.packets, each.counters.bytes) for each in first.rules] == [
        (UUID(A), 7, 420),
        (UUID(B), 1, 60),
    ]
    second = counted_rules([A, B, C], [hit(A, 7), hit(B, 2)], first, 2000.0)
    assert [each.counters.last_hit_time.seconds for each in second.rules] == [1000, 2000]
    assert counted_rules([A, B], [], second, 3000.0) == store_pb2.NodeRuleCounters()
    many = [f"00000000-0000-7000-8000-{n:012x}" for n in range(200)]
    busy = counted_rules(many, [hit(rule, 10**9) for rule in many], store_pb2.NodeRuleCounters(), 2e9)
    assert busy.ByteSize() / 200 < 50


class Switch:
    def __init__(self) -> None:
        self.packets = 1
        self.gone = False
        self.looks = 0

    async def flow_counters(self, table: int) -> list[tuple[Flow, int, int]]:
        return []

    async def port_counters(self) -> Mapping[int, PortStats]:
        self.looks += 1
        if self.gone:
            raise ConnectionError("no switch")
        return {11: PortStats(self.packets, 0, 60 * self.packets, 0)}


class Told:
    """In place of Status: what was set, each time that it was another."""

    def __init__(self) -> None:
        self.written: list[int | None] = []

    def get(self, key: str) -> bytes | None:
        assert key == keys.rule_counters("h1")
        return None

    def set(self, key: str, message: store_pb2.NodeCounters) -> None:
        assert key == keys.counters("h1")
        packets = message.ports[0].counters.tx_packets
        if self.written[-1:] != [packets]:
            self.written.append(packets)

    def remove(self, key: str) -> None:
        if key == keys.rule_counters("h1"):
            return
        if self.written[-1:] != [None]:
            self.written.append(None)


async def test_written_when_changed_and_within_the_share_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    now, woken = [1000.0], asyncio.Event()
    slept: list[float] = []
    steps = asyncio.Queue[None]()

    async def pass_time(seconds: float) -> None:
        if seconds:
            slept.append(seconds)
            now[0] += seconds
            woken.set()
            await steps.get()

    monkeypatch.setattr(loop, "time", lambda: now[0])
    monkeypatch.setattr(counters.asyncio, "sleep", pass_time)
    state, switch, told = State("h1"), Switch(), Told()
    state.interface_of[A] = Interface("tap1", "br-int", 11, A, "", "")
    state.located[A] = "net"
    state.nodes = {f"h{n}": node_pb2.Node(id=f"h{n}") for n in range(3)}
    task = asyncio.create_task(counters.run(state, switch, told))  # type: ignore[arg-type]

    async def step() -> None:
        woken.clear()
        steps.put_nowait(None)
        await woken.wait()

    await woken.wait()
    assert (slept, switch.looks) == ([counters.TICK], 0)
    await step()
    await step()
    assert (told.written, switch.looks) == ([1], 2), "the same is not said twice"
    switch.packets = 2
    await step()
    assert told.written == [1, 2]
    switch.gone = True
    await step()
    assert told.written == [1, 2], "a switch that is away is no port without traffic"
    switch.gone = False
    assert set(slept) == {counters.TICK}
    monkeypatch.setattr(counters, "BUDGET", 1)
    await step()
    size = counted({11: A}, {11: PortStats(2, 0, 120, 0)}, []).ByteSize()
    assert slept[-1] == pytest.approx(size * 3), "three nodes, a byte a second in all"
    state.located[A] = ""  # the port is deleted
    await step()
    assert told.written == [1, 2, None]
    assert slept[-1] == counters.TICK
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
