"""Random policies on real hosts, every pair of ports, four opinions: the model of `tests.policymodel`, the desired flows and
the installed ones (`Operations.Trace`), and the packets.

A round gives the same ports other groups, and the groups other rules. Of each pair some packets are traced, then sent: what
arrives, for whom the others are counted and why, and of what began a connection the answer.
"""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from agent.model.pipeline import Reason
from deploy.lab import Host, LabError, wait_until
from kumihimo.v1 import inspect_pb2, network_pb2, operations_pb2, port_pb2
from kumihimo.v1 import security_pb2 as pb
from tests.policymodel import Policies, Probe
from tests.system import probes
from tests.system.cloud import PATIENCE, RECEIVED, SENT, Cloud, Scene, Vm, drops
from tests.system.volley import Shot, exchange, ip, passes_back

FULL = bool(os.environ.get("KUMI_FULL"))
ROUNDS = 40 if FULL else 2
KINDS = 3  # of packets, for each pair and family
AT_ONCE = 4  # traces
PASSES, DROPPED = "passes", "dropped"
DIRECTIONS = (pb.DIRECTION_INGRESS, pb.DIRECTION_EGRESS)
STATEFUL = (True, True, True, False, False)  # of the groups
# Ports have the addresses 10.0.0.16 to .23, and those of IPv6 that follow from MACs with the same last byte.
FIRST, PORTS = 0x10, 8
MAC, FOUR, SIX = "fa:16:3e:00:00:{:02x}", "10.0.0.{}", "fd00:1::f816:3eff:fe00:{:x}"
PREFIXES = {
    4: ("10.0.0.16/30", "10.0.0.20/31", "10.0.0.18/32", "10.0.0.0/24", "192.0.2.0/24"),
    6: (f"{SIX.format(0x10)}/126", f"{SIX.format(0x14)}/127", f"{SIX.format(0x12)}/128", "fd00:1::/64", "fd00:9::/64"),
}
PLACES = (
    *("10.0.0.17-10.0.0.19", "10.0.0.21", "10.0.0.16/29", "198.51.100.0/24"),
    *(f"{SIX.format(0x11)}-{SIX.format(0x13)}", SIX.format(0x15), f"{SIX.format(0x10)}/125", "fd00:8::/64"),
)
NUMBERS = (22, 79, 80, 81, 83, 84, 443, 65535)
TCP, UDP, OSPF = 6, 17, 89
ECHO = {4: (1, (8, 0)), 6: (58, (128, 0))}


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What each says of one packet: PASSES, or why it is dropped; of packets themselves whether they arrive."""

    model: str
    desired: str
    installed: str
    arrived: bool

    @property
    def agree(self) -> bool:
        return self.model == self.desired == self.installed and (self.model == PASSES) == self.arrived


class Estate:
    """Ports on two hosts with addresses of both families, and groups and address groups that change from round to round."""

    def __init__(self, scene: Scene, cloud: Cloud, *hosts: Host) -> None:
        self.cloud = cloud
        self.groups = [scene.group(stateful=stateful) for stateful in STATEFUL]
        self.places = [scene.address_group() for _ in range(2)]
        network = scene.network()
        six = cloud.admin.create(network_pb2.Subnet(network_id=network.id, cidr="fd00:1::/64"))
        self.vms = []
        for number in range(FIRST, FIRST + PORTS):
            fixed = [port_pb2.FixedIp(ip_address=FOUR.format(number)), port_pb2.FixedIp(subnet_id=six.id)]
            host, mac = hosts[number % len(hosts)], MAC.format(number)
            self.vms.append(scene.vm(network, host, mac_address=mac, fixed_ips=fixed, security_group_ids=[]))
        for vm in self.vms:
            vm.workload.run("ip address flush dev eth0")
            assert ip(vm, 6) == SIX.format(int(vm.mac[-2:], 16))
        self.numbers = {vm: vm.ofport for vm in self.vms}

    def change(self, chance: random.Random) -> None:
        """Other rules, other addresses, other groups of ports; wait until all hosts have them."""
        admin = self.cloud.admin
        for number, place in enumerate(self.places):
            place.addresses[:] = chance.sample(PLACES, chance.randrange(4))
            self.places[number] = admin.update(pb.AddressGroup(id=place.id, addresses=place.addresses), "addresses")
        for number, group in enumerate(self.groups):
            rules = {str(rule): rule for rule in (self._rule(chance) for _ in range(chance.randrange(16)))}
            request = pb.ReplaceSecurityGroupRulesRequest(id=group.id, rules=rules.values())
            admin.client.call("SecurityGroups", "ReplaceRules", request)
            observes = chance.random() < 0.04
            mode = pb.SECURITY_GROUP_MODE_OBSERVE if observes else pb.SECURITY_GROUP_MODE_ENFORCE
            self.groups[number] = admin.update(pb.SecurityGroup(id=group.id, mode=mode), "mode")
        for vm in self.vms:
            ids = [group.id for group in chance.sample(self.groups, chance.choice([0, 1, 1, 1, 2, 2, 2, 3, 3]))]
            guarded = bool(ids) or chance.random() < 0.5
            changed = port_pb2.Port(id=vm.id, security_group_ids=ids, port_security_enabled=guarded)
            vm.port = admin.update(changed, "security_group_ids", "port_security_enabled")
        admin.wait(0)
        # What earlier rounds have begun would make of some packet an answer.
        for host in {vm.host for vm in self.vms}:
            host.run("ovs-appctl dpctl/flush-conntrack")

    def _rule(self, chance: random.Random) -> pb.SecurityGroupRule:
        family = chance.choice([4, 6])
        rule = pb.SecurityGroupRule(direction=chance.choice(DIRECTIONS), ethertype=family)  # type: ignore[arg-type]
        match chance.randrange(6):
            case 0:
                rule.remote_group_id = chance.choice(self.groups).id
            case 1:
                rule.remote_address_group_id = chance.choice(self.places).id
            case 2:
                rule.remote_ip_prefix = chance.choice(PREFIXES[family])
        rule.protocol = chance.choice(["", "", "tcp", "tcp", "udp", "udp", "icmp" if family == 4 else "icmpv6", "89"])
        if rule.protocol in ("tcp", "udp") and chance.random() < 0.7:
            rule.port_range_min, rule.port_range_max = sorted(chance.choices([1, *NUMBERS], k=2))
        if rule.protocol in ("icmp", "icmpv6") and chance.random() < 0.5:
            rule.port_range_min = chance.choice([ECHO[family][1][0], ECHO[family][1][0], 3])
            if chance.random() < 0.5:
                rule.port_range_max = chance.choice([0, 0, 1])
        return rule

    def policies(self) -> Policies:
        """Everything that decides, as the API tells it."""
        members: dict[str, list[str]] = defaultdict(list)
        for vm in self.vms:
            for group in vm.port.security_group_ids:
                members[group] += [fixed.ip_address for fixed in vm.port.fixed_ips]
        # That of the project too, which a port gets with its port security.
        groups = {group.id: group for group in self.cloud.admin.list(pb.SecurityGroup)}
        places = {place.id: place.addresses for place in self.places}
        rules = self.cloud.admin.list(pb.SecurityGroupRule)
        return Policies({vm.id: vm.port for vm in self.vms}, groups, rules, members, places)

    def shots(self, chance: random.Random) -> Iterator[Shot]:
        """Every pair of ports with some packets of each family. Without ports in one direction alone: of two such packets the
        second is an answer."""
        sources = iter(chance.sample(range(1024, 65536), PORTS * PORTS * 4))
        for sender in self.vms:
            for receiver in self.vms:
                if sender is receiver:
                    continue
                for family in (4, 6):
                    ports = next(sources), chance.choice(NUMBERS)
                    kinds: list[tuple[int, tuple[int, int]]] = [ECHO[family], (TCP, ports), (UDP, ports)]
                    if sender.ip < receiver.ip:
                        kinds.append((OSPF, (0, 0)))
                    for protocol, used in chance.sample(kinds, min(KINDS, len(kinds))):
                        yield sender, receiver, Probe(ip(sender, family), ip(receiver, family), protocol, used)

    def dropped(self) -> Counter[tuple[Vm, str]]:
        """Packets that the groups of a port have refused, by reason."""
        found: Counter[tuple[Vm, str]] = Counter()
        for vm, ofport in self.numbers.items():
            for way, reason in ((SENT, Reason.SG_EGRESS), (RECEIVED, Reason.SG_INGRESS)):
                found[vm, reason.name] = drops(vm.host, ofport, way).get(reason, 0)
        return found

    def trace(self, shot: Shot) -> operations_pb2.TraceResponse:
        sender, receiver, probe = shot
        request = operations_pb2.TraceRequest(
            from_port_id=sender.id, to_port_id=receiver.id, source_address=probe.source, to_address=probe.target
        )
        request.protocol = str(probe.protocol)
        if probe.protocol in (TCP, UDP):
            request.source_port, request.destination_port = probe.ports
        reply: operations_pb2.TraceResponse = self.cloud.admin.client.call("Operations", "Trace", request)
        assert not reply.partial, reply
        return reply


def is_of_one_kind(policies: Policies, vm: Vm) -> bool:
    """Whether the groups of a port are all stateful, or none is: of others' answers the model knows too little."""
    return len({policies.groups[group].stateful for group in vm.port.security_group_ids}) < 2


def refusal(policies: Policies, sender: Vm, receiver: Vm, probe: Probe) -> str:
    """What the model says."""
    if not policies.may_send(sender.id, probe):
        return Reason.SG_EGRESS.name
    return PASSES if policies.may_receive(receiver.id, probe) else Reason.SG_INGRESS.name


def installed(way: operations_pb2.TraceDirection) -> str:
    return PASSES if way.passes else way.reason


def desired(way: operations_pb2.TraceDirection) -> str:
    """By the desired flows; what is installed stands for them where the two do not part."""
    for walk in (node.walks[0] for node in way.nodes):
        ends = walk.desired_ends if walk.HasField("disagreement") else walk.ends
        for end in ends:
            if end.fate == inspect_pb2.PACKET_FATE_DROPPED:
                return end.reason
    return PASSES


def told(policies: Policies, shot: Shot, verdicts: Verdicts) -> str:
    """All that is needed to look into a disagreement."""
    lines = [f"{verdicts}", f"{shot[2]}"]
    for vm in shot[:2]:
        lines.append(f"{vm.host.name}: {vm.port}")
        for group in vm.port.security_group_ids:
            lines.append(f"{policies.groups[group]}")
            lines += [f"{rule}" for rule in policies.rules if rule.security_group_id == group]
    lines.append(f"members {policies.members}, addresses {policies.addresses}")
    return "\n".join(lines)


@pytest.mark.timeout(3600)
def test_b_sg_01_model_flows_and_packets_agree_on_random_policies(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    estate = Estate(scene, cloud, h1, h2)
    seed = random.randrange(1 << 32) if FULL else 1507
    count: Counter[str] = Counter()
    for number in range(ROUNDS):
        name = f"seed {seed}, round {number}"
        count += one_round(estate, random.Random(f"{seed} {number}"), name)
    print(f"seed {seed}, {ROUNDS} policies: {dict(count)}")
    assert count["pairs"] >= ROUNDS * PORTS * (PORTS - 1) * 2 * KINDS * 0.85
    assert 0 < count["answers"] < count[PASSES] < count["pairs"]
    assert min(count[Reason.SG_EGRESS.name], count[Reason.SG_INGRESS.name]) > 0


def one_round(estate: Estate, chance: random.Random, name: str) -> Counter[str]:
    """One policy; what was met."""
    estate.change(chance)
    policies, shots = estate.policies(), list(estate.shots(chance))
    model = [refusal(policies, *shot) for shot in shots]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        replies = list(pool.map(estate.trace, shots))
    before = estate.dropped()
    arrived = exchange(shots, [each == PASSES for each in model], probes.SYN)
    found = [
        Verdicts(each, desired(reply.forward), installed(reply.forward), came)
        for each, reply, came in zip(model, replies, arrived, strict=True)
    ]
    agree(policies, shots, found, name)
    refused = Counter(
        (shot[0] if each == Reason.SG_EGRESS.name else shot[1], each)
        for shot, each in zip(shots, model, strict=True)
        if each != PASSES
    )
    try:
        wait_until(lambda: estate.dropped() - before == refused, "each is counted by its reason", PATIENCE)
    except LabError as error:
        raise LabError(f"{name}: {estate.dropped() - before} and not {refused}") from error
    begun = [
        (shot, reply)
        for shot, reply, came in zip(shots, replies, arrived, strict=True)
        if came and probes.is_answered(shot[2]) and all(is_of_one_kind(policies, vm) for vm in shot[:2])
    ]
    answers = [(receiver, sender, probes.answer(probe)) for (sender, receiver, probe), _ in begun]
    expected = [passes_back(policies, *answer) for answer in answers]
    back = exchange(answers, expected, probes.SYN_ACK)
    ways = [reply.back for _, reply in begun]
    found = [
        Verdicts(*(PASSES if each else DROPPED for each in (passes, desired(way) == PASSES, way.passes)), came)
        for passes, way, came in zip(expected, ways, back, strict=True)
    ]
    agree(policies, answers, found, f"{name}, answers")
    return Counter(model) + Counter(pairs=len(shots), answers=len(answers))


def agree(policies: Policies, shots: list[Shot], verdicts: list[Verdicts], name: str) -> None:
    wrong = [told(policies, shot, each) for shot, each in zip(shots, verdicts, strict=True) if not each.agree]
    assert not wrong, f"{name}: {len(wrong)} of {len(shots)} packets, of which some:\n" + "\n\n".join(wrong[:3])
