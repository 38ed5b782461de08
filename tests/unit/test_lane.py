"""Lanes: nothing before the start, differences only, failures alone, and no number finished that is not in force."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from agent.model.flow import Flow, Output, match
from agent.model.item import Failure, Item, Key
from agent.reconcile.lane import Lane
from tests.fakes.driver import FakeDriver, conforms

FLOWS = frozenset({"flow"})


def flow(priority: int, port: int = 1) -> Flow:
    return Flow(0, priority, match(in_port=1), (Output(port),), 1)


class Harness:
    """A lane over a fake driver, told of progress."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.progressed = asyncio.Event()
        self.settled = 0
        self.settle_fails = False
        self.settle_failed = asyncio.Event()
        self.lane = Lane("test", [driver], self.progressed.set, self._settle)
        self.number = 0

    async def _settle(self) -> None:
        if self.settle_fails:
            self.settle_failed.set()
            raise ConnectionError("not settled")
        self.settled += 1

    def submit(self, put: list[Item], delete: list[Key] | None = None) -> int:
        self.number += 1
        items = {item.key: item for item in put}
        self.lane.submit(self.number, items, set(delete or []), {key: {"net"} for key in [*items, *(delete or [])]})
        return self.number

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.progressed.clear()
                await self.progressed.wait()

    async def finished(self, number: int) -> None:
        await self.until(lambda: self.lane.finished >= number)


@asynccontextmanager
async def running(driver: FakeDriver) -> AsyncIterator[Harness]:
    harness = Harness(driver)
    task = asyncio.create_task(harness.lane.run())
    try:
        yield harness
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_the_fake_conforms() -> None:
    await conforms(FakeDriver(FLOWS), flow(1), flow(1, 2), flow(2))


async def test_nothing_is_touched_before_the_start_and_only_differences_after() -> None:
    driver = FakeDriver(FLOWS, [flow(1), flow(2), flow(3)])
    async with running(driver) as harness:
        number = harness.submit([flow(1), flow(2, 9), flow(4)])
        assert driver.reads == 0
        harness.lane.start()
        await harness.finished(number)
        assert sorted(driver.log) == [("delete", flow(3).key), ("put", flow(2).key), ("put", flow(4).key)]
        assert harness.lane.finished == number


async def test_one_failed_key_backs_off_alone_and_is_applied_in_the_end() -> None:
    driver = FakeDriver(FLOWS)
    driver.refuse.add(flow(1).key)
    async with running(driver) as harness:
        harness.lane.start()
        await harness.finished(harness.submit([flow(1), flow(2)]))
        assert set(driver.there) == {flow(2).key}
        assert set(harness.lane.failures()["net"]) == {flow(1).key}
        await harness.finished(harness.submit([flow(3)]))
        assert set(driver.there) == {flow(2).key, flow(3).key}
        driver.refuse.clear()
        await harness.until(lambda: not harness.lane.failures())
        assert set(driver.there) == {flow(1).key, flow(2).key, flow(3).key}


async def test_a_lost_connection_makes_it_read_back_before_it_goes_on() -> None:
    driver = FakeDriver(FLOWS)
    async with running(driver) as harness:
        harness.lane.start()
        await harness.finished(harness.submit([flow(1)]))
        reads = driver.reads
        driver.broken = True
        number = harness.submit([flow(2)])
        driver.there.clear()  # the switch restarted, without flows
        driver.broken = False
        harness.lane.unsettle()
        await harness.finished(number)
        assert driver.reads > reads
        assert set(driver.there) == {flow(1).key, flow(2).key}


async def test_c06_a_number_is_finished_only_when_what_it_applied_is_in_force() -> None:
    driver = FakeDriver(FLOWS)
    async with running(driver) as harness:
        harness.lane.start()
        await harness.finished(harness.submit([flow(1)]))
        settled = harness.settled
        harness.settle_fails = True
        number = harness.submit([flow(2)])
        async with asyncio.timeout(20):
            await harness.settle_failed.wait()
        assert flow(2).key in driver.there
        assert harness.lane.finished < number
        harness.settle_fails = False
        await harness.finished(number)
        assert harness.settled > settled


class SlowDriver(FakeDriver):
    """A fake that begins to apply and ends when it is told to."""

    def __init__(self, kinds: frozenset[str]) -> None:
        super().__init__(kinds)
        self.begun = asyncio.Event()
        self.end = asyncio.Event()
        self.end.set()

    async def apply(self, put: Sequence[Item], delete: Sequence[Item]) -> Mapping[Key, Failure]:
        self.begun.set()
        await self.end.wait()
        return await super().apply(put, delete)


async def test_what_is_desired_may_change_while_it_is_applied() -> None:
    driver = SlowDriver(FLOWS)
    async with running(driver) as harness:
        harness.lane.start()
        await harness.finished(harness.submit([flow(1), flow(2), flow(3)]))
        for put, back in (([flow(1, 2)], [flow(1)]), ([flow(1, 3)], [flow(1, 4)]), ([], [flow(2)]), ([flow(4)], [])):
            driver.begun.clear()
            driver.end.clear()
            gone = [flow(2).key] if not put else []
            harness.submit(put, gone)
            async with asyncio.timeout(20):
                await driver.begun.wait()
            number = harness.submit(back, [flow(4).key] if not back else [])
            driver.end.set()
            await harness.finished(number)
        assert driver.there == {item.key: item for item in (flow(1, 4), flow(2), flow(3))}
