"""The hub of the watches: what it keeps of those who ask."""

from __future__ import annotations

from typing import Any

from controlplane.api.watch import Hub, Question
from controlplane.registry import KINDS


class NothingHappens:
    """As much of a cache as a hub looks at before anything changes."""

    revision = 1

    def __init__(self) -> None:
        self.relisted: list[Any] = []

    def observe(self, observer: Any) -> None:
        pass


def test_nothing_is_kept_of_a_question_that_nobody_asks_any_more() -> None:
    """Projects are named by whoever asks: a thousand that are not there leave nothing behind."""
    nothing: Any = NothingHappens()
    hub = Hub(nothing, nothing, nothing)
    for number in range(1000):
        with hub.subscribed(Question(KINDS["Port"], f"p{number}", "", False, True)):
            assert len(hub._asked) == 1
    assert not hub._asked
    assert not hub._channels
