"""Tells what the ports of this node send, receive and lose, in one key: `status/{node}/counters`; and in another,
`status/{node}/rules`, what security group rules have let through.

The switch is looked at every `TICK` seconds, and a key is written only when something has changed. However many nodes
there are, all of them together write at most `BUDGET` bytes a second: a node whose share would be exceeded waits longer. A
port takes some 50 bytes, so up to about 13,000 ports in the installation are told every ten seconds, 40,000 every thirty.
A rule takes 40.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol
from uuid import UUID

from google.protobuf.message import Message

from agent.drivers.openflow.codec import PortStats
from agent.mirror.state import State
from agent.model.flow import Flow
from agent.model.pipeline import REASON, SOURCE, TARGET, CookieKind, Reason, Table, cookie
from agent.reconcile.status import Status
from controlplane.store import keys
from kumihimo.v1 import store_pb2

TICK = 10.0  # seconds
BUDGET = 64 * 1024  # bytes a second, of all nodes: what etcd keeps of it in an hour of history is 236 MB


class Switch(Protocol):
    """What counts."""

    async def flow_counters(self, table: int) -> list[tuple[Flow, int, int]]: ...

    async def port_counters(self) -> Mapping[int, PortStats]: ...


async def run(state: State, switch: Switch, status: Status) -> None:
    """Look and tell until cancelled."""
    loop = asyncio.get_running_loop()
    due = 0.0
    while True:
        await asyncio.sleep(max(TICK, due - loop.time()))
        # A switch that does not answer has been told of by whoever has more to do with it; what was counted stays.
        with contextlib.suppress(OSError):
            traffic, drops = await switch.port_counters(), await switch.flow_counters(Table.DROP)
            told = counted(state.ports_by_number(), traffic, drops)
            _tell(status, keys.counters(state.node_id), told, bool(told.ports))
            key = keys.rule_counters(state.node_id)
            former = store_pb2.NodeRuleCounters.FromString(status.get(key) or b"")
            hits = counted_rules(state.groups.rules(), await switch.flow_counters(Table.RULES), former, time.time())
            _tell(status, key, hits, bool(hits.rules))
            due = loop.time() + (told.ByteSize() + hits.ByteSize()) * len(state.nodes) / BUDGET


def _tell(status: Status, key: str, told: Message, anything: bool) -> None:
    if anything:
        status.set(key, told)
    else:
        status.remove(key)


def counted(
    ports: Mapping[int, str], traffic: Mapping[int, PortStats], drops: Iterable[tuple[Flow, int, int]]
) -> store_pb2.NodeCounters:
    """The message. ports: ofport → port id; drops: flows of table DROP with packets and bytes."""
    lost: dict[int, dict[str, int]] = defaultdict(dict)
    for flow, packets, _ in drops:
        fields = {name: value for name, value, _ in flow.match}
        number = fields.get(TARGET) or fields.get(SOURCE)
        if number is not None and fields.get(REASON) in set(Reason):
            counts, name = lost[number], Reason(fields[REASON]).name
            counts[name] = counts.get(name, 0) + packets
    told = store_pb2.NodeCounters()
    for number, port in sorted(ports.items(), key=lambda item: item[1]):
        stats = traffic.get(number)
        if not lost.get(number) and (stats is None or not (stats.rx_packets or stats.tx_packets)):
            continue
        entry = told.ports.add(port=UUID(port).bytes)
        entry.counters.drops.update(lost.get(number, {}))
        if stats is not None:
            # What the switch receives the workload has sent.
            entry.counters.tx_packets, entry.counters.tx_bytes = stats.rx_packets, stats.rx_bytes
            entry.counters.rx_packets, entry.counters.rx_bytes = stats.tx_packets, stats.tx_bytes
    return told


def counted_rules(
    rules: Iterable[str], flows: Iterable[tuple[Flow, int, int]], former: store_pb2.NodeRuleCounters, now: float
) -> store_pb2.NodeRuleCounters:
    """The message. rules: their ids; flows: of table RULES, with packets and bytes; former: what was told last, of which the
    times are kept where nothing has come since; now: seconds since the epoch."""
    totals: dict[int, tuple[int, int]] = {}
    for flow, packets, octets in flows:
        before = totals.get(flow.cookie, (0, 0))
        totals[flow.cookie] = before[0] + packets, before[1] + octets
    told = store_pb2.NodeRuleCounters()
    times = {entry.rule: entry.counters for entry in former.rules}
    for rule in sorted(rules) if totals else ():
        packets, octets = totals.get(cookie(CookieKind.RULE, rule), (0, 0))
        if not packets:
            continue
        entry = told.rules.add(rule=UUID(rule).bytes)
        entry.counters.packets, entry.counters.bytes = packets, octets
        known = times.get(entry.rule)
        if known is not None and known.packets == packets:
            entry.counters.last_hit_time.CopyFrom(known.last_hit_time)
        else:
            entry.counters.last_hit_time.FromNanoseconds(int(now) * 10**9)
    return told
