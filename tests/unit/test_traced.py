"""What `ofproto/trace` of Open vSwitch 3.1 has said (traces/, as it was), read; and the words for the pipeline."""

from __future__ import annotations

from ipaddress import IPv6Address
from pathlib import Path

import pytest

from agent.inspection import conntrack, packet, words
from agent.inspection.frame import PAYLOAD, checksum, frame
from agent.inspection.traced import parse
from agent.model import wire
from agent.model.flow import CT_ESTABLISHED, CT_REPLY, CT_TRACKED, match
from agent.model.journey import NO_FLOW, Fate, Journey
from agent.model.pipeline import CookieKind, Reason, Table
from kumihimo.v1 import inspect_pb2 as pb

MAC = "fa:16:3e:00:00:01"
TRACES = Path(__file__).with_name("traces")


def read(name: str) -> Journey:
    return parse((TRACES / f"{name}.txt").read_text())


def test_a_drop_has_its_reason_and_the_flow_that_decided_it() -> None:
    found = read("spoofed")
    assert [(step.table, step.priority) for step in found.steps] == [(0, 100), (10, 90), (99, 100)]
    assert found.steps[1].match == "ip,reg14=0x1,dl_src=fa:16:3e:07:3b:3a"
    assert found.steps[1].actions == ("set_field:0x3->reg11", "resubmit(,99)")
    assert found.steps[1].cookie >> 56 == CookieKind.PORT
    (end,) = found.ends
    assert (end.fate, end.step, end.fields["reg11"]) == (Fate.DROPPED, 2, Reason.SPOOFED_IP)


def test_each_bucket_of_a_group_has_an_end_and_begins_with_what_was_before_the_group() -> None:
    found = read("broadcast")
    assert [(end.fate, end.port, end.fields.get("reg11", 0)) for end in found.ends] == [
        (Fate.DROPPED, 0, Reason.BACK_TO_SENDER),
        (Fate.OUTPUT, 4, 0),
        (Fate.OUTPUT, 2, 0),
    ]
    assert found.ends[1].fields.get("reg15") == 4
    assert "reg15" not in found.ends[2].fields
    assert (found.ends[2].fields["tun_id"], found.ends[2].fields["tun_dst"]) == (1, 0xC0A83202)
    assert [step.bridge for step in found.steps if step.bridge] == ["br-phy"], "the underlay is no part of our pipeline"
    assert found.steps[-1].notes == ("forwarding to learned port",)


def test_an_answer_tells_its_mac_and_a_subroutine_returns() -> None:
    found = read("arp")
    assert [(step.table, step.depth) for step in found.steps] == [(0, 0), (10, 0), (30, 0), (44, 1), (31, 0)]
    assert found.steps[2].actions == ("move:NXM_OF_ARP_TPA[]->NXM_NX_REG3[]", "resubmit(,44)", "resubmit(,31)")
    (end,) = found.ends
    assert (end.fate, end.fields["eth_src"]) == (Fate.ANSWERED, 0xFA163E04D2A3)


def test_connection_tracking_begins_another_run() -> None:
    found = read("tracked")
    assert [(step.table, step.run) for step in found.steps] == [(0, 0), (21, 1), (30, 1)]
    assert found.steps[-1].priority == NO_FLOW
    assert [(end.fate, end.step) for end in found.ends] == [(Fate.DROPPED, 2)]


def test_what_the_switch_cannot_send_is_told() -> None:
    (end,) = read("no_route").ends
    assert (end.fate, end.fault) == (Fate.OUTPUT, "native tunnel routing failed")
    for name in ("no_match", "to_sender"):
        assert [end.fate for end in read(name).ends] == [Fate.DROPPED]


@pytest.mark.parametrize("text", ["", "Bad openflow flow syntax: nonsense=9: unknown field nonsense"])
def test_what_is_no_trace_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no trace"):
        parse(text)


def test_the_words_know_every_table_reason_and_kind_of_cookie() -> None:
    assert set(words.STAGES) == set(Table)
    assert set(words.WHY) == set(Reason)
    assert set(words.KINDS) == set(CookieKind)
    assert words.why(0) == ("", words.WITHOUT_REASON)
    assert words.stage(240) == "table 240"


def test_a_match_in_words() -> None:
    sent = match(reg14=1, eth_src=0xFA163E000001, eth_type=0x0800, ip_src=(0x0A000000, 0xFFFFFF00), ip_proto=17, udp_src=67)
    assert words.packets(sent) == "UDP from 10.0.0.0/24 from port 67 from MAC fa:16:3e:00:00:01"
    assert words.packets(match(reg14=1)) == "any frame"
    assert words.packets(match(reg14=1, reg15=1)) == "any frame of its own"
    assert words.packets(match(reg14=1, ct_mark=7, ct_state=(0x20, 0x20))) == "any frame of a connection that is allowed"


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (pb.Packet(eth_src="fa:16:3e:00:00:01", ip_src="10.0.0.1", ip_dst="nonsense", eth_type=wire.ETH_IPV4), "nonsense"),
        (pb.Packet(eth_src="fa:16:3e:00:00:01", ip_src="10.0.0.1", ip_dst="fd00::1", eth_type=wire.ETH_IPV4), "fd00::1"),
        (pb.Packet(eth_src="fa:16", eth_type=wire.ETH_ARP), "no MAC"),
    ],
)
def test_a_packet_that_is_none_is_refused(described: pb.Packet, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        packet.fields_of(described)


LISTED = """\
udp,orig=(src=10.0.0.2,dst=10.0.0.3,sport=5353,dport=53),reply=(src=10.0.0.3,dst=10.0.0.2,sport=53,dport=5353),zone=5,mark=7
tcp,orig=(src=10.0.0.2,dst=10.0.0.3,sport=40000,dport=80),reply=(src=10.0.0.3,dst=10.0.0.2,sport=80,dport=40000),zone=5,\
mark=6001,protoinfo=(state=ESTABLISHED)
icmpv6,orig=(src=fd00::2,dst=fd00::3,id=5,type=128,code=0),reply=(src=fd00::3,dst=fd00::2,id=5,type=129,code=0),zone=5,mark=8
sctp,orig=(src=10.0.0.2,dst=10.0.0.3,sport=0,dport=0),reply=(src=10.0.0.3,dst=10.0.0.2,sport=0,dport=0),zone=5,mark=9
"""
TCP = {"ip_proto": 6, "ip_src": 0x0A000002, "ip_dst": 0x0A000003, "tcp_src": 49152, "tcp_dst": 80}


def test_the_connection_of_a_packet_is_found_from_any_port_and_either_side() -> None:
    assert conntrack.find(LISTED, TCP, any_source_port=False) is None
    assert conntrack.find(LISTED, TCP | {"tcp_dst": 81}, any_source_port=True) is None
    found = conntrack.find(LISTED, TCP, any_source_port=True)
    assert found is not None
    assert (found.state, found.connection.state, found.connection.mark) == ("ESTABLISHED", CT_TRACKED | CT_ESTABLISHED, 6001)
    assert found.connection.original["tcp_src"] == 40000
    back = {"ip_proto": 6, "ip_src": 0x0A000003, "ip_dst": 0x0A000002, "tcp_src": 80, "tcp_dst": 1}
    answer = conntrack.find(LISTED, back, any_source_port=True)
    assert answer is not None
    assert answer.connection.state & CT_REPLY
    sctp = {"ip_proto": 132, "ip_src": 0x0A000002, "ip_dst": 0x0A000003, "sctp_src": 1, "sctp_dst": 2}
    alone = conntrack.find(LISTED, sctp, any_source_port=False)
    assert alone is not None
    assert alone.connection.mark == 9
    echo = {"ip_proto": 58, "ipv6_src": int(IPv6Address("fd00::2")), "ipv6_dst": int(IPv6Address("fd00::3"))}
    known = conntrack.find(LISTED, echo | {"icmpv6_type": 128, "icmpv6_code": 0}, any_source_port=True)
    assert known is not None
    assert (known.state, known.connection.mark, known.connection.original["icmpv6_type"]) == ("known", 8, 128)
    assert conntrack.find(LISTED, echo | {"icmpv6_type": 128, "icmpv6_code": 1}, any_source_port=True) is None


def test_what_an_answer_answers() -> None:
    asked = packet.fields_of(
        pb.Packet(eth_src=MAC, eth_dst=MAC, eth_type=wire.ETH_IPV4, ip_src="10.0.0.3", ip_dst="10.0.0.2", protocol=1)
    )
    first = packet.answered(asked)
    assert (first["ip_src"], first["ip_dst"], first["icmp_type"]) == (0x0A000002, 0x0A000003, 8)
    assert packet.answered(TCP)["tcp_dst"] == 49152


@pytest.mark.parametrize(
    ("protocol", "six"), [*((number, False) for number in (1, 6, 17, 89)), *((number, True) for number in (6, 17, 58, 89))]
)
def test_a_probe_bears_checksums_that_are_right(protocol: int, six: bool) -> None:
    ends = {"ip_src": "fd00::2", "ip_dst": "fd00::3"} if six else {"ip_src": "10.0.0.2", "ip_dst": "10.0.0.3"}
    described = pb.Packet(eth_src=MAC, eth_dst=MAC, eth_type=wire.ETH_IPV6 if six else wire.ETH_IPV4, protocol=protocol, **ends)
    made = frame(packet.fields_of(described))
    start = 14 + (40 if six else 20)
    length = int.from_bytes(made[18:20], "big") if six else int.from_bytes(made[16:18], "big") - 20
    upper, addresses = made[start : start + length], made[22:54] if six else made[26:34]
    if not six:
        assert checksum(made[14:34]) == 0
    if protocol == 89:
        assert upper == PAYLOAD
        return
    pseudo = b"" if protocol == 1 else addresses + length.to_bytes(4, "big") + protocol.to_bytes(4, "big")
    assert checksum(pseudo + upper) == 0
