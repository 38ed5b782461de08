"""The OpenFlow driver against a real Open vSwitch (dummy datapath) of its own.

The daemons run in a network and process namespace that ends with the test run, and keep their files in one folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.drivers import unixctl
from agent.drivers.openflow import codec
from agent.drivers.openflow.connection import Connection, OpenFlowError
from agent.drivers.openflow.driver import OpenFlowDriver
from agent.model.flow import (
    CT_ESTABLISHED,
    CT_INVALID,
    CT_TRACKED,
    FIELD_BITS,
    LATER,
    Action,
    Flow,
    Group,
    InPort,
    Match,
    Meter,
    Move,
    Output,
    PopVlan,
    PushVlan,
    Resubmit,
    SetField,
    ToController,
    ToGroup,
    Track,
    match,
)
from agent.model.item import Item, Key
from tests.fakes.driver import conforms

pytestmark = pytest.mark.timeout(60)

OURS = 5 << 60
MARKER = {"marker_table": 250, "marker_cookie": OURS | 0xFFFF}

# Started with its end tied to its input: when the test process is gone, `read` returns, and with process 1 of the
# namespace every daemon ends.
START = """
set -e
ip link set lo up
ovsdb-tool create $1/conf.db /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server $1/conf.db --remote=punix:$1/db.sock --pidfile --detach --no-chdir --log-file -vconsole:off
ovs-vsctl --timeout=20 --no-wait init
ovs-vswitchd unix:$1/db.sock --enable-dummy=override --pidfile --detach --no-chdir --log-file -vconsole:off
ovs-vsctl --timeout=20 add-br br0 -- set bridge br0 fail_mode=secure datapath_type=dummy \
    -- add-port br0 p1 -- set interface p1 type=dummy ofport_request=1 \
    -- add-port br0 p2 -- set interface p2 type=dummy ofport_request=2
echo ready
read _
"""


@pytest.fixture(scope="module")
async def rundir() -> AsyncIterator[Path]:
    """The run directory of a switch with bridge br0 and ports 1 and 2."""
    with tempfile.TemporaryDirectory(prefix="ofct-") as folder:
        process = await asyncio.create_subprocess_exec(
            *("unshare", "-n", "-p", "-f", "--kill-child", "sh", "-c", START, "sh", folder),
            env=os.environ | {f"OVS_{name}DIR": folder for name in ("RUN", "DB", "LOG", "SYSCONF")},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                while (line := await process.stdout.readline()) != b"ready\n":
                    assert line, "Open vSwitch did not start"
            yield Path(folder)
        finally:
            process.stdin.close()
            async with asyncio.timeout(10):
                await process.wait()


@pytest.fixture
async def driver(rundir: Path) -> AsyncIterator[OpenFlowDriver]:
    """A driver of br0, whose flows and groups are gone afterwards."""
    made = OpenFlowDriver("br0", lambda cookie: cookie >> 60 == 5, rundir=rundir, **MARKER)
    yield made
    owned = await made.read_owned()
    assert not await made.apply([], [*owned.values(), *await made.read_foreign()])
    await made.close()


def run(rundir: Path, *command: str) -> str:
    """An Open vSwitch tool that talks to this switch."""
    done = subprocess.run(command, env=os.environ | {"OVS_RUNDIR": str(rundir)}, timeout=20, capture_output=True)
    assert not done.returncode, done.stderr.decode()
    return done.stdout.decode()


def by_key(items: Iterable[Item]) -> dict[Key, Item]:
    return {item.key: item for item in items}


def numbered(pairs: Iterable[tuple[Match, tuple[Action, ...]]], table: int = 10) -> list[Flow]:
    """A flow for each pair of match and actions, told apart by priority."""
    return [Flow(table, 1 + number, *pair, OURS | number) for number, pair in enumerate(pairs)]


# What a field needs in the match (ovs-fields(7), "Prerequisites").
IPV4, IPV6, ARP = {"eth_type": 0x0800}, {"eth_type": 0x86DD}, {"eth_type": 0x0806}
NEIGHBOUR = IPV6 | {"ip_proto": 58, "icmpv6_code": 0}
VALID = {"ct_state": (CT_TRACKED, CT_TRACKED | CT_INVALID)}
PREREQUISITES: dict[str, dict[str, int | tuple[int, int]]] = {
    **dict.fromkeys(("ip_proto", "ip_src", "ip_dst", "ip_ttl", "ip_frag"), IPV4),
    **dict.fromkeys(("ipv6_src", "ipv6_dst"), IPV6),
    **dict.fromkeys(("arp_op", "arp_spa", "arp_tpa", "arp_sha", "arp_tha"), ARP),
    **dict.fromkeys(("tcp_src", "tcp_dst"), IPV4 | {"ip_proto": 6}),
    **dict.fromkeys(("udp_src", "udp_dst"), IPV6 | {"ip_proto": 17}),
    **dict.fromkeys(("icmp_type", "icmp_code"), IPV4 | {"ip_proto": 1}),
    **dict.fromkeys(("icmpv6_type", "icmpv6_code"), IPV6 | {"ip_proto": 58}),
    **dict.fromkeys(("sctp_src", "sctp_dst"), IPV4 | {"ip_proto": 132}),
    **dict.fromkeys(("ct_nw_proto", "ct_nw_src", "ct_nw_dst"), IPV4 | VALID),
    **dict.fromkeys(("ct_tp_src", "ct_tp_dst"), IPV4 | VALID | {"ct_nw_proto": 6}),
    **dict.fromkeys(("ct_ipv6_src", "ct_ipv6_dst"), IPV6 | VALID),
    "nd_target": NEIGHBOUR | {"icmpv6_type": 135},
    "nd_sll": NEIGHBOUR | {"icmpv6_type": 135},
    "nd_tll": NEIGHBOUR | {"icmpv6_type": 136},
    **dict.fromkeys(("nd_reserved", "nd_options_type"), NEIGHBOUR | {"icmpv6_type": 135}),
}
WHOLE_ONLY = {
    *("in_port", "eth_type", "ip_proto", "ip_ttl", "arp_op", "ct_zone", "ct_nw_proto"),
    *("icmp_type", "icmp_code", "icmpv6_type", "icmpv6_code", "nd_reserved", "nd_options_type"),
}
# ct_mark can be written inside a ct action alone, and in_port not in its 32 bit (OXM) form.
READ_ONLY = {"eth_type", "ip_proto", "ip_frag", "in_port", *(name for name in FIELD_BITS if name.startswith("ct_"))}
# Fields that take some values only: a port, new and tracked, a tagged frame.
SPECIAL = {"in_port": (7, 7), "ct_state": (0x21, 0x23), "vlan_vid": (0x1123, 0x1FF0), "ip_frag": (LATER, LATER)}


def sample(name: str) -> tuple[int, int]:
    """A value, and a mask that lets a part of it through."""
    if name in SPECIAL:
        return SPECIAL[name]
    bits = FIELD_BITS[name]
    value = int.from_bytes(bytes(range(0x11, 0x11 + bits // 8)), "big")
    return (2, 0xF) if name == "arp_op" else (value, (1 << bits) - 1 - (1 << bits // 2))


def matches_of(name: str) -> list[Match]:
    value, mask = sample(name)
    needs = PREREQUISITES.get(name, {})
    whole = [] if name == "ct_state" else [match(**needs | {name: value})]
    return whole if name in WHOLE_ONLY else [*whole, match(**needs | {name: (value & mask, mask)})]


def sets_of(name: str) -> list[tuple[Match, tuple[Action, ...]]]:
    value, mask = sample(name)
    needs = match(**PREREQUISITES.get(name, {}) | ({"vlan_vid": (0x1000, 0x1000)} if name == "vlan_vid" else {}))
    whole = [(needs, (SetField(name, value),))]
    return whole if name in WHOLE_ONLY else [*whole, (needs, (SetField(name, value & mask, mask),))]


def moves_of(name: str) -> list[tuple[Match, tuple[Action, ...]]]:
    needs = match(**PREREQUISITES.get(name, {}) | ({"vlan_vid": (0x1000, 0x1000)} if name == "vlan_vid" else {}))
    bits = 12 if name == "vlan_vid" else FIELD_BITS[name]
    there, back = Move(name, "xxreg0", bits, 0, 128 - bits), Move("xxreg1", name, bits // 2, 3, bits - bits // 2)
    return [(needs, (there,) if name in READ_ONLY else (there, back))]


async def test_every_field_comes_back_equal(driver: OpenFlowDriver) -> None:
    flows = numbered((matched, ()) for name in FIELD_BITS for matched in matches_of(name))
    assert not await driver.apply(flows, [])
    assert await driver.read_owned() == by_key(flows)


async def test_every_action_comes_back_equal(driver: OpenFlowDriver) -> None:
    groups = [Group(7, ((Output(1),), (SetField("tun_id", 5), Resubmit(3)))), Group(8, ()), Group(9, ((),))]
    meters = [Meter(7, 1, 16), Meter(9, 1000, 1)]
    others: list[tuple[Match, tuple[Action, ...]]] = [
        ((), (Output(1), Output(2))),
        ((), (Output(0xFFFFFFFD),)),
        ((), (InPort(), Resubmit(3), ToGroup(7))),
        ((), (ToController(7, 128), Output(1))),
        ((), (ToController(9, 0),)),
        ((), ()),
        (match(vlan_vid=0), (PushVlan(), SetField("vlan_vid", 0x1064), Output(1))),
        (match(in_port=1, vlan_vid=0x1064), (PopVlan(), Resubmit(3))),
        (match(**IPV4), (Track(7, 21),)),
        (match(**IPV4), (Track("reg14", 21), Resubmit(3))),
        (match(**IPV6), (Track("reg15", commit=True, actions=(Move("reg12", "ct_mark", 32),)), Resubmit(3))),
        (match(**IPV6), (Track(9, commit=True, actions=(SetField("ct_mark", 5), SetField("ct_mark", 2, 6))),)),
    ]
    writable = [name for name in FIELD_BITS if name not in READ_ONLY]
    flows = numbered(
        [
            *others,
            *(pair for name in writable for pair in sets_of(name)),
            *(pair for name in FIELD_BITS for pair in moves_of(name)),
        ]
    )
    assert not await driver.apply([*flows, *groups, *meters], [])
    assert await driver.read_owned() == by_key([*flows, *groups, *meters])


async def test_the_switch_understands_what_we_mean(driver: OpenFlowDriver, rundir: Path) -> None:
    flow = Flow(
        *(3, 100, match(eth_type=0x0800, ip_dst=(0x0A000000, 0xFFFFFF00), reg1=(0x10, 0xF0), metadata=7)),
        (SetField("reg3", 9), SetField("ip_ttl", 64), Move("eth_src", "eth_dst", 48), Resubmit(4), InPort()),
        OURS | 1,
    )
    assert not await driver.apply([flow], [])
    text = run(rundir, "ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "--no-names", "dump-flows", "br0", "table=3")
    assert text.strip() == (
        "cookie=0x5000000000000001, table=3, priority=100,ip,reg1=0x10/0xf0,metadata=0x7,nw_dst=10.0.0.0/24"
        " actions=set_field:0x9->reg3,set_field:64->nw_ttl,move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],"
        "resubmit(,4),IN_PORT"
    )


async def test_the_switch_understands_what_we_say_of_connections(driver: OpenFlowDriver, rundir: Path) -> None:
    state = (CT_TRACKED | CT_ESTABLISHED, CT_TRACKED | CT_ESTABLISHED | CT_INVALID)
    commit = Track("reg14", commit=True, actions=(Move("reg12", "ct_mark", 32),))
    flows = [
        Flow(3, 1, match(eth_type=0x0800, reg14=6), (Track(6, 21),), OURS),
        Flow(3, 2, match(eth_type=0x0800, ct_state=state, ct_nw_src=0x0A000001, ct_nw_proto=6, ct_tp_dst=80), (commit,), OURS),
        Flow(3, 3, match(eth_type=0x86DD, ip_frag=(LATER, LATER)), (Resubmit(4),), OURS),
    ]
    assert not await driver.apply(flows, [])
    text = run(rundir, "ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "--no-names", "--sort=priority", "dump-flows", "br0")
    assert [line.split(", ", 2)[2].strip() for line in text.splitlines()] == [
        "priority=1,ip,reg14=0x6 actions=ct(table=21,zone=6)",
        "priority=2,ct_state=+est-inv+trk,ct_nw_src=10.0.0.1,ct_nw_proto=6,ct_tp_dst=80,ip"
        " actions=ct(commit,zone=NXM_NX_REG14[0..15],exec(move:NXM_NX_REG12[]->NXM_NX_CT_MARK[]))",
        "priority=3,ipv6,nw_frag=later actions=resubmit(,4)",
    ]
    assert run(rundir, "ovs-ofctl", "-O", "OpenFlow15", "get-frags", "br0").strip() == "nx-match"


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
            async with asyncio.timeout(10):
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
        async with asyncio.timeout(10):
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


async def test_a_new_connection_after_a_loss(rundir: Path) -> None:
    driver = OpenFlowDriver("br1", lambda _: True, rundir=rundir, **MARKER)
    with pytest.raises(OpenFlowError, match=r"no OpenFlow connection to .*br1.mgmt"):
        await driver.read_owned()
    flow = Flow(0, 1, (), (), 1)
    create = ("add-br", "br1", "--", "set", "bridge", "br1", "fail_mode=secure", "datapath_type=dummy")
    for _ in range(2):
        run(rundir, "ovs-vsctl", "--timeout=10", *create)
        assert not await driver.apply([flow], [])
        assert await driver.read_owned() == by_key([flow])
        run(rundir, "ovs-vsctl", "--timeout=10", "del-br", "br1")
        with pytest.raises(ConnectionError):
            await driver.apply([flow], [])
    run(rundir, "ovs-vsctl", "--timeout=10", *create, "protocols=OpenFlow13")
    with pytest.raises(OpenFlowError, match=r"br1.mgmt does not offer OpenFlow 1.5"):
        await driver.read_owned()
    run(rundir, "ovs-vsctl", "--timeout=10", "del-br", "br1")
    await driver.close()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def false_switch(folder: Path, after_hello: Serve) -> AsyncIterator[OpenFlowDriver]:
    """A driver whose switch says hello and then does as told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(codec.message(codec.HELLO, 1, codec.hello_body()))
        await reader.readexactly(16)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await after_hello(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "br0.mgmt")
    driver = OpenFlowDriver("br0", lambda _: True, rundir=folder, timeout=0.2, **MARKER)
    try:
        yield driver
    finally:
        await driver.close()
        server.close()
        await server.wait_closed()


async def test_a_silent_switch_is_a_timeout(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with false_switch(tmp_path, silent) as driver:
        for _ in range(2):
            with pytest.raises(OpenFlowError, match=r"no answer within 0.2 s"):
                await driver.apply([Flow(0, 1, (), (), 1)], [])


async def test_a_switch_that_goes_away_ends_what_is_under_way(tmp_path: Path) -> None:
    async def leave(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)

    async with false_switch(tmp_path, leave) as driver:
        with pytest.raises(OpenFlowError, match="connection lost"):
            await driver.apply([Flow(0, 1, (), (), 1)], [])


async def test_echo_requests_are_answered(tmp_path: Path) -> None:
    echoed = SimpleNamespace(message=b"")

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = codec.message(codec.ECHO_REQUEST, 99, b"are you there")
        writer.write(request)
        async with asyncio.timeout(5):
            while codec.parse_header(head := await reader.readexactly(8))[1] != codec.ECHO_REPLY:
                await reader.readexactly(codec.parse_header(head)[2] - 8)
            echoed.message = head + await reader.readexactly(13)

    async with false_switch(tmp_path, echo) as driver:
        with pytest.raises(OpenFlowError):
            await driver.read_owned()
    assert echoed.message == codec.message(codec.ECHO_REPLY, 99, b"are you there")


async def test_control_commands(rundir: Path, tmp_path: Path) -> None:
    async with unixctl.connect(rundir) as control:
        assert "ovs-vswitchd" in await control.call("version")
        assert len(await control.call("list-commands")) > 1000
        with pytest.raises(unixctl.UnixctlError, match=r"ovs-vswitchd: .*no-such-command"):
            await control.call("no-such-command")
    with pytest.raises(unixctl.UnixctlError, match="no control connection to ovs-vswitchd"):
        async with unixctl.connect(tmp_path):
            pass
