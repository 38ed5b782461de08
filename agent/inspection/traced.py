"""What `ofproto/trace` of Open vSwitch says, as a journey. Pure.

The text has a line for each look-up, `TABLE. MATCH, priority N, cookie 0xN`, the actions of its flow further in, and what
came of each behind `->`, or `>>` where something is wrong (ofproto/ofproto-dpif-trace.c). A line belongs to the last look-up
that stands less far in. Buckets of a group begin anew with what was set before the group; so does every run after `recirc(`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import MappingProxyType

from agent.model.journey import NO_FLOW, End, Fate, Journey, Step

MOST = 4096  # look-ups that are taken in

_STEP = re.compile(r"^( *)(\d+)\. (.*)$")
_FLOW = re.compile(r"^(?:(?P<match>.*), )?priority (?P<priority>\d+)(?:, cookie (?P<cookie>0x[0-9a-f]+))?$")
_BRIDGE = re.compile(r'^ *bridge\("(.*)"\)$')
_SET = re.compile(r"^(?:set_field|load):([^/]+?)(?:/(0x[0-9a-f]+|[0-9a-f:.]+))?->(\w+)(?:\[\])?$")
_NOW = re.compile(r"^(\w+)\[\] is now (\S+)$")
_OUTPUT = re.compile(r"^output:(\d+)$")
_TOLD = "controller("  # all that becomes of some of what is dropped
_FIELD = re.compile(r"\b(reg\d+|metadata|tun_id|tun_dst|tun_ipv6_dst)=([^,]+)")
# Not of any look-up.
_ASIDE = ("Flow:", "Final flow:", "Megaflow:", "Datapath actions:", "This flow is handled", "recirc(", "====")
# Of what is copied from field to field this alone is asked for later.
_MOVED = {"NXM_OF_ETH_SRC": "eth_src", "NXM_OF_ETH_DST": "eth_dst"}
_NOTHING_LEAVES = ("Nonexistent output port", "native tunnel routing failed", "neighbor cache miss", "not in forwarding state")


@dataclass(slots=True)
class _Open:
    """A look-up whose lines are still coming."""

    number: int
    indent: int
    table: int
    priority: int
    cookie: int
    match: str
    bridge: str
    run: int
    depth: int
    actions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def parse(text: str, packet: Mapping[str, int] = MappingProxyType({})) -> Journey:
    """The journey; packet: the fields that it began with. ValueError: this is no trace."""
    reader = _Reader(packet)
    for line in text.splitlines():
        reader.take(line)
    if not reader.steps:
        raise ValueError(f"no trace: {text.strip().splitlines()[0] if text.strip() else 'nothing'}")
    return reader.journey()


class _Reader:
    """Takes lines one by one."""

    def __init__(self, packet: Mapping[str, int]) -> None:
        self.steps: list[_Open] = []
        self._ends: list[End] = []
        self._home = ""
        self._bridge = ""
        self._run = 0
        self._fields = dict(packet)
        self._tunnel = {name: packet[name] for name in ("tun_id",) if name in packet}
        self._buckets: list[tuple[int, dict[str, int], str]] = []

    def journey(self) -> Journey:
        journey = Journey(
            [
                Step(
                    step.table,
                    step.priority,
                    step.cookie,
                    step.match,
                    tuple(step.actions),
                    step.bridge,
                    step.depth,
                    step.run,
                    tuple(step.notes),
                )
                for step in self.steps
            ],
            self._ends,
        )
        journey.close()
        return journey

    def take(self, line: str) -> None:
        words = line.strip()
        if line.startswith("recirc("):
            self._run += 1
            self._bridge, self._buckets = "", []
        if self._run and line.startswith("Flow:"):  # what was set before goes on with the packet
            # (The line lacks the tunnel's number where it has the tunnel's addresses.)
            self._fields = self._tunnel | {name: _number(value) for name, value in _FIELD.findall(line)}
        if not words or line.startswith(_ASIDE) or words.startswith("---") or len(self.steps) >= MOST:
            return
        if hit := _BRIDGE.match(line):
            self._home = self._home or hit[1]
            self._bridge = "" if hit[1] == self._home else hit[1]
        elif hit := _STEP.match(line):
            self._take_step(hit)
        elif self.steps and line.startswith(" ") and words not in ("thaw",) and not words.startswith("Resuming from"):
            self._take_line(len(line) - len(line.lstrip()), words)

    def _take_step(self, hit: re.Match[str]) -> None:
        indent = len(hit[1]) + len(hit[2]) - 2
        self._leave(indent)
        depth = sum(1 for step in self._above(indent) if step.run == self._run)
        flow = _FLOW.match(hit[3])
        priority = int(flow["priority"]) if flow else NO_FLOW
        cookie = int(flow["cookie"] or "0", 0) if flow else 0
        match = (flow["match"] or "") if flow else ""
        self.steps.append(_Open(len(self.steps), indent, int(hit[2]), priority, cookie, match, self._bridge, self._run, depth))

    def _above(self, indent: int) -> list[_Open]:
        """The look-ups that this one is made for."""
        found: list[_Open] = []
        for step in reversed(self.steps):
            if step.indent < indent:
                found.append(step)
                indent = step.indent
        return found

    def _leave(self, indent: int) -> None:
        """Leave the buckets that do not go on this far out."""
        while self._buckets and indent <= self._buckets[-1][0]:
            _, fields, self._bridge = self._buckets.pop()
            self._fields = dict(fields)

    def _take_line(self, indent: int, words: str) -> None:
        if words.startswith("bucket "):
            self._leave(indent)
            self._buckets.append((indent, dict(self._fields), self._bridge))
            return
        self._leave(indent)
        owner = next((step for step in reversed(self.steps) if step.indent < indent), self.steps[-1])
        if words.startswith(("-> ", ">> ")):
            self._take_note(owner, words[3:])
        elif owner.priority != NO_FLOW:
            owner.actions.append(words)
            self._act(owner, words)

    def _act(self, owner: _Open, action: str) -> None:
        if owner.bridge:
            return
        if hit := _SET.match(action):
            self._set(hit[3], hit[1], hit[2])
        elif hit := _OUTPUT.match(action):
            self._ends.append(End(Fate.OUTPUT, owner.number, int(hit[1]), dict(self._fields)))
        elif action == "IN_PORT":
            self._ends.append(End(Fate.ANSWERED, owner.number, 0, dict(self._fields)))
        elif owner.actions in (["drop"], [action]) and action.startswith(("drop", _TOLD)):
            self._ends.append(End(Fate.DROPPED, owner.number, 0, dict(self._fields)))

    def _take_note(self, owner: _Open, note: str) -> None:
        owner.notes.append(note)
        if owner.bridge:
            return
        if (hit := _NOW.match(note)) and hit[1] in _MOVED:
            self._set(_MOVED[hit[1]], hit[2], None)
        elif note == "skipping output to input port":
            self._ends.pop()
        elif any(what in note for what in _NOTHING_LEAVES) and self._ends and self._ends[-1].fate is Fate.OUTPUT:
            last = self._ends[-1]
            self._ends[-1] = End(last.fate, last.step, last.port, last.fields, note)

    def _set(self, name: str, value: str, mask: str | None) -> None:
        number = _number(value)
        if mask is not None:
            bits = _number(mask)
            number = self._fields.get(name, 0) & ~bits | number & bits
        self._fields[name] = number


def _number(text: str) -> int:
    """A value as the switch writes it: a number, a MAC or an address."""
    if re.fullmatch(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", text):
        return int(text.replace(":", ""), 16)
    if re.fullmatch(r"0x[0-9a-f]+|\d+", text):
        return int(text, 0)
    try:
        return int(ip_address(text))
    except ValueError:
        return 0  # a word, such as a name of flags: nobody asks for it
