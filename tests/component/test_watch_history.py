"""`kumi NOUN watch`, `kumi history` and reads of the past against a real API that is killed meanwhile (C-12)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.component.cloud import Cloud
from tests.component.kumi import Kumi
from tests.waiting import until


@pytest.fixture
def kumi(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kumi:
    return Kumi(cloud, tmp_path, monkeypatch, capsys)


class Watching:
    """A `kumi NOUN watch` of its own process, its output in files."""

    def __init__(self, kumi: Kumi, *words: str, by: str) -> None:
        self._out, self._err = kumi.folder / "watch.out", kumi.folder / "watch.err"
        environment = {**os.environ, "KUMI_CONFIG": str(kumi.config), "KUMI_PROFILE": by}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from cli.main import main; main()", *words, "-o", "json"],
                env=environment,
                stdout=out,
                stderr=err,
            )

    def told(self) -> list[tuple[str, str]]:
        """(type, name) of each event but bookmarks."""
        lines = [json.loads(line) for line in self._out.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [(line["type"], line["resource"]["name"]) for line in lines if "resource" in line]

    def said(self) -> str:
        return self._err.read_text()


@pytest.fixture
async def own() -> AsyncIterator[Cloud]:
    """A control plane that may be killed."""
    async with Cloud() as cloud:
        yield cloud


async def test_c12_a_watch_goes_on_after_the_api_was_killed(
    own: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kumi = Kumi(own, tmp_path, monkeypatch, capsys)
    await kumi.done("network", "create", "before", by="alice")
    watch = Watching(kumi, "network", "watch", "--initial", by="alice")
    try:
        await until(lambda: watch.told() == [("INITIAL", "before")], "the watch has begun")
        await kumi.done("network", "create", "one", by="alice")
        await kumi.done("network", "create", "not-his", by="bob")
        await until(lambda: ("ADDED", "one") in watch.told(), "a change is told")
        second = await own.replica()
        own.replicas[0].kill()
        await until(lambda: "the watch resumes from revision" in watch.said(), "the loss is told")
        for name in ("two", "three"):
            await second.create("Network", by="alice", name=name)
        await own.replicas[0].begin()
        await until(lambda: ("ADDED", "three") in watch.told(), "the watch goes on")
        await kumi.done("network", "delete", "two", by="alice")
        await until(lambda: ("DELETED", "two") in watch.told(), "and on")
    finally:
        watch.process.kill()
        watch.process.wait(10)
    expected = [("INITIAL", "before"), ("ADDED", "one"), ("ADDED", "two"), ("ADDED", "three"), ("DELETED", "two")]
    assert watch.told() == expected
    assert watch.said().count("\n") == 1


async def test_history_names_who_what_and_by_which_request(kumi: Kumi, cloud: Cloud) -> None:
    made = await kumi.told("network", "create", "web", "--request-id", "r-1", by="alice")
    await kumi.done("network", "update", "web", "--mtu", "1400", by="root", stdin=None)
    (update, create) = await kumi.told("history", "web", by="alice")
    assert (create["actor"], create["request_id"], create["action"]) == ("alice", "r-1", "ACTION_CREATE")
    assert (update["actor"], update["method"]) == ("root", "kumihimo.v1.Networks/Update")
    assert update["fields"] == [{"path": "mtu", "before": "1450", "after": "1400"}]
    assert (await kumi.told("network", "show", "web", "--at", create["revision"], by="alice"))["mtu"] == 1450
    await kumi.done("network", "delete", "web", by="alice")
    table = await kumi.done("history", made["id"], by="alice")
    assert "deleted network web" in table.splitlines()[1]
    assert (await kumi.told("network", "list", "--at", update["revision"], by="alice"))[0]["mtu"] == 1400
    assert await kumi.told("history", made["id"], by="bob") == []
    past = await kumi("network", "list", "--at", "999999999")
    assert (past.code, past.out, past.err.count("\n")) == (1, "", 1)
    assert past.err.endswith("[REVISION_IN_FUTURE]\n")


async def test_quota_is_set_and_its_usage_read_by_the_nouns(kumi: Kumi, cloud: Cloud) -> None:
    project: Any = "quota-of-nobody"
    await kumi.done("quota", "update", project, "--limits", "ports=100", "--limits", "networks=1")
    await kumi.done("--project", project, "network", "create", "only")
    shown = await kumi.told("quota", "show", project)
    assert shown["limits"] == {"ports": "100", "networks": "1"}
    assert (shown["usage"]["networks"], shown["effective_limits"]["subnets"]) == ("1", "100")
    assert project in await kumi.done("quota", "list")
    refused = await kumi("--project", project, "network", "create", "more")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "may have 1 networks and has 1" in refused.err
    assert (await kumi("quota", "update", project, "--limits", "ports=1", by="alice")).code == 4, "it does not exist for him"
