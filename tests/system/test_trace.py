"""Why one workload cannot talk to another: each cause is made on real hosts, is seen to keep packets, and is named.

`CAUSES` is the list. A cause makes itself, sees that packets are lost, and yields what `kumi trace` and `kumi port explain`
have to say.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import pytest

from agent.model.pipeline import Reason, Table
from controlplane.values import eui64
from deploy.lab import Host, LabError, wait_until
from kumihimo.v1 import inspect_pb2, network_pb2, node_pb2, operations_pb2, port_pb2, security_pb2
from tests.system import frames, frames6
from tests.system.cloud import DUMP, PATIENCE, Cloud, Scene, Vm, drops, refused
from tests.system.test_network_types import PREFIX6, network, wire, workloads

FORGED_IP, FORGED_MAC = "10.0.0.66", "fa:16:3e:ff:ff:01"
__all__ = ["wire"]  # a fixture
INGRESS, EGRESS = security_pb2.DIRECTION_INGRESS, security_pb2.DIRECTION_EGRESS
PARTIAL = ""  # of what could not be looked at
HEADERS = 28  # IPv4 and UDP
LONGEST = 0.3  # seconds that a trace over two hosts may take


@dataclass
class Stage:
    """Two workloads of one network on two hosts that can talk, and what causes do to them."""

    cloud: Cloud
    scene: Scene
    a: Vm
    b: Vm
    network: Any

    def trace(self, to: str = "", **fields: Any) -> Any:
        """The answer to `kumi trace --from a --to b`."""
        request = operations_pb2.TraceRequest(**{"from_port_id": self.a.id, **fields})
        if to:
            request.to_address = to
        elif "to_port_id" not in fields:
            request.to_port_id = self.b.id
        return self.cloud.admin.client.call("Operations", "Trace", request)

    def explain(self, vm: Vm, by: Any = None) -> Any:
        return (by or self.cloud.admin).client.call("Ports", "Explain", inspect_pb2.ExplainPortRequest(id=vm.id))

    @property
    def marker(self) -> bytes:
        """Bytes that only one frame has."""
        return os.urandom(16)

    def talks(self) -> bool:
        """Whether an honest echo request of a arrives at b."""
        return self.arrives(lambda marker: self.a.echo(self.b, marker), PATIENCE)

    def is_silent(self) -> bool:
        """Whether an honest echo request of a does not arrive at b."""
        return self.vanishes(lambda marker: self.a.echo(self.b, marker))

    def vanishes(self, frame: Callable[[bytes], bytes]) -> bool:
        """Whether a frame of a does not arrive at b."""
        return not self.arrives(frame, 1.0)

    def arrives(self, frame: Callable[[bytes], bytes], seconds: float) -> bool:
        """Whether a frame of a arrives at b in so long."""
        marker = self.marker
        self.a.guest.send(frame(marker))
        try:
            wait_until(lambda: self.b.guest.has(marker), "it arrives", seconds)
        except LabError:
            return False
        return True

    def udp(self, payload: bytes) -> bytes:
        return frames.udp(self.a.mac, self.b.mac, self.a.ip, self.b.ip, (7, 7), payload)

    def loses(self, frame: bytes, reason: str) -> None:
        """Send a frame from a, and see it counted as dropped."""
        self.a.guest.send(frame)
        self.counts(reason)

    def fails_to_ping(self, ip: str, reason: str) -> None:
        """Let the kernel of a try, and see its packets counted as dropped."""
        self.a.workload.run(f"! ping -c 1 -W 1 {ip}")
        self.counts(reason)

    def counts(self, reason: str) -> None:
        wait_until(lambda: drops(self.a.host, self.a.ofport).get(Reason[reason], 0) > 0, f"{reason} is counted", PATIENCE)

    def refuses(self, frame: bytes) -> None:
        """Send a frame from a, and see it counted as dropped before b."""
        where = rf"n_packets=[1-9].*reg11={int(Reason.SG_INGRESS):#x},reg15={self.b.ofport:#x}\b"
        self.a.guest.send(frame)
        text = f"{DUMP} --no-names dump-flows br-int table=99"
        wait_until(lambda: bool(re.search(where, self.b.host.run(text))), "SG_INGRESS is counted", PATIENCE)

    def joins(self, vm: Vm, *groups: Any) -> None:
        """A port gets these groups alone."""
        port = port_pb2.Port(id=vm.id, security_group_ids=[group.id for group in groups])
        self.cloud.admin.wait(self.cloud.admin.update(port, "security_group_ids").revision)

    def switch(self, message: Any) -> None:
        """Change admin_state_up, and wait for the nodes."""
        self.cloud.admin.wait(self.cloud.admin.update(message, "admin_state_up").revision)

    def set_node(self, node: node_pb2.Node, path: str) -> None:
        """Change a Node, and wait for the nodes."""
        self.cloud.admin.wait(self.cloud.admin.update(node, path).revision)

    def reasons(self, vm: Vm) -> set[str]:
        return {condition.reason for condition in self.cloud.admin.get(vm.port).conditions}


@dataclass(frozen=True)
class Named:
    """What names a cause: the reason, and what the sentence says; by trace, with these fields, or by explain of a port.

    noted: it is not in the way of the packet that is traced, so it is said behind the sentence's "but" or beside it.
    """

    reason: str
    said: str
    fields: dict[str, Any] = field(default_factory=dict)
    to: str = ""
    explain: Vm | None = None
    noted: bool = False


Cause = Callable[[Stage], Iterator[Named]]


def wrong_source_address(stage: Stage) -> Iterator[Named]:
    a, b = stage.a, stage.b
    stage.loses(frames.echo(a.mac, b.mac, FORGED_IP, b.ip, stage.marker), "SPOOFED_IP")
    yield Named("SPOOFED_IP", "no such source address", {"source_address": FORGED_IP})
    yield Named("SPOOFED_IP", "1 packets of port a were dropped so far: the port has no such source address", noted=True)
    yield Named("SPOOFED_IP", "no such source address", explain=a, noted=True)


def guest_has_another_mac(stage: Stage) -> Iterator[Named]:
    a, b = stage.a, stage.b
    stage.loses(frames.echo(FORGED_MAC, b.mac, a.ip, b.ip, stage.marker), "SPOOFED_MAC")
    yield Named("SPOOFED_MAC", "does not bear the MAC of the port", {"source_mac": FORGED_MAC})
    yield Named("SPOOFED_MAC", "Port a is wired, but of its traffic 1 packets were dropped", explain=a, noted=True)


def guest_has_another_address(stage: Stage) -> Iterator[Named]:
    stage.a.workload.run(f"ip address flush dev eth0; ip address add {FORGED_IP}/24 dev eth0")
    stage.fails_to_ping(stage.b.ip, "SPOOFED_ARP")
    yield Named("SPOOFED_ARP", "its ARP claims an address or MAC that is not the port's", noted=True)


def address_pair_missing(stage: Stage) -> Iterator[Named]:
    a, b = stage.a, stage.b
    stage.loses(frames.echo(a.mac, b.mac, "10.0.0.100", b.ip, stage.marker), "SPOOFED_IP")
    yield Named("SPOOFED_IP", "nor an allowed pair of it", {"source_address": "10.0.0.100"})
    pair = port_pb2.AddressPair(ip_address="10.0.0.100/32")
    changed = stage.cloud.admin.update(port_pb2.Port(id=a.id, allowed_address_pairs=[pair]), "allowed_address_pairs")
    stage.cloud.admin.wait(changed.revision, a.id)
    assert stage.trace(source_address="10.0.0.100").forward.passes


def sender_switched_off(stage: Stage) -> Iterator[Named]:
    stage.switch(port_pb2.Port(id=stage.a.id, admin_state_up=False))
    stage.loses(stage.a.echo(stage.b, stage.marker), "ADMIN_DOWN")
    yield Named("ADMIN_DOWN", "Port a is switched off")
    yield Named("ADMIN_DOWN", "Port a is switched off", explain=stage.a)


def receiver_switched_off(stage: Stage) -> Iterator[Named]:
    stage.switch(port_pb2.Port(id=stage.b.id, admin_state_up=False))
    stage.loses(stage.a.echo(stage.b, stage.marker), "UNKNOWN_UNICAST")
    yield Named("ADMIN_DOWN", "Port b is switched off")


def network_switched_off(stage: Stage) -> Iterator[Named]:
    stage.switch(network_pb2.Network(id=stage.network.id, admin_state_up=False))
    stage.loses(stage.a.echo(stage.b, stage.marker), "ADMIN_DOWN")
    yield Named("ADMIN_DOWN", f"Network {stage.network.name} is switched off")
    yield Named("ADMIN_DOWN", f"Network {stage.network.name} is switched off", explain=stage.b)


def receiver_not_attached(stage: Stage) -> Iterator[Named]:
    stage.b.unplug()
    stage.cloud.wait_unbound(stage.b.port)
    stage.cloud.admin.wait(0)
    stage.loses(stage.a.echo(stage.b, stage.marker), "UNKNOWN_UNICAST")
    yield Named("NOT_ATTACHED", "Port b is not attached: no node has an interface")
    yield Named("NOT_ATTACHED", "Port b is not attached", explain=stage.b)


def asked_to_be_elsewhere(stage: Stage) -> Iterator[Named]:
    stage.b.unplug()
    stage.cloud.wait_unbound(stage.b.port)
    stage.cloud.admin.client.call("Ports", "Bind", port_pb2.BindPortRequest(id=stage.b.id, node_id="h3"))
    stage.b.plug()
    wait_until(lambda: "ASKED_ELSEWHERE" in stage.reasons(stage.b), "it is told", PATIENCE)
    stage.cloud.admin.wait(0)
    stage.loses(stage.a.echo(stage.b, stage.marker), "UNKNOWN_UNICAST")
    yield Named("ASKED_ELSEWHERE", "Port b is not attached: seen on h2, and it shall be on h3")


def plugged_twice(stage: Stage) -> Iterator[Named]:
    twin = stage.scene.move(stage.b, stage.cloud.hosts[2])
    twin.plug()
    wait_until(lambda: "PLUGGED_TWICE" in stage.reasons(stage.b), "it is told", PATIENCE)
    assert stage.talks()
    assert not twin.guest.seen(), "it is the other one that gets it"
    yield Named("PLUGGED_TWICE", "an interface on node h3 names this port too", noted=True)
    yield Named("PLUGGED_TWICE", "an interface on node h3 names this port too", explain=stage.b, noted=True)


def mask_of_the_guest_too_wide(stage: Stage) -> Iterator[Named]:
    other = stage.scene.vm(stage.scene.network(cidr="10.0.1.0/24"), stage.b.host, name="far")
    stage.a.workload.run(f"ip address flush dev eth0; ip address add {stage.a.ip}/16 dev eth0")
    stage.fails_to_ping(other.ip, "ARP_UNKNOWN")
    yield Named(
        "ADDRESS_OUTSIDE", rf"{other.ip} lies in no subnet of network {stage.network.name} \(10.0.0.0/24\)", to=other.ip
    )
    yield Named("ARP_UNKNOWN", "its ARP asks for an address that nobody on the network has", explain=stage.a, noted=True)


def two_networks_and_no_router(stage: Stage) -> Iterator[Named]:
    other = stage.scene.vm(stage.scene.network(), stage.b.host, name="far")
    stage.loses(frames.echo(stage.a.mac, other.mac, stage.a.ip, other.ip, stage.marker), "UNKNOWN_UNICAST")
    yield Named("DIFFERENT_NETWORKS", "and port far on network .*, and no router connects them", {"to_port_id": other.id})


def nobody_has_the_address(stage: Stage) -> Iterator[Named]:
    stage.a.set_address()
    stage.fails_to_ping("10.0.0.99", "ARP_UNKNOWN")
    yield Named("ADDRESS_UNKNOWN", "No port of network .* has the address 10.0.0.99", to="10.0.0.99")


def larger_than_the_network_carries(stage: Stage) -> Iterator[Named]:
    size = stage.network.mtu + 100
    for vm in (stage.a, stage.b):
        vm.host.run(f"ip link set {vm.tap} mtu {size + 100}; ip -n {vm.workload.name} link set eth0 mtu {size + 100}")
    assert stage.vanishes(lambda marker: stage.udp(marker + bytes(size - HEADERS - len(marker))))
    yield Named("PACKET_TOO_LARGE", f"A packet of {size} bytes is larger than the mtu", {"size": size})


def underlay_too_narrow(stage: Stage) -> Iterator[Named]:
    try:
        for host in (stage.a.host, stage.b.host):
            host.run("ip link set phy0 mtu 1400")
        assert stage.vanishes(lambda marker: stage.udp(marker + bytes(1400)))
        wait_until(lambda: "UNDERLAY_MTU" in str(stage.explain(stage.a)), "it is told", PATIENCE)
        yield Named("UNDERLAY_MTU", "which carries 1400: it is lost", noted=True)
    finally:
        for host in (stage.a.host, stage.b.host):
            host.run("ip link set phy0 mtu 1700")


def host_is_dead(stage: Stage) -> Iterator[Named]:
    stage.b.stop()
    stage.b.host.power_off()
    wait_until(lambda: not stage.cloud.is_alive(stage.b.host), "it is not heard of", PATIENCE)
    yield Named("NODE_DEAD", "the agent of node h2 is not heard of.*up to its tunnel the packet passes")
    yield Named(
        "NODE_DEAD", "Port b was wired when it was heard of last: the agent of node h2 is not heard of", explain=stage.b
    )


def agent_is_dead(stage: Stage) -> Iterator[Named]:
    stage.b.host.kill_agent()
    assert stage.talks(), "traffic goes on"
    yield Named("AGENT_SILENT", "the agent of node h2 at .* does not answer.*up to its tunnel the packet passes")
    yield Named("AGENT_SILENT", "the agent of node h2 at .* does not answer", explain=stage.b)


def switch_does_not_answer(stage: Stage) -> Iterator[Named]:
    host = stage.b.host
    host.run("kill -STOP $(cat /var/run/openvswitch/ovs-vswitchd.pid)")
    try:
        assert stage.is_silent()
        yield Named(PARTIAL, "node h2: what is installed: .*this is by what is desired", noted=True)
        yield Named(PARTIAL, "Port b was wired when its node was last looked at; flows: not read within 3 s", explain=stage.b)
    finally:
        host.run("kill -CONT $(cat /var/run/openvswitch/ovs-vswitchd.pid)")


def guest_tags_its_frames(stage: Stage) -> Iterator[Named]:
    frame = stage.a.echo(stage.b, stage.marker)
    stage.loses(frame[:12] + b"\x81\x00\x00\x64" + frame[12:], "VLAN_TAG")
    yield Named("VLAN_TAG", "bears a VLAN tag", {"vlan_id": 100})


def guest_is_a_dhcp_server(stage: Stage) -> Iterator[Named]:
    a, b = stage.a, stage.b
    stage.loses(frames.udp(a.mac, b.mac, a.ip, b.ip, (67, 68), stage.marker), "DHCP_SERVER")
    yield Named("DHCP_SERVER", "may not be DHCP servers", {"protocol": "udp", "source_port": 67, "destination_port": 68})


def ipv6_without_an_address(stage: Stage) -> Iterator[Named]:
    a, b = stage.a, stage.b
    mine, theirs = (eui64(ip_network("fe80::/64"), vm.mac) for vm in (a, b))
    stage.loses(frames6.echo(a.mac, b.mac, mine, theirs, stage.marker), "IPV6")
    yield Named("IPV6", "it is IPv6, and the port has no IPv6 address", to=theirs)


def node_without_this_tunnel(stage: Stage) -> Iterator[Named]:
    geneve = network_pb2.NETWORK_TYPE_GENEVE
    stage.set_node(node_pb2.Node(id="h2", tunnel_types=[geneve]), "tunnel_types")
    try:
        wait_until(lambda: "SEGMENT_NOT_ON_NODE" in stage.reasons(stage.b), "it is told", PATIENCE)
        assert stage.is_silent()
        yield Named("SEGMENT_NOT_ON_NODE", "Port b is not wired: vxlan is not in the tunnel_types of node h2")
        yield Named("SEGMENT_NOT_ON_NODE", "vxlan is not in the tunnel_types of node h2", explain=stage.b)
    finally:
        stage.set_node(node_pb2.Node(id="h2"), "tunnel_types")


def wrong_tunnel_address(stage: Stage) -> Iterator[Named]:
    stage.set_node(node_pb2.Node(id="h2", tunnel_ip="192.168.50.77"), "tunnel_ip")
    try:
        assert stage.is_silent()
        yield Named("NOT_SENT", "the switch says: neighbor cache miss for 192.168.50.77")
    finally:
        stage.set_node(node_pb2.Node(id="h2", tunnel_ip=stage.b.host.underlay), "tunnel_ip")


def somebody_deleted_a_flow(stage: Stage) -> Iterator[Named]:
    stage.set_node(node_pb2.Node(id="h1", drift_policy=node_pb2.DRIFT_POLICY_REPORT), "drift_policy")
    try:
        where = f"table=60,priority=100,metadata={stage.network.key},dl_dst={stage.b.mac}"
        stage.a.host.run(f"ovs-ofctl -O OpenFlow15 --strict del-flows br-int {where}")
        stage.loses(stage.a.echo(stage.b, stage.marker), "UNKNOWN_UNICAST")
        text = r"a flow of Port b in table 60 \(where it goes\) is not there as desired, and with it the packet would pass"
        yield Named("UNKNOWN_UNICAST", text)
    finally:
        stage.set_node(node_pb2.Node(id="h1", drift_policy=node_pb2.DRIFT_POLICY_REPAIR), "drift_policy")


def no_rule_of_the_receivers_group(stage: Stage) -> Iterator[Named]:
    group = stage.scene.group({"direction": INGRESS, "protocol": "tcp", "port_range_min": 80, "port_range_max": 80})
    stage.joins(stage.b, group)
    stage.refuses(stage.a.echo(stage.b, stage.marker))
    yield Named("SG_INGRESS", f"on node h2: no ingress rule of security group {group.name} allows icmp from {stage.a.ip}")
    passing = stage.trace(protocol="tcp", destination_port=80)
    assert passing.passes
    rule = f"ingress tcp 80 over IPv4 from anybody, of SecurityGroup {group.name}"
    assert [hop.text for hop in passing.forward.hops if hop.node == "h2" and hop.stage == "rule"] == [f"allowed: {rule}"]
    told = next(each for each in stage.explain(stage.b).filters if each.text == rule)
    stage.trace(protocol="tcp", destination_port=80, probe=True)
    again = next(each for each in stage.explain(stage.b).filters if each.text == rule)
    assert again.packets > told.packets, "its hits"
    yield Named("SG_INGRESS", "allows tcp/81 from", {"protocol": "tcp", "destination_port": 81})
    yield Named("SG_INGRESS", "Port b is wired, but of its traffic 1 packets were dropped", explain=stage.b, noted=True)


def no_rule_of_the_senders_group(stage: Stage) -> Iterator[Named]:
    group = stage.scene.group({"direction": INGRESS})
    stage.joins(stage.a, group)
    stage.loses(stage.a.echo(stage.b, stage.marker), "SG_EGRESS")
    yield Named("SG_EGRESS", f"on node h1: no egress rule of security group {group.name} allows icmp to {stage.b.ip}")


def no_security_group(stage: Stage) -> Iterator[Named]:
    stage.joins(stage.b)
    stage.refuses(stage.a.echo(stage.b, stage.marker))
    yield Named("SG_INGRESS", "port b has no security group, so nothing passes")


def rule_has_expired(stage: Stage) -> Iterator[Named]:
    group = stage.scene.group({"direction": INGRESS, "protocol": "tcp"})
    stage.joins(stage.b, group)
    rule = security_pb2.SecurityGroupRule(security_group_id=group.id, direction=INGRESS, protocol="icmp")
    rule.expire_time.FromMilliseconds(int(time.time() * 1000) + 10_000)
    stage.cloud.admin.wait(stage.cloud.admin.create(rule).revision)
    assert stage.talks()

    def ended() -> bool:
        rules = stage.cloud.admin.list(security_pb2.SecurityGroupRule)
        return not any(each.security_group_id == group.id and each.protocol == "icmp" for each in rules)

    wait_until(ended, "it has expired", PATIENCE)
    stage.cloud.admin.wait(0)
    stage.refuses(stage.a.echo(stage.b, stage.marker))
    yield Named("SG_INGRESS", f"no ingress rule of security group {group.name} allows icmp.*; one that did expired at 20")


def network_that_stays_on_its_host(stage: Stage) -> Iterator[Named]:
    local = stage.scene.network(network_type=network_pb2.NETWORK_TYPE_LOCAL)
    near, far = (stage.scene.vm(local, vm.host) for vm in (stage.a, stage.b))
    near.guest.send(near.echo(far, stage.marker))
    wait_until(lambda: Reason.UNKNOWN_UNICAST in drops(near.host, near.ofport), "it is counted", PATIENCE)
    yield Named("LOCAL_NETWORK", "does not leave a host", {"from_port_id": near.id, "to_port_id": far.id})


CAUSES: tuple[Cause, ...] = (
    wrong_source_address,
    guest_has_another_mac,
    guest_has_another_address,
    address_pair_missing,
    sender_switched_off,
    receiver_switched_off,
    network_switched_off,
    receiver_not_attached,
    asked_to_be_elsewhere,
    plugged_twice,
    mask_of_the_guest_too_wide,
    two_networks_and_no_router,
    network_that_stays_on_its_host,
    nobody_has_the_address,
    larger_than_the_network_carries,
    underlay_too_narrow,
    host_is_dead,
    agent_is_dead,
    switch_does_not_answer,
    guest_tags_its_frames,
    guest_is_a_dhcp_server,
    ipv6_without_an_address,
    node_without_this_tunnel,
    wrong_tunnel_address,
    somebody_deleted_a_flow,
    no_rule_of_the_receivers_group,
    no_rule_of_the_senders_group,
    no_security_group,
    rule_has_expired,
)


@pytest.fixture
def stage(cloud: Cloud, scene: Scene, h1: Host, h2: Host) -> Stage:
    for host in cloud.hosts:
        cloud.wait_alive(host)
    network = scene.network()
    return Stage(cloud, scene, scene.vm(network, h1, name="a"), scene.vm(network, h2, name="b"), network)


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.__name__)
def test_each_cause_is_named(stage: Stage, cause: Cause) -> None:
    stage.a.workload.run("ip address flush dev eth0")  # what it sends is the test's
    assert stage.talks()
    before = stage.trace()
    assert (before.passes, before.partial, list(before.notes)) == (True, False, []), before
    assert "; but" not in before.summary
    for named in cause(stage):
        reply = stage.explain(named.explain) if named.explain is not None else stage.trace(named.to, **named.fields)
        text = "\n".join([reply.summary, *reply.notes]) if named.noted else reply.summary
        assert re.search(named.said, text, re.DOTALL), f"{cause.__name__}: {reply.summary}\n" + "\n".join(reply.notes)
        if named.reason == PARTIAL:
            assert getattr(reply, "partial", True)
        elif named.noted:
            assert f"({named.reason})" in text
        elif named.explain is None:
            assert (reply.passes, reply.reason) == (False, named.reason), reply.summary


@pytest.mark.parametrize("kind", ["geneve", "gre", "vlan", "flat"])
def test_a_packet_is_followed_on_every_type_of_network(
    scene: Scene, cloud: Cloud, wire: None, h1: Host, h2: Host, kind: str
) -> None:
    made = network(scene, kind, 0 if kind == "flat" else 700)
    six = cloud.admin.create(network_pb2.Subnet(network_id=made.id, cidr=PREFIX6))
    a, b = workloads(scene, made, (h1, h2), six.id)
    for address in (fixed.ip_address for fixed in b.port.fixed_ips):
        request = operations_pb2.TraceRequest(from_port_id=a.id, to_address=address, protocol="tcp", destination_port=80)
        reply = cloud.admin.client.call("Operations", "Trace", request)
        assert (reply.passes, reply.partial, list(reply.notes)) == (True, False, []), reply.summary
        assert {hop.node for hop in reply.forward.hops} == {"h1", "h2"}
        assert any(kind in hop.text for hop in reply.forward.hops)


@pytest.mark.parametrize("together", [False, True], ids=["two hosts", "one host"])
def test_a_packet_of_a_connection_that_is_there_is_traced_as_such(
    cloud: Cloud, scene: Scene, h1: Host, h2: Host, together: bool
) -> None:
    """Also of two ports of one host whose groups differ, so that the connection has two marks."""
    made = scene.network()
    opening = scene.group({"direction": INGRESS, "protocol": "icmp"}, {"direction": EGRESS})
    a = scene.vm(made, h1, name="a", **scene.open())
    b = scene.vm(made, h1 if together else h2, name="b", security_group_ids=[opening.id])
    request = operations_pb2.TraceRequest(from_port_id=a.id, to_port_id=b.id)

    def walks() -> list[list[tuple[str, set[int]]]]:
        reply = cloud.admin.client.call("Operations", "Trace", request)
        assert (reply.partial, list(reply.notes)) == (False, []), reply
        return [[(walk.connection, {end.fate for end in walk.ends}) for walk in told.walks] for told in reply.forward.nodes]

    def known(fate: int) -> list[list[tuple[str, set[int]]]]:
        return [
            [("new", {each}), ("known", {each})] for each in ((fate,) if together else (inspect_pb2.PACKET_FATE_TUNNEL, fate))
        ]

    assert {connection for node in walks() for connection, _ in node} == {"new"}
    assert a.sees(b)
    assert walks() == known(inspect_pb2.PACKET_FATE_DELIVERED)
    emptied = security_pb2.ReplaceSecurityGroupRulesRequest(id=opening.id)
    cloud.admin.wait(cloud.admin.client.call("SecurityGroups", "ReplaceRules", emptied).revision)
    assert walks() == known(inspect_pb2.PACKET_FATE_DROPPED), "what only that rule allowed ends"


def test_an_answer_is_traced_as_one_of_its_own_policies(cloud: Cloud, scene: Scene, h1: Host) -> None:
    """Whatever other ports of the host have: a switch's trace has one mark, and it is not theirs."""
    made = scene.network()
    for _ in range(3):
        scene.vm(made, h1, security_group_ids=[scene.group().id])
    a, b = scene.vm(made, h1), scene.vm(made, h1)
    for sender, receiver in ((a, b), (b, a)):
        request = operations_pb2.TraceRequest(from_port_id=sender.id, to_port_id=receiver.id)
        reply = cloud.admin.client.call("Operations", "Trace", request)
        assert reply.back.passes, reply.back.summary
        assert {step.table for node in reply.back.nodes for step in node.walks[0].steps}.isdisjoint({Table.RULES}), (
            "by its mark"
        )


def test_a_trace_over_two_hosts_takes_no_time(stage: Stage) -> None:
    assert stage.trace().passes
    took = []
    for _ in range(10):
        began = time.perf_counter()
        assert stage.trace(protocol="tcp", destination_port=80).passes
        took.append(time.perf_counter() - began)
    median = sorted(took)[len(took) // 2]
    print(f"trace over two hosts, both directions: median {median * 1e3:.0f} ms, longest {max(took) * 1e3:.0f} ms")
    assert min(took) <= LONGEST, "what it takes, and not what else the machine has to do"


def test_a_probe_is_sent_and_its_fate_told(stage: Stage) -> None:
    stage.a.workload.run("ip address flush dev eth0")
    for fields in ({}, {"protocol": "udp", "destination_port": 9}, {"protocol": "tcp", "destination_port": 80}):
        stage.b.guest.clear()
        told = stage.trace(probe=True, **fields).probe
        assert told.startswith(f"a packet was sent and arrived: port b ({stage.b.ip}) was given"), told
        sender = bytes.fromhex(stage.a.mac.replace(":", ""))
        assert any(frame[6:12] == sender and frame[12:14] == b"\x08\x00" for frame in stage.b.guest.seen()), fields
    assert "(SPOOFED_IP)" in stage.trace(probe=True, source_address=FORGED_IP).probe
    stage.joins(stage.b)
    assert "as port b counts: no rule of the receiver's security groups allows it (SG_INGRESS)" in stage.trace(probe=True).probe
    stage.b.host.kill_agent()
    assert stage.trace(probe=True).probe == "nothing is known of it: an agent did not answer"


def test_a_tenant_sees_its_own_and_no_hosts(cloud: Cloud, scene: Scene, h1: Host, h2: Host) -> None:
    network = scene.network(cloud.alice)
    a, b = scene.vm(network, h1, name="a"), scene.vm(network, h2, name="b")
    request = operations_pb2.TraceRequest(from_port_id=a.id, to_port_id=b.id)
    reply = cloud.alice.client.call("Operations", "Trace", request)
    assert reply.passes, reply.summary
    assert {hop.object.name for hop in reply.forward.hops} >= {"a", "b", network.name}
    explained = cloud.alice.client.call("Ports", "Explain", inspect_pb2.ExplainPortRequest(id=a.id))
    assert explained.summary.startswith("Port a is wired")
    h2.kill_agent()
    partial = cloud.alice.client.call("Operations", "Trace", request)
    assert (partial.passes, partial.partial) == (False, True)
    for told in (reply, explained, partial):
        for word in ("h1", "h2", h1.underlay, h2.underlay, a.tap, "cookie", "priority"):
            assert word not in str(told), f"a tenant is told of {word}"
    for call in (
        lambda: cloud.bob.client.call("Operations", "Trace", request),
        lambda: cloud.bob.client.call("Ports", "Explain", inspect_pb2.ExplainPortRequest(id=a.id)),
    ):
        assert refused(call).reason == "RESOURCE_NOT_FOUND"


def test_the_command_line_says_the_sentence_first(stage: Stage) -> None:
    kumi = stage.cloud.lab.kumi
    lines = kumi("trace", "--from", stage.a.id, "--to", stage.b.id, "--proto", "tcp", "--dport", "80", "--verbose").splitlines()
    assert lines[0] == f"tcp/80 from port a ({stage.a.ip}) to port b ({stage.b.ip}) passes, and so does the answer."
    assert any(line.split()[0] == "h2" and line.endswith("delivered to port b") for line in lines if line)
    assert any("resubmit(,60)" in line for line in lines), "flows, with --verbose"
    with pytest.raises(LabError) as ended:
        kumi("trace", "--from", stage.a.id, "--to", stage.b.ip, "--source-ip", FORGED_IP)
    assert "(SPOOFED_IP)." in str(ended.value)
    lines = kumi("port", "explain", stage.a.id).splitlines()
    assert lines[0] == "Port a is wired, and nothing of its traffic was dropped that should not have been."
    assert any(re.search(rf"anti-spoofing +IPv4 from {stage.a.ip} .* passed on +Port a", line) for line in lines)
