"""A lane: a sequence of drivers that makes one part of the host equal to what is desired, at its own pace.

Invariants:
- Nothing is applied before `start`, which is called once the mirror is complete; what is there until then stays.
- At start, and after anything that makes the actual state unknown (a lost connection), the lane reads back what is ours
  and works off the difference. It never clears and adds.
- When a driver says that somebody else may have changed something (`Watched.changed`), its kinds alone are read back. What
  differs then from what was applied is drift: noted, and put right unless the node only reports.
- One failed key backs off alone, and never stops another; nor does a driver whose part of the host cannot be reached.
- `finished` is the number of the last submission whose consequences are all in the data plane, failures apart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
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
    ) -> None:
        """progressed: called after each pass. settle: waits until what was applied is in force. lost: returns when the
        actual state has become unknown, so that it is read back although nothing new is desired. drifts: where it is
        noted what others changed."""
        self.name = name
        self._drivers = drivers
        self._kinds = {kind: driver for driver in drivers for kind in driver.kinds}
        self._progressed = progressed
        self._settle = settle
        self._lost = lost
        self._drifts = drifts
        self._desired: dict[Key, Item] = {}
        self._applied: dict[Key, Item] = {}
        self._unknown: set[Driver] = set(drivers)  # what they have applied is not known, and must be read back
        self._audited: set[Driver] = set()  # somebody else may have changed it
        self._reading: dict[Driver, float] = {}  # seconds that it took last
        self._sparing = False  # what nobody desires stays
        self._unsettled = True  # what is applied may not be in force yet
        self._scopes: dict[Key, frozenset[str]] = {}
        self._dirty: set[Key] = set()
        self._failed: dict[Key, _Failed] = {}
        self._submitted = 0
        self._started = asyncio.Event()
        self._woken = asyncio.Event()
        self._told = ""
        self.finished = 0

    def submit(self, number: int, put: Mapping[Key, Item], delete: set[Key], scopes: Mapping[Key, frozenset[str]]) -> None:
        """State what has changed in what is desired. Keys of other lanes' kinds are passed over."""
        for key, item in put.items():
            if key[0] in self._kinds:
                self._desired[key] = item
                self._mark(key, scopes)
        for key in delete:
            if key[0] in self._kinds:
                self._desired.pop(key, None)
                self._mark(key, scopes)
        self._submitted = number
        self._woken.set()

    def _mark(self, key: Key, scopes: Mapping[Key, frozenset[str]]) -> None:
        self._dirty.add(key)
        known, told = self._scopes.get(key, _NONE), scopes.get(key, _NONE)
        self._scopes[key] = told if known <= told else known | told  # nearly always the one object that the engine has of it
        failed = self._failed.get(key)
        if failed is not None:
            failed.again_at = 0.0

    def start(self, *, sparing: bool = False) -> None:
        """From now on apply, and remove what is ours and not desired. sparing: leave what was never desired; until the
        next start."""
        if self._sparing and not sparing:
            self.unsettle()
        self._sparing = sparing
        self._started.set()

    def as_wanted(self, item: T) -> T:
        """The desired item, where the given one equals it: in a large cloud there are many, and each is to be kept once."""
        wanted = self._desired.get(item.key)
        return wanted if wanted is not None and wanted == item else item

    def failures(self) -> dict[str, dict[Key, Failure]]:
        """What fails, by scope."""
        found: dict[str, dict[Key, Failure]] = {}
        for key, failed in self._failed.items():
            for scope in self._scopes.get(key) or {""}:
                found.setdefault(scope, {})[key] = failed.failure
        return found

    async def run(self) -> None:
        """Work until cancelled."""
        await self._started.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._work())
            if self._lost is not None:
                group.create_task(self._watch(self._lost))
            for driver in self._drivers:
                if isinstance(driver, Watched):
                    group.create_task(self._audit(driver, driver.changed))

    async def _watch(self, lost: Callable[[], Awaitable[None]]) -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                await lost()
            self.unsettle()
            await asyncio.sleep(RECONNECT)

    async def _audit(self, driver: Driver, changed: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await changed()
            except OSError:  # `lost` is told of it, or the reading back is
                await asyncio.sleep(RECONNECT)
                continue
            self._audited.add(driver)
            self._woken.set()
            await asyncio.sleep(max(AUDIT_PAUSE, AUDIT_SHARE * self._reading.get(driver, 0.0)))

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
        self._unknown.update(self._drivers)
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
        for driver in self._drivers:
            if driver in self._unknown or driver in self._audited:
                try:
                    await self._read(driver)
                except Exception as error:
                    self._unknown.add(driver)
                    errors.append(error)
        now = asyncio.get_running_loop().time()
        waiting = {key for key, failed in self._failed.items() if failed.again_at > now}
        unreachable = {kind for driver in self._unknown for kind in driver.kinds}
        keys = {key for key in self._dirty | self._failed.keys() if key not in waiting and key[0] not in unreachable}
        self._dirty -= keys
        put = [self._desired[key] for key in keys if key in self._desired and self._applied.get(key) != self._desired[key]]
        delete = [self._applied[key] for key in keys if key not in self._desired and key in self._applied]
        if put or delete:
            self._unsettled = True
            errors += await self._apply(put, delete)
        for key in keys - {item.key for item in [*put, *delete]}:
            self._failed.pop(key, None)
            self._forget(key)
        if errors:
            raise errors[0]
        if self._unsettled and self._settle is not None:
            try:
                await self._settle()
            except Exception:
                self._unknown.update(self._drivers)
                raise
        self._unsettled = False
        self.finished = number
        self._told = ""
        self._progressed()

    async def _read(self, driver: Driver) -> None:
        """Read back what is there of a driver's kinds; what differs from what is desired becomes dirty."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        actual = {item.key: item for item in map(self.as_wanted, (await driver.read_owned()).values())}
        known = driver not in self._unknown
        self._unknown.discard(driver)
        self._audited.discard(driver)
        before = {key: item for key, item in self._applied.items() if key[0] in driver.kinds}
        if self._drifts is not None:
            foreign = {item.key: item for item in await driver.read_foreign()} if isinstance(driver, Watched) else {}
            if known:
                self._note_drift(before, actual, foreign)
            # What took the place of ours is put out of it.
            self._drifts.foreign(driver.kinds, [item for key, item in foreign.items() if key not in self._desired])
        if not known or actual != before:
            wanted = {key: item for key, item in self._desired.items() if key[0] in driver.kinds}
            self._dirty.update(
                key
                for key in actual.keys() | wanted.keys()
                if actual.get(key) != wanted.get(key) and not (self._sparing and key not in wanted)
            )
        for key in before:
            del self._applied[key]
        self._applied |= actual
        self._reading[driver] = loop.time() - began

    def _note_drift(self, before: Mapping[Key, Item], actual: dict[Key, Item], foreign: Mapping[Key, Item]) -> None:
        """Note what somebody else has changed. Where the node only reports, it is then taken for what was applied."""
        if actual == before or self._drifts is None:
            return
        for key in actual.keys() | before.keys():
            was, found = before.get(key), actual.get(key)
            if was == found or key in self._dirty or key in self._failed:
                continue
            if self._drifts.found(self._desired.get(key), found or foreign.get(key)):
                continue
            if was is None:
                del actual[key]
            else:
                actual[key] = was

    async def _apply(self, put: Sequence[Item], delete: Sequence[Item]) -> list[Exception]:
        """Apply a difference, driver by driver; the errors of drivers whose part is unknown now."""
        errors: list[Exception] = []

        async def apply(driver: Driver, mine: Sequence[Item], gone: Sequence[Item]) -> None:
            if not (mine or gone):
                return
            point("lane: before a driver")
            try:
                self._note(mine, gone, await driver.apply(mine, gone))
            except Exception as error:
                self._unknown.add(driver)
                self._dirty.update(item.key for item in [*mine, *gone])
                errors.append(error)

        for driver in self._drivers:
            mine = [item for item in put if item.key[0] in driver.kinds]
            # Flows and groups of one batch go together: lookups must see all of it or nothing.
            gone = [item for item in delete if item.key[0] in driver.kinds] if len(self._drivers) == 1 else []
            await apply(driver, mine, gone)
        if len(self._drivers) > 1:
            for driver in reversed(self._drivers):
                if driver not in self._unknown:
                    await apply(driver, [], [item for item in delete if item.key[0] in driver.kinds])
        return errors

    def _note(self, put: Sequence[Item], delete: Sequence[Item], failures: Mapping[Key, Failure]) -> None:
        now = asyncio.get_running_loop().time()
        for item in [*put, *delete]:
            failure = failures.get(item.key)
            if failure is None:
                self._failed.pop(item.key, None)
                continue
            before = self._failed.get(item.key)
            delay = min(before.delay * 2, LAST_RETRY) if before else FIRST_RETRY
            self._failed[item.key] = _Failed(failure, delay, now + delay)
            _log.warning("not applied", item=str(item.key), reason=failure.reason, detail=failure.message)
        for item in put:
            if item.key not in failures:
                self._applied[item.key] = item
            else:
                # It may be there in part; not equal to anything, so that it is put again.
                self._applied.pop(item.key, None)
        for item in delete:
            if item.key not in failures:
                self._applied.pop(item.key, None)
                self._forget(item.key)

    def _forget(self, key: Key) -> None:
        if key not in self._desired and key not in self._failed and key not in self._dirty:
            self._scopes.pop(key, None)
