"""Security groups in flows: against an understanding of the rules that is not the compiler's, and what a change costs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from ipaddress import ip_address

import pytest

from agent.compile.engine import Changes
from agent.compile.policy import compile_filter
from agent.facts.model import Interface
from agent.model.flow import CT_TRACKED, Flow, Resubmit, SetField, Track, match
from agent.model.pipeline import SOURCE, TARGET, CookieKind, Reason, Table, cookie
from agent.model.remark import PENDING, Remark
from agent.model.rule import ranged
from controlplane.store import keys
from controlplane.store.feed import Changed
from kumihimo.v1 import network_pb2, node_pb2, port_pb2, store_pb2
from kumihimo.v1 import security_pb2 as pb
from tests import policystrategies as strategies
from tests.fakes.switch import Packet, Switch
from tests.policymodel import SCTP, Policies, Probe, answer, is_answered
from tests.policystrategies import FAMILIES, SUBNETS, Policy, address, mac
from tests.seeds import FULL, seed
from tests.unit.test_engine import VXLAN_PORT, Cloud

NETWORK = "00000000-0000-7000-8000-000000000001"
PORTS = [f"00000000-0000-7000-8000-0000000001{number:02x}" for number in range(6)]
GROUPS = [f"00000000-0000-7000-8000-0000000002{number:02x}" for number in range(strategies.GROUPS)]
PLACES = [f"00000000-0000-7000-8000-0000000003{number:02x}" for number in range(strategies.PLACES)]
FIRST = 11  # number of the first port in the switch
EXAMPLES = 400 if FULL else 25
KINDS = 3  # of packets, for each pair and family
FOUR, SIX = network_pb2.IP_VERSION_IPV4, network_pb2.IP_VERSION_IPV6
IN, OUT = pb.DIRECTION_INGRESS, pb.DIRECTION_EGRESS


class Estate:
    """A network with six ports on one node, each with an address of both families, and their groups."""

    def __init__(self) -> None:
        self.cloud = Cloud()
        self.ports: dict[str, port_pb2.Port] = {}
        self.groups: dict[str, pb.SecurityGroup] = {}
        self.rules: dict[str, pb.SecurityGroupRule] = {}
        self.places: dict[str, list[str]] = {}
        cloud = self.cloud
        network = network_pb2.Network(id=NETWORK, key=1, segmentation_id=7, mtu=1450)
        network.network_type = network_pb2.NETWORK_TYPE_VXLAN
        cloud.write((keys.network(NETWORK), network))
        cloud.write((keys.node("h1"), node_pb2.Node(id="h1", key=1, tunnel_ip="192.168.50.1")))
        cloud.interfaces[VXLAN_PORT] = Interface(VXLAN_PORT, "br-int", 1, None, "vxlan", "")
        for number, port in enumerate(PORTS):
            cloud.interfaces[f"tap{number}"] = Interface(f"tap{number}", "br-int", FIRST + number, port, "", "")
            cloud.write((keys.index("Port", port), store_pb2.Index(parent_id=NETWORK)))

    def put_port(self, number: int, *groups: int, filtered: bool = True, pairs: Iterable[str] = ()) -> None:
        port = port_pb2.Port(id=PORTS[number], network_id=NETWORK, mac_address=mac(number))
        port.port_security_enabled, port.filtered = True, filtered
        for family in FAMILIES:
            port.fixed_ips.add(ip_address=address(number, family))
        for prefix in pairs:
            port.allowed_address_pairs.add(ip_address=prefix)
        port.security_group_ids.extend(GROUPS[group] for group in groups)
        old = self.ports.get(port.id, port_pb2.Port())
        self.ports[port.id] = port
        told = store_pb2.Member(addresses=self.addresses(number))
        gone = set(old.security_group_ids) - set(port.security_group_ids)
        self.cloud.write(
            (keys.ports(NETWORK) + port.id, port),
            *((keys.members(group) + port.id, told) for group in port.security_group_ids),
            *((keys.members(group) + port.id, None) for group in gone),
            *(self._cut(keys.scope(group, "secgroup")) for group in gone),
        )

    def addresses(self, number: int) -> list[str]:
        """All that a port may send from."""
        port = self.ports[PORTS[number]]
        return [each.ip_address for each in (*port.fixed_ips, *port.allowed_address_pairs)]

    def put_group(self, number: int, **fields: object) -> None:
        group = pb.SecurityGroup(id=GROUPS[number], key=number + 1, **fields)  # type: ignore[arg-type]
        self.groups[group.id] = group
        self.cloud.write((keys.head(keys.scope(group.id, "secgroup")), group))

    def put_places(self, number: int, *addresses: str) -> None:
        self.places[PLACES[number]] = list(addresses)
        scope = keys.scope(PLACES[number], "addrgroup")
        message = pb.AddressGroup(id=PLACES[number], key=100 + number, addresses=addresses)
        self.cloud.write((keys.head(scope), message), self._cut(scope))

    def put_rule(self, group: int, number: int, direction: int, family: int = FOUR, **fields: object) -> str:
        rule = pb.SecurityGroupRule(direction=direction, ethertype=family, **fields)  # type: ignore[arg-type]
        return self.put(group, number, rule)

    def put(self, group: int, number: int, rule: pb.SecurityGroupRule) -> str:
        rule.id, rule.security_group_id = f"00000000-0000-7000-8000-00000{group:03d}{number:04d}", GROUPS[group]
        self.rules[rule.id] = rule
        self.cloud.write((keys.rules(GROUPS[group]) + rule.id, rule))
        return rule.id

    def delete_rule(self, rule_id: str) -> None:
        rule = self.rules.pop(rule_id)
        scope = keys.scope(rule.security_group_id, "secgroup")
        self.cloud.write((keys.rules(rule.security_group_id) + rule_id, None), self._cut(scope))

    def _cut(self, scope: str) -> tuple[str, store_pb2.Cut]:
        return keys.cut_of(scope), store_pb2.Cut(cause=str(self.cloud.revision))

    def run(self) -> Changes:
        self.cloud.settle()
        changes = self.cloud.engine.run()
        assert not changes.failed
        return changes

    @property
    def flows(self) -> list[Flow]:
        return [item for item in self.cloud.engine.items().values() if isinstance(item, Flow)]

    def policies(self) -> Policies:
        members: dict[str, list[str]] = {}
        for number, port in enumerate(self.ports.values()):
            for group in port.security_group_ids:
                members.setdefault(group, []).extend(self.addresses(number))
        return Policies(self.ports, self.groups, list(self.rules.values()), members, self.places)


def packet(sender: int, receiver: int, probe: Probe) -> Packet:
    """A probe as fields."""
    ends = (int(mac(end).replace(":", ""), 16) for end in (sender, receiver))
    fields = {**dict(zip(("eth_src", "eth_dst"), ends, strict=True)), "ip_proto": probe.protocol}
    family = "ip" if probe.version == 4 else "ipv6"
    fields |= {"eth_type": 0x0800 if probe.version == 4 else 0x86DD}
    fields |= {f"{family}_src": int(ip_address(probe.source)), f"{family}_dst": int(ip_address(probe.target))}
    names = {
        1: ("icmp_type", "icmp_code"),
        58: ("icmpv6_type", "icmpv6_code"),
        6: ("tcp_src", "tcp_dst"),
        17: ("udp_src", "udp_dst"),
        132: ("sctp_src", "sctp_dst"),
    }.get(probe.protocol)
    return fields | (dict(zip(names, probe.ports, strict=True)) if names else {})


def estate_of(policy: Policy) -> Estate:
    """An estate with such a policy."""
    estate = Estate()
    for number, group in enumerate(policy.groups):
        mode = pb.SECURITY_GROUP_MODE_OBSERVE if group.observes else pb.SECURITY_GROUP_MODE_ENFORCE
        estate.put_group(number, stateful=group.stateful, mode=mode)
    for number, places in enumerate(policy.places):
        estate.put_places(number, *places)
    for number, port in enumerate(policy.ports):
        estate.put_port(number, *sorted(port.groups), filtered=port.guarded, pairs=policy.pairs(number))
    for number, rule in enumerate(policy.rules):
        estate.put(rule.group, number, rule.message(GROUPS, PLACES))
    return estate


def is_stateful(estate: Estate, number: int) -> bool:
    port = estate.ports[PORTS[number]]
    return not port.filtered or all(estate.groups[group].stateful for group in port.security_group_ids)


@pytest.mark.timeout(1800)  # five minutes of them to make a failure small
def test_b_sg_01_flows_pass_what_the_rules_allow_and_nothing_else() -> None:
    """Random policies, every pair of ports: first packets by the rules, answers by what they answer; then rules go."""

    def each(policy: Policy, turn: int) -> None:
        begin_and_take_away(estate_of(policy), list(policy.packets(turn, KINDS)), turn)

    strategies.each_of(seed(), EXAMPLES, each, ports=len(PORTS))


def begin_and_take_away(estate: Estate, packets: list[tuple[int, int, Probe]], turn: int) -> None:
    """turn: which half of the rules goes."""
    estate.run()
    policies, switch = estate.policies(), Switch(estate.flows)
    established = []
    for sender, receiver, probe in packets:
        fate = switch.send(FIRST + sender, packet(sender, receiver, probe))
        refused = policies.refusal(PORTS[sender], PORTS[receiver], probe)
        assert fate.out == [FIRST + receiver] * (refused is None), (sender, receiver, probe, fate)
        reasons = [reason for reason in fate.drops if reason != Reason.OBSERVED]
        assert reasons == ([Reason[refused[1]]] if refused else []), (sender, receiver, probe, refused)
        if refused is None and is_answered(probe) and is_stateful(estate, sender) and is_stateful(estate, receiver):
            back = switch.send(FIRST + receiver, packet(receiver, sender, answer(probe)))
            assert back.out == [FIRST + sender], (sender, receiver, probe, back)
            established.append((sender, receiver, probe))
    for rule in sorted(estate.rules)[turn % 2 :: 2]:
        estate.delete_rule(rule)
    estate.run()
    assert estate.cloud.engine.items() == estate.cloud.engine.full()
    switch.use(estate.flows)
    policies = estate.policies()
    for sender, receiver, probe in established:
        # Whoever goes on with it: the rules that let the connection begin are asked.
        ends = PORTS[sender], PORTS[receiver]
        back = switch.send(FIRST + receiver, packet(receiver, sender, answer(probe)))
        assert back.out == [FIRST + sender] * policies.lives(*ends, probe), (sender, receiver, probe, back)
        forth = switch.send(FIRST + sender, packet(sender, receiver, probe))
        assert forth.out == [FIRST + receiver] * policies.passes(*ends, probe), (sender, receiver, probe, forth)


def simple(stateful: bool = True) -> Estate:
    """Two ports in one group that receives from itself and sends anything: a project's default."""
    estate = Estate()
    estate.put_group(0, stateful=stateful)
    for number in range(len(PORTS)):
        estate.put_port(number, 0)
    for number, family in enumerate((FOUR, SIX)):
        estate.put_rule(0, number, OUT, family)
        estate.put_rule(0, number + 2, IN, family, remote_group_id=GROUPS[0])
    estate.run()
    return estate


def of_kind(changes: Changes, table: Table) -> list[Flow]:
    return [item for item in changes.put.values() if isinstance(item, Flow) and item.table == table]


def test_b_sg_02_a_member_costs_a_flow_for_each_field_and_compiles_itself_alone() -> None:
    estate = simple()
    scope = keys.members(GROUPS[0])

    def join(number: int) -> Changes:
        name = f"00000000-0000-7000-8000-0000000f{number:04x}"
        estate.cloud.write((scope + name, store_pb2.Member(addresses=[f"10.{number >> 8}.{number & 255}.9"])))
        return estate.run()

    for number in range(999):
        join(number)
    changes = join(999)
    assert changes.compiled == 1
    assert [flow.table for flow in changes.put.values() if isinstance(flow, Flow)] == [Table.MEMBERS] * 2
    assert len(changes.put) == 2, "the sender of a packet, and of the first packet of a connection"
    estate.cloud.write((scope + "00000000-0000-7000-8000-0000000f0003", None))
    changes = estate.run()
    assert (changes.compiled, len(changes.delete), len(changes.put)) == (1, 2, 0)


def test_b_sg_01_a_rule_compiles_itself_and_its_list() -> None:
    estate = simple()
    changes = [estate.put_rule(0, 10, IN, protocol="tcp", port_range_min=80, port_range_max=80) and estate.run()]
    # Itself; fragments of TCP from anybody; the group's list, which had nobody but itself for IPv4.
    assert changes[0].compiled == 3
    for number in range(11, 1000):
        estate.put_rule(0, number, IN, protocol="tcp", port_range_min=1000 + number, port_range_max=1000 + number)
    estate.run()
    began = time.process_time()
    rule = estate.put_rule(0, 5000, IN, protocol="tcp", port_range_min=443, port_range_max=443)
    added = estate.run()
    assert added.compiled == 1
    assert [flow.table for flow in of_kind(added, Table.RULES)] == [Table.RULES] * 2
    assert time.process_time() - began < 0.1, "whatever the number of rules"
    estate.delete_rule(rule)
    removed = estate.run()
    assert len(removed.delete) >= 2
    # The generation: of each port that has the group.
    assert removed.compiled == 1 + len(PORTS)


def test_what_one_association_of_sctp_may_another_may_not() -> None:
    """All SCTP between two addresses is one connection of the switch: its ports are those of each packet."""
    estate = simple()
    estate.put_group(1)
    estate.put_port(5, 1)
    estate.put_rule(1, 0, IN, protocol="sctp", port_range_min=80, port_range_max=81)
    estate.run()
    switch = Switch(estate.flows)
    there, back = (address(0, 4), address(5, 4)), (address(5, 4), address(0, 4))
    for sender, ends, ports, passes in (
        *((0, there, (40_000, 80), True), (5, back, (80, 40_000), True), (0, there, (40_000, 81), True)),
        *((0, there, (40_000, 82), False), (5, back, (82, 40_000), False), (5, back, (40_000, 80), False)),
    ):
        receiver = 5 - sender
        sent = switch.send(FIRST + sender, packet(sender, receiver, Probe(*ends, SCTP, ports)))
        assert sent.out == [FIRST + receiver] * passes, (ends, ports)


@pytest.mark.parametrize("together", [True, False])
def test_what_a_rule_named_is_still_known_when_another_rule_names_it_at_once(together: bool) -> None:
    """One transaction, or two that are taken in before it is decided what to watch."""
    estate = Estate()
    for number in (0, 1):
        estate.put_group(number)
        estate.put_port(number, number)
    estate.put_port(2, 1)
    estate.put_rule(0, 0, OUT)
    estate.put_rule(1, 0, IN, protocol="tcp", remote_group_id=GROUPS[0])
    cloud, prefix = estate.cloud, keys.scope(GROUPS[1], "secgroup")
    # Only the rule is why the first group concerns the node.
    cloud.interfaces.pop("tap0")
    estate.run()
    old = keys.rules(GROUPS[1]) + estate.rules.popitem()[0]
    estate.put_rule(1, 1, IN, protocol="udp", remote_group_id=GROUPS[0])
    (told,) = cloud.pending.pop(prefix)
    assert isinstance(told, Changed)
    put = told.changes[0]
    taken = [[(old, None), put]] if together else [[(old, None)], [put]]
    for changes in taken:
        cloud.engine.touch(cloud.state.take(Changed(prefix, cloud.revision, changes)))
    cloud.follow()
    estate.run()
    assert not [item for item in cloud.engine.items().values() if isinstance(item, Remark) and item.reason == PENDING]
    came = packet(0, 1, Probe(address(0, 4), address(1, 4), 17, (5, 80))) | {"tun_id": 7}
    assert Switch(estate.flows).send(1, came).out == [FIRST + 1]


def test_b_sg_09_a_thousand_rules_replaced_compile_in_half_a_second() -> None:
    estate = simple()
    for number in range(1000):
        estate.put_rule(0, number + 10, IN, protocol="tcp", port_range_min=1000 + number, port_range_max=1000 + number)
    estate.run()
    old = [rule for rule in estate.rules if estate.rules[rule].protocol]
    changed: list[tuple[str, object]] = []
    for rule in old:
        stored = estate.rules.pop(rule)
        changed.append((keys.rules(GROUPS[0]) + rule, None))
        stored.id = rule.replace("-8000-", "-8001-")
        stored.port_range_min += 5000
        stored.port_range_max += 5000
        changed.append((keys.rules(GROUPS[0]) + stored.id, stored))
    estate.cloud.write(*changed)
    began = time.process_time()
    changes = estate.run()
    took = time.process_time() - began
    print(f"1,000 rules replaced: {took * 1000:.0f} ms of CPU")
    assert len(of_kind(changes, Table.RULES)) == 2000
    assert len([key for key in changes.delete if key[1] == Table.RULES]) == 2000
    assert took < 0.5 * 2, "0.5 s on an idle machine"


def test_of_rules_that_want_one_flow_the_first_by_id_has_it() -> None:
    estate = simple()
    ranges = {7: (80, 82), 8: (82, 82), 9: (82, 83)}
    ids = {
        number: estate.put_rule(0, number, IN, protocol="tcp", port_range_min=low, port_range_max=high)
        for number, (low, high) in ranges.items()
    }
    estate.run()

    def owner() -> set[int]:
        where = ("tcp_dst", 82, None)
        return {flow.cookie for flow in estate.flows if flow.table == Table.RULES and where in flow.match}

    assert owner() == {cookie(CookieKind.RULE, ids[7])}
    estate.delete_rule(ids[7])
    estate.run()
    assert owner() == {cookie(CookieKind.RULE, ids[8])}
    assert estate.cloud.engine.items() == estate.cloud.engine.full()


def test_additions_leave_marks_as_they_are_and_removals_do_not() -> None:
    estate = simple()

    def marks() -> set[int]:
        return {value for flow in estate.flows for name, value, _ in flow.match if name == "ct_mark"}

    before = marks()
    assert len(before) == 1
    assert 0 not in before
    rule = estate.put_rule(0, 20, IN, protocol="udp")
    estate.cloud.write((keys.members(GROUPS[0]) + "x", store_pb2.Member(addresses=["10.9.9.9"])))
    estate.run()
    assert marks() == before
    estate.delete_rule(rule)
    estate.run()
    assert marks().isdisjoint(before)


def test_what_is_named_and_not_known_allows_nothing_and_is_pending() -> None:
    estate = simple()
    cloud = estate.cloud
    plugged = cloud.interfaces.pop("tap5")
    estate.put_group(1)
    estate.put_port(5, 1)
    estate.run()
    cloud.interfaces["tap5"] = plugged
    estate.put_rule(0, 30, IN, remote_group_id=GROUPS[1])
    deliver_all_but(cloud, keys.scope(GROUPS[1], "secgroup"))
    remarks = {item.scope for item in cloud.engine.items().values() if isinstance(item, Remark) and item.reason == PENDING}
    assert remarks == {keys.scope(NETWORK), keys.scope(GROUPS[0], "secgroup")}
    from_five = packet(5, 0, Probe(address(5, 4), address(0, 4), 17, (5, 5)))
    assert Switch(estate.flows).send(FIRST + 5, from_five).drops == [Reason.SG_EGRESS], "a group that is not known"
    estate.put_rule(1, 0, OUT)
    estate.run()
    assert not [item for item in cloud.engine.items().values() if isinstance(item, Remark) and item.reason == PENDING]
    assert Switch(estate.flows).send(FIRST + 5, from_five).out == [FIRST]


def deliver_all_but(cloud: Cloud, scope: str) -> None:
    cloud.facts()
    while others := [prefix for prefix in cloud.pending if prefix != scope]:
        cloud.deliver(others[0])
    cloud.engine.run()


def test_a_port_is_filtered_by_the_groups_of_before_until_the_new_ones_are_known() -> None:
    estate = simple()
    before = {flow for flow in estate.flows if flow.table == Table.POLICY}
    estate.put_group(1)
    estate.put_rule(1, 0, OUT)
    estate.put_port(5, 1)
    scope = keys.scope(GROUPS[1], "secgroup")
    deliver_all_but(estate.cloud, scope)
    items = estate.cloud.engine.items()
    assert {flow for flow in estate.flows if flow.table == Table.POLICY if flow.cookie == cookie(CookieKind.PORT, PORTS[5])}
    assert [item.scope for item in items.values() if isinstance(item, Remark)] == [keys.scope(NETWORK)]
    assert items == estate.cloud.engine.full()
    probe = Probe(address(5, 4), address(0, 4), 17, (5, 5))
    sent = packet(5, 0, probe)
    # It has left the group already, as a member; what it receives is still by the rules of before.
    assert Switch(estate.flows).send(FIRST, packet(0, 5, answer(probe))).out == [FIRST + 5]
    estate.run()
    assert Switch(estate.flows).send(FIRST, packet(0, 5, answer(probe))).drops == [Reason.SG_INGRESS]
    assert Switch(estate.flows).send(FIRST + 5, sent).drops == [Reason.SG_INGRESS], "sent, and not received"
    assert before != {flow for flow in estate.flows if flow.table == Table.POLICY}


def test_a_flow_that_is_missing_lets_nothing_through() -> None:
    """Whatever single flow of the filter somebody deletes: what is refused stays refused."""
    estate = simple()
    estate.put_group(1)
    estate.put_port(5, 1)
    estate.run()
    probes_ = [(5, 0, Probe(address(5, 4), address(0, 4), 6, (5, 80))), (0, 5, Probe(address(0, 4), address(5, 4), 6, (5, 80)))]
    filters = {table for table in Table if 20 <= table < 30 or 70 <= table < 80}
    for gone in [flow for flow in estate.flows if flow.table in filters]:
        switch = Switch(flow for flow in estate.flows if flow is not gone)
        for sender, receiver, probe in probes_:
            assert switch.send(FIRST + sender, packet(sender, receiver, probe)).out == [], gone


def test_what_is_not_tracked_is_dropped_and_counts_for_no_port() -> None:
    flows = [item for item in compile_filter(None) if isinstance(item, Flow)]  # type: ignore[arg-type]
    for table in (Table.EGRESS_STATE, Table.INGRESS_STATE):
        (found,) = (flow for flow in flows if (flow.table, flow.match) == (table, match(ct_state=(0, CT_TRACKED))))
        assert found.actions[:2] == (SetField(SOURCE, 0), SetField(TARGET, 0))
        assert found.actions[-1] == Resubmit(Table.DROP)


@pytest.mark.parametrize("stateful", [True, False])
def test_only_what_is_tracked_for_a_port_goes_on_behind_its_filter(stateful: bool) -> None:
    """When Open vSwitch gives up waiting for a packet's rest, it sends fragments on in the place of another port's."""
    estate = simple(stateful)
    for table, register in ((Table.EGRESS_KNOWN, SOURCE), (Table.INGRESS_KNOWN, TARGET)):
        onward = [flow for flow in estate.flows if flow.table == table and flow.actions[-1] != Resubmit(Table.DROP)]
        assert len(onward) == len(PORTS)
        for each in onward:
            where = {name: value for name, value, _ in each.match}
            assert (where["ct_zone"], where["ct_state"]) == (where[register], CT_TRACKED)
    for each in estate.flows:
        for number, action in enumerate(each.actions):
            if isinstance(action, Track):
                assert action.table is not None, "nothing goes on as it came"
                assert number == len(each.actions) - 1


def test_a_group_that_observes_lets_pass_and_counts() -> None:
    estate = simple()
    estate.put_group(1, mode=pb.SECURITY_GROUP_MODE_OBSERVE)
    estate.put_port(5, 1)
    estate.run()
    switch = Switch(estate.flows)
    probe = Probe(address(0, 4), address(5, 4), 6, (5, 80))
    fate = switch.send(FIRST, packet(0, 5, probe))
    assert (fate.out, fate.drops) == ([FIRST + 5], [Reason.OBSERVED])
    back = switch.send(FIRST + 5, packet(5, 0, answer(probe)))
    assert (back.out, back.drops) == ([FIRST], [Reason.OBSERVED])
    estate.put_group(1)
    estate.run()
    switch.use(estate.flows)
    assert switch.send(FIRST, packet(0, 5, probe)).drops == [Reason.SG_INGRESS], "nothing was ever allowed"


def test_fragments_follow_the_first_of_their_packet() -> None:
    estate = Estate()
    estate.put_group(0)
    for number in range(len(PORTS)):
        estate.put_port(number, 0)
    estate.put_rule(0, 1, OUT, protocol="udp", port_range_min=53, port_range_max=53)
    estate.put_rule(0, 2, OUT, SIX, protocol="udp", port_range_min=53, port_range_max=53, remote_ip_prefix=SUBNETS[6])
    estate.put_rule(0, 3, IN, FOUR)
    estate.put_rule(0, 4, IN, SIX)
    estate.run()
    for family in FAMILIES:
        probe = Probe(address(0, family), address(1, family), 17)
        later = packet(0, 1, probe) | {"ip_frag": 3, "ip_proto": 17 if family == 4 else 44}
        assert Switch(estate.flows).send(FIRST, later).out == [FIRST + 1]
        other = later | {"ip_proto": 6}
        if family == 4:
            assert Switch(estate.flows).send(FIRST, other).drops == [Reason.SG_EGRESS]


@pytest.mark.parametrize(("first", "last"), [(1, 65535), (0, 65535), (80, 80), (1000, 1999), (5, 6), (65535, 65535)])
def test_ranges_are_few_masked_values_that_are_the_range(first: int, last: int) -> None:
    found = list(ranged(first, last))
    assert len(found) <= 30
    covered = [number for value, mask in found for number in range(value, value + (1 << 16) - mask)]
    assert covered == list(range(first, last + 1))
