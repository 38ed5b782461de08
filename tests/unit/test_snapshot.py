"""The mirror on disk: what is written comes back; what is not whole, not ours or of another release is ignored with a line."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.mirror import snapshot
from agent.mirror.snapshot import Recorder, load
from controlplane.store.client import Entry
from controlplane.store.feed import Changed, Listed
from tests.waiting import running, until

ETCD = ("192.0.2.10:2379", "192.0.2.11:2379")
NODES = "/kumihimo/node/"
NET = "/kumihimo/net/n1/"


def listed(prefix: str, revision: int = 7, **values: bytes) -> Listed:
    return Listed(prefix, revision, {prefix + key: Entry(value, 1, revision) for key, value in values.items()}, 99)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent" / "mirror"


@asynccontextmanager
async def recording(path: Path) -> AsyncIterator[Recorder]:
    """A recorder whose file is right when the context is left."""
    recorder = Recorder(path, "h1", ETCD)
    async with running(recorder.run()):
        yield recorder


async def write(path: Path) -> None:
    async with recording(path) as recorder:
        recorder.take(listed(NODES, h1=b"one"))
        recorder.take(listed(NET, network=b"net", gone=b"x"))


def known(path: Path) -> dict[str, dict[str, bytes]]:
    found = load(path, "h1", ETCD)
    return {prefix: {key: entry.value for key, entry in each.entries.items()} for prefix, each in found.items()}


async def test_b_ops_13_what_the_feed_told_comes_back(path: Path) -> None:
    async with recording(path) as recorder:
        recorder.take(listed(NODES, h1=b"one"))
        recorder.take(listed(NET, network=b"net", port=b"old", gone=b"x"))
        recorder.take(listed("/kumihimo/index/port/p", **{"": b"index"}))
        changes = [(NET + "port", Entry(b"new", 1, 8)), (NET + "gone", None)]
        recorder.take(Changed(NET, 8, changes))
        recorder.keep({NODES, NET})
        recorder.take(Changed("/kumihimo/other/", 9, changes))
    assert known(path) == {NODES: {NODES + "h1": b"one"}, NET: {NET + "network": b"net", NET + "port": b"new"}}
    read = load(path, "h1", ETCD)
    assert (read[NET].revision, read[NET].cluster, read[NODES].revision) == (8, 99, 7)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["mirror"]


async def test_a_later_process_goes_on_from_the_file(path: Path) -> None:
    await write(path)
    async with recording(path) as recorder:
        recorder.begin(load(path, "h1", ETCD))
        recorder.take(listed(NODES, 9, h1=b"two"))
    assert known(path) == {NODES: {NODES + "h1": b"two"}, NET: {NET + "network": b"net", NET + "gone": b"x"}}


def refused(path: Path, node: str = "h1", etcd: tuple[str, ...] = ETCD) -> str:
    """What the one line says."""
    with capture_logs() as lines:
        assert load(path, node, etcd) == {}
    (line,) = lines
    assert line["log_level"] == "warning"
    return f"{line['event']} {line.get('detail', '')}"


async def test_b_ops_13_what_cannot_be_used_is_ignored_with_one_line(path: Path) -> None:
    assert "there is no snapshot" in refused(path)
    await write(path)
    good = path.read_bytes()
    for length in (0, 5, 20, 40, len(good) - 1):
        path.write_bytes(good[:length])
        assert "damaged" in refused(path)
    for place in (3, 25, len(good) - 3):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert "damaged" in refused(path)
    path.write_bytes(good.replace(b"mirror 1\n", b"mirror 2\n", 1))
    assert "it is of format 2; this release reads format 1" in refused(path)
    path.write_bytes(good.replace(b"mirror 1\n", b"mirror 0\n", 1))
    assert "it is of format 0; this release reads format 1" in refused(path)
    path.write_bytes(good)
    assert "that of node h1, and this is h2" in refused(path, node="h2")
    assert "made from etcd at 192.0.2.10:2379" in refused(path, etcd=("198.51.100.1:2379",))
    assert load(path, "h1", ("192.0.2.11:2379",)), "one member that is known is enough"
    path.unlink()
    path.mkdir()
    assert "Is a directory" in refused(path)


async def test_b_ops_13_a_full_disk_is_told_once_and_the_old_file_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await write(path)
    before = path.read_bytes()
    tried = 0
    full = True
    real = os.write

    def no_room(file: int, data: bytes) -> int:
        nonlocal tried
        if not full or file < 3:
            return real(file, data)
        tried += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", no_room)
    monkeypatch.setattr(snapshot, "RETRY", 0.01)
    monkeypatch.setattr(snapshot, "PAUSE", 0.01)
    with capture_logs() as lines:
        async with recording(path) as recorder:
            recorder.take(listed(NODES, 9, h1=b"two"))
            await until(lambda: tried > 3, "it is tried again and again")
            assert path.read_bytes() == before
            assert [line["detail"] for line in lines] == [f"{path}: No space left on device"]
            full = False
            await until(lambda: len(lines) > 1, "it is written as soon as there is room")
    assert path.read_bytes() != before
    assert [line["event"] for line in lines][1:] == ["snapshot written again"]
    assert [file.name for file in path.parent.iterdir()] == ["mirror"]


async def test_writes_are_few(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    real = snapshot._write

    def slow(place: Path, head: bytes, state: Any) -> str:
        written.append(len(state))
        return real(place, head, state)

    monkeypatch.setattr(snapshot, "_write", slow)
    number = 0

    def take_one_more() -> bool:
        nonlocal number
        number += 1
        recorder.take(listed(NODES, number, h1=b"%d" % number))
        return len(written) == 2

    async with recording(path) as recorder:
        await until(take_one_more, "it is written twice")
        assert number > 50
    assert known(path)[NODES] == {NODES + "h1": b"%d" % number}


async def test_a_change_packs_one_part_of_many(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = 0
    real = zlib.compress

    def counted(data: bytes, level: int) -> bytes:
        nonlocal packed
        packed += 1
        return real(data, level)

    monkeypatch.setattr(zlib, "compress", counted)
    monkeypatch.setattr(snapshot, "PAUSE", 0.001)
    many = {f"port/{number}": b"%d" % number for number in range(5000)}
    async with recording(path) as recorder:
        recorder.take(listed(NET, **many))
        await until(path.exists, "it is written")
        assert packed == snapshot.PARTS
        recorder.take(Changed(NET, 8, [(NET + "port/7", Entry(b"new", 1, 8))]))
        await until(lambda: b"new" in path.read_bytes(), "it is written again")
        recorder.take(Changed(NET, 9, [(NET + "port/7", None)]))
        await until(lambda: b"new" not in path.read_bytes(), "and again")
    assert packed == snapshot.PARTS + 2
    assert known(path)[NET] == {NET + key: value for key, value in many.items() if key != "port/7"}
