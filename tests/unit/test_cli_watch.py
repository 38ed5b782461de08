"""`kumi NOUN watch` over lost connections, and `kumi history`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from cli import errors
from kumihimo.v1 import network_pb2, operations_pb2, resource_pb2
from tests.fakes.api import FakeApi, Fault, Kumi

pytest_plugins = ("tests.fakes.api",)
Code = grpc.StatusCode
A, B = "0192f0c4-7a3e-7c1d-8f2a-00000000000a", "0192f0c4-7a3e-7c1d-8f2a-00000000000b"
AWAY = Fault(Code.UNAVAILABLE, "STORE_UNAVAILABLE", "away")
SLOW = Fault(Code.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW", "the watch of networks fell too far behind")
GONE = Fault(Code.OUT_OF_RANGE, "REVISION_COMPACTED", "list again")


def _event(kind: str, revision: int, name: str = "") -> network_pb2.NetworkEvent:
    event = network_pb2.NetworkEvent(type=f"EVENT_TYPE_{kind}", revision=revision)
    if name:
        event.resource.id, event.resource.name = name * 3, name
    return event


def _told(out: str) -> list[tuple[str, int, str]]:
    lines = [json.loads(line) for line in out.splitlines()]
    return [(line["type"], line["revision"], line.get("resource", {}).get("name", "")) for line in lines]


def test_every_change_is_told_once_though_the_connection_is_lost_within_a_revision(kumi: Kumi, api: FakeApi) -> None:
    api.streams["Networks/Watch"] = [
        [_event("ADDED", 95, "a"), _event("ADDED", 97, "b"), _event("UPDATED", 97, "c")],
        [_event("ADDED", 97, "b"), _event("UPDATED", 97, "c"), _event("DELETED", 97, "d"), _event("BOOKMARK", 99)],
        [_event("ADDED", 120, "e")],
    ]
    api.faults["Networks/Watch"] = [AWAY, SLOW, GONE]
    result = kumi("network", "watch", "-o", "json", "--filter", "mtu > 1")
    assert _told(result.out) == [
        ("ADDED", 95, "a"),
        ("ADDED", 97, "b"),
        ("UPDATED", 97, "c"),
        ("DELETED", 97, "d"),
        ("BOOKMARK", 99, ""),
        ("ADDED", 120, "e"),
    ]
    # It began at the revision of a list, and resumed where all had been heard.
    requests = api.requests("Networks/Watch")
    assert [request.start_revision for request in requests] == [90, 96, 99]
    assert {request.filter for request in requests} == {"mtu > 1"}
    assert result.code == errors.ERROR
    assert result.err.splitlines() == [
        "kumi: away [STORE_UNAVAILABLE]; the watch resumes from revision 96",
        f"kumi: {SLOW.message} [WATCH_TOO_SLOW]; the watch resumes from revision 99",
        "kumi: list again [REVISION_COMPACTED]",
    ]


def test_a_server_that_stays_away_is_told_once_and_asked_on(kumi: Kumi, api: FakeApi) -> None:
    api.streams["Networks/Watch"] = [[], [], [], [_event("ADDED", 7, "a")]]
    api.faults["Networks/Watch"] = [AWAY, AWAY, AWAY, GONE]
    result = kumi("network", "watch", "--from", "5", "-o", "json")
    assert [request.start_revision for request in api.requests("Networks/Watch")] == [5, 5, 5, 5]
    assert _told(result.out) == [("ADDED", 7, "a")]
    assert len(result.err.splitlines()) == 2


def test_what_is_there_comes_first_and_again_if_it_did_not_come_wholly(kumi: Kumi, api: FakeApi) -> None:
    api.streams["Networks/Watch"] = [
        [_event("INITIAL", 50, "a")],
        [_event("INITIAL", 51, "a"), _event("INITIAL", 51, "b"), _event("BOOKMARK", 51)],
        [_event("DELETED", 52, "a")],
    ]
    api.faults["Networks/Watch"] = [AWAY, AWAY, GONE]
    result = kumi("network", "watch", "--initial")
    places = [(request.start_revision, request.include_initial) for request in api.requests("Networks/Watch")]
    assert places == [(0, True), (0, True), (51, False)]
    assert [line.split()[:3] for line in result.out.splitlines()] == [
        ["50", "initial", "network"],
        ["51", "initial", "network"],
        ["51", "initial", "network"],
        ["52", "deleted", "network"],
    ]
    assert "name=a" in result.out


def test_a_watch_that_cannot_begin_ends(kumi: Kumi, api: FakeApi) -> None:
    assert kumi("network", "watch", "--from", "5", "--initial").code == 2
    api.faults["Networks/List"] = [AWAY, AWAY, AWAY]
    result = kumi("network", "watch")
    assert (result.code, result.err) == (6, "kumi: away [STORE_UNAVAILABLE]\n")
    assert not api.requests("Networks/Watch")


def test_interrupted_it_ends_with_one_line(config: Path, api: FakeApi) -> None:
    api.waits.clear()
    api.streams["Networks/Watch"] = [[_event("ADDED", 91, "a"), api.waits]]
    process = subprocess.Popen(
        [sys.executable, "-c", "from cli.main import main; main()", "network", "watch", "-o", "json"],
        env={**os.environ, "KUMI_CONFIG": str(config)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["revision"] == 91
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        api.waits.set()
        process.kill()
        process.wait()
    assert (process.returncode, err.strip()) == (130, "kumi: interrupted")


def _change(revision: int, action: str, **more: Any) -> operations_pb2.Change:
    change = operations_pb2.Change(
        revision=revision, action=f"ACTION_{action}", actor="alice", kind="Network", id=A, name="web", **more
    )
    change.time.FromJsonString("2026-11-25T12:00:00Z")
    return change


def test_history_is_a_table_or_data(kumi: Kumi, api: FakeApi) -> None:
    api.add("network", id=A, name="web")
    fields = [{"path": "mtu", "before": "1400", "after": "1450"}, {"path": "tags", "before": '["a"]'}]
    changes = [
        _change(9, "UPDATE", request_id="r-1", fields=fields),
        _change(7, "CREATE", method="kumihimo.v1.Networks/Create", fields=[{"path": "name"}, {"path": "mtu"}]),
    ]
    pages = [
        operations_pb2.ListChangesResponse(items=changes[:1], next_page_token=B),
        operations_pb2.ListChangesResponse(items=changes[1:]),
    ]
    api.replies["Operations/ListChanges"] = [*pages, *pages]
    header, *rows = kumi("history", "web").out.splitlines()
    assert header.split() == ["revision", "time", "who", "what", "request", "fields"]
    assert [" ".join(row.split()) for row in rows] == [
        '9 2026-11-25T12:00:00Z alice updated network web r-1 mtu: 1400 -> 1450, tags: ["a"] -> unset',
        "7 2026-11-25T12:00:00Z alice created network web kumihimo.v1.Networks/Create name, mtu",
    ]
    assert [(request.id, request.page_token) for request in api.requests("Operations/ListChanges")] == [(A, ""), (A, B)]
    (only,) = json.loads(kumi("history", A.upper(), "--limit", "1", "-o", "json").out)
    assert (only["revision"], only["action"], only["fields"][0]["path"]) == ("9", "ACTION_UPDATE", "mtu")


def test_history_of_a_name_that_several_have_is_refused(kumi: Kumi, api: FakeApi) -> None:
    api.add("network", id=A, name="web", project_id="p")
    api.add("port", id=B, name="web", project_id="p")
    result = kumi("history", "web")
    assert result.code == 1
    assert result.err.startswith("kumi: 2 objects are named 'web'; give the id of one of these:\n")
    assert A in result.err
    assert B in result.err
    assert not api.requests("Operations/ListChanges")


def test_history_of_what_has_no_name_any_more_goes_by_its_id(kumi: Kumi, api: FakeApi) -> None:
    denied = Fault(Code.PERMISSION_DENIED, "ROLE_REQUIRED", "no")
    api.faults["Nodes/List"] = [denied]
    api.replies["Operations/ListChanges"] = [operations_pb2.ListChangesResponse()] * 2
    assert kumi("history", "node-1").code == 0
    assert kumi("--project", "p1", "history").code == 0
    first, second = api.requests("Operations/ListChanges")
    assert (first.id, second.id, second.project_id) == ("node-1", "", "p1")


@pytest.mark.parametrize("kind", resource_pb2.EventType.keys()[1:])
def test_events_are_named_as_in_the_contract(kind: str, kumi: Kumi, api: FakeApi) -> None:
    api.streams["Networks/Watch"] = [[_event(kind.removeprefix("EVENT_TYPE_"), 91, "a")]]
    assert _told(kumi("network", "watch", "-o", "json").out) == [(kind.removeprefix("EVENT_TYPE_"), 91, "a")]
