"""What `kumi trace` and `kumi port explain` print of an answer."""

from __future__ import annotations

import pytest

from cli.trace import explained, is_address, told
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import operations_pb2


def answer() -> operations_pb2.TraceResponse:
    reply = operations_pb2.TraceResponse(
        summary="dropped on node h1: because (SPOOFED_IP)", reason="SPOOFED_IP", notes=["a note."]
    )
    port = pb.ObjectRef(kind="Port", id="a-id", name="a")
    reply.forward.hops.add(node="h1", stage="anti-spoofing", object=port, text="dropped: because (SPOOFED_IP)")
    walk = reply.forward.nodes.add(node="h1").walks.add(connection="new")
    walk.steps.add(table=10, priority=90, match="ip,reg14=0x1", actions=["resubmit(,99)"], notes=["noted"])
    walk.steps.add(table=44, priority=-1, depth=1)
    walk.disagreement.wanted_flow, walk.disagreement.found_flow = "table=10,priority=100", "table=10,priority=90"
    return reply


def test_the_sentence_is_the_first_line_and_flows_come_when_they_are_asked_for() -> None:
    lines = "\n".join(told(answer(), verbose=False)).splitlines()
    assert lines[:2] == ["dropped on node h1: because (SPOOFED_IP).", "Also: a note."]
    assert lines[3] == "there:"
    assert lines[4].split() == ["node", "stage", "resource", "what"]
    assert lines[5].split()[:4] == ["h1", "anti-spoofing", "Port", "a"]
    assert "flows" not in "".join(lines)
    verbose = "\n".join(told(answer(), verbose=True)).splitlines()
    assert verbose[-8:] == [
        "there, flows on node h1:",
        "  connection: new",
        "  10: priority 90 ip,reg14=0x1",
        "      resubmit(,99)",
        "      -> noted",
        "    44: no flow",
        "  desired: table=10,priority=100",
        "  found:   table=10,priority=90",
    ]


def test_a_reason_that_the_sentence_lacks_stands_behind_it_and_a_probe_below() -> None:
    reply = operations_pb2.TraceResponse(summary="Port b is not attached", reason="NOT_ATTACHED", probe="nothing was sent")
    assert list(told(reply, verbose=False)) == ["Port b is not attached [NOT_ATTACHED].", "Probe: nothing was sent."]


def test_a_tenant_has_no_column_of_nodes() -> None:
    reply = answer()
    reply.forward.hops[0].node = ""
    assert "\n".join(told(reply, verbose=False)).splitlines()[4].split() == ["stage", "resource", "what"]


def test_an_explanation() -> None:
    reply = pb.PortExplanation(summary="Port a is wired", defaults=["VLAN tags are dropped"])
    reply.drops.add(reason="SPOOFED_IP", packets=3, message="because")
    packet = pb.Packet(eth_src="m1", eth_dst="m2", eth_type=0x0800, ip_src="10.0.0.1", ip_dst="10.0.0.2", protocol=17)
    reply.recent.add(reason="SG_INGRESS", received=True, packet=packet, length=60).time.seconds = 1
    reply.recent[0].packet.destination_port = 53
    reply.recent.add(reason="PROTOCOL", packet=pb.Packet(eth_src="m1", eth_dst="m2", eth_type=0x88CC), length=64)
    reply.filters.add(stage="anti-spoofing", text="IPv4 from 10.0.0.2", passes=True, packets=7, flow="table=10 …")
    reply.filters.add(stage="anti-spoofing", text="IPv4", reason="SPOOFED_IP")
    lines = "\n".join(explained(reply, verbose=True)).splitlines()
    assert lines[0] == "Port a is wired."
    assert any(line.split() == ["SPOOFED_IP", "3", "because"] for line in lines)
    first = next(number for number, line in enumerate(lines) if line == "recent drops:") + 2
    told = "1970-01-01T00:00:01Z SG_INGRESS received UDP m1 10.0.0.1 port 0 m2 10.0.0.2 port 53 60"
    assert lines[first].split() == told.split()
    assert lines[first + 1].split() == ["1970-01-01T00:00:00Z", "PROTOCOL", "sent", "0x88cc", "m1", "m2", "64"]
    assert any("IPv4 from 10.0.0.2" in line and "passed on" in line and line.endswith("7") for line in lines)
    assert any("dropped SPOOFED_IP" in line for line in lines)
    assert "- VLAN tags are dropped" in lines
    assert lines[-1] == "table=10 …"


@pytest.mark.parametrize(("text", "address"), [("10.0.0.1", True), ("fd00::1", True), ("web1", False), ("10.0.0", False)])
def test_an_address_is_no_name(text: str, address: bool) -> None:
    assert is_address(text) == address
