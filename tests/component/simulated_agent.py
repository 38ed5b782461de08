"""An agent on a real store with all of a real one but the host: interfaces are said, what is applied goes into a dict."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from agent.compile import FEATURES
from agent.compile.engine import Engine
from agent.facts.model import HostFacts, Interface
from agent.mirror.state import State
from agent.reconcile import alive
from agent.reconcile.lane import Lane
from agent.reconcile.loop import Loop
from agent.reconcile.status import Status
from controlplane.store.client import Store
from controlplane.store.feed import Feed
from tests.component.cloud import Cloud
from tests.fakes.driver import FakeDriver

KINDS = frozenset({"flow", "group", "bridge", "ovs-port", "namespace", "dhcp", "name", "peer"})


class SimulatedAgent:
    """One agent process, while it is entered. `driver.there` is its host's data plane, and outlives it."""

    def __init__(self, cloud: Cloud, node: str, patch: pytest.MonkeyPatch, driver: FakeDriver | None = None) -> None:
        async def answers(rundir: Path) -> None:
            pass

        patch.setattr(alive, "_switch_answers", answers)
        self.node = node
        self.driver = driver or FakeDriver(KINDS)
        self.interfaces: dict[str, Interface] = {}
        self._numbers: dict[str, int] = {}
        self.store = Store([cloud.etcd.endpoint], cloud.root)
        self.status = Status(self.store, node)
        self.state = State(node)
        self._changed: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.status.read()
        feed = Feed(self.store)
        loop = Loop(self.state, Engine(self.state, FEATURES), feed, self, self.status)  # type: ignore[arg-type]
        lane = Lane("all", [self.driver], self._progressed)
        loop.use(lane)
        parts = (feed.run(), self.status.run(), lane.run(), loop.run(), alive.run(self.store, self.node, Path()))
        self._tasks = [asyncio.create_task(part) for part in parts]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self.store.close()

    # The host, as the loop asks for it.
    def on_change(self, callback: Callable[[], None]) -> None:
        self._changed = callback

    async def host_facts(self) -> HostFacts:
        """What is plugged, and what the agent has made: every port of a bridge gets a number."""
        made = {
            str(key[2]): Interface(
                str(key[2]), str(key[1]), self._numbers.setdefault(str(key[2]), 1000 + len(self._numbers)), None, "", ""
            )
            for key in self.driver.there
            if key[0] == "ovs-port"
        }
        return HostFacts(self.interfaces | made, ("netdev",), "3.1.0", ())

    def _progressed(self) -> None:
        self._changed()

    def plug(self, port: str) -> None:
        number = len(self.interfaces) + 1
        self.interfaces[f"tap{number}"] = Interface(f"tap{number}", "br-int", number, port, "", "")
        self._changed()

    def has(self, object_id: str) -> bool:
        """Whether anything of the object is in the data plane: cookies of flows end with the digits of an id."""
        digits = object_id.replace("-", "")[-14:]
        return any(digits in format(getattr(item, "cookie", 0), "x") for item in self.driver.there.values())
