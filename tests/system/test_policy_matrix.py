"""Security groups cell by cell, with real packets: direction x protocol x remote x stateful x family x same or other host.

A *subject* is a port whose group has rules of one direction and one kind of remote; its peers are ports on its own and on
another host, of which half are that remote. Every packet goes as a hand-made frame between workloads whose kernels are
silent; all packets of a run are sent at once, and behind those of each pair a frame that is always let through, so that what
has not come when that has come does not come. What is expected is said by `tests.policymodel`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

from deploy.lab import Host
from kumihimo.v1 import network_pb2, port_pb2
from kumihimo.v1 import security_pb2 as pb
from tests.policymodel import Policies, Probe, answer, is_answered
from tests.system import probes
from tests.system.cloud import Cloud, Scene, Vm
from tests.system.volley import Shot, exchange, ip, passes_back

# Rules by what they say of protocol and ports. Of one subject no rule says what another says too.
KINDS: dict[str, dict[str, Any]] = {
    "any": {},
    "tcp": {"protocol": "tcp"},
    "tcp ports": {"protocol": "tcp", "port_range_min": 80, "port_range_max": 83},
    "udp": {"protocol": "udp"},
    "udp port": {"protocol": "udp", "port_range_min": 53, "port_range_max": 53},
    "icmp": {"protocol": "icmp"},
    "icmp type": {"protocol": "icmp", "port_range_min": 8, "port_range_max": 0},
    "number": {"protocol": "89"},
}
APART = (("any",), ("tcp", "udp", "icmp"), ("tcp ports", "udp port", "icmp type", "number"))
REMOTES = ("anybody", "prefix", "group", "addresses")
DIRECTIONS = (pb.DIRECTION_INGRESS, pb.DIRECTION_EGRESS)
Subject = tuple[int, str, bool, tuple[str, ...]]
SUBJECTS: tuple[Subject, ...] = tuple(itertools.product(DIRECTIONS, REMOTES, (True, False), APART))
CELLS = len(DIRECTIONS) * len(KINDS) * len(REMOTES) * 2 * 2 * 2
# Members are in the middle of the subnets; see `mac`.
PREFIXES = {4: "10.0.0.64/26", 6: "fd00:1::f816:3eff:feaa:0/112"}
PLACES = ("10.0.0.64-10.0.0.70", "fd00:1::f816:3eff:feaa:0/112")
SENT = {
    4: [(6, (0, 80)), (6, (0, 83)), (6, (0, 84)), (17, (0, 53)), (17, (0, 54)), (1, (8, 0)), (1, (13, 0)), (89, (0, 0))],
    6: [(6, (0, 80)), (6, (0, 83)), (6, (0, 84)), (17, (0, 53)), (17, (0, 54)), (58, (128, 0)), (89, (0, 0))],
}


class Matrix:
    """Subjects and peers on two hosts, and what decides about them."""

    def __init__(self, scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
        self.scene, self.cloud = scene, cloud
        self.groups: dict[str, Any] = {}
        self.rules: list[Any] = []
        self.network = scene.network()
        six = network_pb2.Subnet(network_id=self.network.id, cidr="fd00:1::/64", ip_version="IP_VERSION_IPV6")  # type: ignore[arg-type]
        self.subnet6 = cloud.admin.create(six).id
        self.open = self._keep(scene.group(*({"direction": way, "ethertype": f} for way in DIRECTIONS for f in (4, 6))))
        self.member = self._keep(scene.group())
        self.addresses = scene.address_group(*PLACES)
        self.peers = [
            self._vm(number, host, member, *([self.open.id, self.member.id] if member else [self.open.id]))
            for number, (host, member) in enumerate(itertools.product((h1, h2), (True, False)))
        ]
        self.subjects: dict[Subject, Vm] = {}
        for number, subject in enumerate(SUBJECTS, 10):
            group = self._keep(scene.group(*self._rules(subject), stateful=subject[2]))
            self.subjects[subject] = self._vm(number, h1, False, group.id)
        for vm in (*self.peers, *self.subjects.values()):
            vm.plug()
        for vm in (*self.peers, *self.subjects.values()):
            vm.active()
            assert vm.guest
        cloud.admin.wait(0)
        ports = {vm.id: vm.port for vm in (*self.peers, *self.subjects.values())}
        members: dict[str, list[str]] = defaultdict(list)
        for port in ports.values():
            for group in port.security_group_ids:
                members[group] += [fixed.ip_address for fixed in port.fixed_ips]
        self.policies = Policies(ports, self.groups, self.rules, members, {self.addresses.id: self.addresses.addresses})

    def _keep(self, group: Any) -> Any:
        self.groups[group.id] = group
        self.rules += group.rules
        return group

    def _vm(self, number: int, host: Host, member: bool, *groups: str) -> Vm:
        mac = f"fa:16:3e:{'aa' if member else 'bb'}:00:{number + 1:02x}"
        four = f"10.0.0.{(65 if member else 130) + number}"
        fixed = [port_pb2.FixedIp(ip_address=four), port_pb2.FixedIp(subnet_id=self.subnet6)]
        return self.scene.vm(self.network, host, plug=False, mac_address=mac, fixed_ips=fixed, security_group_ids=groups)

    def _rules(self, subject: Subject) -> list[dict[str, Any]]:
        direction, remote, _, kinds = subject
        found = []
        for kind, family in itertools.product(kinds, (4, 6)):
            rule = {"direction": direction, "ethertype": family, **KINDS[kind]}
            if family == 6 and rule.get("protocol") == "icmp":
                rule["protocol"] = "icmpv6"
                if "port_range_min" in rule:
                    rule["port_range_min"] = 128
            if remote == "prefix":
                rule["remote_ip_prefix"] = PREFIXES[family]
            elif remote == "group":
                rule["remote_group_id"] = self.member.id
            elif remote == "addresses":
                rule["remote_address_group_id"] = self.addresses.id
            found.append(rule)
        return found

    def probes(self) -> list[Shot]:
        """Every subject with every peer, in the direction of its rules and in the other one. Without ports in its own alone: of
        two such packets the second is an answer."""
        found = []
        number = itertools.count(20_000)
        for ((direction, *_), subject), peer, family in itertools.product(self.subjects.items(), self.peers, (4, 6)):
            for sender, receiver in ((subject, peer), (peer, subject)):
                own = (sender is subject) == (direction == pb.DIRECTION_EGRESS)
                for protocol, (first, second) in SENT[family] if own else SENT[family][:-1]:
                    ports = (next(number), second) if protocol in (6, 17) else (first, second)
                    found.append((sender, receiver, Probe(ip(sender, family), ip(receiver, family), protocol, ports)))
        return found


def test_b_sg_01_every_cell_of_the_matrix(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    assert CELLS >= 500
    matrix = Matrix(scene, cloud, h1, h2)
    policies = matrix.policies
    sent = matrix.probes()
    expected = [policies.passes(sender.id, receiver.id, probe) for sender, receiver, probe in sent]
    arrived = exchange(sent, expected, probes.SYN)
    assert_as_expected(matrix, sent, expected, arrived)
    begun = [(receiver, sender, probe) for (sender, receiver, probe), came in zip(sent, arrived, strict=True) if came]
    answers = [(receiver, sender, answer(probe)) for receiver, sender, probe in begun if is_answered(probe)]
    assert len(answers) > 100
    expected = [passes_back(policies, *each) for each in answers]
    assert_as_expected(matrix, answers, expected, exchange(answers, expected, probes.SYN_ACK))
    print(f"{len(matrix.subjects)} subjects, {len(sent)} packets, {sum(arrived)} arrived, {len(answers)} answers")


def assert_as_expected(matrix: Matrix, sent: list[Shot], expected: list[bool], found: list[bool]) -> None:
    wrong = [
        (describe(matrix, *each), came) for each, should, came in zip(sent, expected, found, strict=True) if should != came
    ]
    assert not wrong, (len(wrong), len(sent), wrong[:10])


def describe(matrix: Matrix, sender: Vm, receiver: Vm, probe: Probe) -> str:
    names = {vm: f"subject {subject}" for subject, vm in matrix.subjects.items()}
    names |= {vm: f"peer {number} on {vm.host.name}" for number, vm in enumerate(matrix.peers)}
    return f"{names[sender]} to {names[receiver]}: {probe}"
