"""What a packet would meet: our own evaluation of flows against the switch's, packet by packet."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import zip_longest
from typing import Any

import pytest

from agent.compile.port import verdict
from agent.compile.view import View
from agent.drivers import unixctl
from agent.inspection import packet
from agent.inspection.explain import Explainer
from agent.inspection.probe import Prober
from agent.inspection.samples import Samples
from agent.inspection.trace import ANSWER, Tracer, differ, generations, question
from agent.inspection.traced import parse
from agent.model import wire
from agent.model.evaluate import NEW, Connection, Tables, evaluate
from agent.model.flow import CT_INVALID, CT_RELATED, CT_REPLY, CT_TRACKED, Flow, Group, Meter
from agent.model.journey import End, Fate, Journey
from agent.model.pipeline import REASON, Reason, Table
from kumihimo.v1 import inspect_pb2 as pb
from tests import policystrategies as strategies
from tests.component.node import RUNDIR, switch
from tests.component.private_host import on_private_host, sh
from tests.policymodel import answer, is_answered
from tests.policystrategies import Policy
from tests.seeds import FULL, seed
from tests.unit.test_engine import MADE, NETWORKS, Incremental
from tests.unit.test_security_groups import FIRST, PORTS, Estate, estate_of, is_stateful
from tests.unit.test_security_groups import packet as described

POLICIES = 50 if FULL else 4
KINDS = 3  # of packets, for each pair and family
PACKETS = 3000 if FULL else 400
SEED = 5
BRIDGE = "ovs-vsctl --may-exist add-br br-int -- set bridge br-int datapath_type=netdev fail_mode=secure protocols=OpenFlow15"


class Installed:
    """A node of the engine's tests, and a switch that has its flows."""

    def __init__(self, machine: Incremental | Estate) -> None:
        self.cloud = machine.cloud
        self.items = list(machine.cloud.engine.items().values())
        self.local = [interface for interface in machine.cloud.interfaces.values() if interface.ofport]
        self.driver = switch()

    async def put(self) -> None:
        sh("ovs-vsctl --if-exists del-br br-int")
        commands = [BRIDGE]
        for interface in self.local:
            kind = f"type=internal ofport_request={interface.ofport}"
            commands += [f"--may-exist add-port br-int {interface.name}", f"set interface {interface.name} {kind}"]
        sh(" -- ".join(commands))
        flows = [item for item in self.items if isinstance(item, Flow | Group | Meter)]
        owned = await self.driver.read_owned()
        wanted = {item.key for item in flows}
        assert not await self.driver.apply(flows, [item for key, item in owned.items() if key not in wanted])

    def wired(self) -> list[Any]:
        """Ports of network 0 that this node has wired, and that no group filters."""
        state, network = self.cloud.state, NETWORKS[0]
        here = [port for port in sorted(state.local_ports(network)) if verdict(View(state), network, port).wired]
        return [port for port in map(state.networks[network].port, here) if port is not None and not port.filtered]

    async def dropped(self, ofport: int) -> dict[int, int]:
        return {}

    def tracer(self) -> Tracer:
        return Tracer(self.cloud.state, lambda: self.items, self.dropped, RUNDIR)


@pytest.fixture
async def installed() -> AsyncIterator[Installed]:
    machine = Incremental()
    machine.populate(SEED)
    machine.put_network(1, True, 100, "VLAN")
    machine.put_node(0, True, "eth1")
    for name in MADE:
        machine.made_interface(name, True)
    for number in range(0, 200, 3):
        machine.plug(number, True)
    machine.put_group(3, False, False, True)
    machine.cloud.settle()
    machine.cloud.engine.run()
    found = Installed(machine)
    await found.put()
    yield found
    await found.driver.close()


class Packets:
    """Random packets out of what the flows speak of, so that all kinds of end are met."""

    def __init__(self, node: Installed) -> None:
        self.chance = random.Random(SEED)
        self.local = [interface.ofport for interface in node.local]
        known = node.cloud.state.networks.values()
        ports = [port for state in known for port_id in state.ports if (port := state.port(port_id)) is not None]
        self.ports = self.chance.sample(ports, min(60, len(ports)))
        self.own = {
            interface.ofport: port
            for port in ports
            if (interface := node.cloud.state.interface_of.get(port.id)) and interface.ofport
        }

    def __iter__(self) -> Iterator[dict[str, int]]:
        for _ in range(PACKETS):
            try:
                yield self.one()
            except ValueError:  # an address of the other family
                continue

    def one(self) -> dict[str, int]:
        pick, chance = self.chance.choice, self.chance.random
        kind = pick((wire.ETH_ARP, wire.ETH_IPV4, wire.ETH_IPV4, wire.ETH_IPV6, wire.ETH_IPV6, 0x88B5))
        # Most of what IPv6 flows say is met by those alone who speak it.
        polite = kind == wire.ETH_IPV6 and chance() < 0.7
        in_port = pick([number for number, port in self.own.items() if six(port)] if polite else self.local)
        me = self.own.get(in_port, pick(self.ports))
        if chance() < 0.1:
            me = pick(self.ports)
        others = [port for port in self.ports if port.network_id == me.network_id and (six(port) or not polite)]
        other = pick(others if chance() < 0.8 else self.ports)
        addresses = [fixed.ip_address for fixed in me.fixed_ips] * 3 + ["fe80::1", "10.0.9.7", "0.0.0.0", "::"]  # noqa: S104
        asked = [fixed.ip_address for fixed in other.fixed_ips] + [addresses[0], "10.0.9.9", "10.0.7.7", "fd00:7::7"]
        version = 6 if kind == wire.ETH_IPV6 else 4
        described = pb.Packet(
            eth_src=me.mac_address if chance() < 0.9 else "02:00:00:00:00:09",
            eth_dst=pick((other.mac_address, other.mac_address, "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01", "02:00:00:00:00:08")),
            eth_type=kind,
            ip_src=pick([ip for ip in addresses if (":" in ip) == (version == 6)]),
            ip_dst=pick([ip for ip in asked if (":" in ip) == (version == 6)]),
            protocol=58 if polite else pick((1, 6, 17, 58)),
            source_port=pick((7, 67, 68, 546, 547)),
            destination_port=pick((7, 53, 67, 68, 546, 547)),
            icmp_type=pick((8, 133, 134, 135, 135, 135, 136, 143)),
            arp_op=pick((1, 1, 2)),
            nd_target=next(ip for ip in asked if ":" in ip),
        )
        if chance() < 0.1:
            described.vlan_id = pick((0, 100, 403))
        fields = packet.fields_of(described) | {"in_port": in_port}
        if in_port in (MADE["kumi-vxlan"], MADE["kumi-geneve"], MADE["kumi-gre"]):
            fields["tun_id"] = pick((400, 401, 402, 9))
        return fields


def six(port: Any) -> bool:
    return any(":" in fixed.ip_address for fixed in port.fixed_ips)


def parting(found: Journey, wanted: Journey) -> str:
    """Where the two part."""
    for one, other in zip_longest(found.here(), wanted.steps):
        if one is None or other is None or not one.is_of(other):
            return f"switch: {one}\nwe:     {other}"
    return f"switch: {sorted(end.told for end in found.ends)}\nwe:     {sorted(end.told for end in wanted.ends)}"


def ending(end: End) -> Fate | Reason:
    return Reason(end.fields[REASON]) if end.fate is Fate.DROPPED else end.fate


@on_private_host
async def test_our_evaluation_and_the_switch_agree(installed: Installed) -> None:
    tables = Tables(installed.items)
    chance = random.Random(SEED)
    marks = [0, *generations(installed.items).values()]
    met: set[Fate | Reason] = set()
    stages: set[int] = set()
    states: set[int] = set()
    async with unixctl.connect(RUNDIR) as control:
        for fields in Packets(installed):
            state = chance.choice((0, 0, ANSWER, ANSWER & ~CT_REPLY, CT_TRACKED | CT_INVALID, NEW | CT_RELATED))
            first = packet.answered(fields) if state & CT_REPLY else fields
            known = Connection(state, chance.choice(marks), first) if state else None
            wanted = evaluate(tables, fields, lambda _, known=known: known)  # type: ignore[misc]
            if known is not None and wanted.commits:
                continue  # a trace of the switch forgets the mark once it has written one
            asked = question(fields, known)
            said = await control.call("ofproto/trace", "br-int", *asked)
            found = parse(said, fields)
            assert not differ(found, wanted), f"{asked}\n{said}\n{parting(found, wanted)}"
            met |= {ending(end) for end in found.ends}
            stages |= {step.table for step in found.steps}
            states |= {state} if found.steps[-1].run else set()
    # Else they would agree on little.
    assert {Fate.OUTPUT, Fate.ANSWERED} <= met
    assert len(met) > 17, met
    assert len(states) > 3, states
    unmet = {Table.MARKER, Table.GRE, Table.GENEVE, Table.EGRESS_KNOWN, Table.INGRESS_KNOWN}  # the last two are met below
    assert stages >= set(Table) - unmet, set(Table) - stages


@on_private_host
def test_b_sg_01_rules_desired_flows_and_installed_ones_agree_on_random_policies() -> None:
    """First packets of every pair of ports; the rules are read by a model that knows no flows. Then answers."""
    count: Counter[str] = Counter()
    stages: set[int] = set()
    number = seed()
    with asyncio.Runner() as runner:

        def each(policy: Policy, turn: int) -> None:
            runner.run(agree(policy, turn, count, stages))

        strategies.each_of(number, POLICIES, each, ports=len(PORTS))
    print(f"seed {number}: {dict(count)}")
    assert count["pairs"] >= 150 * POLICIES
    assert 0 < count["answers"] < count["passes"] < count["pairs"]
    assert stages >= {Table.EGRESS_KNOWN, Table.INGRESS_KNOWN}


async def agree(policy: Policy, turn: int, count: Counter[str], stages: set[int]) -> None:
    """One policy; what is met is counted."""
    estate = estate_of(policy)
    estate.run()
    policies, node = estate.policies(), Installed(estate)
    await node.put()
    tables, marks = Tables(node.items), generations(node.items)
    async with unixctl.connect(RUNDIR) as control:
        for sender, receiver, probe in policy.packets(turn, KINDS):
            fields = described(sender, receiver, probe) | {"in_port": FIRST + sender}
            passes = policies.passes(PORTS[sender], PORTS[receiver], probe)
            fresh = None if packet.begins(fields) else Connection(CT_TRACKED | CT_INVALID)
            desired = evaluate(tables, fields, lambda _, fresh=fresh: fresh)  # type: ignore[misc]
            installed = parse(await control.call("ofproto/trace", "br-int", *question(fields, fresh)), fields)
            for journey in (desired, installed):
                ends = [end.fate for end in journey.ends if end.fields.get(REASON) != Reason.OBSERVED]
                assert ends == [Fate.OUTPUT if passes else Fate.DROPPED], (sender, receiver, probe, journey)
            assert not differ(installed, desired), parting(installed, desired)
            stages |= {step.table for step in installed.steps}
            count.update(pairs=1, passes=passes)
            if passes and is_answered(probe) and all(is_stateful(estate, end) for end in (sender, receiver)):
                back = described(receiver, sender, answer(probe)) | {"in_port": FIRST + receiver}
                known = {zone: Connection(ANSWER, mark, packet.answered(back)) for zone, mark in marks.items()}
                ends = [end.fate for end in evaluate(tables, back, known.get).ends]
                assert ends == [Fate.OUTPUT], (sender, receiver, probe)
                count.update(answers=1)
    await node.driver.close()


@on_private_host
async def test_a_deleted_flow_is_a_disagreement_of_which_the_first_is_told(installed: Installed) -> None:
    me, other = installed.wired()[:2]
    request = pb.TraceNodeRequest(
        port_id=me.id,
        packet=pb.Packet(
            eth_src=me.mac_address,
            eth_dst=other.mac_address,
            eth_type=wire.ETH_IPV4,
            ip_src=me.fixed_ips[0].ip_address,
            ip_dst=other.fixed_ips[0].ip_address,
            protocol=wire.TCP,
            destination_port=22,
        ),
    )
    tracer = installed.tracer()
    (walk,) = (await tracer.trace(request)).walks
    assert not walk.HasField("disagreement")
    assert [(end.fate, end.object.id) for end in walk.ends] == [(pb.PACKET_FATE_DELIVERED, other.id)]
    sh(f"ovs-ofctl -O OpenFlow15 --strict del-flows br-int 'table=60,priority=100,metadata=1,dl_dst={other.mac_address}'")
    (walk,) = (await tracer.trace(request)).walks
    assert [(end.fate, end.reason) for end in walk.ends] == [(pb.PACKET_FATE_DROPPED, "UNKNOWN_UNICAST")]
    parting = walk.disagreement
    assert (parting.table, parting.wanted.id, parting.found.id) == (Table.L2, other.id, "")
    assert [(end.fate, end.object.id) for end in walk.desired_ends] == [(pb.PACKET_FATE_DELIVERED, other.id)]


@on_private_host
async def test_without_a_switch_the_desired_flows_are_told_and_that_they_are(installed: Installed) -> None:
    me = installed.wired()[0].id
    tracer = Tracer(installed.cloud.state, lambda: installed.items, installed.dropped, RUNDIR / "nowhere")
    sent = pb.Packet(eth_src="02:00:00:00:00:09", eth_type=wire.ETH_IPV4, ip_src="10.0.0.1", ip_dst="10.0.0.2")
    reply = await asyncio.wait_for(tracer.trace(pb.TraceNodeRequest(port_id=me, packet=sent)), 10)
    assert "no control connection" in reply.notes[0]
    assert {step.depth for step in reply.walks[0].steps} == {0}
    assert [end.reason for end in reply.walks[0].ends] == ["SPOOFED_MAC"]


@on_private_host
async def test_a_probe_goes_the_way_of_its_trace(installed: Installed) -> None:
    me, other = installed.wired()[:2]
    described = pb.Packet(
        eth_src=me.mac_address,
        eth_dst=other.mac_address,
        eth_type=wire.ETH_IPV4,
        ip_src=me.fixed_ips[0].ip_address,
        ip_dst=other.fixed_ips[0].ip_address,
        protocol=wire.UDP,
        destination_port=9,
    )
    prober = Prober(installed.cloud.state, installed.driver)
    asked = pb.TraceNodeRequest(port_id=me.id, packet=described)
    reply = await prober.probe(asked)
    assert not reply.reason, reply
    before = await Explainer(installed.cloud.state, installed.driver, Samples()).explain(pb.ExplainPortRequest(id=me.id))
    assert not [drop for drop in before.drops if not drop.usual]

    async def counted(port: Any, table: int) -> int:
        found = await Explainer(installed.cloud.state, installed.driver, Samples()).explain(pb.ExplainPortRequest(id=port.id))
        return sum(each.packets for each in found.filters if each.table == table)

    assert await counted(other, Table.LOCAL) == 1
    asked.packet.ip_src = "10.99.0.1"
    await prober.probe(asked)
    after = await Explainer(installed.cloud.state, installed.driver, Samples()).explain(pb.ExplainPortRequest(id=me.id))
    assert {drop.reason: drop.packets for drop in after.drops if not drop.usual} == {"SPOOFED_IP": 1}
    asked.packet.eth_type = wire.ETH_ARP
    assert (await prober.probe(asked)).reason == "PACKET_INVALID"
    assert (await prober.probe(pb.TraceNodeRequest(port_id="none", packet=described))).reason == "NOT_ATTACHED"
