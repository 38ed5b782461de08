"""Compiles units, and only those whose reads changed.

A *unit* is (feature, arguments…), for example ("port", net, id). Each feature is a pure function from a `View` to items.
Invariants:
- `full() == items()` after any order of events: speed comes from remembering, never from doing something else.
- Two units that emit one key must emit the same value; a different one is a `Conflict`, reported for the unit that came
  second, whose items stay as they were. A unit that raises is reported the same way and hurts no other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from agent.compile.view import View
from agent.mirror.scope import Token
from agent.mirror.state import State
from agent.model.item import Item, Key

Unit = tuple[Hashable, ...]
Compile = Callable[..., Iterable[Item]]
Readers = tuple[Unit, ...] | set[Unit]

FEW = 8  # readers of a token


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
    scopes: dict[Key, frozenset[str]] = field(default_factory=dict)
    failed: dict[Unit, str] = field(default_factory=dict)
    compiled: int = 0


class Engine:
    """See the module."""

    def __init__(self, state: State, features: Features) -> None:
        self._state = state
        self._features = features
        # Of a network's ports there may be ten thousand: what is kept of each is kept small, and equal things once.
        self._items: dict[Unit, dict[Key, Item]] = {}
        self._owners: dict[Key, tuple[Unit, ...]] = {}
        self._reads: dict[Unit, tuple[Token, ...]] = {}
        self._readers: dict[Token, Readers] = {}
        self._tokens: dict[Token, Token] = {}
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
        return {key: self._items[owners[0]][key] for key, owners in self._owners.items()}

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
        scope = _alone(self._features.scope(unit))
        for key in old.keys() - new.keys():
            self._owners[key] = others = tuple(owner for owner in self._owners[key] if owner != unit)
            if not others:
                del self._owners[key]
                changes.put.pop(key, None)
                changes.delete.add(key)
                known = changes.scopes.get(key, scope)
                changes.scopes[key] = known if scope <= known else known | scope
        alone = (unit,)
        for key, item in new.items():
            if key not in old:
                self._owners[key] = self._owners[key] + alone if key in self._owners else alone
            if old.get(key) != item:
                changes.put[key] = item
                changes.delete.discard(key)
                known = changes.scopes.get(key, scope)
                changes.scopes[key] = known if scope <= known else known | scope
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
                self._items[owner][key]
                for owner in self._owners.get(key, ())
                if owner != unit and owner not in self._waiting and self._items[owner][key] != item
            ]
            if key in new and new[key] != item:
                others.append(new[key])
            if others:
                raise Conflict(f"{key} is wanted as {item} and as {others[0]}")
            new[key] = item
        return new

    def _note_reads(self, unit: Unit, reads: set[Token]) -> None:
        old = set(self._reads.get(unit, ()))
        for token in old - reads:
            self._readers[token] = left = _without(self._readers[token], unit)
            if not left:
                del self._readers[token], self._tokens[token]
        for token in reads - old:
            self._readers[self._tokens.setdefault(token, token)] = _with(self._readers.get(token, ()), unit)
        if reads:
            self._reads[unit] = tuple(self._tokens[token] for token in reads)
        else:
            self._reads.pop(unit, None)


@lru_cache(4096)
def _alone(scope: str) -> frozenset[str]:
    """One object for all keys of a scope."""
    return frozenset((scope,))


def _with(readers: Readers, unit: Unit) -> Readers:
    """One more. Of few, as of nearly every token, a tuple is kept, which is small; of many a set."""
    if isinstance(readers, set):
        readers.add(unit)
        return readers
    return (*readers, unit) if len(readers) < FEW else {*readers, unit}


def _without(readers: Readers, unit: Unit) -> Readers:
    if isinstance(readers, set):
        readers.discard(unit)
        return readers
    return tuple(reader for reader in readers if reader != unit)
