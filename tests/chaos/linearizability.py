"""Whether a recorded history of calls can be explained by calls that happen one after the other.

Owns: the record of what clients asked and were told, the model of one object, and three checks of a record:
- `disorder`: the search of Wing and Gong with Lowe's memory of the configurations seen. Each object is checked by itself
  (linearizability is local); a list counts as a look at every object at once, at each of them.
- `out_of_time`: store revisions of writes and lists follow real time, across objects.
- `torn`: a list shows each object as of the one revision that the list names.
Invariants: a call begins before its first byte is sent and ends after its last is received, on one monotonic clock; a
call whose outcome nobody was told has no end, and may have happened at any time from its beginning on, or never.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# What writes of one object can be told, beside that they were done.
TAKEN, MISSING, CHANGED = "ID_TAKEN", "RESOURCE_NOT_FOUND", "ETAG_MISMATCH"


@dataclass(frozen=True, slots=True)
class State:
    """An object that exists. etag: "" while nobody was told it, as after a write of unknown outcome."""

    value: str
    etag: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One call and what came of it."""

    verb: str  # create, update, delete, read
    key: str
    start: float
    end: float | None  # None: unknown outcome
    value: str = ""  # what a create or update writes; no two write the same
    guard: str = ""  # the etag asked for
    refusal: str = ""
    seen: State | None = None  # what was shown: by a read, by a write that was done, by a refusal for the etag (no value)
    revision: int = 0  # of a write that was done
    client: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """One list: every object it showed, at one revision. keys: those it would have shown, had they existed."""

    start: float
    end: float
    revision: int
    shown: dict[str, State]
    keys: frozenset[str]


@dataclass(slots=True)
class History:
    """Everything that clients did."""

    operations: list[Operation] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    def faults(self) -> list[str]:
        """What cannot be; empty when all can be explained."""
        by_key: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            by_key[operation.key].append(operation)
        for look in self.looks:
            for key in look.keys:
                by_key[key].append(Operation("read", key, look.start, look.end, seen=look.shown.get(key)))
        found = [text for key in sorted(by_key) for text in disorder(by_key[key])]
        return found + out_of_time(self.operations, self.looks) + torn(self.operations, self.looks)


Outcome = tuple[bool, State | None]  # (it can have happened in that state, the state after it)
IMPOSSIBLE: Outcome = (False, None)


REFUSALS = {"create": {TAKEN}, "update": {MISSING, CHANGED}, "delete": {MISSING, CHANGED}}


def step(state: State | None, operation: Operation) -> Outcome:
    """One call on one object. None: there is none."""
    if operation.verb == "read":
        return _read(state, operation.seen)
    if operation.verb == "create":
        if operation.refusal == TAKEN:
            return state is not None, state
        return state is None and _as_asked(operation), operation.seen or State(operation.value, "")
    if operation.refusal == MISSING:
        return state is None, None
    if state is None:
        return IMPOSSIBLE
    if operation.refusal == CHANGED:
        assert operation.seen is not None
        told = operation.seen.etag
        return told != operation.guard and state.etag in ("", told), State(state.value, told)
    if operation.guard and state.etag not in ("", operation.guard):
        return IMPOSSIBLE
    if operation.verb == "delete":
        return True, None
    return _as_asked(operation), operation.seen or State(operation.value, "")


def _as_asked(operation: Operation) -> bool:
    """What was written is what the client asked for."""
    return operation.seen is None or operation.seen.value == operation.value


def _read(state: State | None, seen: State | None) -> Outcome:
    if state is None or seen is None:
        return state is seen, None
    return state.value == seen.value and state.etag in ("", seen.etag), seen


def disorder(operations: Sequence[Operation]) -> list[str]:
    """Why no order of these calls on one object, each between its beginning and its end, explains what they were told."""
    chain = _Chain(operations)
    state: State | None = None
    done = 0  # bit n: operation n has been put in order
    left = sum(operation.end is not None for operation in operations)
    taken: list[tuple[int, State | None, bool]] = []
    known: set[tuple[int, State | None]] = set()
    furthest, culprit = -1, 0
    place = chain.first()
    while left:
        number, is_end = chain.what(place)
        if not is_end:
            possible, after = step(state, operations[number])
            configuration = (done | 1 << number, after)
            # What changes nothing may as well come now as later: there is no need to try it elsewhere.
            free = possible and after == state
            if not possible or (not free and configuration in known):
                place = chain.after(place)
                continue
            if not free:
                known.add(configuration)
            taken.append((number, state, free))
            done, state = configuration
            chain.lift(number)
            left -= operations[number].end is not None
        else:
            # This one ended, and nothing that began before its end can come before it: the last choice was wrong.
            if len(taken) > furthest:
                furthest, culprit = len(taken), number
            free = True
            while free:
                if not taken:
                    return [_told(operations, culprit)]
                number, state, free = taken.pop()
                done ^= 1 << number
                chain.lower(number)
                left += operations[number].end is not None
            place = chain.after(chain.begin[number])
            continue
        place = chain.first()
    return []


class _Chain:
    """Beginnings and ends in order of time, from which calls are lifted and into which they are put back, last first."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        moments = [(operation.start, False, number) for number, operation in enumerate(operations)]
        moments += [(operation.end, True, number) for number, operation in enumerate(operations) if operation.end is not None]
        moments.sort()
        # Place 0 is the head, the last the end of the chain.
        self._what = [(0, False), *((number, is_end) for _, is_end, number in moments), (0, True)]
        self._next = [place + 1 for place in range(len(self._what))]
        self._previous = [place - 1 for place in range(len(self._what))]
        self.begin: dict[int, int] = {}
        self._end: dict[int, int] = {}
        for place, (number, is_end) in enumerate(self._what[1:-1], 1):
            (self._end if is_end else self.begin)[number] = place

    def first(self) -> int:
        return self._next[0]

    def after(self, place: int) -> int:
        return self._next[place]

    def what(self, place: int) -> tuple[int, bool]:
        """(number of the operation, whether this is its end)."""
        return self._what[place]

    def _places(self, number: int) -> list[int]:
        return [self.begin[number], *([self._end[number]] if number in self._end else [])]

    def lift(self, number: int) -> None:
        for place in self._places(number):
            before, after = self._previous[place], self._next[place]
            self._next[before], self._previous[after] = after, before

    def lower(self, number: int) -> None:
        for place in reversed(self._places(number)):
            self._next[self._previous[place]] = self._previous[self._next[place]] = place


def _told(operations: Sequence[Operation], culprit: int) -> str:
    """The call that cannot be placed, with those beside it."""
    wrong = operations[culprit]
    assert wrong.end is not None
    beside = [item for item in operations if item.start < wrong.end and (item.end is None or item.end > wrong.start - 0.5)]
    lines = [f"    {_line(item)}" for item in sorted(beside, key=lambda item: item.start)[-20:]]
    return "\n".join([f"{wrong.key}: no order of {len(operations)} calls explains {_line(wrong)}; beside it:", *lines])


def _line(operation: Operation) -> str:
    end = "?" if operation.end is None else f"{operation.end:.6f}"
    asked = f"{operation.value}{' if ' + operation.guard if operation.guard else ''}"
    told = operation.refusal or ("?" if operation.end is None else "done" if operation.verb == "delete" else "")
    seen = f"{operation.seen.value}@{operation.seen.etag}" if operation.seen else "nothing" if operation.verb == "read" else ""
    return f"[{operation.start:.6f} {end}] {operation.client} {operation.verb} {asked} → {told} {seen}".rstrip()


def out_of_time(operations: Iterable[Operation], looks: Iterable[Look]) -> list[str]:
    """What ended before another began has the lower revision; a list may have that of the write before it."""
    told = [(item.start, item.end, item.revision, True, _line(item)) for item in operations if item.revision and item.end]
    told += [(look.start, look.end, look.revision, False, f"list at {look.revision}") for look in looks]
    ended = sorted((end, revision) for _, end, revision, _, _ in told if end is not None)
    highest: list[int] = []
    for _, revision in ended:
        highest.append(max(revision, highest[-1] if highest else 0))
    found = []
    for start, _, revision, writes, line in told:
        place = bisect.bisect_left(ended, (start, 0))
        before = highest[place - 1] if place else 0
        if revision < before or (writes and revision == before):
            found.append(f"revision {revision} came after {before} had been told: {line}")
    return found


def torn(operations: Iterable[Operation], looks: Iterable[Look]) -> list[str]:
    """Lists that show objects of another revision than theirs. Objects with writes of unknown outcome are left out."""
    writes: dict[str, list[tuple[int, str]]] = defaultdict(list)
    unknown = set()
    for item in operations:
        if item.end is None:
            unknown.add(item.key)
        elif item.revision:
            writes[item.key].append((item.revision, "" if item.verb == "delete" else item.value))
    for line in writes.values():
        line.sort()
    found = []
    for look in looks:
        for key in look.keys - unknown:
            place = bisect.bisect_right(writes[key], (look.revision, chr(0x10FFFF)))
            expected = writes[key][place - 1][1] if place else ""
            shown = look.shown[key].value if key in look.shown else ""
            if shown != expected:
                found.append(f"{key}: the list at {look.revision} shows {shown!r}, which was {expected!r} then")
    return found
