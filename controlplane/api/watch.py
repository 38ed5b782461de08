"""Watch: each change of an object once, in order of revision, to everybody who asked for it.

- The hub hears every change from the cache, keeps the last ones, and gives each to the channels that it concerns. A channel
  is one question (kind, project, filter); all who ask the same share it, so an event is made and serialized once.
- A subscription is a bounded queue. Who takes too long is told where to resume (WATCH_TOO_SLOW), and nobody waits for him.
- A watch that begins in the past reads the changes since from what the hub has kept, or else from etcd; so it survives a
  restart of the API. When the cache itself had to list anew, every watch does the same from where it stands: a list shows
  what is, not what was.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from controlplane.api import filtering
from controlplane.api.crud import current, refuse_foreign_project
from controlplane.api.output import Output
from controlplane.api.pace import paced
from controlplane.api.past import compacted, in_future
from controlplane.errors import StoreUnavailable, exhausted, fault, unavailable
from controlplane.identity import Caller
from controlplane.registry import Kind
from controlplane.services import kernel
from controlplane.services.base import Context
from controlplane.store import keys
from controlplane.store.cache import Cache, parse
from controlplane.store.client import Entry, Store
from controlplane.store.feed import Compacted, replay
from controlplane.store.txn import Origin
from kumihimo.v1 import resource_pb2

KEPT = 5_000  # changes that a watch can resume from without asking etcd
LONGEST_QUEUE = 2_000  # events that wait for one client
WATCHES = 100  # of one caller, in one process
BOOKMARK = 30.0  # seconds
SHORTEST_BOOKMARK = 1.0


@dataclass(frozen=True, slots=True)
class Happened:
    """One change of one object."""

    revision: int
    kind: Kind
    key: str
    old: Entry | None
    new: Entry | None


@dataclass(frozen=True, slots=True)
class Question:
    """What a watch asks for. project: "" for all."""

    kind: Kind
    project: str
    filter: str
    previous: bool
    operator: bool


@dataclass(eq=False, slots=True)
class Subscription:
    """Events on their way to one client, (revision, serialized), from after `since`. told: how far he has been told."""

    since: int
    told: int
    waiting: deque[tuple[int, bytes]] = field(default_factory=deque)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    too_slow: bool = False
    interrupted: bool = False

    def tell(self, revision: int, event: bytes) -> None:
        if len(self.waiting) >= LONGEST_QUEUE:
            self.too_slow = True
        else:
            self.waiting.append((revision, event))
        self.woken.set()

    def interrupt(self) -> None:
        """What comes after is not known from here on."""
        self.interrupted = True
        self.woken.set()


class Channel:
    """One question and who asks it."""

    def __init__(self, question: Question, cache: Cache, output: Output) -> None:
        self.question = question
        self._cache = cache
        self._output = output
        self._caller = Caller("", question.project, 4 if question.operator else 1)  # type: ignore[arg-type]
        self._accepts = filtering.predicate(question.kind, question.filter) if question.filter else None
        self._event = question.kind.reply("Watch")
        self.subscriptions: set[Subscription] = set()

    def told(self, kind: int, revision: int, message: Any = None, previous: Any = None) -> bytes:
        """An event, serialized."""
        event = self._event(type=kind, revision=revision)
        if message is not None:
            event.resource.CopyFrom(self._filled(message))
        if previous is not None and self.question.previous:
            event.previous.CopyFrom(self._filled(previous))
        return bytes(event.SerializeToString())

    def accepts(self, message: Any) -> bool:
        if self.question.project and message.project_id != self.question.project:
            return False
        return self._accepts is None or self._accepts(self._filled(message))

    def event(self, change: Happened) -> bytes | None:
        """The event of a change; None when it does not concern the question."""
        old = parse(change.kind, change.old) if change.old else None
        new = parse(change.kind, change.new) if change.new else None
        before, after = old is not None and self.accepts(old), new is not None and self.accepts(new)
        if after:
            known = resource_pb2.EVENT_TYPE_UPDATED if before else resource_pb2.EVENT_TYPE_ADDED
            return self.told(known, change.revision, new, old if before else None)
        return self.told(resource_pb2.EVENT_TYPE_DELETED, change.revision, old) if before else None

    def _filled(self, message: Any) -> Any:
        return self._output.fill(kernel.copy(message), self._caller)


class Hub:
    """See the module."""

    def __init__(self, store: Store, cache: Cache, output: Output) -> None:
        self._store = store
        self._cache = cache
        self._output = output
        self._kept: deque[Happened] = deque(maxlen=KEPT)
        self._since = cache.revision
        self._channels: dict[Question, Channel] = {}
        self._asked: dict[tuple[str, str], set[Channel]] = {}
        # An observer is first told of all that is there.
        self._hears = False
        cache.observe(self._changed)
        self._hears = True
        cache.relisted.append(self._relisted)

    def _changed(self, key: str, old: Entry | None, new: Entry | None) -> None:
        if self._cache.listing or not self._hears:
            return
        found = keys.resource(key)
        if found is None:
            return
        change = Happened(self._cache.changing, found[0], key, old, new)
        if len(self._kept) == KEPT:
            self._since = self._kept[0].revision
        self._kept.append(change)
        entry = new or old
        project = self._cache.parsed(change.kind, key, entry).project_id if change.kind.owned and entry else ""
        for name in {"", project}:
            for channel in self._asked.get((change.kind.name, name), ()):
                event = channel.event(change)
                if event is not None:
                    for subscription in channel.subscriptions:
                        subscription.tell(change.revision, event)

    def _relisted(self, revision: int) -> None:
        self._kept.clear()
        self._since = revision
        for channel in self._channels.values():
            for subscription in channel.subscriptions:
                subscription.interrupt()

    @contextlib.contextmanager
    def subscribed(self, question: Question) -> Iterator[tuple[Channel, Subscription]]:
        """Hear what happens from now on."""
        channel = self._channels.get(question)
        if channel is None:
            channel = self._channels[question] = Channel(question, self._cache, self._output)
            self._asked.setdefault((question.kind.name, question.project), set()).add(channel)
        subscription = Subscription(self._cache.revision, self._cache.revision)
        channel.subscriptions.add(subscription)
        try:
            yield channel, subscription
        finally:
            channel.subscriptions.discard(subscription)
            if not channel.subscriptions and self._channels.get(question) is channel:
                del self._channels[question]
                place = question.kind.name, question.project
                self._asked[place].discard(channel)
                if not self._asked[place]:
                    del self._asked[place]  # anybody may ask for projects that are not there

    async def between(self, kind: Kind, after: int, until: int) -> AsyncIterator[Happened]:
        """What happened to a kind after one revision and up to another. Raises REVISION_COMPACTED."""
        if after >= until:
            return
        if after >= self._since:
            async for change in paced(list(self._kept)):
                if after < change.revision <= until and change.kind is kind:
                    yield change
            return
        try:
            async for revision, key, old, new in replay(self._store, after + 1, until):
                found = keys.resource(key)
                if found is not None and found[0] is kind:
                    yield Happened(revision, kind, key, old, new)
        except Compacted:
            raise compacted(after) from None
        except StoreUnavailable as error:
            raise unavailable(error) from error


class Watch:
    """The method `Watch` of one kind. What it yields is serialized."""

    def __init__(self, kind: Kind, hub: Hub, cache: Cache, watches: Counter[str]) -> None:
        self._kind = kind
        self._hub = hub
        self._cache = cache
        self._watches = watches

    async def watch(self, request: Any, context: Context, origin: Origin) -> AsyncIterator[bytes]:
        caller = context.caller
        question = self._question(request, caller)
        pause = _pause(request)
        await current(self._cache)
        if request.start_revision > self._cache.revision:
            raise in_future(request.start_revision, self._cache.revision)
        if self._watches[caller.identity] >= WATCHES:
            raise exhausted("RATE_LIMITED", f"{caller.identity} has {WATCHES} watches here; end one first")
        self._watches[caller.identity] += 1
        try:
            told, cluster = request.start_revision or self._cache.revision, self._cache.cluster
            if request.include_initial:
                with self._hub.subscribed(question) as (channel, subscription):
                    async for event in self._initial(channel, subscription.since):
                        yield event
                    told = subscription.since
            while True:
                with self._hub.subscribed(question) as (channel, subscription):
                    if self._cache.cluster != cluster:  # restored from a backup: what was told may never have been
                        raise in_future(told, subscription.since)
                    async for change in self._hub.between(self._kind, told, subscription.since):
                        past = channel.event(change)
                        if past is not None:
                            yield past
                            told = change.revision
                    async for event in self._live(channel, subscription, pause):
                        yield event
                    told = subscription.told
        finally:
            self._watches[caller.identity] -= 1

    def _question(self, request: Any, caller: Caller) -> Question:
        refuse_foreign_project(request.project_id, caller)
        filtering.predicate(self._kind, request.filter)
        if request.include_initial and request.start_revision:
            raise fault("include_initial", "FIELDS_EXCLUSIVE", "include_initial and start_revision exclude each other")
        if request.start_revision < 0:
            raise fault("start_revision", "VALUE_OUT_OF_RANGE", "start_revision: 0 (now) or a revision is accepted")
        project = request.project_id or ("" if caller.is_operator else caller.project)
        return Question(
            self._kind,
            project if self._kind.owned else "",
            request.filter,
            request.include_previous,
            caller.is_operator,
        )

    async def _initial(self, channel: Channel, revision: int) -> AsyncIterator[bytes]:
        # Taken now: while others have their turn the cache moves on, and what comes after this revision is told as events.
        entries = self._cache.entries(self._kind, channel.question.project)
        async for key, entry in paced(entries):
            message = self._cache.parsed(self._kind, key, entry)
            if channel.accepts(message):
                yield channel.told(resource_pb2.EVENT_TYPE_INITIAL, revision, message)
        yield channel.told(resource_pb2.EVENT_TYPE_BOOKMARK, revision)

    async def _live(self, channel: Channel, subscription: Subscription, pause: float) -> AsyncIterator[bytes]:
        """Events as they happen, until the subscription is interrupted."""
        while True:
            while subscription.waiting:
                subscription.told, event = subscription.waiting.popleft()
                yield event
            if subscription.too_slow:
                plural, told = self._kind.options.plural, subscription.told
                text = f"the watch of {plural} fell too far behind; resume it from revision {told}"
                raise exhausted("WATCH_TOO_SLOW", text, revision=str(told))
            if subscription.interrupted:
                return
            subscription.woken.clear()
            try:
                async with asyncio.timeout(pause):
                    await subscription.woken.wait()
            except TimeoutError:
                subscription.told = max(subscription.told, self._cache.revision)
                yield channel.told(resource_pb2.EVENT_TYPE_BOOKMARK, subscription.told)


def _pause(request: Any) -> float:
    if not request.HasField("bookmark_interval"):
        return BOOKMARK
    try:
        seconds = request.bookmark_interval.ToMilliseconds() / 1000
    except (ValueError, OverflowError):
        seconds = 0.0
    if seconds < SHORTEST_BOOKMARK:
        raise fault(
            "bookmark_interval", "VALUE_OUT_OF_RANGE", f"bookmark_interval: {SHORTEST_BOOKMARK:g} s or more is accepted"
        )
    return float(seconds)
