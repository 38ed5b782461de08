"""Security groups on real packets: what a project has by default, what removals end, and that nothing slips through.

Every combination of direction, protocol and remote is in test_policy_matrix.py.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.model.pipeline import Reason
from deploy.lab import Host, LabError, wait_until
from kumihimo.v1 import network_pb2, port_pb2
from kumihimo.v1 import security_pb2 as pb
from tests.policymodel import SCTP, Probe, answer
from tests.system import frames, probes
from tests.system.cloud import DUMP, PATIENCE, Cloud, Scene, Vm
from tests.system.volley import exchange, ip

IN, OUT = pb.DIRECTION_INGRESS, pb.DIRECTION_EGRESS
SEND = ({"direction": OUT, "ethertype": 4}, {"direction": OUT, "ethertype": 6})
UDP, TCP, ICMP = 17, 6, 1
PYTHON, DATAGRAM = (sys.executable, "-I", "-S"), str(Path(__file__).with_name("datagram.py"))


def rule(direction: int, **fields: Any) -> dict[str, Any]:
    return {"direction": direction, "ethertype": 4, **fields}


def port_rule(number: int, protocol: str = "udp", **fields: Any) -> dict[str, Any]:
    return rule(IN, protocol=protocol, port_range_min=number, port_range_max=number, **fields)


def silence(*vms: Vm) -> None:
    """Kernels without addresses answer nothing: all that is sent is the test's."""
    for vm in vms:
        vm.workload.run("ip address flush dev eth0")


class Flow:
    """UDP that goes both ways between two workloads, a packet each period, by hand-made frames."""

    def __init__(self, client: Vm, server: Vm, number: int) -> None:
        self.ends = client, server
        self.probe = Probe(client.ip, server.ip, UDP, (40_000 + number, number))
        self.marks = os.urandom(12), os.urandom(12)

    def frames(self) -> tuple[bytes, bytes]:
        """Of the client, and of the server."""
        client, server = self.ends
        there = probes.frame(client.mac, server.mac, self.probe, self.marks[0])
        return there, probes.frame(server.mac, client.mac, answer(self.probe), self.marks[1])

    def counts(self) -> tuple[int, int]:
        """How many have arrived at the server, and at the client."""
        client, server = self.ends
        return (
            sum(self.marks[0] in frame for frame in server.guest.seen()),
            sum(self.marks[1] in frame for frame in client.guest.seen()),
        )


@contextmanager
def running(*flows: Flow, period: float = 0.004) -> Iterator[None]:
    """All of them go on meanwhile, once each has been established."""
    client, server = flows[0].ends
    client.guest.repeat(*(flow.frames()[0] for flow in flows), period=period)
    wait_until(lambda: all(flow.counts()[0] for flow in flows), "what the clients send arrives", PATIENCE)
    server.guest.repeat(*(flow.frames()[1] for flow in flows), period=period)
    wait_until(lambda: all(flow.counts()[1] for flow in flows), "the answers arrive", PATIENCE)
    yield
    for vm in (client, server):
        vm.guest.repeat()


def test_b_sg_04_a_projects_ports_reach_each_other_and_nobody_else_reaches_them(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host
) -> None:
    network = scene.network()
    near, far = scene.vm(network, h1), scene.vm(network, h2)
    assert list(near.port.security_group_ids) == list(far.port.security_group_ids) != []
    other = scene.vm(network, h1, security_group_ids=[scene.group(*SEND).id])
    assert near.sees(far)
    assert far.sees(near)
    for to in (near, far):
        assert other.workload.ping(to.ip, count=2, interval=0.05).received == 0
    assert near.workload.ping(other.ip, count=2, interval=0.05).received == 0, "it allows nobody in"
    wait_until(lambda: near.drops(Reason.SG_INGRESS) == 2, "counted for the receiver")
    assert other.drops(Reason.SG_EGRESS) == 0
    # DHCP, names and questions of ARP are nobody's rule.
    nothing = scene.vm(network, h1, plug=False)
    cloud.admin.update(port_pb2.Port(id=nothing.id), "security_group_ids")
    nothing.plug()
    nothing.active()
    assert nothing.workload.dhcp()["ip"] == nothing.ip
    nothing.set_address()
    assert nothing.guest.probe([frames.arp(nothing.mac, nothing.ip, near.ip)], {"arp": frames.expect_arp(near.ip)})["arp"]
    assert nothing.workload.ping(near.ip, count=2, interval=0.05).received == 0
    wait_until(lambda: nothing.drops(Reason.SG_EGRESS) == 2, "counted for the sender")


def test_b_sg_11_hits_of_a_rule_are_told_within_thirty_seconds(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    """On both hosts of its ports together; of a rule that nothing has needed there is nothing to tell."""
    network = scene.network()
    group = scene.group(port_rule(7001), port_rule(7002))
    client = scene.vm(network, h1, security_group_ids=[scene.group(*SEND).id])
    servers = [scene.vm(network, host, security_group_ids=[group.id]) for host in (h1, h2)]
    silence(client, *servers)
    marker, began = os.urandom(12), time.time()
    for number in range(5):
        for server in servers:
            first = Probe(client.ip, server.ip, UDP, (40_000 + number, 7001))
            client.guest.send(probes.frame(client.mac, server.mac, first, marker))
    for server in servers:
        wait_until(lambda server=server: sum(marker in frame for frame in server.guest.seen()) == 5, "all arrive")  # type: ignore[misc]

    def told() -> dict[int, Any]:
        return {each.port_range_min: each.counters for each in map(cloud.admin.get, group.rules)}

    wait_until(lambda: told()[7001].packets == 10, "the nodes tell it", PATIENCE)
    assert told()[7001].bytes > 10 * 42
    assert began - 1 <= told()[7001].last_hit_time.seconds <= time.time()
    assert told()[7002].packets == 0


@pytest.mark.parametrize("family", [4, 6])
def test_an_association_of_sctp_opens_no_other_port(scene: Scene, cloud: Cloud, h1: Host, h2: Host, family: int) -> None:
    """Open vSwitch in user space takes all SCTP between two addresses for one connection."""
    network = scene.network()
    cloud.admin.create(network_pb2.Subnet(network_id=network.id, cidr="fd00:1::/64"))
    serving = scene.group({**port_rule(7001, "sctp"), "ethertype": family})
    client = scene.vm(network, h1, security_group_ids=[scene.group(*SEND).id])
    for server in (scene.vm(network, host, security_group_ids=[serving.id]) for host in (h1, h2)):
        silence(client, server)
        ends = ip(client, family), ip(server, family)
        first = client, server, Probe(*ends, SCTP, (40_001, 7001))
        assert exchange([first], [True], probes.SYN) == [True]
        back = server, client, answer(first[2])
        assert exchange([back], [True], probes.SYN_ACK) == [True]
        others = [
            (client, server, Probe(*ends, SCTP, (40_001, 7002))),
            (server, client, Probe(*ends[::-1], SCTP, (7002, 40_001))),
            (server, client, Probe(*ends[::-1], SCTP, (40_002, 7001))),
        ]
        assert exchange(others, [False] * 3, probes.SYN) == [False] * 3
        wait_until(lambda server=server: server.drops(Reason.SG_INGRESS) == 1, "counted for the receiver")  # type: ignore[misc]
        wait_until(lambda server=server: server.drops(Reason.SG_EGRESS) == 2, "counted for the sender")  # type: ignore[misc]
        assert exchange([first, back], [True, True], probes.SYN) == [True, True], "what it allows goes on"


def test_b_sg_08_a_removal_ends_what_only_it_allowed_in_both_directions_and_nothing_else(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host
) -> None:
    """On one host and over two: two connections by one rule, two that another group allows too, one by another rule."""
    network = scene.network()
    first = scene.group(port_rule(7001), port_rule(7002), port_rule(7003))
    second = scene.group(port_rule(7002))
    client = scene.vm(network, h1, security_group_ids=[scene.group(*SEND).id])
    for host in (h1, h2):
        server = scene.vm(network, host, security_group_ids=[first.id, second.id])
        silence(client, server)
        one, both, other = (Flow(client, server, number) for number in (7001, 7002, 7003))
        with running(one, both, other):
            cloud.admin.wait(cloud.admin.delete(rule_of(first, 7001)), first.id)
            assert go_on(one, both, other) == [False, True, True]
            # Two rules of one connection, one after the other: it ends with the second.
            cloud.admin.wait(cloud.admin.delete(rule_of(first, 7002)), first.id)
            assert go_on(one, both, other) == [False, True, True]
            cloud.admin.wait(cloud.admin.delete(rule_of(second, 7002)), second.id)
            assert go_on(one, both, other) == [False, False, True]
            first, second = restore(cloud, first), restore(cloud, second)
            assert go_on(one, both, other) == [True, True, True], "what is allowed again goes on"
        scene.remove(server)


def go_on(*flows: Flow) -> list[bool]:
    """Which connections go on, in both directions, from now on. LabError: one of them does so in one direction only."""
    client, server = flows[0].ends
    for vm in (client, server):
        vm.guest.clear()
    wait_until(lambda: max(min(flow.counts()) for flow in flows) > 50, "one of them goes on", PATIENCE)
    found = [flow.counts() for flow in flows]
    if any(bool(there) != bool(back) for there, back in found):
        raise LabError(f"one direction alone goes on: {found}")
    return [there > 20 for there, _ in found]


def rule_of(group: Any, number: int) -> Any:
    return next(each for each in group.rules if each.port_range_min == number)


def restore(cloud: Cloud, group: Any) -> Any:
    """Give a group the rules that it had."""
    names = ("direction", "ethertype", "protocol", "port_range_min", "port_range_max")
    given = [pb.SecurityGroupRule(**{name: getattr(each, name) for name in names}) for each in group.rules]
    request = pb.ReplaceSecurityGroupRulesRequest(id=group.id, rules=given)
    replaced = cloud.admin.client.call("SecurityGroups", "ReplaceRules", request)
    cloud.admin.wait(replaced.revision, group.id)
    return replaced


def test_b_sg_08_a_member_that_leaves_and_an_address_that_goes_end_their_connections(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host
) -> None:
    network = scene.network()
    sender, members = scene.group(*SEND), scene.group()
    client = scene.vm(network, h1, security_group_ids=[sender.id, members.id])
    places = scene.address_group(client.ip, "192.0.2.0/24")
    guarded = scene.group(port_rule(7001, remote_group_id=members.id), port_rule(7002, remote_address_group_id=places.id))
    server = scene.vm(network, h2, security_group_ids=[guarded.id])
    silence(client, server)
    by_group, by_address = Flow(client, server, 7001), Flow(client, server, 7002)
    with running(by_group, by_address):
        changed = cloud.admin.update(port_pb2.Port(id=client.id, security_group_ids=[sender.id]), "security_group_ids")
        cloud.admin.wait(changed.revision)
        assert go_on(by_group, by_address) == [False, True]
        request = pb.ChangeAddressesRequest(id=places.id, addresses=[client.ip])
        removed = cloud.admin.client.call("AddressGroups", "RemoveAddresses", request)
        cloud.admin.wait(removed.revision)
        for vm in (client, server):
            vm.guest.clear()
        fence(client, server)
        assert by_address.counts() == (0, 0)


def fence(sender: Vm, receiver: Vm) -> None:
    """Wait until what the sender has sent so far, and a little more, has come or not."""
    last = os.urandom(12)
    time_to_come = frames.arp(
        sender.mac, sender.ip, receiver.ip, op=frames.ARP_REPLY, target=receiver.mac, target_mac=receiver.mac
    )
    for _ in range(20):
        sender.guest.send(time_to_come + last)
    wait_until(lambda: sum(last in frame for frame in receiver.guest.seen()) >= 20, "the last frames arrive", PATIENCE)


def test_nothing_forbidden_passes_at_plug_change_restart_and_repair(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    """A forbidden stream beside an allowed one, without a pause, over everything that changes flows: not one packet."""
    network = scene.network()
    sender = scene.vm(network, h1, security_group_ids=[scene.group(*SEND).id])
    group = scene.group(port_rule(7001))
    receivers = [scene.vm(network, host, plug=False, security_group_ids=[group.id]) for host in (h1, h2)]
    silence(sender)
    allowed, forbidden = os.urandom(12), os.urandom(12)
    sent = []
    for vm in receivers:
        for number, marker in ((7001, allowed), (7009, forbidden)):
            sent.append(probes.frame(sender.mac, vm.mac, Probe(sender.ip, vm.ip, UDP, (40_000, number)), marker))
    # Nobody may send to the other receiver either: from one without a rule to do so.
    sender.guest.repeat(*sent, period=0.002)

    def seen(vm: Vm, marker: bytes) -> int:
        return sum(marker in frame for frame in vm.guest.seen())

    def goes_on() -> None:
        before = [seen(vm, allowed) for vm in receivers]
        wait_until(
            lambda: all(seen(vm, allowed) > count + 20 for vm, count in zip(receivers, before, strict=True)),
            "what is allowed arrives",
            PATIENCE,
        )

    for vm in receivers:
        vm.link()
        assert vm.guest, "it sees the first packet of all"
        vm.plug()
    goes_on()
    for number in (7002, 7003):
        added = cloud.admin.create(pb.SecurityGroupRule(security_group_id=group.id, **port_rule(number)))
        goes_on()
        cloud.admin.wait(cloud.admin.delete(added), group.id)
    cloud.admin.update(port_pb2.Port(id=receivers[0].id, description="changed"), "description")
    goes_on()
    for host in (h1, h2):
        host.kill_agent()
        host.start_agent()
    goes_on()
    for table in (20, 21, 22, 24, 25, 26, 70, 71, 73):
        for host in (h1, h2):
            host.run(f"{DUMP} del-flows br-int table={table}")
        goes_on()
    assert [seen(vm, forbidden) for vm in receivers] == [0, 0]
    sender.guest.repeat()


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_and_errors_of_what_is_allowed_pass(family: int, scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = scene.network()
    cloud.admin.create(network_pb2.Subnet(network_id=network.id, cidr="fd00:1::/64"))
    icmp = "icmp" if family == 4 else "icmpv6"
    serving = scene.group(
        {"direction": IN, "ethertype": family, "protocol": icmp, "port_range_min": 8 if family == 4 else 128},
        {"direction": IN, "ethertype": family, "protocol": "udp", "port_range_min": 7001, "port_range_max": 7002},
    )
    client = scene.vm(network, h1, security_group_ids=[scene.group(*SEND).id])
    for host in (h1, h2):
        server = scene.vm(network, host, security_group_ids=[serving.id])
        for vm in (client, server):
            vm.workload.speak6()
            if family == 6:
                vm.workload.slaac()
        address = next(fixed.ip_address for fixed in server.port.fixed_ips if (":" in fixed.ip_address) == (family == 6))
        assert "3 received" in client.workload.run(f"ping -n -q -c 3 -i 0.05 -W 5 -M dont -s 4000 {address}", timeout=30)
        # Nobody listens there: that comes back, as an error about what was allowed.
        assert ask(client, address, 7001) == "refused"
        with server.workload.popen([*PYTHON, DATAGRAM, "serve", "7002"]) as listener:
            listener.wait_for("ready")
            assert ask(client, address, 7002) == "answered", "in fragments, there and back"
        assert ask(client, address, 7003, 0.5) == "silence"
        scene.remove(server)


def ask(client: Vm, address: str, number: int, seconds: float = 10) -> str:
    """What comes of a datagram that takes three packets."""
    return client.workload.run([*PYTHON, DATAGRAM, "ask", address, str(number), "4000", str(seconds)], timeout=30).strip()
