"""The checker of histories: what cannot have been is found, what can have been is not, and both match a blind search."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from tests.chaos.linearizability import (
    CHANGED,
    MISSING,
    TAKEN,
    History,
    Look,
    Operation,
    State,
    disorder,
    out_of_time,
    step,
    torn,
)

A, B, C = State("a", "1"), State("b", "2"), State("c", "3")


def op(verb: str, start: float, end: float | None, **rest: Any) -> Operation:
    seen = rest.get("seen")
    if seen is not None and verb in ("create", "update") and not rest.get("refusal"):
        rest.setdefault("value", seen.value)
    return Operation(verb, "x", start, end, **rest)


GOOD = {
    "nothing": [],
    "one after the other": [
        op("read", 0, 1),
        op("create", 2, 3, seen=A),
        op("create", 4, 5, value="z", refusal=TAKEN),
        op("update", 6, 7, guard="1", seen=B),
        op("update", 8, 9, value="z", guard="1", refusal=CHANGED, seen=State("", "2")),
        op("read", 10, 11, seen=B),
        op("delete", 12, 13, guard="2"),
        op("delete", 14, 15, refusal=MISSING),
        op("read", 16, 17),
    ],
    "a read beside a write sees the one or the other": [
        op("create", 0, 10, seen=A),
        op("read", 1, 2),
        op("read", 3, 4, seen=A),
        op("read", 5, 6, seen=A),
    ],
    "the later caller may come first": [op("update", 1, 9, seen=B), op("create", 2, 3, seen=A), op("read", 10, 11, seen=B)],
    "an unknown write happened": [op("create", 0, None, value="a"), op("read", 50, 51), op("read", 60, 61, seen=A)],
    "an unknown write did not": [op("create", 0, None, value="a"), op("create", 1, 2, seen=B), op("read", 3, 4, seen=B)],
    "an unknown write happened and was overwritten": [
        op("create", 0, 1, seen=A),
        op("update", 2, None, value="u"),
        op("update", 3, 4, guard="1", value="z", refusal=CHANGED, seen=State("", "7")),
        op("read", 5, 6, seen=State("u", "7")),
        op("update", 7, 8, guard="7", seen=B),
    ],
    "an unknown deletion happened late": [
        op("create", 0, 1, seen=A),
        op("delete", 2, None),
        op("read", 3, 4, seen=A),
        op("read", 5, 6),
    ],
}
BAD = {
    "a lost write": [op("create", 0, 1, seen=A), op("read", 2, 3)],
    "a ghost": [op("read", 0, 1, seen=A)],
    "back in time": [
        op("create", 0, 1, seen=A),
        op("update", 2, 20, seen=B),
        op("read", 3, 4, seen=B),
        op("read", 5, 6, seen=A),
    ],
    "a stale read": [op("create", 0, 1, seen=A), op("update", 2, 3, seen=B), op("read", 4, 5, seen=A)],
    "two creates": [op("create", 0, 5, seen=A), op("create", 1, 6, seen=B)],
    "an update of what is gone": [op("create", 0, 1, seen=A), op("delete", 2, 3), op("update", 4, 5, seen=B)],
    "an etag that was passed over": [
        op("create", 0, 1, seen=A),
        op("update", 2, 3, seen=B),
        op("update", 4, 5, guard="1", seen=C),
    ],
    "two of one etag": [
        op("create", 0, 1, seen=A),
        op("update", 2, 9, guard="1", seen=B),
        op("update", 2, 9, guard="1", seen=C),
    ],
    "taken by nobody": [op("create", 0, 1, value="z", refusal=TAKEN)],
    "missing though it is there": [op("create", 0, 1, seen=A), op("delete", 2, 3, refusal=MISSING), op("read", 4, 5, seen=A)],
    "a mismatch of the etag it has": [
        op("create", 0, 1, seen=A),
        op("update", 2, 3, guard="1", value="z", refusal=CHANGED, seen=State("", "1")),
    ],
    "deleted twice": [op("create", 0, 1, seen=A), op("delete", 2, 9), op("delete", 2, 9)],
    "another value than was asked for": [op("create", 0, 1, value="z", seen=A)],
    "another etag than was told": [op("create", 0, 1, seen=A), op("read", 2, 3, seen=State("a", "9"))],
    "an unknown write before it was asked": [op("read", 0, 1, seen=A), op("create", 2, None, value="a")],
    "an unknown write that went away": [
        op("create", 0, None, value="a"),
        op("read", 1, 2, seen=A),
        op("read", 3, 4),
        op("read", 5, 6, seen=A),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_have_been_is_accepted(name: str) -> None:
    assert disorder(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_have_been_is_found(name: str) -> None:
    (fault,) = disorder(BAD[name])
    assert fault.startswith("x: no order of")


def blind(operations: list[Operation]) -> bool:
    """Every order of every subset that holds all known calls, tried."""
    unknown = [item for item in operations if item.end is None]
    known = [item for item in operations if item.end is not None]
    for count in range(len(unknown) + 1):
        for happened in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *happened]):
                late = any(
                    later.end is not None and later.end < earlier.start
                    for place, earlier in enumerate(order)
                    for later in order[place + 1 :]
                )
                if not late and _explained(order):
                    return True
    return False


def _explained(order: tuple[Operation, ...]) -> bool:
    state: State | None = None
    for item in order:
        possible, state = step(state, item)
        if not possible:
            return False
    return True


def test_it_decides_as_a_blind_search_does() -> None:
    """Random histories of up to five calls, of which about as many can be explained as not."""
    chance = random.Random(20)
    verdicts = []
    for _ in range(1500):
        operations = []
        for number in range(chance.randint(2, 5)):
            start = chance.uniform(0, 10)
            end = None if chance.random() < 0.15 else start + chance.uniform(0, 6)
            verb = chance.choice(["create", "update", "delete", "read"])
            state = chance.choice([A, B, None]) if verb == "read" else State(f"w{number}", str(number))
            value = "" if verb in ("read", "delete") else chance.choice(["a", "b"])
            seen = state if verb == "read" else State(value, {"a": "1", "b": "2"}[value]) if value else None
            refusal = chance.choice(["", "", TAKEN if verb == "create" else MISSING]) if verb != "read" and end else ""
            guard = chance.choice(["", "1", "2"]) if verb in ("update", "delete") else ""
            if end is None and verb == "read":
                continue
            operations.append(
                Operation(
                    verb,
                    "x",
                    start,
                    end,
                    value=value,
                    guard=guard,
                    refusal=refusal,
                    seen=None if refusal or end is None else seen,
                )
            )
        expected = blind(operations)
        assert (disorder(operations) == []) == expected, operations
        verdicts.append(expected)
    assert 200 < sum(verdicts) < 1200


def test_a_long_history_with_many_at_once_is_checked_quickly_and_one_wrong_word_is_found() -> None:
    chance = random.Random(3)
    operations: list[Operation] = []
    state, moment = None, 0.0
    for number in range(3000):
        moment += 1
        around = (moment - chance.uniform(0, 4), moment + chance.uniform(0, 4))
        if state is None:
            state = State(f"v{number}", str(number))
            operations.append(op("create", *around, seen=state))
        elif number % 7 == 0:
            state = None
            operations.append(op("delete", *around))
        elif number % 3 == 0:
            state = State(f"v{number}", str(number))
            operations.append(op("update", *around, seen=state))
        else:
            operations.append(op("read", *around, seen=state))
    assert disorder(operations) == []
    wrong = op("read", 2000, 2001, seen=State("v1000", "1000"))
    assert disorder([*operations, wrong])


def test_revisions_follow_real_time() -> None:
    first, second = op("create", 0, 1, seen=A, revision=5), op("update", 2, 3, seen=B, revision=6)
    assert out_of_time([first, second], [Look(4, 5, 6, {}, frozenset())]) == []
    assert out_of_time([first, op("update", 0.5, 3, seen=B, revision=4)], []) == []  # beside each other
    assert out_of_time([first, op("update", 2, 3, seen=B, revision=4)], [])
    assert out_of_time([first, op("update", 2, 3, seen=B, revision=5)], [])
    assert out_of_time([first, second], [Look(4, 5, 5, {}, frozenset())])
    assert out_of_time([op("update", 6, 7, seen=B, revision=5)], [Look(4, 5, 6, {}, frozenset())])


def test_a_list_shows_one_revision() -> None:
    writes = [
        Operation("create", "x", 0, 1, value="a", revision=5),
        Operation("create", "y", 0, 1, value="b", revision=6),
        Operation("delete", "x", 2, 3, revision=7),
    ]
    keys = frozenset("xy")
    for revision, shown in ((4, {}), (5, {"x": A}), (6, {"x": A, "y": B}), (7, {"y": B})):
        assert torn(writes, [Look(0, 9, revision, shown, keys)]) == []
        assert revision == 5 or torn(writes, [Look(0, 9, 5, shown, keys)])
    history = History(writes)
    history.looks.append(Look(0, 9, 7, {"y": State("b", "6")}, keys))
    assert history.faults() == []
    history.looks.append(Look(10, 11, 7, {}, keys))
    assert len(history.faults()) == 2  # y is missing, by its own order and by the revision
