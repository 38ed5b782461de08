"""How answers of agents become one sentence: who is asked, what is said, and what a tenant is not told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from controlplane.api import packets
from controlplane.api.agents import Silent
from controlplane.api.expired import lets_pass
from controlplane.api.follow import Follow, Side
from controlplane.api.standing import Finding, Names
from controlplane.api.trace import conclude
from controlplane.identity import Caller, Role
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import network_pb2, operations_pb2, port_pb2, security_pb2

OPERATOR, TENANT = Caller("root", "admin", Role.OPERATOR), Caller("alice", "demo", Role.MEMBER)
A = port_pb2.Port(id="a-id", name="a", project_id="demo", network_id="n", mac_address="fa:16:3e:00:00:01")
B = port_pb2.Port(id="b-id", name="b", project_id="demo", network_id="n", mac_address="fa:16:3e:00:00:02")
FOREIGN = port_pb2.Port(id="f-id", name="secret", project_id="other", network_id="n")
WEB = security_pb2.SecurityGroup(id="g-id", name="web", project_id="demo")
SENDER, RECEIVER = Side("10.0.0.2", A.mac_address, A, "h1"), Side("10.0.0.3", B.mac_address, B, "h2")
ANSWERED = pb.TraceEnd(fate=pb.PACKET_FATE_ANSWERED, mac=B.mac_address)
TUNNEL = pb.TraceEnd(fate=pb.PACKET_FATE_TUNNEL, node="h2", address="192.0.2.2", segment="vxlan 5")
DELIVERED = pb.TraceEnd(fate=pb.PACKET_FATE_DELIVERED, object=pb.ObjectRef(kind="Port", id="b-id"))
Answer = Callable[[str, pb.TraceNodeRequest], pb.NodeTrace]


class Cache:
    """Objects by kind and id."""

    def __init__(self) -> None:
        self.objects = {("Port", each.id): each for each in (A, B, FOREIGN)} | {("SecurityGroup", WEB.id): WEB}

    def locate(self, kind: Any, object_id: str) -> str | None:
        return object_id if (kind.name, object_id) in self.objects else None

    def message(self, kind: Any, key: str) -> Any:
        return self.objects.get((kind.name, key))


class Agents:
    """Answers as a test says."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[tuple[str, pb.TraceNodeRequest]] = []
        self._answer = answer

    async def ask(self, node: str, name: str, request: Any) -> pb.NodeTrace:
        assert name == "Trace"
        self.asked.append((node, request))
        return self._answer(node, request)


class Expired:
    """Knows one rule, or none."""

    def __init__(self, rule: Any = None) -> None:
        self._rule = rule

    async def find(self, groups: Any, ingress: bool, packet: pb.Packet) -> Any:
        return self._rule if list(groups) == [WEB.id] and ingress else None


def walked(node: str, *ends: pb.TraceEnd, parting: pb.TraceDisagreement | None = None) -> pb.NodeTrace:
    """A node's answer of one step."""
    step = pb.TraceStep(table=60, stage="where it goes", object=pb.ObjectRef(kind="Port", id="b-id"), match="reg14=0x1")
    return pb.NodeTrace(node=node, walks=[pb.TraceWalk(steps=[step], ends=ends, disagreement=parting)])


def honest(node: str, request: pb.TraceNodeRequest) -> pb.NodeTrace:
    """The question is answered, the packet goes to h2 and is delivered there."""
    if request.packet.eth_type == packets.ARP:
        return walked(node, ANSWERED)
    return walked(node, TUNNEL if node == "h1" else DELIVERED)


def follow(
    answer: Answer, caller: Caller = OPERATOR, target: Side = RECEIVER, expired: Any = None
) -> tuple[operations_pb2.TraceDirection, Follow, Agents]:
    """One direction from a."""
    agents = Agents(answer)
    cache: Any = Cache()
    follow = Follow(agents, expired or Expired(), Names(cache, caller), caller)  # type: ignore[arg-type]
    request = operations_pb2.TraceRequest(protocol="tcp", destination_port=80)
    packet = packets.sent(request, (SENDER.mac, SENDER.ip), (target.mac, target.ip))
    return asyncio.run(follow.direction(SENDER, target, packet, any_source_port=True)), follow, agents


def dropped(reason: str, message: str = "for a reason", **fields: Any) -> pb.TraceEnd:
    return pb.TraceEnd(fate=pb.PACKET_FATE_DROPPED, reason=reason, message=message, **fields)


def test_both_hosts_are_asked_and_the_way_is_told_in_names() -> None:
    way, found, agents = follow(honest)
    assert (way.passes, way.summary, found.partial) == (True, "delivered to port b (10.0.0.3)", False)
    asked = [
        (node, request.port_id, request.network_id, request.from_node, request.any_source_port)
        for node, request in agents.asked
    ]
    assert asked == [("h1", "a-id", "", "", False), ("h1", "a-id", "", "", True), ("h2", "", "n", "h1", True)]
    assert [(hop.node, hop.object.name) for hop in way.hops] == [("h1", ""), ("h1", "b"), ("h2", "b")]
    assert way.hops[1].text == "sent by vxlan 5 to node h2"


def test_a_tenant_is_told_of_no_host_and_no_flow() -> None:
    way, _, _ = follow(honest, TENANT)
    assert way.passes
    assert not way.nodes
    assert "h1" not in str(way)
    assert "h2" not in str(way)
    assert "192.0.2.2" not in str(way)

    def to_another(node: str, request: pb.TraceNodeRequest) -> pb.NodeTrace:
        end = pb.TraceEnd(fate=pb.PACKET_FATE_DELIVERED, object=pb.ObjectRef(kind="Port", id="f-id", name="secret"))
        return honest(node, request) if request.packet.eth_type == packets.ARP else walked(node, end)

    way, _, _ = follow(to_another, TENANT)
    assert (way.passes, way.reason) == (False, "MISDIRECTED")
    assert way.summary == "delivered to port other project in place of port b (10.0.0.3)"
    assert "secret" not in str(way)


def test_a_port_of_others_is_not_named() -> None:
    way, found, _ = follow(honest, TENANT, Side("10.0.0.3", B.mac_address, FOREIGN, "h2", foreign=True))
    assert "secret" not in str(way)
    assert "secret" not in "".join(found.notes(SENDER, Side("10.0.0.3", port=FOREIGN, foreign=True)))


def test_a_silent_agent_makes_the_answer_partial() -> None:
    def silent(node: str, request: pb.TraceNodeRequest) -> pb.NodeTrace:
        if node == "h2":
            raise Silent("NODE_DEAD", "the agent of node h2 is not heard of")
        return honest(node, request)

    for caller, who in ((OPERATOR, "the agent of node h2 is not heard of"), (TENANT, "the host of port b does not answer")):
        way, found, _ = follow(silent, caller)
        assert (way.passes, way.reason, found.partial) == (False, "NODE_DEAD", True)
        assert way.summary == f"{who}, so what becomes of the packet there is not known; up to its tunnel the packet passes"


def test_a_refused_packet_tells_more_than_the_question_before_it() -> None:
    def spoofed(node: str, request: pb.TraceNodeRequest) -> pb.NodeTrace:
        arp = request.packet.eth_type == packets.ARP
        return walked(node, dropped("SPOOFED_ARP" if arp else "SPOOFED_IP"))

    assert follow(spoofed)[0].reason == "SPOOFED_IP"

    def unknown(node: str, request: pb.TraceNodeRequest) -> pb.NodeTrace:
        return walked(node, dropped("ARP_UNKNOWN"))

    way, _, agents = follow(unknown, target=Side("10.0.0.9"))
    assert way.summary == "the question for 10.0.0.9 is dropped on node h1: for a reason (ARP_UNKNOWN)"
    assert len(agents.asked) == 1, "where to send it nobody has said"


def test_a_tunnel_to_another_node_is_told() -> None:
    def astray(node: str, request: pb.TraceNodeRequest) -> pb.NodeTrace:
        other = pb.TraceEnd(fate=pb.PACKET_FATE_TUNNEL, node="h3")
        return walked(node, ANSWERED if request.packet.eth_type == packets.ARP else other)

    way, _, _ = follow(astray)
    assert (way.passes, way.reason, way.summary) == (
        False,
        "MISDIRECTED",
        "sent to node h3, and port b (10.0.0.3) is not there",
    )


def test_of_several_copies_that_for_the_receiver_counts() -> None:
    """As of a MAC that floats, or of a broadcast."""

    def copies(node: str, request: pb.TraceNodeRequest) -> pb.NodeTrace:
        other = pb.TraceEnd(fate=pb.PACKET_FATE_TUNNEL, node="h3")
        elsewhere = pb.TraceEnd(fate=pb.PACKET_FATE_DELIVERED, object=pb.ObjectRef(kind="Port", id="f-id"))
        if request.packet.eth_type == packets.ARP:
            return walked(node, other, TUNNEL)
        if node == "h1":
            return walked(node, dropped("BACK_TO_SENDER"), other, TUNNEL)
        return walked(node, elsewhere, DELIVERED)

    way, _, agents = follow(copies)
    assert (way.passes, [node for node, _ in agents.asked]) == (True, ["h1", "h1", "h2"]), way.summary


@pytest.mark.parametrize("expired", [False, True])
def test_which_groups_do_not_allow_it(expired: bool) -> None:
    end = dropped("SG_INGRESS", filtered=pb.ObjectRef(kind="Port", id="b-id"), ingress=True)
    end.groups.add(kind="SecurityGroup", id=WEB.id)

    def filtered(node: str, request: pb.TraceNodeRequest) -> pb.NodeTrace:
        return walked(node, end) if node == "h2" else honest(node, request)

    rule = security_pb2.SecurityGroupRule()
    rule.expire_time.FromSeconds(0)
    way, _, _ = follow(filtered, expired=Expired(rule if expired else None))
    told = "no ingress rule of security group web allows tcp/80 from 10.0.0.2"
    told += "; one that did expired at 1970-01-01T00:00:00Z" if expired else ""
    assert way.summary == f"dropped on node h2: {told} (SG_INGRESS)"


def test_what_differs_from_what_is_desired_is_told() -> None:
    parting = pb.TraceDisagreement(table=60, stage="where it goes", wanted=pb.ObjectRef(kind="Port", id="b-id"))

    def drifted(node: str, request: pb.TraceNodeRequest) -> pb.NodeTrace:
        if request.packet.eth_type == packets.ARP:
            return walked(node, ANSWERED)
        found = walked(node, dropped("UNKNOWN_UNICAST"), parting=parting)
        found.walks[0].desired_ends.append(TUNNEL)
        return found

    way, found, _ = follow(drifted)
    told = "a flow of Port b in table 60 (where it goes) is not there as desired"
    assert way.summary.endswith(f"(UNKNOWN_UNICAST); {told}, and with it the packet would pass")
    assert list(found.notes(SENDER, RECEIVER)) == [f"on node h1 {told}"]


def test_a_connection_that_fares_otherwise_than_a_new_one_is_told() -> None:
    def tracked(node: str, request: pb.TraceNodeRequest) -> pb.NodeTrace:
        found = honest(node, request)
        if node == "h2":
            found.walks.add(connection="ESTABLISHED", steps=found.walks[0].steps, ends=[dropped("SG_INGRESS")])
        return found

    way, found, _ = follow(tracked)
    assert way.passes, "a new one does"
    told = "on node h2 a packet of the connection that is there (ESTABLISHED) is dropped: for a reason (SG_INGRESS)"
    assert list(found.notes(SENDER, RECEIVER)) == [told]
    alike, found, _ = follow(lambda node, request: doubled(honest(node, request)))
    assert (alike.passes, list(found.notes(SENDER, RECEIVER))) == (True, [])


def doubled(told: pb.NodeTrace) -> pb.NodeTrace:
    """The connection that is there fares as a new one."""
    told.walks.add().CopyFrom(told.walks[0])
    return told


def test_the_store_goes_before_the_nodes_and_the_rest_are_notes() -> None:
    reply = operations_pb2.TraceResponse()
    reply.forward.summary, reply.forward.reason = "dropped on node h1: because (ARP_UNKNOWN)", "ARP_UNKNOWN"
    packet = packets.sent(operations_pb2.TraceRequest(), (SENDER.mac, SENDER.ip), (RECEIVER.mac, RECEIVER.ip))
    findings = [Finding("NOT_ATTACHED", "port b is not attached"), Finding("PLUGGED_TWICE", "port a twice", fatal=False)]
    conclude(reply, findings, ["a note"], packet, SENDER, RECEIVER)
    assert (reply.summary, reply.reason, reply.passes) == ("Port b is not attached", "NOT_ATTACHED", False)
    assert list(reply.notes) == [
        "port a twice (PLUGGED_TWICE)",
        "icmp from port a (10.0.0.2) to port b (10.0.0.3): dropped on node h1: because (ARP_UNKNOWN)",
        "a note",
    ]
    passing = operations_pb2.TraceResponse()
    passing.forward.passes = passing.back.passes = True
    conclude(passing, findings[1:], [], packet, SENDER, RECEIVER)
    told = "icmp from port a (10.0.0.2) to port b (10.0.0.3) passes, and so does the answer; but port a twice (PLUGGED_TWICE)"
    assert (passing.summary, passing.passes) == (told, True)


def test_an_answer_and_a_question_of_a_packet() -> None:
    request = operations_pb2.TraceRequest(protocol="udp", destination_port=53)
    packet = packets.sent(request, (SENDER.mac, SENDER.ip), (RECEIVER.mac, RECEIVER.ip))
    back = packets.answer(packet)
    assert (back.eth_src, back.ip_src, back.source_port, back.destination_port) == (B.mac_address, "10.0.0.3", 53, 49152)
    six = packets.sent(operations_pb2.TraceRequest(), (SENDER.mac, "fd00::2"), (RECEIVER.mac, "fd00::3"))
    assert (six.protocol, six.icmp_type, packets.answer(six).icmp_type) == (58, 128, 129)
    stamp = packets.sent(
        operations_pb2.TraceRequest(icmp_type=13, icmp_code=1), (SENDER.mac, SENDER.ip), (RECEIVER.mac, RECEIVER.ip)
    )
    back = packets.answer(stamp)
    assert (packets.called(stamp), back.icmp_type, back.icmp_code) == ("icmp type 13 code 1", 14, 1)
    assert packets.is_answered(stamp)
    assert not packets.is_answered(back)
    asked = packets.question(six)
    assert (asked.ip_dst, asked.eth_dst, asked.nd_target) == ("ff02::1:ff00:3", "33:33:ff:00:00:03", "fd00::3")


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({}, True),
        ({"protocol": "tcp"}, True),
        ({"protocol": "udp"}, False),
        ({"protocol": "tcp", "port_range_min": 80, "port_range_max": 90}, True),
        ({"protocol": "tcp", "port_range_min": 81, "port_range_max": 90}, False),
        ({"remote_ip_prefix": "10.0.0.0/24"}, True),
        ({"remote_ip_prefix": "10.9.0.0/24"}, False),
        ({"remote_group_id": "any"}, True),
        ({"ethertype": network_pb2.IP_VERSION_IPV6}, False),
        ({"direction": security_pb2.DIRECTION_EGRESS}, False),
    ],
)
def test_what_an_expired_rule_would_have_allowed(fields: dict[str, Any], passes: bool) -> None:
    request = operations_pb2.TraceRequest(protocol="tcp", destination_port=80)
    packet = packets.sent(request, (SENDER.mac, SENDER.ip), (RECEIVER.mac, RECEIVER.ip))
    rule = security_pb2.SecurityGroupRule(**{"direction": security_pb2.DIRECTION_INGRESS, **fields})
    assert lets_pass(rule, True, packet) == passes


@pytest.mark.parametrize(("code", "passes"), [({}, True), ({"port_range_max": 1}, True), ({"port_range_max": 0}, False)])
def test_an_expired_rule_is_of_a_type_of_icmp(code: dict[str, int], passes: bool) -> None:
    ends = (SENDER.mac, SENDER.ip), (RECEIVER.mac, RECEIVER.ip)
    rule = security_pb2.SecurityGroupRule(direction=security_pb2.DIRECTION_INGRESS, protocol="icmp", port_range_min=13, **code)
    stamp, echo = (packets.sent(operations_pb2.TraceRequest(icmp_type=kind, icmp_code=1), *ends) for kind in (13, 8))
    assert (lets_pass(rule, True, stamp), lets_pass(rule, True, echo)) == (passes, False)


def test_a_rule_in_words() -> None:
    cache = Cache()
    rule = security_pb2.SecurityGroupRule(id="r-id", project_id="demo", security_group_id=WEB.id, remote_group_id=WEB.id)
    rule.direction, rule.protocol, rule.port_range_min, rule.port_range_max = security_pb2.DIRECTION_INGRESS, "tcp", 80, 90
    plain = security_pb2.SecurityGroupRule(id="p-id", project_id="other", security_group_id=WEB.id)
    cache.objects |= {("SecurityGroupRule", each.id): each for each in (rule, plain)}
    ours, all_of_them = Names(cast(Any, cache), TENANT), Names(cast(Any, cache), OPERATOR)
    first, second = (pb.ObjectRef(kind="SecurityGroupRule", id=each.id) for each in (rule, plain))
    assert ours.allowed(first) == "ingress tcp 80-90 over IPv4 from SecurityGroup web, of SecurityGroup web"
    assert all_of_them.allowed(second) == "egress any protocol over IPv4 to anybody, of SecurityGroup web"
    assert ours.allowed(second) == ours.allowed(pb.ObjectRef(kind="Port", id="a-id")) == "", "of others, and of none"
