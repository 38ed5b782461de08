"""Compiles units, and only those whose reads changed.

A *unit* is (feature, arguments…), for example ("port", net, id). Each feature is a pure function from a `View` to items.
Invariants:
- `full() == items()` after any order of events: speed comes from remembering, never from doing something else.
- Two units that emit one key must emit the same value; a different one is a `Conflict`, reported for the unit that came
  second, whose items stay as they were. A unit that raises is reported the same way and hurts no other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from agent.compile.view import View
from agent.mirror.scope import Token
from agent.mirror.state import State
from agent.model.item import Item, Key

Unit = tuple[Hashable, ...]
Compile = Callable[..., Iterable[Item]]


class Conflict(Exception):
    """Two units want one object to be two things: a defect of compile, or of the state it was given."""


@dataclass(frozen=True, slots=True)
class Features:
    """The compile functions by name, which units a token calls into being, a unit's scope, and whether it may have items."""

    functions: Mapping[str, Compile]
    units: Callable[[Token], Iterable[Unit]]
    scope: Callable[[Unit], str]
    exists: Callable[[State, Unit], bool]
    always: tuple[Unit, ...]


@dataclass(slots=True)
class Changes:
    """What a run of the engine changed: put and delete by key, the scopes of each key; the units that failed, with why."""

    put: dict[Key, Item] = field(default_factory=dict)
    delete: set[Key] = field(default_factory=set)
    scopes: dict[Key, set[str]] = field(default_factory=lambda: defaultdict(set))
    failed: dict[Unit, str] = field(default_factory=dict)
    compiled: int = 0


class Engine:
    """See the module."""

    def __init__(self, state: State, features: Features) -> None:
        self._state = state
        self._features = features
        self._items: dict[Unit, dict[Key, Item]] = {}
        self._owners: dict[Key, dict[Unit, Item]] = {}
        self._reads: dict[Unit, set[Token]] = {}
        self._readers: dict[Token, set[Unit]] = defaultdict(set)
        self._failed: dict[Unit, str] = {}
        self._dirty: set[Unit] = set(features.always)
        self._waiting: set[Unit] = set()  # during a run: units whose items are about to be replaced

    def touch(self, tokens: Iterable[Token]) -> None:
        """Something changed: whoever read it is compiled at the next run."""
        for token in tokens:
            self._dirty.update(self._readers.get(token, ()))
            self._dirty.update(self._features.units(token))

    def run(self) -> Changes:
        """Compile what is dirty; what that changed."""
        changes = Changes()
        dirty = sorted(self._dirty | self._failed.keys(), key=repr)
        self._dirty.clear()
        self._waiting = set(dirty)
        for unit in dirty:
            self._waiting.discard(unit)
            self._compile(unit, changes)
        changes.failed = dict(self._failed)
        return changes

    def scope(self, unit: Unit) -> str:
        return self._features.scope(unit)

    def wanting(self, key: Key) -> list[Unit]:
        """The units that want a key."""
        return list(self._owners.get(key, ()))

    def items(self) -> dict[Key, Item]:
        """Everything desired."""
        return {key: next(iter(owners.values())) for key, owners in self._owners.items()}

    def full(self) -> dict[Key, Item]:
        """Everything desired, computed from nothing: the reference that `items()` must equal."""
        fresh = Engine(self._state, self._features)
        fresh._dirty |= set(self._items) | set(self._failed)
        fresh.touch(self._state.tokens())
        fresh.run()
        return fresh.items()

    def _compile(self, unit: Unit, changes: Changes) -> None:
        view = View(self._state)
        feature, *arguments = unit
        changes.compiled += 1
        try:
            new = self._collect(unit, self._features.functions[str(feature)](view, *arguments))
        except Exception as error:
            # One unit's defect, or input nobody thought of: its items stay, the error shows in status, all others go on.
            self._failed[unit] = f"{type(error).__name__}: {error}"
            new = self._items.get(unit, {})
        else:
            self._failed.pop(unit, None)
        self._note_reads(unit, view.reads)
        old = self._items.get(unit, {})
        scope = self._features.scope(unit)
        for key in old.keys() - new.keys():
            owners = self._owners[key]
            del owners[unit]
            if not owners:
                del self._owners[key]
                changes.put.pop(key, None)
                changes.delete.add(key)
                changes.scopes[key].add(scope)
        for key, item in new.items():
            owners = self._owners.setdefault(key, {})
            if owners.get(unit) != item:
                owners[unit] = item
                changes.put[key] = item
                changes.delete.discard(key)
                changes.scopes[key].add(scope)
        if new or unit in self._failed:
            self._items[unit] = new
        else:
            self._items.pop(unit, None)
            if not self._features.exists(self._state, unit):
                self._note_reads(unit, set())

    def _collect(self, unit: Unit, items: Iterable[Item]) -> dict[Key, Item]:
        new: dict[Key, Item] = {}
        for item in items:
            key = item.key
            others = [
                other
                for owner, other in self._owners.get(key, {}).items()
                if owner != unit and owner not in self._waiting and other != item
            ]
            if key in new and new[key] != item:
                others.append(new[key])
            if others:
                raise Conflict(f"{key} is wanted as {item} and as {others[0]}")
            new[key] = item
        return new

    def _note_reads(self, unit: Unit, reads: set[Token]) -> None:
        old = self._reads.get(unit, set())
        for token in old - reads:
            self._readers[token].discard(unit)
            if not self._readers[token]:
                del self._readers[token]
        for token in reads - old:
            self._readers[token].add(unit)
        if reads:
            self._reads[unit] = reads
        else:
            self._reads.pop(unit, None)
