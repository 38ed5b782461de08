"""Drift in a lane: told once, put right or left, and never confused with what we do ourselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from agent.model.flow import Flow, Group, Move, Output, Resubmit, SetField, ToGroup, match
from agent.model.host import Bridge, DhcpServer, OvsPort
from agent.model.item import Driver, Item
from agent.model.text import contents, difference, name
from agent.reconcile import drift, lane
from agent.reconcile.drift import Drifts
from agent.reconcile.lane import Lane
from kumihimo.v1 import node_pb2
from tests.fakes.driver import FakeDriver
from tests.unit.test_lane import FLOWS, flow
from tests.waiting import until

PORTS = frozenset({"ovs-port"})


class WatchedDriver(FakeDriver):
    """A fake that says when somebody else changed something."""

    def __init__(self, kinds: frozenset[str], there: Sequence[Item] = ()) -> None:
        super().__init__(kinds, there)
        self.meddled = asyncio.Event()
        self.foreign: list[Item] = []

    async def changed(self) -> None:
        await self.meddled.wait()
        self.meddled.clear()

    async def read_foreign(self) -> Sequence[Item]:
        return self.foreign


class Harness:
    """A lane over these drivers that holds flows 1 and 2 of the first."""

    def __init__(self, *drivers: Driver) -> None:
        self.drifts = Drifts(lambda key: f"owner of {key[2]}", lambda: None)
        self.lane = Lane("test", drivers, lambda: None, drifts=self.drifts, scopes=lambda _: frozenset({"net"}))
        self.number = 0

    def submit(self, *put: Item) -> None:
        self.number += 1
        self.lane.submit(self.number, {item.key: item for item in put}, set(), {item.key: {"net"} for item in put})

    async def finished(self) -> None:
        await until(lambda: self.lane.finished >= self.number, "the lane has finished")

    def told(self) -> list[tuple[str, str, int]]:
        """What is told: object, difference and how often."""
        return [(item.object, item.difference, item.count) for item in self.drifts.report().items]


@asynccontextmanager
async def running(*drivers: Driver, sparing: bool = False) -> AsyncIterator[Harness]:
    harness = Harness(*drivers)
    task = asyncio.create_task(harness.lane.run())
    harness.lane.start(sparing=sparing)
    try:
        harness.submit(flow(1), flow(2))
        await harness.finished()
        yield harness
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "AUDIT_PAUSE", 0.001)
    monkeypatch.setattr(lane, "RECONNECT", 0.001)


async def test_c_08_what_somebody_changes_is_told_and_put_right() -> None:
    driver = WatchedDriver(FLOWS)
    async with running(driver) as harness:
        assert harness.told() == []
        driver.there[flow(1).key] = flow(1, 9)
        del driver.there[flow(2).key]
        driver.there[flow(3).key] = flow(3)
        driver.meddled.set()
        wanted = {item.key: item for item in (flow(1), flow(2))}
        await until(lambda: driver.there == wanted, "it is put right")
        assert sorted(harness.told()) == [
            ("table=0,priority=1,in_port=1", "actions was output:9, must be output:1", 1),
            ("table=0,priority=2,in_port=1", "it was missing", 1),
            ("table=0,priority=3,in_port=1", "it bears our mark, and nothing here asks for it", 1),
        ]
        assert {item.owner for item in harness.drifts.report().items} == {"owner of 1", "owner of 2", "owner of 3"}
        del driver.there[flow(2).key]
        driver.meddled.set()
        await until(lambda: driver.there == wanted, "it is put right again")
        assert harness.told()[0] == ("table=0,priority=2,in_port=1", "it was missing", 2), "the newest comes first"


async def test_c_08_a_repair_that_fails_is_told_to_those_who_want_the_object() -> None:
    driver = WatchedDriver(FLOWS)
    async with running(driver) as harness:
        driver.refuse.add(flow(1).key)
        del driver.there[flow(1).key]
        driver.meddled.set()
        await until(harness.lane.failures, "it fails")
        assert {scope: set(found) for scope, found in harness.lane.failures().items()} == {"net": {flow(1).key}}
        driver.refuse.clear()
        await until(lambda: not harness.lane.failures() and flow(1).key in driver.there, "it is put right")


async def test_c_08_nothing_is_told_of_what_we_do_and_of_what_was_lost() -> None:
    driver = WatchedDriver(FLOWS)
    driver.refuse.add(flow(4).key)
    async with running(driver) as harness:
        harness.submit(flow(1, 5), flow(3), flow(4))
        await harness.finished()
        driver.there[flow(4).key] = flow(4, 9)  # what could not be put is there in part
        driver.meddled.set()
        reads = driver.reads
        await until(lambda: driver.reads > reads and not driver.meddled.is_set(), "it is read back")
        await harness.finished()
        driver.there.clear()
        harness.lane.unsettle()
        await until(lambda: len(driver.there) == 3, "all is there again")
        assert harness.told() == []


async def test_c_08_a_node_that_only_reports_leaves_it_and_tells_it_once() -> None:
    driver = WatchedDriver(FLOWS)
    async with running(driver) as harness:
        harness.drifts.repairs = False
        driver.there[flow(1).key] = flow(1, 9)
        driver.there[flow(3).key] = flow(3)
        for _ in range(3):
            reads = driver.reads
            driver.meddled.set()
            await until(lambda reads=reads: driver.reads > reads, "it is read back")
        await until(lambda: len(harness.told()) == 2)
        assert {count for _, _, count in harness.told()} == {1}
        assert driver.there[flow(1).key] == flow(1, 9)
        assert flow(3).key in driver.there
        # Until the object is changed by us.
        harness.submit(flow(1, 6))
        await harness.finished()
        assert driver.there[flow(1).key] == flow(1, 6)


async def test_c_08_what_took_the_place_of_ours_is_drift_and_not_foreign() -> None:
    driver = WatchedDriver(FLOWS)
    async with running(driver) as harness:
        del driver.there[flow(1).key]
        stranger = Flow(7, 1, match(), (Output(3),), 0x99)
        driver.foreign = [Flow(0, 1, match(in_port=1), (Output(4),), 0x99), stranger]
        driver.meddled.set()
        await until(lambda: flow(1).key in driver.there, "ours is back")
        told = {item.object: item for item in harness.drifts.report().items}
        assert told["table=0,priority=1,in_port=1"].outcome == node_pb2.DRIFT_OUTCOME_REPAIRED
        assert "cookie was 0x99, must be 0x1" in told["table=0,priority=1,in_port=1"].difference
        assert told["table=7,priority=1"].outcome == node_pb2.DRIFT_OUTCOME_FOREIGN
        assert told["table=7,priority=1"].difference == "cookie=0x99 actions=output:3"


async def test_a_driver_that_cannot_be_reached_holds_up_no_other() -> None:
    flows, ports = WatchedDriver(FLOWS), FakeDriver(PORTS)
    port = OvsPort("br-int", "p", "", (), ())
    async with running(flows, ports) as harness:
        ports.broken = True
        harness.lane.unsettle()
        harness.submit(flow(3), port)
        await until(lambda: flow(3).key in flows.there, "the others go on")
        assert harness.lane.finished < harness.number, "and nobody says that all is done"
        ports.broken = False
        await harness.finished()
        assert port.key in ports.there


async def test_b_ops_13_a_sparing_start_removes_only_what_it_has_known() -> None:
    driver = WatchedDriver(FLOWS, [flow(7), flow(2, 8)])
    async with running(driver, sparing=True) as harness:
        assert driver.there[flow(2).key] == flow(2), "what is known is as it shall be"
        assert flow(7).key in driver.there
        harness.lane.submit(9, {}, {flow(1).key}, {flow(1).key: {"net"}})
        await until(lambda: flow(1).key not in driver.there, "what was known and goes is removed")
        assert flow(7).key in driver.there
        harness.lane.start()
        await until(lambda: flow(7).key not in driver.there, "in the end only what is known stays")
        assert harness.told() == []


def test_what_is_told_is_bounded_and_outlives_the_process() -> None:
    drifts = Drifts(lambda key: "", lambda: None)
    for number in range(200):
        drifts.found(flow(number), None)
    drifts.foreign(FLOWS, [Flow(7, number, match(), (), 0x99) for number in range(150)])
    report = drifts.report()
    assert (len(report.items), report.foreign) == (2 * drift.KEPT, 150)
    assert report.items[0].object == "table=0,priority=199,in_port=1"
    later = Drifts(lambda key: "", lambda: None)
    later.resume(report.SerializeToString())
    later.foreign(FLOWS, [Flow(7, 0, match(), (), 0x99)])
    found = later.report()
    assert found.items[: drift.KEPT] == report.items[: drift.KEPT]
    assert found.items[drift.KEPT :] == report.items[drift.KEPT : drift.KEPT + 1], "since when it is there is known"
    later.resume(b"\xff\xff")


def test_items_are_told_in_the_words_of_the_tools() -> None:
    matched = match(eth_src=0xFA163E000001, ip_dst=(0x0A000000, 0xFF000000), in_port=3, metadata=5)
    actions = (SetField("reg15", 7), Move("reg1", "reg2", 32), Resubmit(4), ToGroup(6))
    one = Flow(1, 2, matched, actions, 0x4D)
    assert name(one) == "table=1,priority=2,eth_src=fa:16:3e:00:00:01,in_port=3,ip_dst=10.0.0.0/255.0.0.0,metadata=0x5"
    assert contents(one) == "cookie=0x4d actions=set_field:0x7->reg15,move:reg1->reg2,resubmit(,4),group:6"
    assert name(Group(5, ())) == "group_id=5"
    assert difference(Group(5, ((Output(1),),)), Group(5, ())) == "buckets was none, must be output:1"
    assert name(OvsPort("br-int", "p", "", (), ())) == "br-int p"
    bent = Bridge("br-int", "netdev", "standalone", "protocols were OpenFlow15")
    assert difference(Bridge("br-int", "netdev"), bent) == (
        "protocols were OpenFlow15; fail_mode was standalone, must be secure"
    )
    server = DhcpServer("n", "kumi-n", "a\nb\n", ())
    assert "config was 3 lines, must be 2 lines" in difference(server, DhcpServer("n", "kumi-n", "a\nb\nc\n", ()))
