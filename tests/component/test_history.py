"""The history of every kind: who did what, when, in which request, what differs; and how things were (C-09, C-12)."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from aetcd.rpc import rpc_pb2

from controlplane.registry import KINDS
from controlplane.store.txn import time_ordered_id
from kumihimo.v1 import operations_pb2 as pb
from kumihimo.v1 import resource_pb2
from tests.component import rows
from tests.component.cloud import Client, Cloud, refused
from tests.component.test_api_apply import apply, item
from tests.component.test_api_watch import ADDED, DELETED, UPDATED, watching

Code = grpc.StatusCode
CREATE, UPDATE, DELETE = pb.ACTION_CREATE, pb.ACTION_UPDATE, pb.ACTION_DELETE
OWNED = [name for name, kind in KINDS.items() if kind.owned and not kind.options.implicit]
LATER = 1 << 60


async def history(api: Client, *, by: str = "root", **request: Any) -> list[Any]:
    return list((await page(api, by=by, **request)).items)


async def page(api: Client, *, by: str = "root", **request: Any) -> Any:
    return await api.call("Operations", "ListChanges", pb.ListChangesRequest(**request), f"{by}-token")


async def fields_of(api: Client, kind: str, by: str = "root") -> dict[str, Any]:
    """What an object of a kind is made with; a child gets a parent."""
    fields = {**rows.sample(kind, 77), **await rows.parent(api, kind, by)}
    if kind == "Quota":
        fields["id"] = "historic"
    return fields


@pytest.mark.parametrize("kind", KINDS)
async def test_c_09_who_when_by_which_request_and_what_differs(cloud: Cloud, kind: str) -> None:
    api = cloud.api
    fields = await fields_of(api, kind)
    start = time.time() - 1
    made = await api.create(kind, name="one", tags=["a"], request={"request_id": f"make-{kind}"}, **fields)
    changed = await api.update(kind, made.id, name="two", mask=["name", "tags"], request={"request_id": f"change-{kind}"})
    await api.update(kind, made.id, name="two")  # nothing differs: no record
    gone = await api.delete(kind, made.id, request_id=f"delete-{kind}")
    found = await history(api, id=made.id)
    if kind in ("Quota", "Settings"):
        found = found[:3]  # they had a life before
    assert [change.action for change in found] == [DELETE, UPDATE, CREATE]
    assert [change.revision for change in found] == [gone.revision, changed.revision, made.revision]
    service = KINDS[kind].service.full_name
    assert [change.method for change in found] == [f"{service}/{verb}" for verb in ("Delete", "Update", "Create")]
    assert [change.request_id for change in found] == [f"{verb}-{kind}" for verb in ("delete", "change", "make")]
    for change in found:
        assert (change.actor, change.kind, change.id, change.project_id) == ("root", kind, made.id, made.project_id)
        assert start < change.time.ToNanoseconds() / 1e9 < time.time() + 1
    deleted, updated, created = [{field.path: (field.before, field.after) for field in change.fields} for change in found]
    assert updated == {"name": ("one", "two"), "tags": ('["a"]', "")}
    assert created["name"] == ("", "one")
    assert deleted["name"] == ("two", "")
    assert set(fields) - {"projects"} <= set(created)
    assert {path for path in deleted if path != "tags"} == {path for path in created if path != "tags"}
    aside = {"create_time", "update_time", "creator", "last_modifier", "revision", "etag", "state", "used", "usage", "in_force"}
    assert not aside & set(created)


@pytest.mark.parametrize("kind", OWNED)
async def test_b_api_04_tags_any_all_and_none(cloud: Cloud, kind: str) -> None:
    """What carries any, all, or none of some tags; of objects as they are and as they were."""
    api = cloud.api
    fields = await fields_of(api, kind)
    sets: list[tuple[str, ...]] = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", "c")]
    for number, tags in enumerate(sets):
        own = rows.sample(kind, number)
        await api.create(kind, name="+".join(tags), tags=tags, description="tagged", **{**fields, **own})
    then = (await api.list(kind)).revision
    for text, accepts in (
        ('tags:"a"', lambda tags: "a" in tags),
        ('tags:"a" OR tags:"b"', lambda tags: "a" in tags or "b" in tags),
        ('tags:"a" AND tags:"b"', lambda tags: "a" in tags and "b" in tags),
        ('NOT (tags:"a" OR tags:"b")', lambda tags: not {"a", "b"} & set(tags)),
        ('tags:"a" AND NOT tags:"b"', lambda tags: "a" in tags and "b" not in tags),
        ('NOT (tags:"a" AND tags:"b")', lambda tags: not {"a", "b"} <= set(tags)),
        ('tags:"nowhere"', lambda _: False),
    ):
        for at in (0, then):
            found = await api.list(kind, filter=f'description = "tagged" AND ({text})', at_revision=at)
            assert sorted(each.name for each in found.items) == sorted("+".join(tags) for tags in sets if accepts(tags)), text


@pytest.mark.parametrize("kind", OWNED)
async def test_a_01_tenants_see_their_own_history_only(cloud: Cloud, kind: str) -> None:
    api = cloud.api
    mine = await api.create(kind, by="alice", **await fields_of(api, kind, "alice"))
    theirs = await api.create(kind, by="bob", **await fields_of(api, kind, "bob"))
    await api.update(kind, theirs.id, by="bob", name="secret")
    for by in ("alice", "anna", "rita"):
        assert [change.id for change in await history(api, by=by, id=mine.id)] == [mine.id]
        assert await history(api, by=by, id=theirs.id) == await history(api, by=by, id=time_ordered_id()) == []
        everything = await history(api, by=by, page_size=1000)
        assert {change.project_id for change in everything} == {"demo"}
        error = await refused(history(api, by=by, project_id="other"))
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "FIELD_FORBIDDEN")
    assert len(await history(api, id=theirs.id)) == 2
    assert {change.project_id for change in await history(api, project_id="other")} == {"other"}


async def test_what_is_done_to_the_installation_is_shown_to_operators(cloud: Cloud) -> None:
    await cloud.api.create("Node", id="watched")
    await cloud.api.create("PhysicalNetwork", id="watched")
    assert {change.kind for change in await history(cloud.api, id="watched")} == {"Node", "PhysicalNetwork"}
    assert await history(cloud.api, by="anna", id="watched") == []


@pytest.mark.parametrize("size", [1, 7, 200])
async def test_pages_walk_from_the_newest_to_the_oldest_once_each(cloud: Cloud, size: int) -> None:
    """Single changes, changes of one transaction (more than a page of etcd), and those that come while one reads."""
    api = cloud.api
    network = await api.create("Network", by="bob", name="n")
    many = [item("Port", name=f"p{number}", network_id=network.id, no_fixed_ips=True) for number in range(250)]
    for number in range(3):
        await api.update("Network", network.id, by="bob", name=f"n{number}")
        await apply(api, *many, by="bob", request_id=f"many-{size}-{number}")
        for found in many:
            found.resource.Pack(KINDS["Port"].message(name=_name(found), network_id=network.id, description=f"{number}"))
    wanted = 1 + 3 + 250 * 3
    seen: list[tuple[int, str]] = []
    token = ""
    limit = wanted if size > 1 else 60
    while len(seen) < limit:
        reply = await page(api, by="bob", page_size=size, page_token=token)
        assert len(reply.items) <= size
        seen += [(change.revision, change.id) for change in reply.items if change.name != "later"]
        token = reply.next_page_token
        if not token:
            break
        await api.create("Network", by="bob", name="later")
    assert len(set(seen)) == len(seen)
    assert [revision for revision, _ in seen] == sorted((revision for revision, _ in seen), reverse=True)
    if size > 1:
        assert len([change for change in seen if change[0] >= network.revision]) == wanted
    error = await refused(page(api, page_token="none of ours"))  # noqa: S106
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


def _name(found: pb.ApplyObject) -> str:
    port = KINDS["Port"].message()
    found.resource.Unpack(port)
    return str(port.name)


@pytest.mark.parametrize("kind", KINDS)
async def test_c_12_how_it_was(cloud: Cloud, second_api: Client, kind: str) -> None:
    """Of an object that has changed and is gone: by Get and by List, on every replica."""
    api = cloud.api
    fields = await fields_of(api, kind)
    await cloud.settled()
    before = await cloud.store.revision()
    made = await api.create(kind, name="one", **fields)
    changed = await api.update(kind, made.id, name="two")
    gone = (await api.delete(kind, made.id)).revision
    service = KINDS[kind].service.name

    async def at(client: Client, revision: int) -> Any:
        return await client.call(service, "Get", resource_pb2.GetRequest(id=made.id, at_revision=revision))

    for client in (api, second_api):
        for revision, name, etag in (
            (made.revision, "one", made.etag),
            (changed.revision, "two", changed.etag),
            (gone - 1, "two", changed.etag),
        ):
            found = await at(client, revision)
            assert (found.name, found.etag, found.creator) == (name, etag, "root")
            listed = await client.list(kind, at_revision=revision, page_size=1000)
            assert listed.revision == revision
            assert [each.name for each in listed.items if each.id == made.id] == [name]
        for revision in (before, gone):
            assert made.id not in {each.id for each in (await client.list(kind, at_revision=revision)).items}
            error = await refused(at(client, revision))
            assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
        for call in (at(client, LATER), client.list(kind, at_revision=LATER)):
            error = await refused(call)
            assert (error.code, error.reason) == (Code.OUT_OF_RANGE, "REVISION_IN_FUTURE")
        for call in (at(client, -1), client.list(kind, at_revision=-1)):
            error = await refused(call)
            assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "VALUE_OUT_OF_RANGE")


@pytest.mark.parametrize("kind", OWNED)
async def test_a_01_the_past_of_another_project_is_not_there_either(cloud: Cloud, kind: str) -> None:
    api = cloud.api
    theirs = await api.create(kind, by="bob", **await fields_of(api, kind, "bob"))
    request = resource_pb2.GetRequest(id=theirs.id, at_revision=theirs.revision)
    error = await refused(api.call(KINDS[kind].service.name, "Get", request, "alice-token"))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert theirs.id not in [each.id for each in (await api.list(kind, by="alice", at_revision=theirs.revision)).items]


async def test_a_past_list_has_pages_filter_and_order_of_one_revision(cloud: Cloud) -> None:
    api = cloud.api
    made = [await api.create("Network", by="alice", name=f"n{number:02}") for number in range(10)]
    then = made[-1].revision
    for network in made[::2]:
        await api.delete("Network", network.id)
    await api.update("Network", made[1].id, name="renamed")
    names: list[str] = []
    token = ""
    while True:
        request = {"by": "alice", "at_revision": then, "order_by": "name desc", "filter": 'name = "n*"'}
        reply = await api.list("Network", page_size=3, page_token=token, **request)
        names += [network.name for network in reply.items]
        token = reply.next_page_token
        if not token:
            break
        await api.create("Network", by="alice", name="n-later")
    assert names == [f"n{number:02}" for number in reversed(range(10))]


async def test_what_is_compacted_is_no_longer_known_and_the_history_stays() -> None:
    async with Cloud() as own:
        network = await own.api.create("Network", name="one")
        changed = await own.api.update("Network", network.id, name="two")
        await own.store.call(own.store.kv.Compact, rpc_pb2.CompactionRequest(revision=changed.revision))
        request = resource_pb2.GetRequest(id=network.id, at_revision=network.revision)
        for call in (
            own.api.call("Networks", "Get", request),
            own.api.list("Network", at_revision=network.revision),
        ):
            error = await refused(call)
            assert (error.code, error.reason) == (Code.OUT_OF_RANGE, "REVISION_COMPACTED")
        assert (await own.api.list("Network", at_revision=changed.revision)).items[0].name == "two"
        assert [change.revision for change in await history(own.api, id=network.id)] == [changed.revision, network.revision]


@pytest.mark.parametrize("kind", KINDS)
async def test_b_api_10_each_change_of_every_kind_is_told_once(cloud: Cloud, kind: str) -> None:
    api = cloud.api
    fields = await fields_of(api, kind)
    start = (await api.list(kind)).revision
    made = await api.create(kind, name="one", **fields)
    async with watching(api, kind, start_revision=start, include_previous=True) as watch:
        changed = await api.update(kind, made.id, name="two")
        gone = (await api.delete(kind, made.id)).revision
        told = [await watch.next() for _ in range(3)]
    assert [event.type for event in told] == [ADDED, UPDATED, DELETED]
    assert [event.revision for event in told] == [made.revision, changed.revision, gone]
    assert [event.resource.name for event in told] == ["one", "two", "two"]
    assert told[1].previous.name == "one"
    assert told[0].resource.etag == made.etag
