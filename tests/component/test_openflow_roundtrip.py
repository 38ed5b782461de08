"""What the agent writes comes back equal from a real Open vSwitch, which means by it what we do: fields, actions, groups."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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
from tests.component.dummy_switch import OURS, by_key, run


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
}
WHOLE_ONLY = {
    *("in_port", "eth_type", "ip_proto", "ip_ttl", "arp_op", "ct_zone", "ct_nw_proto"),
    *("icmp_type", "icmp_code", "icmpv6_type", "icmpv6_code"),
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
        (match(**IPV6), (Track("reg15", 78, commit=True, actions=(Move("reg12", "ct_mark", 32),)),)),
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
