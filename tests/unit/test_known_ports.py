"""What ports elsewhere cost an agent: little room for each, and no time when something else changes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import tracemalloc
from collections.abc import Iterator
from types import FrameType
from typing import Any

from agent.compile.engine import Changes
from agent.reconcile.lane import Lane
from tests.crowd import Crowd, Forgetful
from tests.waiting import running, until

FEW, MANY = 1000, 3000


class Agent:
    """A crowd and the lanes that apply what it wants."""

    def __init__(self, known: int) -> None:
        self.crowd = Crowd(known)
        flows, names = Forgetful("flow", "group", "meter"), Forgetful("name")
        self.lanes = [Lane("flows", [flows], lambda: None), Lane("host", [names], lambda: None)]
        self.number = 0

    async def apply(self, changes: Changes) -> None:
        self.number += 1
        for lane in self.lanes:
            lane.submit(self.number, changes.put, changes.delete, changes.scopes)
            lane.start()
        await until(lambda: all(lane.finished == self.number for lane in self.lanes), "it is applied")


def _now() -> int:
    """Bytes that are in use."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def _held(known: int) -> int:
    agent = Agent(known)
    async with running(*(lane.run() for lane in agent.lanes)):
        await agent.apply(agent.crowd.engine.run())
        return _now()


def _kept(known: int) -> int:
    """Bytes that an agent keeps which knows so many ports: those that are free when it is gone."""
    return asyncio.run(_held(known)) - _now()


def test_a_port_elsewhere_takes_little_room() -> None:
    tracemalloc.start()
    try:
        few, many = _kept(FEW), _kept(MANY)
    finally:
        tracemalloc.stop()
    assert (many - few) / (MANY - FEW) < 5200


async def test_what_one_change_takes_does_not_depend_on_how_many_ports_are_known() -> None:
    few, many = [await _steps(known) for known in (10, 2000)]
    assert few > 1000
    assert many < 1.1 * few


async def _steps(known: int) -> int:
    """Instructions of the agent's code that one changed port takes, from the notice until it is applied."""
    agent = Agent(known)
    async with running(*(lane.run() for lane in agent.lanes)):
        await agent.apply(agent.crowd.engine.run())
        await agent.apply(agent.crowd.change(5, "10.9.0.1"))
        with _counted() as steps:
            await agent.apply(agent.crowd.change(5, "10.9.0.2"))
    return len(steps)


@contextlib.contextmanager
def _counted() -> Iterator[list[None]]:
    """An entry for each instruction of the agent's code."""
    steps: list[None] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if "/agent/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            steps.append(None)
        return trace

    sys.settrace(trace)
    try:
        yield steps
    finally:
        sys.settrace(None)
