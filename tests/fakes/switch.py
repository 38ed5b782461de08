"""A switch that walks packets through compiled flows, with connection tracking: what the flows say, without Open vSwitch.

Of OpenFlow as much as our flows use. A packet is its fields by their names in agent/model/flow.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.model.flow import (
    CT_ESTABLISHED,
    CT_INVALID,
    CT_NEW,
    CT_REPLY,
    CT_TRACKED,
    FIELD_BITS,
    Action,
    Flow,
    Group,
    InPort,
    Move,
    Output,
    Resubmit,
    SetField,
    ToController,
    ToGroup,
    Track,
)
from agent.model.item import Item
from agent.model.pipeline import REASON, Reason, Table
from tests.policymodel import ANSWERS

Packet = dict[str, int]
# Where a connection's ends stand in a packet. SCTP is tracked without them, as by Open vSwitch in user space.
PORTS = {6: "tcp", 17: "udp"}


@dataclass
class Connection:
    """One direction of it as it began; `answered` once something has come back."""

    source: int
    target: int
    protocol: int
    ports: tuple[int, int]
    mark: int = 0
    answered: bool = False


@dataclass
class Fate:
    """What became of a packet: the ports it left by, and why copies of it were dropped."""

    out: list[int] = field(default_factory=list)
    drops: list[Reason] = field(default_factory=list)
    hits: list[Flow] = field(default_factory=list)


class Switch:
    """See the module. zones: what is tracked, by zone."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.zones: dict[int, list[Connection]] = defaultdict(list)
        self.use(items)

    def use(self, items: Iterable[Item]) -> None:
        """Other flows; connections stay."""
        self._tables: dict[int, list[Flow]] = defaultdict(list)
        self._groups: dict[int, Group] = {}
        for item in items:
            if isinstance(item, Flow):
                self._tables[item.table].append(item)
            elif isinstance(item, Group):
                self._groups[item.group_id] = item
        for flows in self._tables.values():
            flows.sort(key=lambda flow: -flow.priority)

    def send(self, in_port: int, packet: Packet) -> Fate:
        """A packet comes in."""
        fate = Fate()
        self._look_up(Table.CLASSIFY, {"in_port": in_port, **packet}, fate)
        return fate

    def _look_up(self, table: int, packet: Packet, fate: Fate) -> None:
        for flow in self._tables[table]:
            if all(_value(packet, name) & _full(name, mask) == value for name, value, mask in flow.match):
                if table == Table.DROP:
                    fate.drops.append(Reason(packet[REASON]))
                fate.hits.append(flow)
                self._act(flow.actions, packet, fate)
                return

    def _act(self, actions: Iterable[Action], packet: Packet, fate: Fate) -> None:
        for action in actions:
            match action:
                case Output(port):
                    fate.out.append(port)
                case InPort():
                    fate.out.append(packet["in_port"])
                case SetField(name, value, mask):
                    _write(packet, name, _value(packet, name) & ~_full(name, mask) | value)
                case Move(source, target, bits, source_offset, target_offset):
                    mask = (1 << bits) - 1
                    moved = _value(packet, source) >> source_offset & mask
                    _write(packet, target, _value(packet, target) & ~(mask << target_offset) | moved << target_offset)
                case Resubmit(table):
                    self._look_up(table, packet, fate)
                case ToGroup(group):
                    for bucket in self._groups[group].buckets:
                        self._act(bucket, dict(packet), fate)
                case Track():
                    self._track(action, packet, fate)
                case ToController():
                    pass
                case _:
                    raise NotImplementedError(action)

    def _track(self, action: Track, packet: Packet, fate: Fate) -> None:
        number = action.zone if isinstance(action.zone, int) else packet[action.zone] & 0xFFFF
        zone = self.zones[number]
        ends = _ends(packet)
        found = next((known for known in zone if (known.source, known.target, known.protocol, known.ports) == ends), None)
        back = _back(*ends)
        answered = next((known for known in zone if (known.source, known.target, known.protocol, known.ports) == back), None)
        if action.commit and not found and not answered:
            found = Connection(*ends)
            zone.append(found)
        known = found or answered
        if action.commit and known:
            for each in action.actions:
                known.mark = each.value if isinstance(each, SetField) else _value(packet, each.source)
        if action.table is None:
            return
        protocol, (kind, code) = ends[2:]
        if known is None and protocol in (1, 58) and ((protocol, kind) not in ANSWERS or code):
            self._look_up(action.table, packet | {"ct_zone": number, "ct_state": CT_TRACKED | CT_INVALID}, fate)
            return
        state = CT_TRACKED
        if found and not found.answered:
            state |= CT_NEW
        elif known:
            state |= CT_ESTABLISHED
        else:
            state |= CT_NEW
        if answered and not found:
            state |= CT_REPLY
            answered.answered = True
        source, target, protocol, ports = (known.source, known.target, known.protocol, known.ports) if known else ends
        names = ("ct_nw_src", "ct_nw_dst") if packet["eth_type"] == 0x0800 else ("ct_ipv6_src", "ct_ipv6_dst")
        tracked = packet | dict(zip(names, (source, target), strict=True))
        tracked |= {"ct_zone": number, "ct_state": state, "ct_mark": known.mark if known else 0, "ct_nw_proto": protocol}
        tracked |= {"ct_tp_src": ports[0], "ct_tp_dst": ports[1]}
        self._look_up(action.table, tracked, fate)


def _value(packet: Packet, name: str) -> int:
    if not name.startswith("xxreg"):
        return packet.get(name, 0)
    first = 4 * int(name[5:])
    return sum(packet.get(f"reg{first + index}", 0) << 96 - 32 * index for index in range(4))


def _write(packet: Packet, name: str, value: int) -> None:
    if not name.startswith("xxreg"):
        packet[name] = value
        return
    first = 4 * int(name[5:])
    for index in range(4):
        packet[f"reg{first + index}"] = value >> 96 - 32 * index & 0xFFFFFFFF


def _full(name: str, mask: int | None) -> int:
    return (1 << FIELD_BITS[name]) - 1 if mask is None else mask


def _ends(packet: Packet) -> tuple[int, int, int, tuple[int, int]]:
    family = "ip" if packet["eth_type"] == 0x0800 else "ipv6"
    protocol = packet["ip_proto"]
    if protocol in (1, 58):
        name = "icmp" if protocol == 1 else "icmpv6"
        ports = packet[f"{name}_type"], packet.get(f"{name}_code", 0)
    else:
        name = PORTS.get(protocol, "")
        ports = packet.get(f"{name}_src", 0), packet.get(f"{name}_dst", 0)
    return packet[f"{family}_src"], packet[f"{family}_dst"], protocol, ports


def _back(source: int, target: int, protocol: int, ports: tuple[int, int]) -> tuple[int, int, int, tuple[int, int]]:
    """What such a packet would answer."""
    if protocol in (1, 58):
        asked = next((question for (of, question), answer in ANSWERS.items() if (of, answer) == (protocol, ports[0])), -1)
        return target, source, protocol, (asked, ports[1])
    return target, source, protocol, ports[::-1]
