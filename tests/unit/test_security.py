"""Security groups: what a rule says, what a port sends from, and attempts that share a batch."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.config import Defaults
from controlplane.controllers.expiry import Expiry
from controlplane.progress import Progress
from controlplane.registry import KINDS
from controlplane.services import kernel
from controlplane.services.defaults import Installation
from controlplane.services.membership import are_chosen, is_wrong, mend, sends_from
from controlplane.services.replacement import replace_rules
from controlplane.services.rule import claimed, normalized_cidr, shipped
from controlplane.services.security import default_id
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.commit import Hints
from controlplane.store.txn import Batch, Deferred, Origin, Transaction
from kumihimo.v1 import network_pb2, port_pb2, security_pb2, store_pb2
from tests.unit.test_prefixes import ORIGIN, context, filled

NET, SUBNET = "0192f0c1-7c1e-7b3a-9d4e-00000000000a", "0192f0c1-7c1e-7b3a-9d4e-00000000000b"
GROUP = "0192f0c1-7c1e-7b3a-9d4e-00000000000c"
RULE = "0192f0c1-7c1e-7b3a-9d4e-00000000000d"

# -- what a rule says -------------------------------------------------------------------------------------------------

CONTENT = st.fixed_dictionaries(
    {
        "direction": st.sampled_from([1, 2]),
        "ethertype": st.sampled_from([4, 6]),
        "protocol": st.sampled_from(["", "tcp", "6x"]),
        "port_range_min": st.sampled_from([None, 0, 80]),
        "port_range_max": st.sampled_from([None, 0, 80]),
        "remote": st.sampled_from(["", "10.0.0.0/8", "0.0.0.0/0", "::/0", "g1", "g2", "a1"]),
    }
)


def rule(content: dict[str, Any], **more: Any) -> Any:
    remote = content["remote"]
    field = {"g": "remote_group_id", "a": "remote_address_group_id"}.get(remote[:1], "remote_ip_prefix")
    fields = {name: value for name, value in content.items() if name != "remote" and value is not None}
    return security_pb2.SecurityGroupRule(security_group_id=GROUP, **fields, **{field: remote}, **more)


def meaning(content: dict[str, Any]) -> tuple[Any, ...]:
    everything = {4: "0.0.0.0/0", 6: "::/0"}[content["ethertype"]]
    return (*(content[name] for name in sorted(content) if name != "remote"), content["remote"] or everything)


@given(CONTENT, CONTENT)
def test_two_rules_have_one_claim_when_they_let_the_same_through_and_only_then(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    first, second = rule(one, name="a", id="1"), rule(other, description="b", id="2")
    assert (claimed(first) == claimed(second)) == (meaning(one) == meaning(other))
    assert "/" not in claimed(first)[1], "it is the last element of a key"
    assert claimed(first)[1].startswith(f"{GROUP}:")


def test_what_names_a_group_stands_in_the_folder_of_that_group() -> None:
    content = {"direction": 1, "ethertype": 4, "remote": "g1"}
    assert claimed(rule(content))[0] == keys.rule_pool("g1")
    assert claimed(rule(content | {"remote": ""}))[0] == keys.rule_pool(GROUP)
    assert normalized_cidr(rule(content)) == ""
    assert normalized_cidr(rule(content | {"remote": ""})) == "0.0.0.0/0"


def test_the_shipped_templates_send_anything_and_receive_from_the_group() -> None:
    found = [(item.direction, item.ethertype, item.remote_group, item.used_in_other_groups) for item in shipped()]
    assert sorted(found) == [(1, 4, "PARENT", False), (1, 6, "PARENT", False), (2, 4, "", True), (2, 6, "", True)]
    assert all(item.used_in_default_group for item in shipped())


# -- what a port sends from -------------------------------------------------------------------------------------------


def port(*addresses: str, pairs: tuple[tuple[str, str], ...] = (), **fields: Any) -> port_pb2.Port:
    made = port_pb2.Port(id="p", mac_address="fa:16:3e:00:00:05", filtered=True, **fields)
    for address in addresses:
        made.fixed_ips.add(ip_address=address)
    for address, mac in pairs:
        made.allowed_address_pairs.add(ip_address=address, mac_address=mac)
    return made


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (port(), []),
        (port("10.0.0.5", "10.0.0.6"), ["10.0.0.5", "10.0.0.6"]),
        (port("10.0.0.5", pairs=(("10.0.0.9/32", ""), ("10.9.0.0/24", ""))), ["10.0.0.5", "10.0.0.9", "10.9.0.0/24"]),
        (port("fd00::5"), ["fd00::5", "fe80::f816:3eff:fe00:5"]),
        (
            port("10.0.0.5", pairs=(("fd00::/64", "fa:16:3e:00:00:09"),)),
            ["10.0.0.5", "fd00::/64", "fe80::f816:3eff:fe00:9", "fe80::f816:3eff:fe00:5"],
        ),
        (port("10.0.0.5", pairs=(("10.0.0.5/32", ""),)), ["10.0.0.5"]),
    ],
)
def test_a_port_sends_from_what_its_guard_lets_through(made: port_pb2.Port, expected: list[str]) -> None:
    assert sends_from(made) == sorted(expected)


def test_what_groups_hold_is_wrong_when_it_is_not_what_the_port_says() -> None:
    made = port("10.0.0.5", security_group_ids=[GROUP])
    right = {GROUP: store_pb2.Member(addresses=["10.0.0.5"]).SerializeToString()}
    assert not is_wrong(made, right)
    for held in ({}, {GROUP: b""}, {**right, "g2": right[GROUP]}):
        assert is_wrong(made, held)
    assert is_wrong(None, right)
    assert not is_wrong(None, {})
    before = port("10.0.0.5")
    before.filtered = False
    assert is_wrong(before, {}), "a release without groups has made it"
    before.device_owner = "network:dhcp"
    assert not is_wrong(before, {})


def test_that_a_port_keeps_the_default_group_is_nobodys_choice() -> None:
    default = port("10.0.0.5", project_id="demo", security_group_ids=[default_id("demo")])
    chosen = port("10.0.0.5", project_id="demo", security_group_ids=[GROUP])
    assert not are_chosen(default, default)
    assert are_chosen(default, None)
    assert are_chosen(default, chosen)
    assert are_chosen(chosen, chosen)
    assert default_id("demo") == default_id("demo") != default_id("Demo")


# -- attempts that share a batch --------------------------------------------------------------------------------------


def stored() -> list[tuple[str, Any]]:
    """A network with a subnet, and a group."""
    subnet = network_pb2.Subnet(id=SUBNET, network_id=NET, cidr="10.0.0.0/24", ip_version=4)
    subnet.allocation_pools.add(start="10.0.0.2", end="10.0.0.250")
    network = network_pb2.Network(id=NET, project_id="admin", port_security_enabled=True)
    group = security_pb2.SecurityGroup(id=GROUP, project_id="admin", stateful=True, key=7)
    return [
        (keys.network(NET), network),
        (keys.subnets(NET) + SUBNET, subnet),
        (keys.place(KINDS["SecurityGroup"], GROUP), group),
        (keys.index("SecurityGroup", GROUP), store_pb2.Index(project_id="admin")),
    ]


def test_ports_of_one_group_share_a_transaction_and_read_no_member_of_it() -> None:
    cache = filled(*stored(), *((f"{keys.members(GROUP)}{number}", store_pb2.Member()) for number in range(1000)))
    batch, kind = Batch(cache), KINDS["Port"]
    made = []
    for _ in range(20):
        transaction = Transaction(batch, ORIGIN)
        draft = kernel.prepare(kind, port_pb2.Port(network_id=NET, security_group_ids=[GROUP]), context(cache))
        assert draft.faults == []
        made.append(kernel.create(transaction, kind, draft, context(cache)))
        transaction.close()
        assert not [key for key, _ in transaction.compare if key.startswith(keys.members(GROUP))]
        batch.include(transaction)
    assert all(batch.puts(keys.members(GROUP) + item.id) for item in made)
    assert len({item.fixed_ips[0].ip_address for item in made}) == 20
    written = [operation["request_put"]["key"].decode() for operation in batch.operations()]
    assert written.count(keys.change_of(keys.scope(GROUP, "secgroup"))) == 1
    assert keys.cut_of(keys.scope(GROUP, "secgroup")) not in written


def test_a_cut_is_shared_and_goes_with_its_group() -> None:
    scope = keys.scope(GROUP, "secgroup")
    batch = Batch(filled(*stored()))
    for number in range(2):
        transaction = Transaction(batch, ORIGIN)
        transaction.put(keys.members(GROUP) + str(number), store_pb2.Member())
        transaction.cut(scope, f"port {number}")
        transaction.close()
        batch.include(transaction)
    written = [operation["request_put"]["key"].decode() for operation in batch.operations()]
    assert written.count(keys.cut_of(scope)) == 1
    alone = Transaction(Batch(filled(*stored())), ORIGIN)
    alone.cut(scope, "rule")
    alone.delete_prefix(scope)
    alone.close()
    assert alone.shared == {}, "etcd refuses to put and delete one key in a transaction"


def test_a_rule_and_its_twin_are_not_in_one_transaction() -> None:
    cache = filled(*stored())
    batch, kind = Batch(cache), KINDS["SecurityGroupRule"]
    given_ = security_pb2.SecurityGroupRule(security_group_id=GROUP, direction=1, protocol="tcp")

    def attempt(protocol: str) -> Transaction:
        given_.protocol = protocol
        transaction = Transaction(batch, ORIGIN)
        kernel.create(transaction, kind, kernel.prepare(kind, given_, context(cache)), context(cache))
        transaction.close()
        return transaction

    batch.include(attempt("tcp"))
    batch.include(attempt("udp"))
    with pytest.raises(Deferred):
        attempt("6")


def kept_rule(number: int) -> tuple[str, Any]:
    made = security_pb2.SecurityGroupRule(
        id=f"0192f0c1-7c1e-7b3a-9d4e-0000000001{number:02}",
        project_id="admin",
        security_group_id=GROUP,
        direction=1,
        ethertype=4,
    )
    made.protocol, made.port_range_min, made.port_range_max = "tcp", number, number
    return keys.rules(GROUP) + made.id, made


def compared(transaction: Transaction) -> set[str]:
    """Folders to which nothing may come until the commit."""
    return {name for name, mode in transaction.compare if mode in ("empty", "unchanged")}


def test_a_group_ends_only_if_nobody_comes_to_use_it_meanwhile() -> None:
    cache = filled(*stored(), kept_rule(1))
    transaction = Transaction(Batch(cache), ORIGIN)
    kernel.delete(transaction, KINDS["SecurityGroup"], GROUP, context(cache))
    assert compared(transaction) >= {keys.members(GROUP), keys.claim(keys.rule_pool(GROUP)), keys.rules(GROUP)}
    cache = filled(*stored())
    transaction = Transaction(Batch(cache), ORIGIN)
    given_ = security_pb2.SecurityGroup(id=GROUP, stateful=False)
    kernel.update(transaction, KINDS["SecurityGroup"], given_, ["stateful"], context(cache))
    assert compared(transaction) == {keys.members(GROUP)}


def test_rules_are_replaced_only_if_they_are_still_those_that_were_looked_at() -> None:
    (stays, staying), (goes, going), (edits, edited) = (kept_rule(number) for number in (1, 2, 3))
    cache = filled(*stored(), (stays, staying), (goes, going), (edits, edited))
    request = security_pb2.ReplaceSecurityGroupRulesRequest(id=GROUP, rules=[staying, edited])
    request.rules[1].name = "named"
    transaction = Transaction(Batch(cache), ORIGIN)
    replace_rules(transaction, request, context(cache))
    assert compared(transaction) == {keys.rules(GROUP)}, "none is added"
    assert (stays, "create") in transaction.compare, "it is still there"
    assert (edits, "mod") in transaction.compare
    assert (goes, "mod") in transaction.compare, "else its quota slot may be another's by now"
    assert (keys.place(KINDS["SecurityGroup"], GROUP), "mod") in transaction.compare
    assert (goes in transaction.deleted, edits in transaction.puts, stays in transaction.puts) == (True, True, False)


def test_a_member_is_taken_from_a_group_only_while_its_port_is_not_there() -> None:
    member = keys.members(GROUP) + RULE
    cache = filled(*stored(), (member, store_pb2.Member(addresses=["10.0.0.5"])))
    transaction = Transaction(Batch(cache), ORIGIN)
    assert mend(transaction, RULE, {GROUP}, context(cache))
    assert transaction.compare[keys.index("Port", RULE), "mod"] == 0
    assert member in transaction.deleted
    assert keys.cut_of(keys.scope(GROUP, "secgroup")) in transaction.shared


class Committing:
    """Runs attempts and keeps what they wanted."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.hints, self.store = cache, Hints(), None
        self.transactions: list[Transaction] = []

    async def commit(self, attempt: Any, origin: Origin) -> tuple[Any, int]:
        self.transactions.append(Transaction(Batch(self.cache), origin))
        return attempt(self.transactions[-1]), 6


async def test_a_rule_is_looked_at_again_before_it_expires() -> None:
    """The clock may have been set, or the rule changed, since it was marked."""
    (_, early), (_, late), (_, never) = (kept_rule(number) for number in (1, 2, 3))
    early.expire_time.seconds, late.expire_time.seconds = 1, 1 << 33
    items = [(keys.rules(GROUP) + item.id, item) for item in (early, late, never)]
    indexes = [(keys.index("SecurityGroupRule", item.id), store_pb2.Index(parent_id=GROUP)) for _, item in items]
    cache = filled(*stored(), *items, *indexes)
    committer: Any = Committing(cache)
    expiry = Expiry(committer, Progress(cache), Installation(cache, Defaults()))
    await expiry.work([early.id, late.id, never.id, NET])
    (transaction,) = committer.transactions
    assert [key for key in transaction.deleted if key.startswith(keys.rules(GROUP))] == [items[0][0]]


def test_hits_are_summed_over_the_nodes_and_go_with_them() -> None:
    def told(packets: int, seconds: int) -> store_pb2.NodeRuleCounters:
        counters = security_pb2.RuleCounters(packets=packets, bytes=2 * packets)
        counters.last_hit_time.seconds = seconds
        return store_pb2.NodeRuleCounters(rules=[store_pb2.RuleCount(rule=UUID(RULE).bytes, counters=counters)])

    cache = filled((keys.rule_counters("h1"), told(3, 50)), (keys.rule_counters("h2"), told(4, 40)))
    found = Progress(cache).rule_counters(RULE)
    assert (found.packets, found.bytes, found.last_hit_time.seconds) == (7, 14, 50)
    assert Progress(cache).rule_counters(GROUP) == security_pb2.RuleCounters()
