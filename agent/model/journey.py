"""A packet's way through tables, as steps and ends: what a trace of the switch says, and what evaluation of items says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

NO_FLOW = -1  # priority of a step that no flow of its table took


@dataclass(frozen=True, slots=True)
class Step:
    """One look-up in a table, by the flow that was found: its match and actions in the words of ovs-ofctl(8).

    priority is `NO_FLOW` where none was found. bridge is "" on the bridge where the packet began. depth counts the look-ups
    that this one returns to; run the times that connection tracking has sent the packet on. notes are the switch's. alike:
    cookies of flows that would do as well, of the same priority and actions and matching too, as those of rules that overlap.
    """

    table: int
    priority: int
    cookie: int
    match: str = ""
    actions: tuple[str, ...] = ()
    bridge: str = ""
    depth: int = 0
    run: int = 0
    notes: tuple[str, ...] = ()
    alike: tuple[int, ...] = ()

    def is_of(self, wanted: Step) -> bool:
        """Whether this look-up found the flow that another says, as far as both sides know flows, or one as good."""
        same = (self.table, self.priority) == (wanted.table, wanted.priority)
        return same and self.cookie in (wanted.cookie, *wanted.alike)


class Fate(StrEnum):
    """How a copy of a packet ends."""

    OUTPUT = "output"  # leaves by a port
    ANSWERED = "answered"  # goes back where it came from, as an answer
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class End:
    """The end of one copy. port: that it leaves by; fields: registers and headers that were set on the way, by name.

    fault: why nothing leaves by that port all the same, in the switch's words.
    """

    fate: Fate
    step: int  # index of the step
    port: int = 0
    fields: Mapping[str, int] = field(default_factory=dict)
    fault: str = ""

    @property
    def told(self) -> tuple[Fate, int, int, int]:
        """What two views of one end must agree in."""
        return self.fate, self.port, self.fields.get("reg11", 0), self.fields.get("tun_id", 0)


@dataclass(slots=True)
class Journey:
    """All steps in the order of look-up, and all ends. commits: the mark of what is known from now on, by zone."""

    steps: list[Step] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    commits: dict[int, int] = field(default_factory=dict)

    def close(self) -> None:
        """A packet of which nothing has become has been dropped."""
        if self.steps and not self.ends:
            self.ends.append(End(Fate.DROPPED, len(self.steps) - 1))

    def here(self) -> Iterator[Step]:
        """The steps on the bridge where it began."""
        return (step for step in self.steps if not step.bridge)
