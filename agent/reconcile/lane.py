"""A lane: a sequence of drivers that makes one part of the host equal to what is desired, at its own pace.

Invariants:
- Nothing is applied before `start`, which is called once the mirror is complete; what is there until then stays.
- At start, and after anything that makes the actual state unknown (a lost connection), the lane reads back what is ours
  and works off the difference. It never clears and adds.
- When a driver says that somebody else may have changed something (`Watched.changed`), its kinds alone are read back. What
  differs then from what was applied is drift: noted, and put right unless the node only reports.
- What is there is kept only where it is not what is desired: of ten thousand flows that are as they should be, nothing.
- One failed key backs off alone, and never stops another; nor does a driver whose part of the host cannot be reached.
- `finished` is the number of the last submission whose consequences are all in the data plane, failures apart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from agent.faults import point
from agent.model.item import Driver, Failure, Item, Key, Watched
from agent.reconcile.drift import Drifts

FIRST_RETRY = 0.5
LAST_RETRY = 30.0
RECONNECT = 0.2
# Between two readings back that others cause, in seconds and in the time that the last one took: whoever changes
# something over and over costs us a twentieth of a core.
AUDIT_PAUSE = 0.5
AUDIT_SHARE = 20

_NONE: frozenset[str] = frozenset()

T = TypeVar("T", bound=Item)

_log = structlog.get_logger("kumihimo.agent")


@dataclass(slots=True, eq=False)
class _Part:
    """What one driver is to make real, and where it is not so."""

    driver: Driver
    desired: dict[Key, Item] = field(default_factory=dict)
    differs: dict[Key, Item | None] = field(default_factory=dict)  # what is there in place of what is desired; None: nothing
    unknown: bool = True  # what the driver has applied is not known, and must be read back
    audited: bool = False  # somebody else may have changed it
    reading: float = 0.0  # seconds that it took last

    def want(self, key: Key, item: Item | None) -> None:
        """What is desired of a key now."""
        there = self.differs[key] if key in self.differs else self.desired.get(key)
        if item is None:
            self.desired.pop(key, None)
        else:
            self.desired[key] = item
        self.note(key, there)

    def note(self, key: Key, there: Item | None) -> None:
        """What is there of a key now."""
        if there == self.desired.get(key):
            self.differs.pop(key, None)
        else:
            self.differs[key] = there


@dataclass(slots=True)
class _Failed:
    failure: Failure
    delay: float
    again_at: float


class Lane:
    """See the module. drivers in the order in which their kinds are put; they are removed in the reverse one."""

    def __init__(
        self,
        name: str,
        drivers: Sequence[Driver],
        progressed: Callable[[], None],
        settle: Callable[[], Awaitable[None]] | None = None,
        lost: Callable[[], Awaitable[None]] | None = None,
        drifts: Drifts | None = None,
        scopes: Callable[[Key], frozenset[str]] = lambda _: _NONE,
    ) -> None:
        """progressed: called after each pass. settle: waits until what was applied is in force. lost: returns when the
        actual state has become unknown, so that it is read back although nothing new is desired. drifts: where it is
        noted what others changed. scopes: those that want a key."""
        self.name = name
        self._parts = [_Part(driver) for driver in drivers]
        self._kinds: dict[Hashable, _Part] = {kind: part for part in self._parts for kind in part.driver.kinds}
        self._progressed = progressed
        self._settle = settle
        self._lost = lost
        self._drifts = drifts
        self._wanting = scopes
        self._sparing = False  # what nobody desires stays
        self._unsettled = True  # what is applied may not be in force yet
        self._scopes: dict[Key, frozenset[str]] = {}  # of what has been submitted and not applied: whom it concerns
        self._failed: dict[Key, _Failed] = {}
        self._submitted = 0
        self._started = asyncio.Event()
        self._woken = asyncio.Event()
        self._told = ""
        self.finished = 0

    def submit(self, number: int, put: Mapping[Key, Item], delete: set[Key], scopes: Mapping[Key, frozenset[str]]) -> None:
        """State what has changed in what is desired. Keys of other lanes' kinds are passed over."""
        changes: list[tuple[Key, Item | None]] = [*put.items(), *((key, None) for key in delete)]
        for key, item in changes:
            if (part := self._kinds.get(key[0])) is not None:
                part.want(key, item)
                known, told = self._scopes.get(key, _NONE), scopes.get(key, _NONE)
                self._scopes[key] = told if known <= told else known | told  # nearly always the engine's own
                if key in self._failed:
                    self._failed[key].again_at = 0.0
        self._submitted = number
        self._woken.set()

    def start(self, *, sparing: bool = False) -> None:
        """From now on apply, and remove what is ours and not desired. sparing: leave what was never desired; until the
        next start."""
        if self._sparing and not sparing:
            self.unsettle()
        self._sparing = sparing
        self._started.set()

    def as_wanted(self, item: T) -> T:
        """The desired item, where the given one equals it: in a large cloud there are many, and each is to be kept once."""
        wanted = self._kinds[item.key[0]].desired.get(item.key)
        return wanted if wanted is not None and wanted == item else item

    def failures(self) -> dict[str, dict[Key, Failure]]:
        """What fails, by scope."""
        found: dict[str, dict[Key, Failure]] = {}
        for key, failed in self._failed.items():
            for scope in self._scopes.get(key) or self._wanting(key) or {""}:
                found.setdefault(scope, {})[key] = failed.failure
        return found

    async def run(self) -> None:
        """Work until cancelled."""
        await self._started.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._work())
            if self._lost is not None:
                group.create_task(self._watch(self._lost))
            for part in self._parts:
                if isinstance(part.driver, Watched):
                    group.create_task(self._audit(part, part.driver.changed))

    async def _watch(self, lost: Callable[[], Awaitable[None]]) -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                await lost()
            self.unsettle()
            await asyncio.sleep(RECONNECT)

    async def _audit(self, part: _Part, changed: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await changed()
            except OSError:  # `lost` is told of it, or the reading back is
                await asyncio.sleep(RECONNECT)
                continue
            part.audited = True
            self._woken.set()
            await asyncio.sleep(max(AUDIT_PAUSE, AUDIT_SHARE * part.reading))

    async def _work(self) -> None:
        while True:
            await self._wait()
            try:
                await self._pass()
            except Exception as error:
                # The top of the loop. What was under way is unknown now, and is read back before anything else.
                if not isinstance(error, OSError):  # what is not the host's doing is a defect of ours
                    _log.exception("defect", lane=self.name)
                detail = str(error) or type(error).__name__
                if detail != self._told:
                    _log.warning("data plane not reachable", lane=self.name, detail=detail)
                self._told = detail
                await asyncio.sleep(RECONNECT)
                self._woken.set()

    def unsettle(self) -> None:
        """The actual state is not known any more: read all of it back at the next pass."""
        for part in self._parts:
            part.unknown = True
        self._woken.set()

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        again = min((failed.again_at for failed in self._failed.values()), default=None)
        try:
            async with asyncio.timeout_at(None if again is None else max(again, loop.time())):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    async def _pass(self) -> None:
        number = self._submitted
        errors: list[Exception] = []
        for part in self._parts:
            if part.unknown or part.audited:
                try:
                    await self._read(part)
                except Exception as error:
                    part.unknown = True
                    errors.append(error)
        now = asyncio.get_running_loop().time()
        waiting = {key for key, failed in self._failed.items() if failed.again_at > now}
        work = [_work_of(part, waiting) for part in self._parts]
        if any(put or delete for put, delete in work):
            self._unsettled = True
            errors += await self._apply(work)
        self._forget()
        if errors:
            raise errors[0]
        if self._unsettled and self._settle is not None:
            try:
                await self._settle()
            except Exception:
                self.unsettle()
                raise
        self._unsettled = False
        self.finished = number
        self._told = ""
        self._progressed()

    async def _read(self, part: _Part) -> None:
        """Read back what is there of a driver's kinds, and note what of it is not as desired."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        driver = part.driver
        owned = await driver.read_owned()
        foreign = {item.key: item for item in await driver.read_foreign()} if isinstance(driver, Watched) else {}
        known, part.unknown, part.audited = not part.unknown, False, False
        differs: dict[Key, Item | None] = {
            key: item
            for key, item in owned.items()
            if (wanted := part.desired.get(key)) is not item and wanted != item and not (self._sparing and wanted is None)
        }
        differs.update((key, None) for key in part.desired.keys() - owned.keys())
        if self._drifts is not None:
            if known:
                self._note_drift(part, differs, foreign)
            # What took the place of ours is put out of it.
            self._drifts.foreign(driver.kinds, [item for key, item in foreign.items() if key not in part.desired])
        part.differs = differs
        part.reading = loop.time() - began

    def _note_drift(self, part: _Part, differs: dict[Key, Item | None], foreign: Mapping[Key, Item]) -> None:
        """Note what somebody else has changed. Where the node only reports, it is then taken for what was applied."""
        if self._drifts is None:
            return
        for key, there in list(differs.items()):
            if key in part.differs or key in self._failed:
                continue  # we are about to change it
            if not self._drifts.found(part.desired.get(key), there or foreign.get(key)):
                del differs[key]

    async def _apply(self, work: Sequence[tuple[Sequence[Item], Sequence[Item]]]) -> list[Exception]:
        """Apply what each part has to put and to delete; the errors of drivers whose part is unknown now."""
        errors: list[Exception] = []

        async def apply(part: _Part, put: Sequence[Item], delete: Sequence[Item]) -> None:
            if not (put or delete):
                return
            point("lane: before a driver")
            try:
                self._note(part, put, delete, await part.driver.apply(put, delete))
            except Exception as error:
                part.unknown = True
                errors.append(error)

        if len(self._parts) == 1:
            # Flows and groups of one batch go together: lookups must see all of it or nothing.
            await apply(self._parts[0], *work[0])
            return errors
        for part, (put, _) in zip(self._parts, work, strict=True):
            await apply(part, put, [])
        for part, (_, delete) in zip(reversed(self._parts), reversed(work), strict=True):
            if not part.unknown:
                await apply(part, [], delete)
        return errors

    def _note(self, part: _Part, put: Sequence[Item], delete: Sequence[Item], failures: Mapping[Key, Failure]) -> None:
        now = asyncio.get_running_loop().time()
        done: list[tuple[Key, Item | None]] = [*((item.key, item) for item in put), *((item.key, None) for item in delete)]
        for key, there in done:
            failure = failures.get(key)
            if failure is None:
                self._failed.pop(key, None)
                part.note(key, there)
                continue
            before = self._failed.get(key)
            delay = min(before.delay * 2, LAST_RETRY) if before else FIRST_RETRY
            self._failed[key] = _Failed(failure, delay, now + delay)
            _log.warning("not applied", item=str(key), reason=failure.reason, detail=failure.message)
            if there is not None:
                # It may be there in part; not equal to anything, so that it is put again.
                part.note(key, None)

    def _forget(self) -> None:
        """Whom it concerns, and why it failed, is of no interest once a thing is as desired. What was large is made anew: a
        dict does not shrink."""
        for part in self._parts:
            part.differs = dict(part.differs)
        self._scopes = {key: scopes for key, scopes in self._scopes.items() if key in self._kinds[key[0]].differs}
        self._failed = {key: failed for key, failed in self._failed.items() if key in self._kinds[key[0]].differs}


def _work_of(part: _Part, waiting: set[Key]) -> tuple[list[Item], list[Item]]:
    """What a part has to put and to delete; nothing while it is not known what is there."""
    keys = [] if part.unknown else [key for key in part.differs if key not in waiting]
    put = [part.desired[key] for key in keys if key in part.desired]
    return put, [there for key in keys if key not in part.desired and (there := part.differs[key]) is not None]
