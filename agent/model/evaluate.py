"""What flows and groups would do with a packet: a small switch over values, for what is desired and not (yet) installed.

A packet is a mapping of fields (agent/model/flow.py) to numbers; a field that it lacks is 0, as in the switch, where a match
that names a field names what the field needs as well. tests/component/test_trace.py holds it against the real switch.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from agent.model import text
from agent.model.flow import (
    CT_INVALID,
    CT_NEW,
    CT_TRACKED,
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
    ToController,
    ToGroup,
    Track,
)
from agent.model.item import Item
from agent.model.journey import NO_FLOW, End, Fate, Journey, Step
from agent.model.wire import TAGGED, WITH_PORTS

CT_STATE, CT_MARK, CT_ZONE = "ct_state", "ct_mark", "ct_zone"
MOST = 4096  # look-ups of one packet; Open vSwitch gives up at as many
DEEPEST = 64
# Where connection tracking puts the fields of a connection's first packet (ovs-fields(7)).
ORIGINAL = {
    "ct_nw_src": "ip_src",
    "ct_nw_dst": "ip_dst",
    "ct_ipv6_src": "ipv6_src",
    "ct_ipv6_dst": "ipv6_dst",
    "ct_nw_proto": "ip_proto",
}
ICMP_FIELDS = (("icmp_type", "icmp_code"), ("icmpv6_type", "icmpv6_code"))

Packet = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Connection:
    """What connection tracking says of a packet in a zone. original: the first packet of the connection, by its fields."""

    state: int
    mark: int = 0
    original: Packet = field(default_factory=dict)


Tracker = Callable[[int], Connection | None]
NEW = CT_TRACKED | CT_NEW


def untracked(_: int) -> None:
    """Every packet begins a connection."""


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

    def find(self, table: int, packet: Packet) -> list[Flow]:
        """The flow that takes a packet in a table, and behind it those that would do as well, as rules that overlap."""
        flows = self._flows.get(table, [])
        if table not in self._sorted:
            flows.sort(key=attrgetter("priority"), reverse=True)
            self._sorted.add(table)
        found: list[Flow] = []
        for flow in flows:
            if found and flow.priority != found[0].priority:
                break
            if matches(flow.match, packet) and (not found or flow.actions == found[0].actions):
                found.append(flow)
        return found

    def group(self, group_id: int) -> Group | None:
        return self._groups.get(group_id)


def evaluate(tables: Tables, packet: Packet, tracker: Tracker = untracked) -> Journey:
    """The packet's way. tracker: the connection that it belongs to in a zone. Raises TooLong."""
    walk = _Walk(tables, dict(packet), tracker)
    walk.look_up(0, 0)
    walk.go_on()
    walk.journey.close()
    return walk.journey


def matches(match: Match, packet: Packet) -> bool:
    """Whether a packet has what a match asks for. Of tens of thousands of flows few have more than one field right."""
    for name, value, mask in match:
        found = packet.get(name, 0)  # a match has no xxregN
        if (found if mask is None else found & mask) != value:
            return False
    return True


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


def apply(packet: MutableMapping[str, int], action: SetField | Move) -> None:
    """Write into a packet."""
    match action:
        case SetField(name, value, mask):
            put(packet, name, value, (1 << FIELD_BITS[name]) - 1 if mask is None else mask)
        case Move(source, target, bits, source_offset, target_offset):
            moved, low = get(packet, source) >> source_offset, (1 << bits) - 1
            put(packet, target, (moved & low) << target_offset, low << target_offset)


def of_connection(packet: Packet, known: Connection | None) -> dict[str, int]:
    """The fields of a packet that has been through connection tracking; not known: it begins a connection."""
    if known is None:
        known = Connection(NEW)
    if known.state & CT_INVALID:
        return {CT_STATE: known.state}
    first = known.original or packet
    fields = {name: first[source] for name, source in ORIGINAL.items() if source in first}
    ports = [number for number in WITH_PORTS.values() if f"{number}_src" in first]
    for end in ("src", "dst"):
        fields |= {f"ct_tp_{end}": first[f"{number}_{end}"] for number in ports}
    for kind, code in ICMP_FIELDS:
        if kind in first:
            fields |= {"ct_tp_src": first[kind], "ct_tp_dst": first.get(code, 0)}
    return {CT_STATE: known.state, CT_MARK: known.mark} | fields


class _Walk:
    """One packet on its way."""

    def __init__(self, tables: Tables, packet: dict[str, int], tracker: Tracker) -> None:
        self.journey = Journey()
        self._tables = tables
        self._packet = packet
        self._tracker = tracker
        self._tracked: deque[tuple[int, dict[str, int]]] = deque()  # table and packet of what is yet to go on
        self._run = 0

    def go_on(self) -> None:
        """What connection tracking has sent on, one after the other."""
        while self._tracked:
            self._run += 1
            table, self._packet = self._tracked.popleft()
            self.look_up(table, 0)

    def look_up(self, table: int, depth: int) -> None:
        if len(self.journey.steps) >= MOST or depth > DEEPEST:
            raise TooLong(f"more than {MOST} look-ups, or {DEEPEST} one in another")
        found = self._tables.find(table, self._packet)
        if not found:
            self.journey.steps.append(Step(table, NO_FLOW, 0, depth=depth, run=self._run))
            return
        flow, *others = found
        step = Step(table, flow.priority, flow.cookie, text.match_of(flow), text.actions_of(flow), depth=depth, run=self._run)
        self.journey.steps.append(replace(step, alike=tuple(other.cookie for other in others)))
        if not flow.actions:
            self._end(Fate.DROPPED)
        self._do(flow.actions, depth)

    def _do(self, actions: Sequence[Action], depth: int) -> None:
        packet = self._packet
        for number, action in enumerate(actions, 1):
            match action:
                case Output(port):
                    if port != packet["in_port"]:  # never back by itself
                        self._end(Fate.OUTPUT, port)
                case InPort():
                    self._end(Fate.ANSWERED)
                case SetField() | Move():
                    apply(packet, action)
                case Resubmit(table):
                    self.look_up(table, depth + (number < len(actions)))  # it returns to what is still to be done
                case ToController():
                    self._end(Fate.DROPPED)
                case ToGroup(group_id):
                    self._to_group(group_id, depth)
                case PushVlan():
                    packet["vlan_vid"] = TAGGED
                case PopVlan():
                    packet["vlan_vid"] = 0
                case Track(zone, table, commit, written):
                    self._track(zone, table, commit, written)

    def _track(self, zone: int | str, table: int | None, commit: bool, written: Iterable[SetField | Move]) -> None:
        """A copy goes on with what is known of its connection; what is at hand is of none from here on."""
        packet = self._packet
        number = zone if isinstance(zone, int) else packet.get(zone, 0) & 0xFFFF
        if commit:
            told = dict(packet)
            for action in written:
                apply(told, action)
            self.journey.commits[number] = told.get(CT_MARK, 0)
        if table is not None:
            self._tracked.append((table, packet | of_connection(packet, self._tracker(number)) | {CT_ZONE: number}))
        for name in [name for name in packet if name.startswith("ct_")]:
            del packet[name]

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
