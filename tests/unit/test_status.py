"""What a node says of itself is written seldom, and at once when somebody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from agent.reconcile import status
from agent.reconcile.status import Status
from controlplane.store import keys
from kumihimo.v1 import store_pb2
from tests.waiting import running, until


class Store:
    """An etcd that takes everything."""

    cluster = 1

    def __init__(self) -> None:
        self.written: list[set[str]] = []

    async def transact(self, _: Sequence[Any], operations: Sequence[Any]) -> None:
        self.written.append({each["request_put"]["key"].decode() for each in operations})


async def _others() -> None:
    """Let all that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_is_waited_for_does_not_wait_for_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "PAUSE", 3600.0)
    store = Store()
    said = Status(store, "h1")  # type: ignore[arg-type]
    first, second, third = (keys.port_status("h1", port) for port in ("p1", "p2", "p3"))
    async with running(said.run()):
        said.set(first, store_pb2.PortStatus(wired=True))
        await until(lambda: store.written == [{first}], "the first is written")
        said.set(second, store_pb2.PortStatus(wired=True))
        await _others()
        assert store.written == [{first}], "the next waits"
        said.set(third, store_pb2.PortStatus(wired=False))
        said.hurry()
        await until(lambda: store.written == [{first}, {second, third}], "all that was set is written")
        said.set(second, store_pb2.PortStatus(wired=False))
        await _others()
        assert store.written == [{first}, {second, third}], "and then there is a pause again"
        await said.flushed()
        assert store.written == [{first}, {second, third}, {second}]
