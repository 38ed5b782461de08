"""Runs a controller in the one replica that holds its lease.

The key `controller/{name}` is leased and created only when absent. A holder renews at a third of the lease's time; when a
renewal has not been confirmed for the whole of it on the local clock, it stops at once: by then another may have begun.
The key says which process holds it. One that was killed is not there any more: who finds that on its own host, as the server
does that systemd starts in its place, takes the key away and waits for no lease.
Whatever a controller writes is a guarded transaction, so a late write of an old holder cannot undo a new one's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import islice
from typing import Protocol

import structlog

from controlplane import process
from controlplane.errors import ApiError, StoreUnavailable
from controlplane.progress import Progress
from controlplane.store import client, keys
from controlplane.store.cache import Cache
from controlplane.store.client import Entry, Store
from controlplane.store.commit import Committer

TTL = 4  # seconds

_log = structlog.get_logger("kumihimo.controller")


class Elected(Protocol):
    """What runs in one replica. `run` works until cancelled; StoreUnavailable and ApiError mean that all begins anew."""

    @property
    def name(self) -> str: ...

    @property
    def store(self) -> Store: ...

    @property
    def cache(self) -> Cache: ...

    async def run(self) -> object: ...


class Controller(ABC):
    """Works off marks: `changed` looks at each change of the store and marks what it concerns, `work` sees to the marked.

    At the start everything in the store counts as changed, so a controller needs no memory of its predecessor.
    """

    name: str
    batch = 200  # marks handed to one call of work

    def __init__(self, committer: Committer, progress: Progress) -> None:
        self.committer = committer
        self.store = committer.store
        self.cache = committer.cache
        self.progress = progress
        self._marked: dict[str, None] = {}
        self._woken = asyncio.Event()

    @abstractmethod
    def changed(self, key: str, new: Entry | None) -> None:
        """A key has come, changed, or (None) gone: mark what that concerns. Must not raise."""

    @abstractmethod
    async def work(self, marks: list[str]) -> None:
        """See to what was marked. May raise ApiError or StoreUnavailable: then all begins anew."""

    async def leftovers(self) -> Iterable[str]:
        """Marks of what no key of the store tells of, asked at the start. May raise StoreUnavailable."""
        return ()

    def mark(self, what: str) -> None:
        self._marked[what] = None
        self._woken.set()

    async def run(self) -> None:
        """Work until cancelled."""
        self._marked.clear()
        self.cache.observe(self._observe)
        try:
            for mark in await self.leftovers():
                self.mark(mark)
            while True:
                await self._woken.wait()
                self._woken.clear()
                while self._marked:
                    marks = list(islice(self._marked, self.batch))
                    for mark in marks:
                        del self._marked[mark]
                    await self.work(marks)
        finally:
            self.cache.forget(self._observe)

    def _observe(self, key: str, old: Entry | None, new: Entry | None) -> None:
        self.changed(key, new)


class Lost(Exception):
    """The lease is gone, or may be."""


async def run(controller: Elected, replica: str) -> None:
    """Campaign for a controller and run it while it is ours; for ever. replica: as `process.this` names it."""
    store, cache = controller.store, controller.cache
    key = keys.controller(controller.name)
    log = _log.bind(controller=controller.name)
    while True:
        try:
            await _absent(store, cache, key)
            lease = await store.grant(TTL)
            confirmed = time.monotonic()
            try:
                written = await store.transact([client.created_at(key, 0)], [client.put(key, replica.encode(), lease=lease)])
                if written.succeeded:
                    log.info("holding", fence=written.revision)
                    await _hold(controller, store, lease, confirmed)
            finally:
                # Gives the place to another replica at once when we stop in an orderly way.
                with contextlib.suppress(StoreUnavailable):
                    await store.revoke(lease)
        except (StoreUnavailable, ApiError, Lost) as error:
            log.warning("released", detail=str(error))
            await asyncio.sleep(TTL / 8)


async def _absent(store: Store, cache: Cache, key: str) -> None:
    """Wait until nobody holds a controller."""
    looked_at = ""
    while (entry := cache.get(key)) is not None:
        holder = entry.value.decode(errors="replace")
        # What a store says of nodes that was restored just now is old: they have the time of the lease to speak.
        if holder != looked_at and process.has_ended(holder) and cache.get(keys.RESTORED) is None:
            written = await store.transact([client.modified_at(key, entry.mod_revision)], [client.delete(key)])
            await cache.reach(written.revision)
        else:
            looked_at = holder
            await cache.moved()


async def _hold(controller: Elected, store: Store, lease: int, confirmed: float) -> None:
    work = asyncio.create_task(controller.run())
    cluster = store.cluster
    try:
        while True:
            done, _ = await asyncio.wait([work], timeout=TTL / 3)
            if done:
                work.result()
                return
            asked = time.monotonic()
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + TTL / 3):
                    if not await store.keep_alive(lease):
                        raise Lost("the lease ran out")
                    if store.cluster != cluster:
                        raise Lost("the store was restored; what the lease stood for may not be there")
                confirmed = asked
            except (StoreUnavailable, TimeoutError):
                if time.monotonic() - confirmed > TTL * 2 / 3:
                    raise Lost("the lease could not be renewed") from None
    finally:
        work.cancel()
        # Not `await work`, with its CancelledError suppressed: that would swallow our own as well, and we could not be stopped.
        await asyncio.wait([work])
