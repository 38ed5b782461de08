"""A key that many units want: all as the same, at a cost that does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.compile.engine import Engine, Features, Unit
from agent.compile.view import View
from agent.mirror.scope import Token
from agent.mirror.state import State
from agent.model.item import Key

MANY = 1000
compared = 0


@dataclass(frozen=True)
class Thing:
    """An item that all units want, if they agree on its value."""

    value: str

    @property
    def key(self) -> Key:
        return ("thing",)

    def __eq__(self, other: object) -> bool:
        global compared
        compared += 1
        return isinstance(other, Thing) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


wanted: dict[int, str] = {}


def thing(_: View, number: int) -> Iterator[Thing]:
    if number in wanted:
        yield Thing(wanted[number])


def units(token: Token) -> Iterator[Unit]:
    if token[0] == "thing":
        yield token


def engine_of(count: int) -> Engine:
    wanted.clear()
    wanted.update(dict.fromkeys(range(count), "a"))
    made = Engine(State("h1"), Features({"thing": thing}, units, lambda _: "", lambda *_: True, ()))
    made.touch([("thing", number) for number in range(count)])
    assert not made.run().failed
    return made


def test_one_unit_of_many_is_compared_with_one_other() -> None:
    global compared
    made = engine_of(MANY)
    compared = 0
    made.touch([("thing", 7)])
    assert not made.run().put
    assert compared <= 2
    assert made.items() == {("thing",): Thing("a")}


def test_whoever_wants_something_else_is_told_whenever_he_comes() -> None:
    made = engine_of(3)
    wanted[1] = "b"
    made.touch([("thing", 1)])
    assert list(made.run().failed) == [("thing", 1)]
    assert made.items() == {("thing",): Thing("a")}
    wanted[3] = "b"
    made.touch([("thing", 3)])
    assert list(made.run().failed) == [("thing", 1), ("thing", 3)]


def test_all_may_change_their_mind_at_once_and_go_one_by_one() -> None:
    made = engine_of(3)
    wanted.update(dict.fromkeys(range(3), "b"))
    made.touch([("thing", number) for number in range(3)])
    changes = made.run()
    assert (changes.put, changes.failed) == ({("thing",): Thing("b")}, {})
    for number in (1, 0, 2):
        assert made.items() == {("thing",): Thing("b")}
        del wanted[number]
        made.touch([("thing", number)])
        changes = made.run()
    assert changes.delete == {("thing",)}
    assert made.items() == {}
