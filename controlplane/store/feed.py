"""Watches over one stream: a list and then every change after it, prefix by prefix.

Invariants:
- Lists are truth, events are hints. Each watched prefix gets a `Listed` (all keys at one revision) and then `Changed`
  batches in order of revision, each change once. After any loss of the stream every prefix is listed again; whoever
  consumes it compares with what it has and finds the deletions.
- The watch is opened first and listed after, and events up to the list's revision are dropped: a watch that starts in the
  past would wait for etcd's catch-up loop (100 ms), one that starts now does not.
- All changes of one revision come in one batch (etcd sends a revision's events of one watcher in one reply).
- A stream that says nothing for `SILENCE` seconds is dead: each has one watcher more, of a key that nobody writes, which asks
  for progress notifications; the server sends them every few seconds (--experimental-watch-progress-notify-interval).
- A member that is cut off from the others sends them as well, and knows of no change any more: streams ask for a leader, and
  such a member ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc.kv_pb2 import Event

from controlplane.errors import StoreRefused, StoreUnavailable
from controlplane.store import keys
from controlplane.store.client import REFUSED, Entry, Store, entry

SILENCE = 15.0
HEARTBEAT = keys.ROOT + "meta/heartbeat"
RETRY = 0.3
NEEDS_LEADER = (("hasleader", "true"),)  # gRPC metadata that etcd understands


@dataclass(frozen=True, slots=True)
class Listed:
    """Everything with this prefix, at one revision of one etcd cluster."""

    prefix: str
    revision: int
    entries: dict[str, Entry]
    cluster: int = 0


@dataclass(frozen=True, slots=True)
class Changed:
    """Changes of one batch, in order; None: the key is gone. revision: that of the last one; revisions: that of each."""

    prefix: str
    revision: int
    changes: Sequence[tuple[str, Entry | None]]
    revisions: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """The stream broke; every prefix will be listed again."""

    detail: str


Notice = Listed | Changed | Lost


class Feed:
    """Watches a set of prefixes that grows and shrinks. Notices come out of `notices`, one queue for all."""

    def __init__(self, store: Store, silence: float = SILENCE) -> None:
        self._store = store
        self._silence = silence
        self._wanted: dict[str, int] = {}
        self._prefixes: dict[int, str] = {}
        self._numbers = iter(range(1, 1 << 62))
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._lists: set[asyncio.Task[None]] = set()
        self._listed_at: dict[int, int] = {}
        self._early: dict[int, list[Any]] = {}
        self.notices: asyncio.Queue[Notice] = asyncio.Queue()

    def watch(self, prefix: str) -> None:
        """Begin to watch a prefix ("" is the whole store); nothing happens if it is watched."""
        if prefix not in self._wanted:
            self._begin(prefix)

    def _begin(self, prefix: str) -> None:
        self._wanted[prefix] = number = next(self._numbers)
        self._prefixes[number] = prefix
        self._requests.put_nowait(_create(prefix, number))

    def forget(self, prefix: str) -> None:
        """Stop watching. Notices already queued may still come."""
        number = self._wanted.pop(prefix, None)
        if number is not None:
            self._prefixes.pop(number, None)
            self._listed_at.pop(number, None)
            self._early.pop(number, None)
            self._requests.put_nowait(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=number)))

    async def run(self) -> None:
        """Serve until cancelled. Says `Lost` once for each broken stream, then begins anew."""
        try:
            while True:
                pause = RETRY
                try:
                    await self._stream()
                except (StoreUnavailable, grpc.aio.AioRpcError, TimeoutError) as error:
                    self.notices.put_nowait(Lost(_reason(error)))
                    pause = _pause(error)
                finally:
                    await self._stop_lists()
                await asyncio.sleep(pause)
        finally:
            await self._stop_lists()

    async def _stream(self) -> None:
        requests = self._requests = asyncio.Queue()
        self._listed_at.clear()
        self._early.clear()
        self._prefixes.clear()
        self._requests.put_nowait(_create(HEARTBEAT, next(self._numbers), progress=True))
        for prefix in self._wanted:
            self._begin(prefix)
        channel, watches = self._store.stream()
        call = watches.Watch(_sent(requests), metadata=NEEDS_LEADER)
        replies = aiter(call)
        try:
            while True:
                async with asyncio.timeout(self._silence):
                    reply = await anext(replies, None)
                if reply is None:
                    raise StoreUnavailable("the watch stream ended")
                self._received(reply)
        finally:
            call.cancel()
            requests.put_nowait(None)  # else what sends them would wait for ever
            await channel.close()

    def _received(self, reply: Any) -> None:
        if reply.canceled and (reply.watch_id < 0 or reply.cancel_reason.endswith(REFUSED)):
            # etcd 3.4 gives a watch that it refuses no number; 3.5 that which was asked for.
            raise StoreRefused(f"etcd at {self._store.endpoints} refuses a watch: {reply.cancel_reason}")
        prefix = self._prefixes.get(reply.watch_id)
        if prefix is None:
            return
        if reply.canceled:
            # Compacted, or refused: begin this stream again; a list follows.
            raise StoreUnavailable(f"watch of {prefix!r} was cancelled: {reply.cancel_reason or 'compacted'}")
        if reply.created:
            task = asyncio.create_task(self._list(prefix, reply.watch_id))
            self._lists.add(task)
            task.add_done_callback(self._lists.discard)
        if not reply.events:
            return
        listed_at = self._listed_at.get(reply.watch_id)
        if listed_at is None:
            self._early.setdefault(reply.watch_id, []).extend(reply.events)
        else:
            self._deliver(prefix, listed_at, reply.events)

    async def _list(self, prefix: str, number: int) -> None:
        entries: dict[str, Entry] = {}
        revision = 0
        try:
            async for at, kvs in self._store.pages(prefix):
                revision = at
                entries.update((kv.key.decode(), entry(kv)) for kv in kvs)
        except (StoreUnavailable, grpc.aio.AioRpcError) as error:
            # The stream's own loss follows; without it, ask for a new watch so that the prefix is listed after all.
            self.notices.put_nowait(Lost(_reason(error)))
            await asyncio.sleep(_pause(error))
            if self._wanted.get(prefix) == number:
                self.forget(prefix)
                self.watch(prefix)
            return
        cluster = self._store.cluster  # that of the last page, and so of all
        if self._wanted.get(prefix) != number:
            return
        self._listed_at[number] = revision
        self.notices.put_nowait(Listed(prefix, revision, entries, cluster))
        self._deliver(prefix, revision, self._early.pop(number, ()))

    def _deliver(self, prefix: str, listed_at: int, events: Sequence[Any]) -> None:
        new = [event for event in events if event.kv.mod_revision > listed_at]
        if new:
            changes = [(event.kv.key.decode(), entry(event.kv) if event.type == Event.PUT else None) for event in new]
            revisions = [event.kv.mod_revision for event in new]
            self.notices.put_nowait(Changed(prefix, revisions[-1], changes, revisions))

    async def _stop_lists(self) -> None:
        tasks = list(self._lists)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


class Compacted(Exception):
    """The store no longer knows what happened then."""


async def replay(store: Store, first: int, last: int) -> AsyncIterator[tuple[int, str, Entry | None, Entry | None]]:
    """(revision, key, before, after) of every change in [first, last], which has been. Raises Compacted, StoreUnavailable.

    It watches the whole key space: there every revision has an event, so the end is seen.
    """
    ended = asyncio.Event()

    async def requests() -> AsyncIterator[Any]:
        request = _create("", 1)
        request.create_request.start_revision = first
        request.create_request.prev_kv = True
        yield request
        await ended.wait()

    channel, watches = store.stream()
    call = watches.Watch(requests(), metadata=NEEDS_LEADER)
    replies = aiter(call)
    try:
        while True:
            async with asyncio.timeout(SILENCE):
                reply = await anext(replies, None)
            if reply is None:
                raise StoreUnavailable("the watch stream ended")
            if reply.compact_revision:
                raise Compacted
            if reply.canceled:
                raise StoreUnavailable(reply.cancel_reason)
            for event in reply.events:
                at = event.kv.mod_revision
                if at > last:
                    return
                old = entry(event.prev_kv) if event.HasField("prev_kv") else None
                yield at, event.kv.key.decode(), old, entry(event.kv) if event.type == Event.PUT else None
            # All events of one revision come in one reply.
            if reply.events and reply.events[-1].kv.mod_revision >= last:
                return
    except TimeoutError:
        raise StoreUnavailable("the store tells nothing of the past") from None
    except grpc.aio.AioRpcError as error:
        raise StoreUnavailable(_reason(error)) from error
    finally:
        ended.set()
        call.cancel()
        await channel.close()


async def _sent(requests: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    """Requests up to the first None."""
    while (request := await requests.get()) is not None:
        yield request


def _create(prefix: str, number: int, progress: bool = False) -> Any:
    return pb.WatchRequest(
        create_request=pb.WatchCreateRequest(
            key=prefix.encode() or b"\0", range_end=keys.end_of(prefix), watch_id=number, progress_notify=progress
        )
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return (error.details() or error.code().name).splitlines()[0]
    return str(error) or "nothing was heard for too long"


def _pause(error: BaseException) -> float:
    return max(RETRY, error.pause) if isinstance(error, StoreUnavailable) else RETRY
