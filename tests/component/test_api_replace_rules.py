"""`SecurityGroups.ReplaceRules`: from one moment to the next, equal rules stay what they are, one entry of the history."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import grpc
import pytest

from controlplane.services import quota
from controlplane.store import keys
from kumihimo.v1 import operations_pb2, security_pb2
from tests.component.cloud import Client, Cloud, Refused, consistent, refused

Code = grpc.StatusCode
INGRESS = security_pb2.DIRECTION_INGRESS


@pytest.fixture
async def group(api: Client) -> Any:
    return await api.create("SecurityGroup", by="alice", name="web")


def tcp(*ports: int, **fields: Any) -> list[dict[str, Any]]:
    return [
        {"direction": INGRESS, "protocol": "tcp", "port_range_min": port, "port_range_max": port, **fields} for port in ports
    ]


async def replace(api: Client, of: Any, rules: Iterable[dict[str, Any]], by: str = "alice", **fields: Any) -> Any:
    request = security_pb2.ReplaceSecurityGroupRulesRequest(id=of.id, **fields)
    for rule in rules:
        request.rules.add(**rule)
    return await api.call("SecurityGroups", "ReplaceRules", request, f"{by}-token")


async def ports_of(api: Client, of: Any) -> dict[int, str]:
    """First port → id of the group's rules of TCP."""
    listed = await api.list("SecurityGroupRule", filter=f'security_group_id = "{of.id}" AND protocol = "tcp"', page_size=1000)
    return {item.port_range_min: item.id for item in listed.items}


async def cut(cloud: Cloud, of: Any) -> int:
    entry = await cloud.store.get(keys.cut_of(keys.scope(of.id, "secgroup")))
    return entry.mod_revision if entry is not None else 0


async def test_b_sg_equal_rules_keep_their_ids_and_take_the_texts(cloud: Cloud, api: Client, group: Any) -> None:
    first = await replace(api, group, tcp(80, 81, 82, name="a", description="one"))
    before = {rule.port_range_min: rule for rule in first.rules}
    assert len(before) == 3
    assert (first.revision > group.revision, first.etag) == (True, format(first.revision, "x"))
    second = await replace(api, group, [*tcp(81, name="a", description="one"), *tcp(82, name="b", tags=["t"]), *tcp(83)])
    now = {rule.port_range_min: rule for rule in second.rules}
    assert set(now) == {81, 82, 83}
    assert (now[81].id, now[81].revision) == (before[81].id, before[81].revision), "nothing of it was written"
    assert (now[82].id, now[82].create_time) == (before[82].id, before[82].create_time)
    assert (now[82].name, now[82].description, list(now[82].tags), now[82].revision) == ("b", "", ["t"], second.revision)
    assert (now[83].revision, now[83].project_id, now[83].creator) == (second.revision, "demo", "alice")
    assert await ports_of(api, group) == {port: rule.id for port, rule in now.items()}
    assert (await refused(api.get("SecurityGroupRule", before[80].id))).code is Code.NOT_FOUND
    await consistent(cloud.store)


async def test_b_sg_the_same_again_writes_nothing_and_only_less_is_a_cut(cloud: Cloud, api: Client, group: Any) -> None:
    await replace(api, group, tcp(80))
    before = await cut(cloud, group)
    more = await replace(api, group, tcp(80, 81))
    assert await cut(cloud, group) == before, "the former ones are all there"
    same = await replace(api, group, reversed(tcp(80, 81)))
    assert same.revision == more.revision
    assert [rule.port_range_min for rule in same.rules] == [81, 80]
    less = await replace(api, group, tcp(81))
    assert await cut(cloud, group) == less.revision
    assert list((await replace(api, group, [])).rules) == []
    assert await ports_of(api, group) == {}
    dry = await replace(api, group, tcp(80), validate_only=True)
    assert len(dry.rules) == 1
    assert await ports_of(api, group) == {}


async def test_b_sg_a_replacement_is_one_entry_of_the_groups_history(api: Client, group: Any) -> None:
    await replace(api, group, tcp(80, 81))
    done = await replace(api, group, [*tcp(81), *tcp(443)], request_id="swap")
    changes = await api.call("Operations", "ListChanges", operations_pb2.ListChangesRequest(id=group.id), "rita-token")
    newest = changes.items[0]
    assert (newest.revision, newest.actor, newest.request_id) == (done.revision, "alice", "swap")
    assert newest.method == "kumihimo.v1.SecurityGroups/ReplaceRules"
    (field,) = newest.fields
    assert field.path == "rules"
    told = [[f'"port_range_min": {number},' in text for number in (80, 81, 443)] for text in (field.before, field.after)]
    assert told == [[True, False, False], [False, False, True]], "what stays is not told"


async def test_b_sg_every_fault_is_told_with_its_place_and_nothing_is_done(cloud: Cloud, api: Client, group: Any) -> None:
    other = await api.create("SecurityGroup", by="alice", name="other")
    theirs = await api.create("SecurityGroup", by="bob")
    before = await cloud.settled()
    rules = [
        *tcp(80),
        *tcp(70_000),
        {"direction": INGRESS, "protocol": "icmpv6"},
        *tcp(80, name="again"),
        *tcp(81, security_group_id=other.id),
        {"protocol": "tcp"},
    ]
    error = await refused(replace(api, group, rules))
    assert error.code is Code.INVALID_ARGUMENT
    assert ("rules[1].port_range_min", "VALUE_OUT_OF_RANGE") in [(at, reason) for at, reason, _ in error.violations]
    assert ("rules[5].direction", "MISSING_FIELD") in [(at, reason) for at, reason, _ in error.violations]
    del rules[5], rules[1]
    error = await refused(replace(api, group, rules))
    assert [(at, reason) for at, reason, _ in error.violations] == [
        ("rules[1].protocol", "IP_FAMILY_MISMATCH"),
        ("rules[2]", "DUPLICATE_VALUE"),
        ("rules[3].security_group_id", "VALUE_OUT_OF_RANGE"),
    ]
    assert "rules[2] is equal to rules[0]" in str([said for _, _, said in error.violations])
    error = await refused(replace(api, group, [{"direction": INGRESS, "remote_group_id": theirs.id}]))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "REFERENCE_NOT_FOUND")
    error = await refused(replace(api, theirs, tcp(80)))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
    error = await refused(replace(api, group, tcp(80), by="rita"))
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "ROLE_REQUIRED")
    assert not await cloud.written_since(before)


async def test_b_sg_what_is_protected_stays(api: Client, group: Any) -> None:
    made = await replace(api, group, tcp(80, 81))
    kept = next(rule.id for rule in made.rules if rule.port_range_min == 80)
    await api.update("SecurityGroupRule", kept, deletion_protection=True)
    error = await refused(replace(api, group, tcp(81)))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "DELETION_PROTECTED")
    assert kept in error.message
    assert set(await ports_of(api, group)) == {80, 81}
    shown = await replace(api, group, tcp(80, name="named"))
    assert (shown.rules[0].id, shown.rules[0].deletion_protection, shown.rules[0].name) == (kept, True, "named")


async def test_b_sg_rules_as_they_were_read_may_be_sent_back_with_changes(cloud: Cloud, api: Client, group: Any) -> None:
    """Ids, etags and all that is made at read do no harm; what was changed on the way is a rule of its own."""
    made = await replace(api, group, tcp(80, 81))
    request = security_pb2.ReplaceSecurityGroupRulesRequest(id=group.id, rules=made.rules)
    request.rules[1].port_range_min = request.rules[1].port_range_max = 8081
    done = await api.call("SecurityGroups", "ReplaceRules", request, "alice-token")
    assert done.rules[0].id == made.rules[0].id
    assert made.rules[1].id not in [rule.id for rule in done.rules]
    assert set(await ports_of(api, group)) == {80, 8081}
    await consistent(cloud.store)


async def test_b_sg_an_etag_keeps_two_who_replace_apart(api: Client, second_api: Client, group: Any) -> None:
    done = await replace(api, group, tcp(80), etag=group.etag)
    error = await refused(replace(second_api, group, tcp(81), etag=group.etag))
    assert (error.code, error.reason, error.metadata["etag"]) == (Code.ABORTED, "ETAG_MISMATCH", done.etag)
    assert set(await ports_of(api, group)) == {80}
    await replace(second_api, group, tcp(81), etag=done.etag)


async def test_b_sg_a_named_replacement_acts_once(api: Client, second_api: Client, group: Any) -> None:
    first = await replace(api, group, tcp(80), request_id="once")
    await replace(api, group, tcp(81))
    again = await replace(second_api, group, tcp(80), request_id="once")
    assert (again.revision, again.rules) == (first.revision, first.rules)
    assert set(await ports_of(api, group)) == {81}
    assert (await refused(replace(api, group, tcp(82), request_id="once"))).reason == "REQUEST_ID_REUSED"


async def test_b_sg_a_project_at_its_limit_may_exchange_rules(cloud: Cloud, api: Client, group: Any) -> None:
    await replace(api, group, tcp(*range(1, 11)))
    unlimited = dict.fromkeys(quota.COUNTED, quota.UNLIMITED)
    await api.update("Quota", "demo", limits=unlimited | {"security_group_rules": 10})
    try:
        await replace(api, group, tcp(*range(11, 21)))
        assert (await api.get("Quota", "demo")).usage["security_group_rules"] == 10
        error = await refused(replace(api, group, tcp(*range(11, 22))))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
        await replace(api, group, tcp(1, 2, 3))
        assert (await api.get("Quota", "demo")).usage["security_group_rules"] == 3
        await consistent(cloud.store)
    finally:
        await api.update("Quota", "demo", limits=unlimited)


async def test_b_sg_nothing_added_meanwhile_survives_a_replacement(cloud: Cloud, second_api: Client, group: Any) -> None:
    """Rules come by two replicas while others replace: each state is one of those that were asked for, with what came after."""
    api = cloud.api
    for turn in range(5):
        added = [
            second_api.create("SecurityGroupRule", by="alice", security_group_id=group.id, **tcp(1000 + 10 * turn + number)[0])
            for number in range(4)
        ]
        replies = await asyncio.gather(replace(api, group, tcp(turn + 1)), *added, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, Refused):
                reply.must_be("CONCURRENT_CHANGE")
            else:
                assert not isinstance(reply, BaseException), reply
        done = replies[0]
        if not isinstance(done, BaseException):
            late = {rule.port_range_min for rule in replies[1:] if rule.revision > done.revision}  # type: ignore[union-attr]
            assert set(await ports_of(api, group)) == {turn + 1} | late
        await consistent(cloud.store)


async def test_b_sg_a_thousand_rules_are_replaced_in_one_transaction(cloud: Cloud, group: Any) -> None:
    """The figure is 1 s; a machine that has much else to do gets more time here."""
    api = cloud.api
    await replace(api, group, tcp(*range(1, 1001)))
    started = time.monotonic()
    done = await replace(api, group, tcp(*range(1001, 2001), remote_group_id=group.id))
    took = time.monotonic() - started
    assert took < 10, f"{took:.2f} s"
    assert {rule.revision for rule in done.rules} == {done.revision}
    assert set(await ports_of(api, group)) == set(range(1001, 2001))
    await consistent(cloud.store)
    started = time.monotonic()
    await replace(api, group, tcp(*range(1002, 2002), remote_group_id=group.id))
    print(f"replacing 1,000 rules took {took:.3f} s, one of 1,000 {time.monotonic() - started:.3f} s")


async def test_b_sg_five_thousand_are_replaced_and_more_than_a_transaction_holds_refused(cloud: Cloud, group: Any) -> None:
    api, long = cloud.api, "x" * 150  # of a description
    await replace(api, group, tcp(*range(1, 5001)))
    # Five thousand in the place of as many, the most that a request may have, go in one step.
    done = await replace(api, group, tcp(*range(10_001, 15_001), description=long))
    assert {rule.revision for rule in done.rules} == {done.revision}
    assert [rule.port_range_min for rule in done.rules] == list(range(10_001, 15_001))
    more = (api.create("SecurityGroupRule", security_group_id=group.id, **rule) for rule in tcp(*range(20_001, 20_401)))
    await asyncio.gather(*more)
    before = await cloud.settled()

    async def told(rules: list[dict[str, Any]], **fields: Any) -> str:
        error = await refused(replace(api, group, rules, **fields))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "TOO_MANY_VALUES")
        return error.message

    assert "at most 5000 are accepted" in await told(tcp(*range(1, 5002)))
    text = await told(tcp(*range(1, 5001)))
    assert "5000 new ones in the place of 5400 take 36605 operations of the store; 36000 fit into one call" in text
    text = await told(tcp(*range(20_001, 25_001), description=long), request_id="long")
    assert "bytes of a request to the store; 10000000 are accepted" in text
    assert not await cloud.written_since(before)
    # The group goes by itself with all that it has.
    await api.delete("SecurityGroup", group.id)
    await cloud.settled()
    await consistent(cloud.store)
