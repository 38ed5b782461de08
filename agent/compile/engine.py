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
# Who reads a token, and who wants a key and as what. Nearly always it is one: that is kept as itself.
Readers = Unit | dict[Unit, None]
Owners = Unit | dict[Unit, Item]


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
        self._items: dict[Unit, tuple[Item, ...]] = {}
        self._owners: dict[Key, Owners] = {}
        self._reads: dict[Unit, tuple[Token, ...]] = {}
        self._readers: dict[Token, Readers] = {}
        self._tokens: dict[Token, Token] = {}
        self._failed: dict[Unit, str] = {}
        self._dirty: set[Unit] = set(features.always)
        self._waiting: set[Unit] = set()  # during a run: units whose items are about to be replaced

    def touch(self, tokens: Iterable[Token]) -> None:
        """Something changed: whoever read it is compiled at the next run."""
        for token in tokens:
            self._dirty.update(_all(self._readers.get(token)))
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
        self._waiting = set()  # one that was large stays so
        changes.failed = dict(self._failed)
        return changes

    def scope(self, unit: Unit) -> str:
        return self._features.scope(unit)

    def wanting(self, key: Key) -> list[Unit]:
        """The units that want a key."""
        return _all(self._owners.get(key))

    def scopes(self, key: Key) -> frozenset[str]:
        """The scopes of the units that want a key."""
        return frozenset(map(self.scope, self.wanting(key)))

    def items(self) -> dict[Key, Item]:
        """Everything desired."""
        return {item.key: item for unit, items in self._items.items() for item in items if self._leads(unit, item.key)}

    def _leads(self, unit: Unit, key: Key) -> bool:
        """Whether a unit is the first of those that want a key."""
        owners = self._owners[key]
        return (next(iter(owners)) if isinstance(owners, dict) else owners) == unit

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
        old = {item.key: item for item in self._items.get(unit, ())}
        try:
            new = self._collect(unit, self._features.functions[str(feature)](view, *arguments))
        except Exception as error:
            # One unit's defect, or input nobody thought of: its items stay, the error shows in status, all others go on.
            self._failed[unit] = f"{type(error).__name__}: {error}"
            new = old
        else:
            self._failed.pop(unit, None)
        self._note_reads(unit, view.reads)
        scope = _alone(self._features.scope(unit))
        for key in old.keys() - new.keys():
            if self._disown(unit, key):
                changes.put.pop(key, None)
                changes.delete.add(key)
                known = changes.scopes.get(key, scope)
                changes.scopes[key] = known if scope <= known else known | scope
        for key, item in new.items():
            if (former := old.get(key)) == item:
                new[key] = former  # the lanes have this one: of two that are equal one is kept
                continue
            self._own(unit, key, item)
            changes.put[key] = item
            changes.delete.discard(key)
            known = changes.scopes.get(key, scope)
            changes.scopes[key] = known if scope <= known else known | scope
        if new or unit in self._failed:
            self._items[unit] = tuple(new.values())
        else:
            self._items.pop(unit, None)
            if not self._features.exists(self._state, unit):
                self._note_reads(unit, set())

    def _collect(self, unit: Unit, items: Iterable[Item]) -> dict[Key, Item]:
        new: dict[Key, Item] = {}
        for item in items:
            key = item.key
            other = new.get(key, self._other(unit, key))
            if other is not None and other != item:
                raise Conflict(f"{key} is wanted as {item} and as {other}")
            new[key] = item
        return new

    def _other(self, unit: Unit, key: Key) -> Item | None:
        """What another unit wants of a key, of those whose items are not about to be replaced. One is asked: all of them want
        the same, and there may be as many as ports, of one address in as many networks."""
        owners = self._owners.get(key)
        if isinstance(owners, dict):
            return next((item for owner, item in owners.items() if owner != unit and owner not in self._waiting), None)
        if owners is None or owners == unit or owners in self._waiting:
            return None
        return self._item(owners, key)

    def _item(self, unit: Unit, key: Key) -> Item:
        return next(item for item in self._items[unit] if item.key == key)

    def _own(self, unit: Unit, key: Key, item: Item) -> None:
        owners = self._owners.get(key, unit)
        if isinstance(owners, dict):
            owners[unit] = item
        elif owners == unit:
            self._owners[key] = unit
        else:
            self._owners[key] = {owners: self._item(owners, key), unit: item}

    def _disown(self, unit: Unit, key: Key) -> bool:
        """Whether nobody wants the key any more."""
        owners = self._owners[key]
        if not isinstance(owners, dict):
            del self._owners[key]
            return True
        del owners[unit]
        if len(owners) == 1:
            (self._owners[key],) = owners
        return False

    def _note_reads(self, unit: Unit, reads: set[Token]) -> None:
        old = set(self._reads.get(unit, ()))
        for token in old - reads:
            readers = self._readers[token]
            if isinstance(readers, dict):
                del readers[unit]
                if len(readers) == 1:
                    (self._readers[token],) = readers
            else:
                del self._readers[token], self._tokens[token]
        for token in reads - old:
            known = self._tokens.setdefault(token, unit if token == unit else token)
            readers = self._readers.get(known, unit)
            if isinstance(readers, dict):
                readers[unit] = None
            else:
                self._readers[known] = unit if readers == unit else {readers: None, unit: None}
        if reads:
            self._reads[unit] = tuple(self._tokens[token] for token in reads)
        else:
            self._reads.pop(unit, None)


def _all(units: Readers | Owners | None) -> list[Unit]:
    return list(units) if isinstance(units, dict) else [] if units is None else [units]


@lru_cache(1024)
def _alone(scope: str) -> frozenset[str]:
    """One object for all keys of a scope."""
    return frozenset((scope,))
