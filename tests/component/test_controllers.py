"""Who runs a controller: one replica at a time, and after one that was killed the next on its host at once."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from controlplane import process
from controlplane.controllers import runner
from controlplane.store import client, keys
from controlplane.store.cache import Cache
from controlplane.store.client import Store
from tests.waiting import running, until

KEY = keys.controller("idle")
LONG = 600  # seconds of a lease that nobody waits for


@dataclass
class Idle:
    """A controller that has nothing to do."""

    store: Store
    cache: Cache
    name: str = "idle"

    async def run(self) -> None:
        await asyncio.Event().wait()


def other() -> tuple[subprocess.Popen[bytes], str]:
    """A process of this host, and its name as it would say it itself."""
    started = subprocess.Popen(["sleep", "infinity"], stdin=subprocess.DEVNULL)
    host, _, _, *around = process.this().split(" ")
    since = Path(f"/proc/{started.pid}/stat").read_text().rpartition(")")[2].split()[19]
    return started, " ".join([host, str(started.pid), since, *around])


@pytest.mark.parametrize("reaped", [True, False])
async def test_a_killed_holder_is_followed_at_once_and_one_that_lives_is_not(store: Store, reaped: bool) -> None:
    holder, name = other()
    cache = Cache(store)
    try:
        await store.transact([], [client.put(KEY, name.encode(), await store.grant(LONG))])
        async with running(cache.run()):
            await cache.ready.wait()

            async def held_by(text: str) -> bool:
                entry = await store.get(KEY)
                return entry is not None and entry.value.decode() == text

            async with running(runner.run(Idle(store, cache), process.this())):
                for turn in range(20):
                    await cache.reach((await store.transact([], [client.put("/turn", str(turn).encode())])).revision)
                assert await held_by(name)
            holder.kill()
            if reaped:
                holder.wait()
            await cache.reach((await store.transact([], [client.put(keys.RESTORED, b"")])).revision)
            async with running(runner.run(Idle(store, cache), process.this())):
                for turn in range(20):
                    await cache.reach((await store.transact([], [client.put("/turn", str(turn).encode())])).revision)
                assert await held_by(name), "nodes have not had the time to speak"
            await cache.reach((await store.transact([], [client.delete(keys.RESTORED)])).revision)
            async with running(runner.run(Idle(store, cache), process.this())):
                await until(lambda: held_by(process.this()), "the next one holds it")
    finally:
        holder.kill()
        holder.wait()


def test_of_what_cannot_be_known_nobody_is_said_to_have_ended() -> None:
    host, pid, started, space, boot = process.this().split(" ")
    assert not process.has_ended(process.this())
    assert process.has_ended(f"{host} {pid} {int(started) + 1} {space} {boot}"), "its pid is another's now"
    for name in (
        "",
        f"{host}-{pid}",
        f"{host} {pid}",
        f"{host} x {started} {space} {boot}",
        f"{host} {pid} {int(started) + 1} {space}1 {boot}",
        f"{host} {pid} {int(started) + 1} {space} {boot[::-1]}",
    ):
        assert not process.has_ended(name), name
