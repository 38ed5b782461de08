"""A-44: backup and restoration under an API that lives through it and an agent that does."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.model.item import Key
from controlplane.registry import KINDS
from controlplane.store import client, keys, restored
from controlplane.store.client import Entry
from kumihimo.v1 import resource_pb2, store_pb2
from tests.component.cloud import Client, Cloud, Refused, applied, consistent, everything, refused
from tests.component.simulated_agent import SimulatedAgent
from tests.waiting import DEADLINE, until

KUMI = str(Path(sys.executable).parent / "kumi")
# What is about now, not about what users want.
PASSING = (keys.STATUS, keys.ALIVE, keys.ROOT + "controller/", keys.ROOT + "meta/")


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    """One of the test's own: its etcd is replaced."""
    async with Cloud() as cloud:
        yield cloud


async def kumi(cloud: Cloud, *arguments: str) -> str:
    """An operator's command; its output. AssertionError with what it said when it fails."""
    done = await attempt(cloud, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def attempt(cloud: Cloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = ["--config", str(cloud.folder / "api0.toml")] if arguments[0] != "restore" else []
    argv = [KUMI, *arguments, *config]
    return await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60, check=False)


async def restore(cloud: Cloud, file: Path) -> None:
    """What an operator does: stop etcd, restore beside, start it."""
    cloud.etcd.stop()
    data = cloud.folder / "data"
    shutil.move(data, cloud.folder / "before")
    await kumi(cloud, "restore", str(file), "--data-dir", str(data), "--name", "one")
    await cloud.etcd.begin()


async def when_there(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer of an API whose connection to etcd may have yet to come back."""

    async def answer() -> Any:
        try:
            return await call()
        except Refused as error:
            if error.reason != "STORE_UNAVAILABLE":
                raise
            return None

    return await until(answer, "the API has found etcd")


def wanted(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    return {key: item for key, item in entries.items() if not key.startswith(PASSING)}


async def shown(api: Client) -> dict[str, list[bytes]]:
    """Every object as the API shows it, what nodes made of it left out."""
    found = {}
    for kind in KINDS:
        items = (await api.list(kind, page_size=1000)).items
        for item in items:
            for name in ("state", "conditions", "realization", "agent", "binding"):
                if name in item.DESCRIPTOR.fields_by_name:
                    item.ClearField(name)
        found[kind] = [item.SerializeToString(deterministic=True) for item in items]
    return found


async def network_with_port(api: Client, **fields: Any) -> tuple[str, str]:
    network = await api.create("Network", **fields)
    await api.create("Subnet", network_id=network.id, cidr="10.0.0.0/24")
    return network.id, (await api.create("Port", network_id=network.id)).id


def lasting(items: Iterable[Key]) -> set[Key]:
    """Without the flows by a connection's mark, which is of one life of the store: every connection is asked about anew."""
    return {key for key in items if key[0] != "flow" or "ct_mark" not in [name for name, _, _ in key[3]]}


async def test_a_44_everybody_who_remembers_a_revision_copes_with_a_restoration(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, file = cloud.api, cloud.folder / "backup.db"
    await api.create("Node", id="h1", tunnel_ip="192.0.2.1")
    network, port = await network_with_port(api, name="kept")
    doomed = await api.create("Network", name="doomed")
    async with SimulatedAgent(cloud, "h1", monkeypatch) as agent:
        agent.plug(port)
        await api.wait(ids=[port], active=True)
        full = lasting(agent.driver.there)
        backed_up = wanted(await everything(cloud.store))
        as_shown = await shown(api)
        assert "up to revision" in await kumi(cloud, "backup", str(file))

        # A life that the backup knows nothing of: a change, a deletion, a network with a port plugged, many revisions.
        await api.update("Port", port, mask=["admin_state_up"], admin_state_up=False)
        await api.delete("Network", doomed.id)
        # Of a replica that is younger than the backup, all its leases are too.
        second = await cloud.replica()
        late, late_port = await network_with_port(second, name="late", request={"request_id": "late"})
        agent.plug(late_port)
        for turn in range(50):
            await api.update("Port", port, mask=["description"], description=str(turn))
        last = await api.wait(ids=[port, late_port])
        assert agent.has(late_port)
        assert {key for key in full if key not in agent.driver.there}, "the port that is down has lost something"
        waiting = asyncio.create_task(refused(api.wait(revision=last.revision, ids=[port], active=True, seconds=60)))
        for _ in range(2):
            await api.list("Node")  # the second is sent after the Wait, and answered after it has begun

        await restore(cloud, file)
        # The store is behind what everybody remembers, and a Wait of before has nothing to wait for any more.
        (await waiting).must_be("REVISION_IN_FUTURE")
        answer = await when_there(lambda: api.wait(ids=[port], active=True, seconds=restored.GRACE - 1))
        assert answer.revision < last.revision
        # Now, at once: what Wait says is so.
        assert lasting(agent.driver.there) == full
        assert not agent.has(late_port)
        assert await shown(api) == as_shown
        assert await when_there(lambda: shown(second)) == as_shown
        assert await shown(await cloud.replica()) == as_shown
        entries = await everything(cloud.store)
        assert wanted(entries) == backed_up
        assert not [key for key in entries if late in key], "the node says nothing of what is gone"
        seen = store_pb2.PortStatus.FromString(entries[keys.port_status("h1", late_port)].value)
        assert seen.reason == "PORT_UNKNOWN"

        # And life goes on, with named requests too.
        made = await second.create("Port", network_id=network, request={"request_id": "after"})
        again = await api.create("Port", network_id=network, request={"request_id": "after"})
        assert made.id == again.id
        agent.plug(made.id)
        await api.wait(revision=made.revision, ids=[made.id], active=True)
        assert agent.has(made.id)
        await until(lambda: keys.port_status("h1", made.id) in agent.status.known())
        await consistent(cloud.store)


async def test_c_06_wait_after_a_restoration_waits_for_nodes_that_have_not_spoken(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node came to the network after the backup: nothing in the restored store says that it is concerned."""
    api, file = cloud.api, cloud.folder / "backup.db"
    await api.create("Node", id="h1", tunnel_ip="192.0.2.1")
    network, port = await network_with_port(api)
    await kumi(cloud, "backup", str(file))
    async with SimulatedAgent(cloud, "h1", monkeypatch) as agent:
        agent.plug(port)
        await api.wait(ids=[port], active=True)
        assert agent.has(port)
    await restore(cloud, file)
    changed = await when_there(lambda: api.update("Port", port, mask=["admin_state_up"], admin_state_up=False))
    error = await refused(api.wait(revision=changed.revision, ids=[port], seconds=1))
    assert error.code.name == "DEADLINE_EXCEEDED"
    assert "node h1 has not reported since the store was restored" in error.message
    error = await refused((await cloud.replica()).wait(revision=changed.revision, seconds=0.5))
    assert "node h1 has not reported" in error.message, "a replica that was started after it knows as well"
    async with SimulatedAgent(cloud, "h1", monkeypatch, agent.driver) as again:
        again.plug(port)
        await api.wait(revision=changed.revision, ids=[port])
        group = ("group", again.state.networks[network].network.key)  # type: ignore[union-attr]
        assert again.state.networks[network].port(port).admin_state_up is False, group  # type: ignore[union-attr]
    # Who stays silent for longer than a lease is dead, and not waited for.
    await cloud.write(client.delete(keys.STATUS, prefix=True), client.delete(keys.RESTORED))
    await api.wait(ids=[port], seconds=5)


async def test_c_06_a_statement_from_another_life_of_the_store_is_not_believed(cloud: Cloud) -> None:
    api = cloud.api
    await api.create("Node", id="h1", tunnel_ip="192.0.2.1")
    network, port = await network_with_port(api)
    changed = await api.update("Port", port, mask=["description"], description="x")
    await cloud.store.revision()

    def says(revision: int, cluster: int) -> object:
        return client.put(
            keys.scope_status("h1", keys.scope(network)),
            store_pb2.Applied(revision=revision, cluster=cluster).SerializeToString(),
        )

    async def lags() -> bool:
        error = await refused(api.wait(revision=changed.revision, ids=[port], seconds=0.3))
        return "node h1 has applied revision 0" in error.message

    alive = client.put(keys.alive("h1"), b"")
    await cloud.write(alive, says(changed.revision, cloud.store.cluster ^ 1))
    assert await lags(), "of another cluster"
    await cloud.write(alive, says(changed.revision + 1_000_000, cloud.store.cluster))
    assert await lags(), "of a revision that the store had not when it was written"
    await cloud.write(alive, applied("h1", network, changed.revision + 1_000_000))
    assert await lags(), "the same by an agent that names no cluster"
    await cloud.write(alive, says(changed.revision, cloud.store.cluster))
    await api.wait(revision=changed.revision, ids=[port], seconds=5)


async def test_a_watch_of_before_is_told_to_begin_anew(cloud: Cloud) -> None:
    """What it has told may never have been, and what came since it cannot know."""
    file = cloud.folder / "backup.db"
    await kumi(cloud, "backup", str(file))
    kind = KINDS["Network"]
    events = cloud.api.channel.unary_stream(
        f"/{kind.service.full_name}/Watch",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=kind.reply("Watch").FromString,
    )(kind.request("Watch")(include_initial=True), metadata=(("authorization", "Bearer root-token"),))
    stream = aiter(events)
    assert (await anext(stream)).type == resource_pb2.EVENT_TYPE_BOOKMARK
    made = await cloud.api.create("Network", name="never")
    assert (await anext(stream)).resource.id == made.id
    await restore(cloud, file)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asyncio.wait_for(anext(stream), DEADLINE)
    Refused.of(error.value).must_be("REVISION_IN_FUTURE")


async def test_a_backup_is_whole_private_and_never_half(cloud: Cloud) -> None:
    await network_with_port(cloud.api)
    file = cloud.folder / "backup.db"
    await kumi(cloud, "backup", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    done = await attempt(cloud, "backup", str(file))
    assert (done.returncode, done.stderr) == (1, f"kumi: {file} exists; name another file, so that no backup is overwritten\n")

    # What was cut or changed anywhere is refused before anything is made of it.
    data = file.read_bytes()
    for number, bad in enumerate((data[:-1], data[:-512], data[:100], b"", bytes([data[0] ^ 1]) + data[1:])):
        broken = cloud.folder / f"broken{number}"
        broken.write_bytes(bad)
        done = await attempt(cloud, "restore", str(broken), "--data-dir", str(cloud.folder / "new"))
        assert done.returncode == 1
        assert done.stderr.startswith(f"kumi: {broken} is no whole snapshot")
    done = await attempt(cloud, "restore", str(file), "--data-dir", str(cloud.folder / "data"))
    assert done.stderr == f"kumi: {cloud.folder}/data exists; move it away first, so that nothing is lost\n"
    assert not list(cloud.folder.glob("*.part"))
    assert not (cloud.folder / "new").exists()

    cloud.etcd.stop()
    done = await attempt(cloud, "backup", str(cloud.folder / "none.db"))
    assert done.returncode == 6
    assert done.stderr.startswith(f"kumi: etcd at {cloud.etcd.endpoint}: ")
    assert done.stderr.count("\n") == 1
    assert not list(cloud.folder.glob("none.db*"))


async def test_a_full_disk_leaves_one_line_and_no_file(cloud: Cloud) -> None:
    await network_with_port(cloud.api)
    place = cloud.folder / "small"
    place.mkdir()
    script = f"mount -t tmpfs -o size=16k none {place} && exec {KUMI} backup {place}/b.db --config {cloud.folder}/api0.toml; "
    listing = f"unshare -m sh -c '({script}); echo $?; ls -A {place}'"
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", listing], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == f"kumi: {place}/b.db could not be written: No space left on device; nothing was left\n"
    assert done.stdout == "1\n"


async def test_restoring_says_what_is_missing(cloud: Cloud) -> None:
    file = cloud.folder / "backup.db"
    await kumi(cloud, "backup", str(file))
    argv = [KUMI, "restore", str(file), "--data-dir", str(cloud.folder / "new")]
    done = await asyncio.to_thread(
        subprocess.run, argv, env={"PATH": "/nowhere"}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (1, "kumi: there is no etcdctl on this host; it is in the package etcd-client\n")
    done = await attempt(
        cloud, "restore", str(file), "--data-dir", str(cloud.folder / "new"), "--initial-cluster", "a=http://b:1"
    )
    assert done.stderr.startswith("kumi: --initial-cluster needs --token")


async def test_a_replica_never_reads_the_store_of_before(cloud: Cloud) -> None:
    """Right when etcd answers again a read is of the restored store, and a write that rests on the former one is refused."""
    file = cloud.folder / "backup.db"
    network, _ = await network_with_port(cloud.api)
    old = (await cloud.api.list("Subnet", filter=f'network_id = "{network}"')).items[0]
    await kumi(cloud, "backup", str(file))
    await cloud.api.delete("Port", (await cloud.api.list("Port")).items[0].id)
    await cloud.api.delete("Subnet", old.id)
    for turn in range(20):
        await cloud.api.update("Network", network, mask=["description"], description=str(turn))
    await restore(cloud, file)

    # The former life has no subnet left: by its cache the new one would overlap nothing.
    with pytest.raises(Refused, match="CIDR_OVERLAP"):
        await when_there(lambda: cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/25"))
    assert [item.id for item in (await cloud.api.list("Subnet", page_size=10)).items] == [old.id]
    await consistent(cloud.store)
