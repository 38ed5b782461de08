"""Random policies on real hosts, every pair of ports, four opinions: the model of `tests.policymodel`, the desired flows and
the installed ones (`Operations.Trace`), and the packets.

A round gives the same ports other groups, and the groups other rules. Of each pair some packets are traced, then sent: what
arrives, for whom the others are counted and why, and of what began a connection the answer.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import Phase

from agent.model.pipeline import Reason
from deploy.lab import Host, LabError, wait_until
from kumihimo.v1 import inspect_pb2, network_pb2, operations_pb2, port_pb2
from kumihimo.v1 import security_pb2 as pb
from tests import policystrategies as strategies
from tests.policymodel import ICMP, ICMPV6, SCTP, TCP, UDP, Policies, answer, is_answered
from tests.policystrategies import FAMILIES, SUBNETS, Policy, address, mac
from tests.seeds import FULL, seed
from tests.system import probes
from tests.system.cloud import PATIENCE, RECEIVED, SENT, Cloud, Scene, Vm, drops
from tests.system.volley import Shot, exchange, passes_back

ROUNDS = 30 if FULL else 2
PORTS = 8
RULES = 20  # of a policy, at least
KINDS = 3  # of packets, for each pair and family
AT_ONCE = 6  # traces
PASSES, DROPPED = "passes", "dropped"
REASONS = (Reason.SG_EGRESS, Reason.SG_INGRESS, Reason.CT_INVALID)


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
        self.groups = [scene.group() for _ in range(strategies.GROUPS)]
        self.places = [scene.address_group() for _ in range(strategies.PLACES)]
        network = scene.network(cidr=SUBNETS[4])
        cloud.admin.create(network_pb2.Subnet(network_id=network.id, cidr=SUBNETS[6]))
        self.vms = []
        for number in range(PORTS):
            fixed = [port_pb2.FixedIp(ip_address=address(number, family)) for family in FAMILIES]
            host = hosts[number % len(hosts)]
            self.vms.append(scene.vm(network, host, mac_address=mac(number), fixed_ips=fixed, security_group_ids=[]))
        for vm in self.vms:
            vm.workload.run("ip address flush dev eth0")
        self.numbers = {vm: vm.ofport for vm in self.vms}

    def change(self, policy: Policy) -> None:
        """Other rules, other addresses, other groups and pairs of ports; wait until all hosts have them."""
        admin = self.cloud.admin
        groups = [group.id for group in self.groups]
        for vm in self.vms:  # a group that a port has stays stateful or stateless
            admin.update(port_pb2.Port(id=vm.id), "security_group_ids")
        for number, addresses in enumerate(policy.places):
            place = pb.AddressGroup(id=self.places[number].id, addresses=addresses)
            self.places[number] = admin.update(place, "addresses")
        places = [place.id for place in self.places]
        for number, drawn in enumerate(policy.groups):
            rules = [rule.message(groups, places) for rule in policy.rules if rule.group == number]
            request = pb.ReplaceSecurityGroupRulesRequest(id=groups[number], rules=rules)
            admin.client.call("SecurityGroups", "ReplaceRules", request)
            mode = pb.SECURITY_GROUP_MODE_OBSERVE if drawn.observes else pb.SECURITY_GROUP_MODE_ENFORCE
            group = pb.SecurityGroup(id=groups[number], mode=mode, stateful=drawn.stateful)
            self.groups[number] = admin.update(group, "mode", "stateful")
        for number, (vm, port) in enumerate(zip(self.vms, policy.ports, strict=True)):
            changed = port_pb2.Port(id=vm.id, port_security_enabled=port.guarded)
            changed.security_group_ids.extend(groups[group] for group in sorted(port.groups))
            for prefix in policy.pairs(number):
                changed.allowed_address_pairs.add(ip_address=prefix)
            vm.port = admin.update(changed, "security_group_ids", "port_security_enabled", "allowed_address_pairs")
        admin.wait(0)
        # What earlier rounds have begun would make of some packet an answer.
        for host in {vm.host for vm in self.vms}:
            host.run("ovs-appctl dpctl/flush-conntrack")

    def policies(self) -> Policies:
        """Everything that decides, as the API tells it."""
        members: dict[str, list[str]] = defaultdict(list)
        for vm in self.vms:
            for group in vm.port.security_group_ids:
                members[group] += [each.ip_address for each in (*vm.port.fixed_ips, *vm.port.allowed_address_pairs)]
        # That of the project too, which a port gets with its port security.
        groups = {group.id: group for group in self.cloud.admin.list(pb.SecurityGroup)}
        places = {place.id: place.addresses for place in self.places}
        rules = self.cloud.admin.list(pb.SecurityGroupRule)
        return Policies({vm.id: vm.port for vm in self.vms}, groups, rules, members, places)

    def dropped(self) -> Counter[tuple[Vm, str]]:
        """Packets that the groups of a port have refused, by reason."""
        found: Counter[tuple[Vm, str]] = Counter()
        for vm, ofport in self.numbers.items():
            for way in (SENT, RECEIVED):
                counted = drops(vm.host, ofport, way)
                found.update({(vm, reason.name): counted.get(reason, 0) for reason in REASONS})
        return found

    def trace(self, shot: Shot) -> operations_pb2.TraceResponse:
        sender, receiver, probe = shot
        request = operations_pb2.TraceRequest(
            from_port_id=sender.id, to_port_id=receiver.id, source_address=probe.source, to_address=probe.target
        )
        request.protocol = str(probe.protocol)
        if probe.protocol in (TCP, UDP, SCTP):
            request.source_port, request.destination_port = probe.ports
        elif probe.protocol in (ICMP, ICMPV6):
            request.icmp_type, request.icmp_code = probe.ports
        reply = operations_pb2.TraceResponse()

        def told() -> bool:
            reply.CopyFrom(self.cloud.admin.client.call("Operations", "Trace", request))
            return not reply.partial

        wait_until(told, "all hosts say what becomes of a packet", PATIENCE)
        return reply


def is_of_one_kind(policies: Policies, vm: Vm) -> bool:
    """Whether the groups of a port are all stateful, or none is: of others' answers the model knows too little."""
    return len({policies.groups[group].stateful for group in vm.port.security_group_ids}) < 2


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


@pytest.mark.timeout(3600)
def test_b_sg_01_model_flows_and_packets_agree_on_random_policies(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    estate = Estate(scene, cloud, h1, h2)
    number = seed()
    count: Counter[str] = Counter()

    def each(policy: Policy, turn: int) -> None:
        count.update(one_round(estate, policy, turn))
        count.update(policies=1)
        print(dict(count), flush=True)

    # A failure is shown as it was drawn: to make it smaller takes hundreds of rounds.
    strategies.each_of(number, ROUNDS, each, ports=PORTS, least=RULES, phases=(Phase.explicit, Phase.generate))
    assert count["pairs"] == ROUNDS * PORTS * (PORTS - 1) * len(FAMILIES) * KINDS
    assert 0 < count["answers"] < count[PASSES] < count["pairs"]
    assert all(count[reason.name] for reason in REASONS)
    assert all(count[f"protocol {protocol}"] for protocol in (ICMP, ICMPV6, TCP, UDP, SCTP))


def counted(estate: Estate, before: Counter[tuple[Vm, str]], refused: Counter[tuple[Vm, str]]) -> bool:
    """Whether each packet that was refused is counted by its reason, and no other."""
    with contextlib.suppress(LabError):
        wait_until(lambda: estate.dropped() - before == refused, "each is counted by its reason", PATIENCE)
        return True
    return False


def one_round(estate: Estate, policy: Policy, turn: int) -> Counter[str]:
    """One policy; what was met."""
    estate.change(policy)
    policies = estate.policies()
    shots = [(estate.vms[sender], estate.vms[receiver], probe) for sender, receiver, probe in policy.packets(turn, KINDS)]
    refusals = [policies.refusal(sender.id, receiver.id, probe) for sender, receiver, probe in shots]
    model = [refusal[1] if refusal else PASSES for refusal in refusals]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        replies = list(pool.map(estate.trace, shots))
    before = estate.dropped()
    arrived = exchange(shots, [each == PASSES for each in model], probes.SYN)
    found = [
        Verdicts(each, desired(reply.forward), installed(reply.forward), came)
        for each, reply, came in zip(model, replies, arrived, strict=True)
    ]
    agree(estate, shots, found)
    vms = {vm.id: vm for vm in estate.vms}
    keys = [(vms[refusal[0]], refusal[1]) if refusal else None for refusal in refusals]
    if not counted(estate, before, Counter(key for key in keys if key)):
        # On a busy machine a packet is lost now and then before the switch has it. All of its kind are sent once more.
        before, short = estate.dropped(), Counter(key for key in keys if key) - (estate.dropped() - before)
        again = [(shot, key) for shot, key in zip(shots, keys, strict=True) if key in short]
        exchange([shot for shot, _ in again], [False] * len(again), probes.SYN)
        refused = Counter(key for _, key in again)
        assert short, "more was counted than was refused"
        assert counted(estate, before, refused), f"{estate.dropped() - before} and not {refused}"
    begun = [
        (shot, reply)
        for shot, reply, came in zip(shots, replies, arrived, strict=True)
        if came and is_answered(shot[2]) and all(is_of_one_kind(policies, vm) for vm in shot[:2])
    ]
    answers = [(receiver, sender, answer(probe)) for (sender, receiver, probe), _ in begun]
    expected = [passes_back(policies, *each) for each in answers]
    back = exchange(answers, expected, probes.SYN_ACK)
    ways = [reply.back for _, reply in begun]
    found = [
        Verdicts(*(PASSES if each else DROPPED for each in (passes, desired(way) == PASSES, way.passes)), came)
        for passes, way, came in zip(expected, ways, back, strict=True)
    ]
    agree(estate, answers, found)
    kinds = Counter(f"protocol {probe.protocol}" for _, _, probe in shots)
    return Counter(model) + kinds + Counter(pairs=len(shots), answers=len(answers))


def agree(estate: Estate, shots: Sequence[Shot], verdicts: Sequence[Verdicts]) -> None:
    wrong = [
        f"port {estate.vms.index(sender)} to port {estate.vms.index(receiver)}, {probe}: {each}"
        for (sender, receiver, probe), each in zip(shots, verdicts, strict=True)
        if not each.agree
    ]
    assert not wrong, f"{len(wrong)} of {len(shots)} packets, of which some:\n" + "\n".join(wrong[:10])
