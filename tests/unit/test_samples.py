"""What was dropped last: headers as they are read, and how much is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.drivers.openflow import codec
from agent.inspection import header
from agent.inspection.frame import frame
from agent.inspection.packet import fields_of
from agent.inspection.samples import KEPT, PORTS, Samples
from agent.model.flow import match
from agent.model.pipeline import REASON, SOURCE, TARGET, CookieKind, Reason, cookie
from kumihimo.v1 import inspect_pb2 as pb

PORT, OTHER = "0192f0c4-0000-7000-8000-00000000000a", "0192f0c4-0000-7000-8000-00000000000b"
TWIN = "0192f0c5-0000-7000-8000-00000000000a"  # of the same cookie
ENDS = {"eth_src": "fa:16:3e:00:00:01", "eth_dst": "fa:16:3e:00:00:02"}
V4 = ENDS | {"eth_type": 0x0800, "ip_src": "10.0.0.1", "ip_dst": "10.0.0.2"}
V6 = ENDS | {"eth_type": 0x86DD, "ip_src": "fd00::1", "ip_dst": "fd00::2"}
TCP = V4 | {"protocol": 6, "source_port": 5, "destination_port": 80}


def packet_in(data: bytes, port: str = PORT, length: int = 0, **fields: int) -> bytes:
    """What the switch sends (OpenFlow 1.5.1, section 7.4.1)."""
    head = bytes(4) + (length or len(data)).to_bytes(2, "big") + bytes(2)
    return head + cookie(CookieKind.PORT, port).to_bytes(8, "big") + codec.encode_match(match(**fields)) + bytes(2) + data


def dropped(reason: Reason = Reason.SPOOFED_IP, data: bytes = b"", port: str = PORT, **where: int) -> bytes:
    return packet_in(data, port, **{REASON: int(reason), **(where or {SOURCE: 7})})


@pytest.mark.parametrize(
    "fields",
    [
        TCP,
        V4 | {"protocol": 17, "source_port": 53, "destination_port": 5353},
        V4 | {"protocol": 1, "icmp_type": 8, "icmp_code": 3},
        V4 | {"protocol": 47},
        TCP | {"vlan_id": 100},
        V6 | {"protocol": 6, "source_port": 1, "destination_port": 65535},
        V6 | {"protocol": 58, "icmp_type": 128},
    ],
)
def test_a_header_is_read_as_it_was_written(fields: dict[str, object]) -> None:
    packet = pb.Packet(**fields)
    assert header.read(frame(fields_of(packet))) == packet


HEAD = bytes.fromhex("fa163e000002fa163e000001")


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (HEAD + bytes.fromhex("0806 0001080006040002 fa163e000001 0a000001 000000000000 0a000002"), {"arp_op": 2}),
        # A later fragment has no ports; a header with options has them further back.
        (HEAD + bytes.fromhex("0800 4500001c00000002 4006 0000 0a000001 0a000002 00050050"), {"protocol": 6}),
        (
            HEAD + bytes.fromhex("0800 4600001c00000000 4006 0000 0a000001 0a000002 01010100 00050050"),
            {"protocol": 6, "source_port": 5, "destination_port": 80},
        ),
    ],
)
def test_ipv4_and_arp(data: bytes, fields: dict[str, int]) -> None:
    kind = int.from_bytes(data[12:14], "big")
    assert header.read(data) == pb.Packet(**V4 | {"eth_type": kind} | fields)


V6_ENDS = bytes.fromhex("fd000000000000000000000000000001 fd000000000000000000000000000002")


@pytest.mark.parametrize(
    ("following", "rest", "fields"),
    [
        (0, "1100050200000000 00350050", {"protocol": 17, "source_port": 53, "destination_port": 80}),
        (44, "0600000000000001 00350050", {"protocol": 6, "source_port": 53, "destination_port": 80}),
        (44, "0600000800000001 00350050", {"protocol": 6}),
        (58, "8700000000000000 fd000000000000000000000000000009", {"protocol": 58, "icmp_type": 135, "nd_target": "fd00::9"}),
        (0, "00ff", {}),
    ],
)
def test_headers_of_ipv6_that_follow(following: int, rest: str, fields: dict[str, object]) -> None:
    fixed = bytes.fromhex("86dd 60000000 0000") + bytes([following, 64]) + V6_ENDS
    assert header.read(HEAD + fixed + bytes.fromhex(rest)) == pb.Packet(**V6 | fields)


@given(
    st.binary(max_size=160),
    st.sampled_from(
        [b"", HEAD + b"\x08\x00", HEAD + b"\x86\xdd" + bytes(6), HEAD + b"\x08\x06", HEAD + b"\x81\x00\x00\x07\x86\xdd"]
    ),
)
def test_no_packet_is_too_odd(data: bytes, start: bytes) -> None:
    header.read(start + data)


def test_whom_a_dropped_packet_is_told_to_and_as_what() -> None:
    samples = Samples()
    data = frame(fields_of(pb.Packet(**TCP)))
    samples.take(packet_in(data[:40], length=1400, **{REASON: Reason.SPOOFED_IP, SOURCE: 7, "metadata": 5}))
    samples.take(dropped(Reason.SG_INGRESS, data, **{SOURCE: 8, TARGET: 7}))
    samples.take(dropped(Reason.CT_INVALID, data, **{SOURCE: 7}))
    told = list(samples.of(PORT, 7))
    assert [(each.reason, each.received) for each in told] == [
        ("CT_INVALID", False),
        ("SG_INGRESS", True),
        ("SPOOFED_IP", False),
    ]
    assert told[2].packet == pb.Packet(**TCP)
    assert (told[2].length, told[1].length) == (1400, len(data))
    assert all(each.message and each.time.seconds for each in told)
    # Another port is told nothing: not by its number alone, nor by a cookie alone that is the same.
    assert not list(samples.of(OTHER, 7))
    assert cookie(CookieKind.PORT, TWIN) == cookie(CookieKind.PORT, PORT)
    assert not list(samples.of(TWIN, 8))


def test_what_no_flow_of_ours_has_sent_is_not_kept() -> None:
    samples = Samples()
    body = bytearray(dropped())
    body[8] = CookieKind.NETWORK
    samples.take(bytes(body))
    assert not samples._kept


def test_so_many_are_kept_and_no_more() -> None:
    samples = Samples()
    samples.take(packet_in(bytes(9000)))
    assert all(len(body) < 250 for kept in samples._kept.values() for _, body in kept)
    for number in range(3 * KEPT):
        samples.take(dropped(data=HEAD + number.to_bytes(2, "big")))
    assert [each.packet.eth_type for each in samples.of(PORT, 7)] == list(range(3 * KEPT))[: -KEPT - 1 : -1]
    ports = [f"0192f0c4-0000-7000-8000-{number:012x}" for number in range(1 << 20, (1 << 20) + PORTS)]
    for port in ports[1:]:
        samples.take(dropped(port=port))
    samples.take(dropped())
    samples.take(dropped(port=ports[0]))  # the oldest goes, and that is not the first of all
    assert len(samples._kept) == PORTS
    assert len(list(samples.of(PORT, 7))) == KEPT
    samples.take(dropped(port=OTHER))
    assert len(samples._kept) == PORTS
    assert not list(samples.of(ports[1], 7))
