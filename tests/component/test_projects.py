"""Two projects with equal names and equal addresses never meet (A-01, A-07): what may not be seen does not exist."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from controlplane.identity import POLICY, Role
from controlplane.registry import KINDS, behaviors, rules
from controlplane.store.txn import time_ordered_id
from controlplane.validate import OUTPUT_ONLY
from kumihimo.v1 import resource_pb2, security_pb2
from tests.component.cloud import Client, Cloud, Refused, alive, applied, consistent, refused

Code = grpc.StatusCode
# Kinds whose objects are of a project, which its members make.
OWNED = tuple(
    name
    for name, kind in KINDS.items()
    if not kind.options.operator_named and POLICY.get(name, POLICY["*"]).get("Create", Role.OPERATOR) < Role.OPERATOR
)
ALICE, BOB = "demo", "other"

# One of each, the same in both projects; a kind without a line has no proof that it keeps projects apart. Parents first;
# `{kind}` stands for the id of the object of that kind.
TWINS: dict[str, dict[str, Any]] = {
    "AddressScope": {"name": "inside", "ip_version": 4},
    "SubnetPool": {"name": "private", "prefixes": ["10.0.0.0/8"], "address_scope_id": "{AddressScope}"},
    "AddressGroup": {"name": "offices", "addresses": ["10.0.0.0/24"]},
    "SecurityGroup": {"name": "front"},
    "SecurityGroupRule": {
        "name": "inbound",
        "security_group_id": "{SecurityGroup}",
        "direction": "DIRECTION_INGRESS",
        "remote_address_group_id": "{AddressGroup}",
    },
    "Network": {"name": "net"},
    "Subnet": {"name": "lan", "network_id": "{Network}", "cidr": "10.0.0.0/24", "subnet_pool_id": "{SubnetPool}"},
    "Port": {
        "name": "web",
        "network_id": "{Network}",
        "mac_address": "fa:16:3e:00:00:05",
        "fixed_ips": [{"subnet_id": "{Subnet}", "ip_address": "10.0.0.5"}],
        "security_group_ids": ["{SecurityGroup}"],
    },
}
Environment = dict[str, Any]
Twins = tuple[Environment, Environment]


def fields_of(kind: str, made: Environment) -> dict[str, Any]:
    """The fields of a twin, with the ids of what was made before it."""

    def filled(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("{"):
            return made[value.strip("{}")].id
        if isinstance(value, list):
            return [filled(item) for item in value]
        if isinstance(value, dict):
            return {name: filled(item) for name, item in value.items()}
        return value

    return {name: filled(value) for name, value in TWINS[kind].items()}


async def environment(api: Client, by: str) -> Environment:
    made: Environment = {}
    for kind in TWINS:
        made[kind] = await api.create(kind, by=by, **fields_of(kind, made))
        if kind == "SecurityGroup":
            # One rule for each, as of every kind.
            bare = security_pb2.ReplaceSecurityGroupRulesRequest(id=made[kind].id)
            await api.call("SecurityGroups", "ReplaceRules", bare, f"{by}-token")
            made[kind] = await api.get(kind, made[kind].id, by=by)
    return made


@pytest.fixture
async def twins(api: Client) -> Twins:
    """Alice's and Bob's, made at the same time."""
    alices, bobs = await asyncio.gather(environment(api, "alice"), environment(api, "bob"))
    return alices, bobs


def test_every_kind_of_projects_has_a_twin() -> None:
    assert set(TWINS) == set(OWNED)


async def test_a_01_equal_names_and_addresses_live_side_by_side(cloud: Cloud, twins: Twins) -> None:
    alices, bobs = twins
    for kind in OWNED:
        mine, theirs = alices[kind], bobs[kind]
        assert (mine.project_id, theirs.project_id) == (ALICE, BOB)
        assert mine.name == theirs.name
        assert mine.id != theirs.id
    mine, theirs = alices["Port"], bobs["Port"]
    assert mine.fixed_ips[0].ip_address == theirs.fixed_ips[0].ip_address == "10.0.0.5"
    assert mine.mac_address == theirs.mac_address
    for field in ("segmentation_id", "key"):
        assert getattr(alices["Network"], field) != getattr(bobs["Network"], field), "what the wire tells them apart by"
    await consistent(cloud.store)


@pytest.mark.parametrize("kind", OWNED)
async def test_what_another_project_has_is_not_there(cloud: Cloud, twins: Twins, kind: str) -> None:
    """Get, update and delete say of it, word for word, what they say of an id that never was, and change nothing."""
    _, bobs = twins
    theirs, missing = bobs[kind].id, time_ordered_id()
    before = await cloud.settled()
    api = cloud.api
    for by in ("alice", "anna", "rita"):
        asked = [lambda id_, by=by: api.get(kind, id_, by=by)]
        if by != "rita":
            asked += [
                lambda id_, by=by: api.update(kind, id_, by=by, name="x"),
                lambda id_, by=by: api.update(kind, id_, by=by, mask=["*"], name="x"),
                lambda id_, by=by: api.update(kind, id_, by=by, name="x", etag=bobs[kind].etag),
                lambda id_, by=by: api.update(kind, id_, by=by, name="x", request={"validate_only": True}),
                lambda id_, by=by: api.delete(kind, id_, by=by),
                lambda id_, by=by: api.delete(kind, id_, by=by, force=True),
                lambda id_, by=by: api.delete(kind, id_, by=by, etag="0"),
                lambda id_, by=by: api.delete(kind, id_, by=by, validate_only=True),
            ]
        for call in asked:
            hidden, absent = await refused(call(theirs)), await refused(call(missing))
            assert (hidden.code, hidden.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
            assert _anonymous(hidden, theirs) == _anonymous(absent, missing)
    assert (await api.delete(kind, theirs, by="alice", allow_missing=True)).revision == before
    assert not await cloud.written_since(before)


def _anonymous(error: Refused, object_id: str) -> str:
    """All that an error says, without the id that was asked for."""
    said = f"{error} {error.metadata} {error.violations} {error.details}"
    return said.replace(object_id, "ID")


@pytest.mark.parametrize("kind", OWNED)
async def test_lists_leave_it_out_however_they_are_asked(api: Client, twins: Twins, kind: str) -> None:
    alices, bobs = twins
    for by, mine, theirs in (("alice", alices, bobs), ("rita", alices, bobs), ("bob", bobs, alices)):
        filters = ["", f'name = "{mine[kind].name}"', f'id = "{theirs[kind].id}" OR id = "{mine[kind].id}"', 'name != "x"']
        if kind == "Port":
            filters += ['fixed_ips.ip_address = "10.0.0.5"', 'mac_address = "fa:16:3e:00:00:05"', 'NOT name = "x"']
        for text in filters:
            for order in ("", "name", "create_time desc"):
                found = await api.list(kind, by=by, filter=text, order_by=order)
                assert [item.id for item in found.items] == [mine[kind].id], (by, text, order)
        first = await api.list(kind, by=by, page_size=1)
        assert ([item.id for item in first.items], first.next_page_token) == ([mine[kind].id], "")
        assert (await api.list(kind, by=by, filter=f'id = "{theirs[kind].id}"')).items == []
        error = await refused(api.list(kind, by=by, project_id=theirs[kind].project_id))
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "FIELD_FORBIDDEN")
    both = {alices[kind].id, bobs[kind].id}
    assert {item.id for item in (await api.list(kind)).items} == both, "an operator sees all"
    assert [item.id for item in (await api.list(kind, project_id=BOB)).items] == [bobs[kind].id]
    # A page token of one project opens nothing of another.
    token = (await api.list(kind, page_size=1)).next_page_token
    assert {item.id for item in (await api.list(kind, by="bob", page_token=token)).items} <= {bobs[kind].id}


def references(descriptor: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, kind) of every field by which a request can name an object of a project."""
    for field in descriptor.fields:
        if OUTPUT_ONLY in behaviors(field):
            continue
        if rules(field).reference in OWNED:
            yield (*above, field.name), rules(field).reference
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry and len(above) < 3:
            yield from references(field.message_type, (*above, field.name))


REFERENCES = [(kind, path, target) for kind in OWNED for path, target in references(KINDS[kind].descriptor)]


def test_the_references_are_found() -> None:
    paths = {(kind, ".".join(path)) for kind, path, _ in REFERENCES}
    assert paths >= {("Subnet", "network_id"), ("Port", "network_id"), ("Port", "fixed_ips.subnet_id")}


@pytest.mark.parametrize(
    ("kind", "path", "target"), REFERENCES, ids=lambda item: ".".join(item) if isinstance(item, tuple) else item
)
async def test_a_reference_to_it_is_a_reference_to_nothing(
    cloud: Cloud, twins: Twins, kind: str, path: tuple[str, ...], target: str
) -> None:
    alices, bobs = twins
    before = await cloud.settled()
    missing = time_ordered_id()
    said = []
    for object_id in (bobs[target].id, missing):
        message = KINDS[kind].message(**fields_of(kind, alices))
        for name in ("mac_address", "fixed_ips", "remote_address_group_id"):
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)  # taken by the twin, or excluding another
        _set(message, path, object_id)
        fields = {field.name: value for field, value in message.ListFields()}
        error = await refused(cloud.api.create(kind, by="alice", **fields))
        assert (error.code, error.reason) == (Code.NOT_FOUND, "REFERENCE_NOT_FOUND"), error
        said.append(_anonymous(error, object_id))
        error = await refused(cloud.api.update(kind, alices[kind].id, by="alice", mask=[path[0]], **fields))
        assert error.reason in ("REFERENCE_NOT_FOUND", "IMMUTABLE_FIELD"), error
        said[-1] += _anonymous(error, object_id)
    assert said[0] == said[1]
    assert not await cloud.written_since(before)


def _set(message: Any, path: tuple[str, ...], value: str) -> None:
    """Set one field, in a new entry where the way leads through repeated ones."""
    for name in path[:-1]:
        field = message.DESCRIPTOR.fields_by_name[name]
        message = getattr(message, name).add() if field.is_repeated else getattr(message, name)
    if message.DESCRIPTOR.fields_by_name[path[-1]].is_repeated:
        getattr(message, path[-1])[:] = [value]
    else:
        setattr(message, path[-1], value)


async def test_waiting_for_it_tells_nothing(cloud: Cloud, twins: Twins) -> None:
    """Wait says the same of another project's object as of one that never was, whether its node has applied it or not."""
    alices, bobs = twins
    for mine, theirs in ((1, 1 << 40), (1 << 40, 1)):
        nodes = [applied("h1", alices["Network"].id, mine), applied("h1", bobs["Network"].id, theirs)]
        revision = await cloud.write(alive("h1"), *nodes)
        seen = []
        for object_id in (*(bobs[kind].id for kind in OWNED), time_ordered_id()):
            try:
                reply = await cloud.api.wait(by="alice", seconds=0.1, ids=[object_id], revision=revision)
                seen.append(str(reply.dead))
            except Refused as error:
                seen.append(_anonymous(error, object_id))
        assert len(set(seen)) == 1, seen
        assert "NOT_YET_APPLIED" in seen[0], "it stands for everything, and something lags"


@pytest.mark.parametrize("kind", OWNED)
async def test_an_id_or_a_value_that_is_taken_names_nobody(api: Client, twins: Twins, kind: str) -> None:
    """That an id is taken cannot be hidden from one who chooses it; whose it is, and anything of it, is."""
    alices, bobs = twins
    fields = fields_of(kind, alices) | {"id": bobs[kind].id, "name": "mine"}
    for name in ("mac_address", "fixed_ips"):
        fields.pop(name, None)
    error = await refused(api.create(kind, by="alice", **fields))
    assert (error.code, error.reason) == (Code.ALREADY_EXISTS, "ID_TAKEN")
    said = _anonymous(error, bobs[kind].id)
    assert not [word for word in (BOB, "bob", bobs[kind].name) if word in said.replace("another", "")]
    error = await refused(api.create(kind, by="alice", **fields | {"id": "", "project_id": BOB}))
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "FIELD_FORBIDDEN")


async def test_what_one_project_does_to_its_own_does_nothing_to_its_twin(cloud: Cloud, twins: Twins) -> None:
    alices, bobs = twins
    before = {kind: await cloud.api.get(kind, bobs[kind].id, by="bob") for kind in OWNED}
    for kind in reversed(TWINS):
        await cloud.api.update(kind, alices[kind].id, by="alice", name="other name")
        await cloud.api.delete(kind, alices[kind].id, by="alice")
    for kind in OWNED:
        assert await cloud.api.get(kind, bobs[kind].id, by="bob") == before[kind]
        assert (await cloud.api.list(kind, by="alice")).items == []
    # And the addresses that came free are not his, nor hers his.
    again = await environment(cloud.api, "alice")
    assert again["Port"].fixed_ips[0].ip_address == bobs["Port"].fixed_ips[0].ip_address
    await cloud.settled()
    await consistent(cloud.store)


async def test_a_child_belongs_to_its_networks_project(api: Client, twins: Twins) -> None:
    _, bobs = twins
    network_id = bobs["Network"].id
    assert (await api.create("Subnet", network_id=network_id, cidr="10.1.0.0/24")).project_id == BOB
    assert (await api.create("Port", network_id=network_id)).project_id == BOB
    error = await refused(api.create("Port", network_id=network_id, project_id=ALICE))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "REFERENCE_NOT_FOUND")
    assert (await api.get("Port", bobs["Port"].id, by="bob")).state == resource_pb2.STATE_DOWN
