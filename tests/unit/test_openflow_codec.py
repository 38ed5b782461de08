"""The OpenFlow codec: bytes against os-ken's as the oracle, and there and back against itself."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from os_ken.ofproto import ofproto_v1_5 as ofp
from os_ken.ofproto import ofproto_v1_5_parser as oracle
from os_ken.ofproto.ofproto_protocol import ProtocolDesc

from agent.drivers.openflow import codec, fields
from agent.drivers.openflow.connection import ErrorReply
from agent.model.flow import (
    FIELD_BITS,
    Action,
    Flow,
    Group,
    InPort,
    Match,
    Meter,
    Move,
    Opaque,
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

SWITCH = ProtocolDesc(version=codec.VERSION)
XID = 0x1234

# Names that os-ken spells in another way.
ORACLE_NAMES = {
    "ip_src": "ipv4_src",
    "ip_dst": "ipv4_dst",
    "ip_ttl": "nw_ttl",
    "tun_id": "tunnel_id",
    "tun_src": "tun_ipv4_src",
    "tun_dst": "tun_ipv4_dst",
    "icmp_type": "icmpv4_type",
    "icmp_code": "icmpv4_code",
    "nd_target": "ipv6_nd_target",
    "nd_sll": "ipv6_nd_sll",
    "nd_tll": "ipv6_nd_tll",
}
UNKNOWN_TO_ORACLE = {name for name in FIELD_BITS if name.startswith(("ct_", "xxreg"))}
NAMES = sorted(FIELD_BITS.keys() - UNKNOWN_TO_ORACLE)


def oracle_value(name: str, value: int) -> int | str:
    """A value as os-ken takes it."""
    if FIELD_BITS[name] == 48:
        return ":".join(f"{byte:02x}" for byte in value.to_bytes(6, "big"))
    if FIELD_BITS[name] == 128:
        return str(IPv6Address(value))
    if name in ("ip_src", "ip_dst", "arp_spa", "arp_tpa", "tun_src", "tun_dst"):
        return str(IPv4Address(value))
    return value


def oracle_field(name: str, value: int, mask: int | None) -> dict[str, Any]:
    given = oracle_value(name, value)
    return {ORACLE_NAMES.get(name, name): given if mask is None else (given, oracle_value(name, mask))}


def oracle_bytes(built: Any) -> bytes:
    built.set_xid(XID)
    built.serialize()
    return bytes(built.buf)


def oracle_flow(matched: Match, actions: list[Any]) -> bytes:
    fields: dict[str, Any] = {}
    for field in matched:
        fields |= oracle_field(*field)
    applied = [oracle.OFPInstructionActions(ofp.OFPIT_APPLY_ACTIONS, actions)] if actions else []
    built = oracle.OFPFlowMod(
        *(SWITCH, 0x5000_0000_0000_0007, 0, 60, ofp.OFPFC_ADD, 0, 0, 100, ofp.OFP_NO_BUFFER, ofp.OFPP_ANY),
        *(ofp.OFPG_ANY, 0, 0, oracle.OFPMatch(**fields), applied),
    )
    return oracle_bytes(built)


def our_flow(matched: Match, actions: tuple[Action, ...] = ()) -> bytes:
    flow = Flow(60, 100, matched, actions, 0x5000_0000_0000_0007)
    return codec.message(codec.FLOW_MOD, XID, codec.flow_put(flow))


def sample(name: str) -> int:
    """A value with a different byte at each place."""
    size = (FIELD_BITS[name] + 7) // 8
    return int.from_bytes(bytes(range(0x11, 0x11 + size)), "big") & (1 << FIELD_BITS[name]) - 1


@pytest.mark.parametrize("name", NAMES)
def test_a_matched_field_is_as_the_oracle_writes_it(name: str) -> None:
    value, mask = sample(name), (1 << FIELD_BITS[name]) - 2
    assert our_flow(match(**{name: value})) == oracle_flow(((name, value, None),), [])
    masked = ((name, value & mask, mask),)
    assert our_flow(masked) == oracle_flow(masked, [])


@pytest.mark.parametrize("name", NAMES)
def test_a_set_field_is_as_the_oracle_writes_it(name: str) -> None:
    value, mask = sample(name), (1 << FIELD_BITS[name]) - 2
    for form in ((name, value, None), (name, value & mask, mask)):
        assert our_flow((), (SetField(*form),)) == oracle_flow((), [oracle.OFPActionSetField(**oracle_field(*form))])


def test_actions_are_as_the_oracle_writes_them() -> None:
    ids = [oracle.OFPOxmId("eth_src"), oracle.OFPOxmId("reg3")]
    assert our_flow(
        match(eth_type=0x0800, ip_dst=0x0A000001),
        (Output(7), InPort(), ToGroup(9), Move("eth_src", "reg3", 16, 32, 8), PushVlan(), PopVlan()),
    ) == oracle_flow(
        (("eth_type", 0x0800, None), ("ip_dst", 0x0A000001, None)),
        [
            oracle.OFPActionOutput(7, 0xFFFF),
            oracle.OFPActionOutput(ofp.OFPP_IN_PORT, 0xFFFF),
            oracle.OFPActionGroup(9),
            oracle.OFPActionCopyField(16, 32, 8, ids),
            oracle.OFPActionPushVlan(0x8100),
            oracle.OFPActionPopVlan(),
        ],
    )


def test_the_oracle_reads_resubmit() -> None:
    read = oracle.OFPAction.parser(codec.encode_action(Resubmit(42)), 0)
    assert (type(read).__name__, read.in_port, read.table_id) == ("NXActionResubmitTable", 0xFFF8, 42)


def test_the_oracle_reads_track() -> None:
    action = Track("reg14", commit=True, actions=(SetField("ct_mark", 5),))
    read = oracle.OFPAction.parser(codec.encode_action(action), 0)
    assert (read.flags, read.zone_src, read.zone_ofs_nbits, read.recirc_table, read.alg) == (1, "reg14", 15, 255, 0)
    assert read.actions[0].to_jsondict()["OFPActionSetField"]["field"]["OXMTlv"]["value"] == 5
    plain = oracle.OFPAction.parser(codec.encode_action(Track(7, 21)), 0)
    assert (plain.flags, plain.zone_src, plain.zone_ofs_nbits, plain.recirc_table) == (0, "", 7, 21)


def test_the_oracle_reads_how_fragments_are_treated() -> None:
    config = oracle.OFPSetConfig(SWITCH, 3, 64)
    assert codec.message(codec.SET_CONFIG, XID, codec.config_body()) == oracle_bytes(config)


def test_group_messages_are_as_the_oracle_writes_them() -> None:
    group = Group(7, ((Output(1),), (SetField("tun_id", 5), Output(2))))
    buckets = [
        oracle.OFPBucket(0, [oracle.OFPActionOutput(1, 0xFFFF)]),
        oracle.OFPBucket(1, [oracle.OFPActionSetField(tunnel_id=5), oracle.OFPActionOutput(2, 0xFFFF)]),
    ]
    put = oracle.OFPGroupMod(SWITCH, 0x8000, ofp.OFPGT_ALL, 7, ofp.OFPG_BUCKET_ALL, buckets)
    assert codec.message(codec.GROUP_MOD, XID, codec.group_put(group)) == oracle_bytes(put)
    delete = oracle.OFPGroupMod(SWITCH, ofp.OFPGC_DELETE, ofp.OFPGT_ALL, 7, ofp.OFPG_BUCKET_ALL)
    assert codec.message(codec.GROUP_MOD, XID, codec.group_delete(group)) == oracle_bytes(delete)


def test_meter_messages_are_as_the_oracle_writes_them() -> None:
    flags, bands = ofp.OFPMF_PKTPS | ofp.OFPMF_BURST, [oracle.OFPMeterBandDrop(2, 16)]
    for there, command in ((False, ofp.OFPMC_ADD), (True, ofp.OFPMC_MODIFY)):
        put = codec.message(codec.METER_MOD, XID, codec.meter_put(Meter(7, 2, 16), there))
        assert put == oracle_bytes(oracle.OFPMeterMod(SWITCH, command, flags, 7, bands))
    delete = codec.message(codec.METER_MOD, XID, codec.meter_delete(Meter(7, 2, 16)))
    assert delete == oracle_bytes(oracle.OFPMeterMod(SWITCH, ofp.OFPMC_DELETE, 0, 7, []))


def test_bundle_messages_are_as_the_oracle_writes_them() -> None:
    flags = ofp.OFPBF_ATOMIC | ofp.OFPBF_ORDERED
    for ours, theirs in (
        (codec.OPEN, ofp.OFPBCT_OPEN_REQUEST),
        (codec.COMMIT, ofp.OFPBCT_COMMIT_REQUEST),
        (codec.DISCARD, ofp.OFPBCT_DISCARD_REQUEST),
    ):
        control = oracle.OFPBundleCtrlMsg(SWITCH, 3, theirs, flags, [])
        assert codec.message(codec.BUNDLE_CONTROL, XID, codec.bundle_control(3, ours)) == oracle_bytes(control)
    inner = oracle.OFPGroupMod(SWITCH, ofp.OFPGC_DELETE, ofp.OFPGT_ALL, 7, ofp.OFPG_BUCKET_ALL)
    inner.set_xid(XID)
    added = oracle_bytes(oracle.OFPBundleAddMsg(SWITCH, 3, flags, inner, []))
    assert codec.bundle_add(3, XID, codec.GROUP_MOD, codec.group_delete(Group(7, ()))) == added


def test_requests_are_as_the_oracle_writes_them() -> None:
    flows = oracle.OFPFlowDescStatsRequest(SWITCH, 0, 60, ofp.OFPP_ANY, ofp.OFPG_ANY, 0x50, 0xF0, oracle.OFPMatch(metadata=3))
    request = codec.flows_request(60, match(metadata=3), 0x50, 0xF0)
    assert codec.message(codec.MULTIPART_REQUEST, XID, request) == oracle_bytes(flows)
    groups = oracle.OFPGroupDescStatsRequest(SWITCH, 0, ofp.OFPG_ALL)
    assert codec.message(codec.MULTIPART_REQUEST, XID, codec.groups_request()) == oracle_bytes(groups)
    assert codec.message(codec.BARRIER_REQUEST, XID) == oracle_bytes(oracle.OFPBarrierRequest(SWITCH))


def test_the_oracle_reads_hello() -> None:
    data = codec.message(codec.HELLO, XID, codec.hello_body())
    read = oracle.OFPHello.parser(SWITCH, codec.VERSION, codec.HELLO, len(data), XID, data)
    assert read.elements[0].versions == [codec.VERSION]


def test_prerequisites_go_first() -> None:
    matched = match(arp_op=1, eth_type=0x86DD, icmpv6_type=135, ip_proto=58, nd_sll=1, nd_target=2)
    raw = codec.encode_match(matched)
    order = ("eth_type", "ip_proto", "icmpv6_type", "arp_op", "nd_sll", "nd_target")
    places = [raw.index(fields.FIELDS[name].header) for name in order]
    assert places == sorted(places)


@st.composite
def matches(draw: st.DrawFn) -> Match:
    """A match in the one form; registers only as reg0 … reg15."""
    names = draw(st.sets(st.sampled_from(sorted(name for name in FIELD_BITS if not name.startswith("xxreg")))))
    given: dict[str, tuple[int, int]] = {}
    for name in names:
        numbers = st.integers(0, (1 << FIELD_BITS[name]) - 1)
        mask = draw(numbers)
        given[name] = (draw(numbers) & mask, mask)
    return match(**given)


@given(matches())
def test_a_match_comes_back_equal(matched: Match) -> None:
    raw = codec.encode_match(matched)
    assert len(raw) % 8 == 0
    assert codec.decode_match(raw[4 : int.from_bytes(raw[2:4], "big")]) == matched


@pytest.mark.parametrize(
    "action",
    [
        Output(3),
        Output(0xFFFFFFFD),
        InPort(),
        ToGroup(1),
        Resubmit(200),
        PushVlan(),
        PopVlan(),
        SetField("xxreg3", 1 << 127),
        SetField("reg5", 0x10, 0xF0),
        Move("xxreg0", "ipv6_dst", 128),
        Move("ct_mark", "reg0", 8, 3, 24),
        ToController(7, 128),
        Track(7, 21),
        Track("reg14", 21),
        Track("reg15", commit=True, actions=(Move("reg12", "ct_mark", 32), SetField("ct_mark", 1, 1))),
    ],
)
def test_an_action_comes_back_equal(action: Action) -> None:
    assert codec.decode_actions(codec.encode_action(action)) == (action,)


def test_register_pairs_are_split() -> None:
    # OXM_OF_PKT_REG1, the form of reg2 and reg3 over OpenFlow 1.5 (ovs-fields(7), "xreg").
    assert codec.decode_match(bytes.fromhex("80010208 00000007 00000012")) == match(reg2=7, reg3=0x12)
    assert codec.decode_match(bytes.fromhex("80010310 00000000 00000012 00000000 0000ffff")) == match(reg3=(0x12, 0xFFFF))


def test_what_we_do_not_know_is_opaque() -> None:
    decrement_ttl = bytes.fromhex("0018000800000000")
    assert codec.decode_actions(decrement_ttl + codec.encode_action(Output(1))) == (Opaque(decrement_ttl), Output(1))
    goto = bytes.fromhex("0001000805000000")
    assert codec.decode_instructions(goto) == (Opaque(goto),)
    with pytest.raises(ValueError, match="cannot be written"):
        codec.encode_action(Opaque(decrement_ttl))


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ("80002a04 12345678", ("oxm:8000:21:4", 0x12345678, None)),  # arp_op's number, but another length
        ("00014a04 0000000a", ("oxm:0001:37:4", 10, None)),  # conj_id
        ("ffff5406 4f4e4600 0002", ("oxm:ffff:42:2:4f4e4600", 2, None)),  # tcp_flags
        ("ffff5508 4f4e4600 0002 00ff", ("oxm:ffff:42:2:4f4e4600", 2, 0xFF)),
    ],
)
def test_a_field_we_do_not_know_keeps_its_bytes(raw: str, field: tuple[str, int, int | None]) -> None:
    assert codec.decode_match(bytes.fromhex(raw)) == (field,)
    assert codec.encode_field(*field) == bytes.fromhex(raw)


@pytest.mark.parametrize(
    "field",
    [
        ("tcp_dst", 1 << 16, None),
        ("tcp_dst", -1, None),
        ("tcp_dst", 1, 0xFFFF),
        ("tcp_dst", 0, 0),
        ("tcp_dst", 3, 2),
        ("tcp_dst", 2, 0x10002),
        ("no_such_field", 1, None),
        ("oxm:zz:1:2", 1, None),
    ],
)
def test_a_field_that_would_not_come_back_equal_is_refused(field: tuple[str, int, int | None]) -> None:
    with pytest.raises(ValueError, match=r"does not fit|no such field"):
        codec.encode_field(*field)


@pytest.mark.parametrize("flow", [Flow(256, 1, (), (), 1), Flow(0, 1 << 16, (), (), 1), Flow(0, 0, (), (), -1)])
def test_a_flow_out_of_range_is_refused(flow: Flow) -> None:
    with pytest.raises(ValueError, match="out of range"):
        codec.flow_put(flow)
    with pytest.raises(ValueError, match="write InPort"):
        codec.encode_action(Output(codec.PORT_IN_PORT))
    with pytest.raises(ValueError, match="do not fit"):
        codec.flow_put(Flow(0, 1, (), (Resubmit(3),) * 5000, 1))


def test_match_has_one_form() -> None:
    assert match(ip_dst=(0x0A000001, 0xFFFFFFFF), ip_src=(0, 0)) == (("ip_dst", 0x0A000001, None),)
    assert match(xxreg1=(5 << 64 | 6, 0xFF << 64 | 0xFFFFFFFF)) == (("reg5", 5, 0xFF), ("reg7", 6, None))
    with pytest.raises(ValueError, match="outside"):
        match(ip_dst=(0x0A000001, 0xFFFFFF00))
    with pytest.raises(ValueError, match="no such field"):
        match(ip_destination=1)
    with pytest.raises(ValueError, match="twice"):
        match(xxreg0=1, reg0=2)


def test_hello_offers() -> None:
    assert codec.hello_offers(6, codec.hello_body())
    assert codec.hello_offers(6, b"")
    assert not codec.hello_offers(4, b"")
    assert not codec.hello_offers(4, bytes.fromhex("0001000800000012"))


def test_errors_in_words() -> None:
    assert str(ErrorReply(4, 9)) == "bad match: bad prerequisite (4/9)"
    assert str(ErrorReply(99, 77)) == "error: code (99/77)"


def test_every_field_of_the_model_is_in_the_table() -> None:
    assert fields.FIELDS.keys() == FIELD_BITS.keys()
