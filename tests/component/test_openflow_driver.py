"""The OpenFlow driver against a real Open vSwitch (dummy datapath) of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.drivers import unixctl
from agent.drivers.openflow import codec
from agent.drivers.openflow.connection import Connection
from agent.drivers.openflow.driver import OpenFlowDriver
from agent.model.flow import (
    Flow,
    Group,
    InPort,
    Meter,
    Output,
    Resubmit,
    SetField,
    ToController,
    ToGroup,
    Track,
    match,
)
from agent.model.item import Item
from tests.component.dummy_switch import MARKER, OURS, by_key, run
from tests.fakes.driver import conforms
from tests.waiting import DEADLINE

TRACKED = (
    "in_port(1),eth(src=50:54:00:00:00:05,dst=50:54:00:00:00:07),eth_type(0x0800),"
    "ipv4(src=192.168.0.1,dst=192.168.0.2,proto=17,tos=0,ttl=64,frag=no),udp(src=7,dst=2)"
)


async def test_a_zone_is_emptied_for_another_owner_and_for_nobody_else(driver: OpenFlowDriver, rundir: Path) -> None:
    def tracking(owner: int, more: int = 0) -> list[Flow]:
        commit = Flow(0, 1, match(in_port=1, eth_type=0x0800), (Track(9, commit=True), Resubmit(3)), OURS | owner)
        return [commit, Flow(3, 1, match(reg0=more), (), OURS | owner)]

    async with unixctl.connect(rundir) as control:

        async def known() -> bool:
            return "zone=9" in await control.call("dpctl/dump-conntrack")

        async def send() -> None:
            await driver.synchronize()
            await control.call("netdev-dummy/receive", "p1", TRACKED)
            async with asyncio.timeout(DEADLINE):
                while not await known():
                    pass

        assert not await driver.apply(tracking(1), [])
        await send()
        # The same owner again: other flows, its own flow anew, one that somebody else has deleted.
        assert not await driver.apply(tracking(1, more=5), [])
        run(rundir, "ovs-ofctl", "-O", "OpenFlow15", "del-flows", "br0")
        await driver.read_owned()
        assert not await driver.apply(tracking(1), [])
        assert await known()
        # A fresh process knows the owner by the flow.
        fresh = OpenFlowDriver("br0", lambda cookie: cookie >> 60 == 5, rundir=rundir, **MARKER)
        await fresh.read_owned()
        assert not await fresh.apply(tracking(1), [])
        await fresh.close()
        assert await known()
        assert not await driver.apply(tracking(2), [])
        assert not await known()
        await send()
        # Gone and back: nothing is known of the time before.
        assert not await driver.apply([], tracking(2))
        assert not await driver.apply(tracking(2), [])
        assert not await known()


async def test_a_flow_sends_packets_here_as_often_as_its_meter_lets_and_others_go_on(rundir: Path) -> None:
    came: list[bytes] = []
    options = {"rundir": rundir, "sampled": came.append, **MARKER}
    driver = OpenFlowDriver("br0", lambda cookie: cookie >> 60 == 5, lambda _: True, lambda number: number < 100, **options)
    told = (SetField("reg11", 3), SetField("reg14", 1), ToController(7, 20))
    items = [Flow(0, 1, match(in_port=1), (ToGroup(8),), OURS | 6), Flow(3, 1, (), told, OURS | 5)]
    items += [Group(8, ((Resubmit(3),), (Output(2),))), Meter(7, 1, 4)]
    run(rundir, "ovs-ofctl", "-O", "OpenFlow15", "add-meter", "br0", "meter=100,kbps,band=type=drop,rate=5")
    # A meter of that number is there already, and lets more through.
    run(rundir, "ovs-ofctl", "-O", "OpenFlow15", "add-meter", "br0", "meter=7,kbps,band=type=drop,rate=9")
    assert await driver.read_owned() == by_key([Meter(7, 0, 0)])
    assert await driver.read_foreign() == [Meter(100, 0, 0)]
    assert not await driver.apply(items, [])
    assert await driver.read_owned() == by_key(items)
    assert "meter=7 pktps burst bands=\ntype=drop rate=1 burst_size=4" in run(
        rundir, "ovs-ofctl", "-O", "OpenFlow15", "dump-meters", "br0"
    )
    text = run(rundir, "ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "--no-names", "dump-flows", "br0", "table=3")
    assert text.strip().endswith("set_field:0x1->reg14,controller(max_len=20,meter_id=7)")
    await driver.synchronize()
    async with unixctl.connect(rundir) as control:
        for _ in range(200):
            await control.call("netdev-dummy/receive", "p1", TRACKED)
        async with asyncio.timeout(DEADLINE):
            while [packets for flow, packets, _ in await driver.flow_counters(3)] != [200]:
                pass
    # What the meter holds back is missing here, and not on its further way.
    assert 4 <= len(came) <= 30, len(came)
    assert (await driver.port_counters())[2].tx_packets == 200
    packet = codec.decode_packet(codec.cut_packet(came[0], 20))
    assert codec.packet_cookie(came[0]) == packet.cookie == OURS | 5
    assert (packet.fields["reg11"], packet.fields["reg14"], packet.fields["in_port"]) == (3, 1, 1)
    assert packet.data == bytes.fromhex("505400000007 505400000005 0800 4500") + packet.data[16:]
    assert (len(packet.data), packet.length >= 42) == (20, True)
    # Deleted by somebody: the flow is held back by nothing, and has to be put again as well.
    run(rundir, "ovs-ofctl", "-O", "OpenFlow15", "del-meter", "br0", "meter=7")
    unmetered = Flow(3, 1, (), (*told[:2], ToController(0, 20)), OURS | 5)
    assert await driver.read_owned() == by_key([items[0], items[2], unmetered])
    assert not await driver.apply([items[1], items[3]], [])
    assert await driver.read_owned() == by_key(items)
    assert not await driver.apply([], items)
    assert await driver.read_owned() == {}
    assert await driver.read_foreign() == [Meter(100, 0, 0)]
    run(rundir, "ovs-ofctl", "-O", "OpenFlow15", "del-meters", "br0")
    # A flow whose meter is not there is refused, and nothing else.
    refused = await driver.apply([items[1], items[2], items[0]], [])
    assert refused.keys() == {items[1].key}
    assert not await driver.apply([], [items[2], items[0]])
    await driver.close()


async def test_foreign_flows_are_read_and_left_alone(driver: OpenFlowDriver, rundir: Path) -> None:
    added = [
        "table=1,priority=3,ip,tcp_flags=+syn,tcp,actions=dec_ttl,ct(commit,zone=3,nat(src=10.0.0.1)),goto_table:7",
        "table=1,priority=4,conj_id=5,ipv6,actions=learn(table=5,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[]),NORMAL",
        "table=1,priority=5,ip,nw_frag=later,actions=conjunction(3,1/2)",
        "table=1,priority=6,mpls,mpls_label=3,actions=pop_mpls:0x800,push_vlan:0x8100,set_field:4099->vlan_vid",
        "table=1,priority=7,ct_label=0x5/0xf,tun_ipv6_dst=fd00::1,actions=resubmit(4,5),controller,write_metadata:5",
        "table=1,priority=8,actions=bundle(eth_src,50,active_backup,ofport,members:1,2),write_actions(output:1)",
        "table=1,priority=9,idle_timeout=600,actions=move:NXM_NX_TUN_GBP_ID[]->NXM_NX_REG0[0..15],note:00.11.22",
    ]
    for flow in added:
        run(rundir, "ovs-ofctl", "-O", "OpenFlow15", "add-flow", "br0", flow)
    ours = Flow(1, 9, match(in_port=1), (Output(2),), OURS)
    assert not await driver.apply([ours], [])
    assert await driver.read_owned() == by_key([ours])
    foreign = await driver.read_foreign()
    assert sorted(flow.priority for flow in foreign) == [3, 4, 5, 6, 7, 8, 9]
    assert await driver.read_owned() == by_key([ours])
    # Not ours by its cookie: an item of ours for the same place does not delete it.
    stranger = next(flow for flow in foreign if flow.priority == 4)
    assert not await driver.apply([], [Flow(stranger.table, stranger.priority, stranger.match, (), OURS)])
    assert await driver.read_owned() == by_key([ours])
    assert set(await driver.read_foreign()) == set(foreign)
    # Fields that we do not know can still be named, to delete.
    assert not await driver.apply([], foreign)
    assert await driver.read_owned() == by_key([ours])
    assert await driver.read_foreign() == []


async def test_a_group_of_another_type_is_made_ours(driver: OpenFlowDriver, rundir: Path) -> None:
    run(rundir, "ovs-ofctl", "-O", "OpenFlow15", "add-group", "br0", "group_id=4,type=select,bucket=actions=output:1")
    group = Group(4, ((Output(1),),))
    assert await driver.read_owned() != by_key([group])
    assert not await driver.apply([group], [])
    assert await driver.read_owned() == by_key([group])


async def test_it_conforms_as_the_fake_does(driver: OpenFlowDriver) -> None:
    first = Flow(10, 7, match(reg0=1), (Resubmit(11),), OURS | 1)
    changed = Flow(10, 7, match(reg0=1), (Resubmit(12),), OURS | 1)
    await conforms(driver, first, changed, Flow(10, 8, match(reg0=1), (), OURS | 2))
    one, other = Group(1, ((Output(1),),)), Group(1, ((Output(1),), (Output(2),)))
    await conforms(driver, one, other, Group(2, ()))


async def test_put_and_delete_are_idempotent(driver: OpenFlowDriver) -> None:
    flow = Flow(0, 1, match(in_port=1), (ToGroup(1),), OURS)
    group = Group(1, ((Output(2),),))
    changed = [Flow(0, 1, match(in_port=1), (Output(1), ToGroup(1)), OURS | 1), Group(1, ((Output(1),), ()))]
    for items in ([flow, group], [flow, group], changed):
        assert not await driver.apply(items, [])
        assert await driver.read_owned() == by_key(items)
    for _ in range(2):
        assert not await driver.apply([], changed)
        assert await driver.read_owned() == {}


async def test_failures_stop_nothing_else(driver: OpenFlowDriver) -> None:
    good: list[Item] = [Flow(0, 1, match(in_port=1), (Output(2),), OURS), Group(1, ((Output(2),),))]
    lost = [Flow(0, 100 + n, (), (ToGroup(99),), OURS) for n in range(100)]
    bad = {
        "invalid": [Flow(0, 2, (("in_port", 1 << 32, None),), (), OURS), Flow(0, 3, (), (SetField("x", 1),), OURS)],
        "refused": [
            Flow(0, 4, match(tcp_dst=80), (), OURS),
            Flow(0, 5, (), (SetField("eth_type", 0x0800),), OURS),
            Group(2, ((SetField("ip_proto", 1),),)),
            *lost,
        ],
    }
    failures = await driver.apply([*bad["refused"], *good, *bad["invalid"]], [])
    for reason, items in bad.items():
        assert {key for key, failure in failures.items() if failure.reason == reason} == {item.key for item in items}
    assert failures[bad["refused"][0].key].message == "the switch refused: bad match: bad prerequisite (4/9)"
    assert "bad action: bad out group (2/9)" in failures[lost[0].key].message
    assert await driver.read_owned() == by_key(good)


async def test_a_bundle_refused_at_commit_changes_nothing(driver: OpenFlowDriver, rundir: Path) -> None:
    good, bad = Flow(0, 1, (), (Output(2),), OURS), Flow(0, 2, (), (ToGroup(99),), OURS)
    connection = await Connection.open(rundir / "br0.mgmt", 5)
    with connection.exchange() as exchange:
        exchange.send(codec.BUNDLE_CONTROL, codec.bundle_control(1, codec.OPEN))
        xids = [exchange.xid(), exchange.xid()]
        for xid, flow in zip(xids, (good, bad), strict=True):
            exchange.write(codec.bundle_add(1, xid, codec.FLOW_MOD, codec.flow_put(flow)))
        await exchange.barrier(5)
        assert not exchange.errors
        commit = exchange.send(codec.BUNDLE_CONTROL, codec.bundle_control(1, codec.COMMIT))
        await exchange.barrier(5)
        assert {xid: str(error) for xid, error in exchange.errors.items()} == {
            xids[1]: "bad action: bad out group (2/9)",
            commit: "bundle failed: message failed (17/13)",
        }
    await connection.close()
    assert await driver.read_owned() == {}


async def test_ten_thousand_flows(driver: OpenFlowDriver) -> None:
    def flows(port: int) -> list[Flow]:
        return [
            Flow(
                *(60, 100, match(metadata=7, eth_type=0x0800, ip_dst=0x0A000000 + n)),
                (SetField("reg3", n), SetField("tun_id", 77), Output(port)),
                OURS | n,
            )
            for n in range(10_000)
        ]

    first, second = flows(1), flows(2)

    async def timed(what: str, work: Awaitable[object]) -> None:
        start = time.perf_counter()
        await work
        print(f"10,000 flows: {what} {(time.perf_counter() - start) * 1000:.0f} ms")

    await timed("put", driver.apply(first, []))
    await timed("replace", driver.apply(second, []))
    await timed("read", driver.read_owned())
    assert await driver.read_owned() == by_key(second)
    await timed("delete", driver.apply([], second))
    assert await driver.read_owned() == {}


async def test_the_deletion_of_one_flow_does_not_depend_on_how_many_have_its_cookie(driver: OpenFlowDriver) -> None:
    def flows(table: int, cookie_of: Callable[[int], int]) -> list[Flow]:
        return [Flow(table, 100, match(reg3=n), (Resubmit(70),), OURS | cookie_of(n)) for n in range(10_000)]

    shared, own = flows(61, lambda n: 1), flows(62, lambda n: n << 8)
    assert not await driver.apply([*shared, *own], [])
    took: dict[int, list[float]] = {61: [], 62: []}
    for first in range(0, 1000, 100):
        for items in (shared, own):
            start = time.perf_counter()
            assert not await driver.apply([], items[first : first + 100])
            took[items[0].table].append(time.perf_counter() - start)
    # Looked for among all that have the cookie, it would be ten times as much.
    assert min(took[61]) < 4 * min(took[62])
    assert await driver.read_owned() == by_key([*shared[1000:], *own[1000:]])
    assert not await driver.apply([], [*shared, *own])


PACKET = (
    "in_port(1),eth(src=50:54:00:00:00:05,dst=50:54:00:00:00:07),eth_type(0x0800),"
    "ipv4(src=192.168.0.1,dst=192.168.0.2,proto=17,tos=0,ttl=64,frag=no),udp(src=1,dst=2)"
)


async def test_synchronize_leaves_no_stale_decision(driver: OpenFlowDriver, rundir: Path) -> None:
    stale = {False: 0, True: 0}
    took: list[float] = []
    async with unixctl.connect(rundir) as control:
        for synchronized in stale:
            for turn in range(60):
                action, cached = [(Output(2), "actions:2"), (InPort(), "actions:1")][turn % 2]
                assert not await driver.apply([Flow(0, 1, match(in_port=1), (action,), OURS)], [])
                if synchronized:
                    start = time.perf_counter()
                    await driver.synchronize()
                    took.append((time.perf_counter() - start) * 1000)
                decisions = await control.call("dpctl/dump-flows")
                stale[synchronized] += "actions" in decisions and cached not in decisions
                await control.call("netdev-dummy/receive", "p1", PACKET)
    took.sort()
    print(f"stale without synchronize: {stale[False]} of 60; it took median {took[30]:.1f}, most {took[-1]:.1f} ms")
    assert stale[True] == 0
    assert stale[False] > 0, "the test has not seen the danger"
    await driver.read_owned()
    assert [flow.table for flow in await driver.read_foreign()] == []


async def test_synchronize_does_not_wait_for_the_revalidator_timer(driver: OpenFlowDriver) -> None:
    took = []
    for _ in range(200):
        start = time.perf_counter()
        await driver.synchronize()
        took.append(time.perf_counter() - start)
    took.sort()
    print(f"synchronize: median {took[100] * 1000:.1f} ms, most {took[-1] * 1000:.1f} ms")
    assert took[150] < 0.4


async def test_synchronize_at_once_by_many(driver: OpenFlowDriver) -> None:
    await asyncio.gather(*(driver.synchronize() for _ in range(5)))
    assert await driver.flow_counters(MARKER["marker_table"], idle=True) == []


async def test_flow_counters(driver: OpenFlowDriver, rundir: Path) -> None:
    flows = [Flow(20, 1, match(in_port=1), (Output(2),), OURS), Flow(0, 1, (), (Resubmit(20),), OURS)]
    assert not await driver.apply(flows, [])
    await driver.synchronize()  # what is cached of the tests before this one would decide
    before = await driver.port_counters()
    async with unixctl.connect(rundir) as control:
        for _ in range(3):
            await control.call("netdev-dummy/receive", "p1", PACKET)
    await driver.synchronize()
    assert await driver.flow_counters(20) == [(flows[0], 3, 318)]
    more = Flow(20, 2, match(in_port=2), (), OURS)
    assert not await driver.apply([more], [])
    assert await driver.flow_counters(20) == [(flows[0], 3, 318)], "what has seen nothing is left out"
    assert sorted(packets for _, packets, _ in await driver.flow_counters(20, idle=True)) == [0, 3]
    after = await driver.port_counters()
    assert (after[1].rx_packets - before[1].rx_packets, after[1].rx_bytes - before[1].rx_bytes) == (3, 318)
    assert (after[2].tx_packets - before[2].tx_packets, after[2].tx_bytes - before[2].tx_bytes) == (3, 318)
    assert (after[1].tx_packets, after[2].rx_packets) == (before[1].tx_packets, before[2].rx_packets)
