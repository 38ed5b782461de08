"""What a node says of itself is written seldom, and at once when somebody waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from agent.reconcile import status
from agent.reconcile.status import Status
from controlplane.store import keys
from kumihimo.v1 import store_pb2
from tests.waiting import running, until


class Store:
    """An etcd that takes everything. of: what was written of a node, write by write."""

    cluster = 1

    def __init__(self) -> None:
        self._written: list[set[str]] = []

    async def transact(self, _: Sequence[Any], operations: Sequence[Any]) -> None:
        self._written.append({each["request_put"]["key"].decode() for each in operations})

    def of(self, node: str) -> list[set[str]]:
        return [written for written in self._written if all(key.startswith(keys.status(node)) for key in written)]


async def _another_is_heard(store: Store, node: str) -> None:
    """What a node has to say that has been silent is written: whoever had something to say before has had his turn."""
    said = Status(store, node)  # type: ignore[arg-type]
    async with running(said.run()):
        said.set(keys.agent_status(node), store_pb2.AgentStatus(version="1"))
        await until(lambda: store.of(node), "it is heard")


async def test_what_is_waited_for_does_not_wait_for_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "PAUSE", 3600.0)
    store = Store()
    said = Status(store, "h1")  # type: ignore[arg-type]
    first, second, third = (keys.port_status("h1", port) for port in ("p1", "p2", "p3"))
    async with running(said.run()):
        said.set(first, store_pb2.PortStatus(wired=True))
        await until(lambda: store.of("h1") == [{first}], "the first is written")
        said.set(second, store_pb2.PortStatus(wired=True))
        await _another_is_heard(store, "h2")
        assert store.of("h1") == [{first}], "the next waits"
        said.set(third, store_pb2.PortStatus(wired=False))
        said.hurry()
        await until(lambda: store.of("h1") == [{first}, {second, third}], "all that was set is written")
        said.set(second, store_pb2.PortStatus(wired=False))
        await _another_is_heard(store, "h3")
        assert store.of("h1") == [{first}, {second, third}], "and then there is a pause again"
        await said.flushed()
        assert store.of("h1") == [{first}, {second, third}, {second}]
