"""What flows and groups would do with a packet: a small switch over values, for what is desired and not (yet) installed.

A packet is a mapping of fields (agent/model/flow.py) to numbers; a field that it lacks is 0, as in the switch, where a match
that names a field names what the field needs as well. tests/component/test_trace.py holds it against the real switch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableMapping

from agent.model import text
from agent.model.flow import (
    FIELD_BITS,
    Action,
    Flow,
    Group,
    InPort,
    Match,
    Move,
    Output,
    PopVlan,
    PushVlan,
    Resubmit,
    SetField,
    ToGroup,
)
from agent.model.item import Item
from agent.model.journey import NO_FLOW, End, Fate, Journey, Step

MOST = 4096  # look-ups of one packet; Open vSwitch gives up at as many
DEEPEST = 64
TAGGED = 0x1000

Packet = Mapping[str, int]


class TooLong(Exception):
    """A packet that goes round in circles."""


class Tables:
    """Flows by table, the first that matches first; and groups."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._flows: dict[int, list[Flow]] = defaultdict(list)
        self._groups: dict[int, Group] = {}
        for item in items:
            if isinstance(item, Flow):
                self._flows[item.table].append(item)
            elif isinstance(item, Group):
                self._groups[item.group_id] = item
        self._sorted: set[int] = set()

    def find(self, table: int, packet: Packet) -> Flow | None:
        """The flow that takes a packet in a table."""
        flows = self._flows.get(table, [])
        if table not in self._sorted:
            flows.sort(key=lambda flow: -flow.priority)
            self._sorted.add(table)
        return next((flow for flow in flows if matches(flow.match, packet)), None)

    def group(self, group_id: int) -> Group | None:
        return self._groups.get(group_id)


def evaluate(tables: Tables, packet: Packet, table: int = 0) -> Journey:
    """The packet's way from a table on. Raises TooLong."""
    walk = _Walk(tables, dict(packet))
    walk.look_up(table, 0)
    walk.journey.close()
    return walk.journey


def matches(match: Match, packet: Packet) -> bool:
    """Whether a packet has what a match asks for."""
    return all(get(packet, name) & (mask if mask is not None else -1) == value for name, value, mask in match)


def get(packet: Packet, name: str) -> int:
    """A field; xxregN is four registers."""
    if not name.startswith("xxreg"):
        return packet.get(name, 0)
    first, value = 4 * int(name.removeprefix("xxreg")), 0
    for register in range(first, first + 4):
        value = value << 32 | packet.get(f"reg{register}", 0)
    return value


def put(packet: MutableMapping[str, int], name: str, value: int, mask: int) -> None:
    """Write the bits of a mask."""
    value = get(packet, name) & ~mask | value & mask
    if not name.startswith("xxreg"):
        packet[name] = value
        return
    last = 4 * int(name.removeprefix("xxreg")) + 3
    for offset in range(4):
        packet[f"reg{last - offset}"] = value >> 32 * offset & 0xFFFF_FFFF


class _Walk:
    """One packet on its way."""

    def __init__(self, tables: Tables, packet: dict[str, int]) -> None:
        self.journey = Journey()
        self._tables = tables
        self._packet = packet

    def look_up(self, table: int, depth: int) -> None:
        if len(self.journey.steps) >= MOST or depth > DEEPEST:
            raise TooLong(f"more than {MOST} look-ups, or {DEEPEST} one in another")
        flow = self._tables.find(table, self._packet)
        if flow is None:
            self.journey.steps.append(Step(table, NO_FLOW, 0, depth=depth))
            return
        match, actions = text.match_of(flow), text.actions_of(flow)
        self.journey.steps.append(Step(table, flow.priority, flow.cookie, match, actions, depth=depth))
        if not flow.actions:
            self._end(Fate.DROPPED)
        self._do(flow.actions, depth)

    def _do(self, actions: Iterable[Action], depth: int) -> None:
        packet = self._packet
        for action in actions:
            match action:
                case Output(port):
                    if port != packet["in_port"]:  # never back by itself
                        self._end(Fate.OUTPUT, port)
                case InPort():
                    self._end(Fate.ANSWERED)
                case SetField(name, value, mask):
                    put(packet, name, value, _all(name) if mask is None else mask)
                case Move(source, target, bits, source_offset, target_offset):
                    moved, mask = get(packet, source) >> source_offset, (1 << bits) - 1
                    put(packet, target, (moved & mask) << target_offset, mask << target_offset)
                case Resubmit(table):
                    self.look_up(table, depth + 1)
                case ToGroup(group_id):
                    self._to_group(group_id, depth)
                case PushVlan():
                    packet["vlan_vid"] = TAGGED
                case PopVlan():
                    packet["vlan_vid"] = 0

    def _to_group(self, group_id: int, depth: int) -> None:
        """Each bucket has a copy."""
        group = self._tables.group(group_id)
        for bucket in group.buckets if group else ():
            kept = self._packet
            self._packet = dict(kept)
            self._do(bucket, depth + 1)
            self._packet = kept

    def _end(self, fate: Fate, port: int = 0) -> None:
        self.journey.ends.append(End(fate, len(self.journey.steps) - 1, port, dict(self._packet)))


def _all(name: str) -> int:
    return (1 << FIELD_BITS[name]) - 1
