"""The one commit. Every write, of one object or of many, goes through a `Committer`.

Attempts that come while a transaction is under way wait for the next one and share it (txn.py: Batch): with many clients a
write costs etcd and us a part of a transaction each. Then:
- comparisons fail: someone was faster. The cache is brought up to date and the attempts run again, together, and when that
  does not help each by itself, a bounded number of times.
- an attempt refuses (ApiError): that may be the fault of a cache that lags another replica, or of others in the batch. It
  runs again by itself on a cache that holds all that was written before, and what it says then stands.
- etcd's answer was lost: the outcome is unknown. Each commit creates history records under ids of its own, so a look at
  one tells whether it happened, and the same transaction sent twice cannot happen twice.
- a request names itself (`Repeat`): its record is created in the same transaction, so a repetition fails its comparison
  and gets the first result. Nobody pays for a look at the record but he who repeats.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import structlog

from controlplane.errors import ApiError, Code, StoreUnavailable, conflict, fault, unavailable
from controlplane.store.cache import Cache
from controlplane.store.client import Entry, Store
from controlplane.store.leases import RollingLease
from controlplane.store.txn import Batch, Deferred, Origin, Transaction
from kumihimo.v1 import store_pb2

T = TypeVar("T")

_random = random.SystemRandom()
_log = structlog.get_logger("kumihimo.commit")

ATTEMPTS = 16
TOGETHER = 3  # of these in a batch
LARGEST_BATCH = 100  # attempts
GOOD_BATCH = 24  # attempts that are not kept waiting for company
GAP = 0.001  # seconds without another one
# Of one attempt, in operations and bytes: etcd is started with --max-txn-ops 40000 and --max-request-bytes 10485760.
LARGEST_TRANSACTION = 36_000
LONGEST_TRANSACTION = 10_000_000
# Of several that share a transaction: others wait for as long as it takes, which grows with it.
SHARED_TRANSACTION = 9_000
SHARED_LENGTH = 4_000_000
UNKNOWN_ATTEMPTS = 4
UNKNOWN_PAUSE = 0.1  # seconds
HISTORY = 90 * 24 * 3600  # seconds that changes are kept, at least
REQUESTS = 24 * 3600  # seconds that a request id is remembered, at least
RENEW = 3600


@dataclass(frozen=True, slots=True)
class Repeat(Generic[T]):
    """How a request that names itself is known again.

    name: its request id. key: where its record stands. digest: of what it asks. dump and load: its result as bytes.
    """

    name: str
    key: str
    digest: bytes
    dump: Callable[[T], bytes]
    load: Callable[[bytes, int], T]  # (bytes, revision of the first time)

    def remember(self, transaction: Transaction, result: T) -> None:
        record = store_pb2.RequestRecord(digest=self.digest, reply=self.dump(result))
        transaction.create(self.key, record, transaction.request_lease)
        transaction.record_key = transaction.record_key or self.key  # what changes nothing has no change record

    def first_result(self, entry: Entry) -> T:
        record = store_pb2.RequestRecord.FromString(entry.value)
        if record.digest != self.digest:
            raise ApiError(
                Code.ALREADY_EXISTS,
                "REQUEST_ID_REUSED",
                f"request_id {self.name} was used for another request; use a new one",
            )
        return self.load(record.reply, entry.create_revision)


class Hints:
    """Where to look first for a free value of a pool. Only a hint: the claim in the transaction decides.

    Values are given out in order, the lowest first. After a conflict over a pool this replica goes on from anywhere in it:
    so two that take from one pool at the same time part, and do not meet again.
    """

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._anywhere: set[str] = set()
        self._taken: list[str] = []

    def start(self, pool: str, low: int, high: int) -> int:
        """A number of [low, high] to begin at."""
        if pool in self._anywhere:
            return _random.randint(low, high)
        start = self._next.get(pool, low)
        return start if low <= start <= high else low

    def took(self, pool: str, number: int) -> None:
        self._next[pool] = number + 1
        self._anywhere.discard(pool)
        self._taken.append(pool)

    def taken(self) -> list[str]:
        """The pools that were taken from since this was asked last."""
        taken, self._taken = self._taken, []
        return taken

    def part(self, pools: list[str]) -> None:
        """Somebody else takes from these too."""
        self._anywhere.update(pools)


@dataclass(slots=True)
class _Job(Generic[T]):
    attempt: Callable[[Transaction], T]
    origin: Origin
    repeat: Repeat[T] | None
    done: asyncio.Future[tuple[T, int]]
    conflicts: int = 0
    pools: list[str] = field(default_factory=list)
    result: T | None = None

    def run(self, batch: Batch, hints: Hints) -> Transaction:
        """One attempt. Raises what the attempt raises, and Deferred."""
        transaction = Transaction(batch, self.origin)
        hints.taken()
        self.result = self.attempt(transaction)
        self.pools = hints.taken()
        if self.repeat is not None:
            self.repeat.remember(transaction, self.result)
        transaction.close()
        for taken, most, what in (
            (transaction.size, LARGEST_TRANSACTION, "operations of the store"),
            (transaction.length, LONGEST_TRANSACTION, "bytes of a request to the store"),
        ):
            if taken > most:
                raise fault("resource", "TOO_MANY_VALUES", f"the change takes {taken} {what}; {most} are accepted")
        return transaction

    def finish(self, revision: int) -> None:
        if not self.done.done():
            self.done.set_result((self.result, revision))  # type: ignore[arg-type]

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def _fit_together(batch: Batch, transaction: Transaction) -> bool:
    return batch.size + transaction.size <= SHARED_TRANSACTION and batch.length + transaction.length <= SHARED_LENGTH


class Committer:
    """See the module. `run()` must be running; `hints` are those of all attempts."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self.store = store
        self.cache = cache
        self.hints = Hints()
        self._history = RollingLease(store, HISTORY + RENEW, RENEW)
        self._requests = RollingLease(store, REQUESTS + RENEW, RENEW)
        self._waiting: deque[_Job[Any]] = deque()
        self._woken = asyncio.Event()
        self._crowded = False
        self._alone: set[asyncio.Task[None]] = set()

    async def commit(
        self, attempt: Callable[[Transaction], T], origin: Origin, repeat: Repeat[T] | None = None
    ) -> tuple[T, int]:
        """Run an attempt until it is written or refused; (its result, the revision written at or read at).

        Raises what the attempt raises, ABORTED after too many conflicts, UNAVAILABLE.
        """
        job = _Job(attempt, origin, repeat, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._woken.set()
        return await job.done

    async def rehearse(self, attempt: Callable[[Transaction], T], origin: Origin) -> tuple[T, int]:
        """Run an attempt on a current cache and write nothing."""
        try:
            await self.cache.sync()
        except StoreUnavailable as error:
            raise unavailable(error) from error
        return attempt(Transaction(Batch(self.cache), origin)), self.cache.revision

    async def run(self) -> None:
        """Write what is asked for, until cancelled."""
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                while self._waiting:
                    await self._company()
                    await self._next()
        finally:
            for task in self._alone:
                task.cancel()

    async def _company(self) -> None:
        """Under load, wait while more keep coming: a transaction costs much the same for one and for many."""
        seen = 0
        if not self._crowded and len(self._waiting) < 2:
            return
        while seen < len(self._waiting) < GOOD_BATCH:
            seen = len(self._waiting)
            await asyncio.sleep(GAP)

    # -- a batch ------------------------------------------------------------------------------------------------------

    async def _next(self) -> None:
        """Run what waits, as far as it goes together, and write it."""
        jobs: list[_Job[Any]] = []
        try:
            batch = await self._batch()
            jobs = self._gather(batch)
            self._crowded = len(jobs) > 1
            if not jobs:
                return
            revision = await self._write(batch)
            if revision:
                for job in jobs:
                    job.finish(revision)
                # The next batch reads what this one has written.
                await self.cache.reach(revision)
                return
            for job in jobs:
                self._met(job)
            await self.cache.sync()
        except StoreUnavailable as error:
            for job in jobs or [self._waiting.popleft()]:
                job.fail(unavailable(error))
            return
        except Exception as error:
            # The top of a loop: what etcd refuses for a defect of ours is for those who asked, not for all who come after.
            _log.exception("not written", jobs=len(jobs))
            for job in jobs:
                job.fail(error)
            return
        for job in reversed(jobs):
            # One whose request was there before fails again and again: by itself it looks for its record.
            if job.conflicts >= TOGETHER or job.repeat is not None:
                self._by_itself(job)
            else:
                self._waiting.appendleft(job)

    def _gather(self, batch: Batch) -> list[_Job[Any]]:
        taken: list[_Job[Any]] = []
        deferred: list[_Job[Any]] = []
        while self._waiting and len(taken) + len(deferred) < LARGEST_BATCH and batch.size < SHARED_TRANSACTION:
            job = self._waiting.popleft()
            if job.done.done():  # its client has gone
                continue
            try:
                transaction = job.run(batch, self.hints)
            except Deferred:
                deferred.append(job)
            except ApiError:
                self._by_itself(job)
            except Exception as error:
                job.fail(error)  # a defect: its caller reports it
            else:
                if transaction.is_empty:
                    self._by_itself(job)
                elif taken and not _fit_together(batch, transaction):
                    deferred.append(job)
                else:
                    batch.include(transaction)
                    taken.append(job)
        self._waiting.extendleft(reversed(deferred))
        return taken

    # -- one by itself ------------------------------------------------------------------------------------------------

    def _by_itself(self, job: _Job[Any]) -> None:
        task = asyncio.create_task(self._alone_until_done(job))
        self._alone.add(task)
        task.add_done_callback(self._alone.discard)

    async def _alone_until_done(self, job: _Job[Any]) -> None:
        try:
            job.result, revision = await self._alone_once(job)
            job.finish(revision)
        except StoreUnavailable as error:
            job.fail(unavailable(error))
        except asyncio.CancelledError:
            job.fail(unavailable("the server is stopping"))
            raise
        except Exception as error:
            job.fail(error)  # what the attempt raised; its caller reports it

    async def _alone_once(self, job: _Job[T]) -> tuple[T, int]:
        for _ in range(ATTEMPTS):
            await self.cache.sync()
            batch = await self._batch()
            try:
                transaction = job.run(batch, self.hints)
            except ApiError:
                # What stands in the way may be what the same request made; looked for after the attempt, so that the
                # attempt cannot have seen more than the look.
                first = await self._first_time(job)
                if first is None:
                    raise
                return first
            if transaction.is_empty:
                return job.result, self.cache.revision  # type: ignore[return-value]
            batch.include(transaction)
            revision = await self._write(batch)
            if revision:
                await self.cache.reach(revision)
                return job.result, revision  # type: ignore[return-value]
            self._met(job)
            first = await self._first_time(job)
            if first is not None:
                return first
        raise conflict()

    async def _first_time(self, job: _Job[T]) -> tuple[T, int] | None:
        """The result of the same request when it was carried out before, and its revision."""
        if job.repeat is None:
            return None
        known = await self.store.get(job.repeat.key)
        return None if known is None else (job.repeat.first_result(known), known.mod_revision)

    def _met(self, job: _Job[Any]) -> None:
        """A job's comparisons failed."""
        job.conflicts += 1
        self.hints.part(job.pools)

    async def _batch(self) -> Batch:
        return Batch(self.cache, await self._history.current(), await self._requests.current())

    async def _happened(self, batch: Batch) -> int:
        """The revision at which a batch was written; 0 when it was not."""
        record = await self.store.get(batch.record_key)
        return record.mod_revision if record is not None and batch.is_record(record) else 0

    async def _write(self, batch: Batch) -> int:
        """The revision written at; 0 when a comparison failed. Raises StoreUnavailable when the outcome stays unknown."""
        compare, operations = batch.compare(), batch.operations()
        for turn in range(UNKNOWN_ATTEMPTS):
            try:
                # The one before may have happened, or happen while we look: then ours fails its comparison.
                revision = await self._happened(batch) if turn else 0
                if revision:
                    return revision
                written = await self.store.transact(compare, operations)
                if written.succeeded:
                    return written.revision
                return await self._happened(batch) if turn else 0
            except StoreUnavailable:
                # A store that was restored from a backup does not know our leases.
                self._history.forget()
                self._requests.forget()
                # A controller's statement has no record: it looks again what is to be done.
                if turn == UNKNOWN_ATTEMPTS - 1 or not batch.record_key:
                    raise
                # A connection that broke takes more than one call with it.
                await asyncio.sleep(UNKNOWN_PAUSE)
        return 0
