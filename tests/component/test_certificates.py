"""Certificates: taken up without a restart and without a failed call; one line for each that cannot be used."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from agent.main import _until_status_is_read
from agent.reconcile.status import Status
from controlplane.admin import authority as authority_module
from controlplane.admin.authority import Authority, Use
from controlplane.errors import StoreUnavailable
from controlplane.store import client, keys
from controlplane.store.client import Store
from controlplane.store.feed import Changed, Feed, Listed, Lost
from controlplane.tls import Tls
from tests.component.certificates import issue, presented, serial
from tests.component.cloud import Client, Cloud, Etcd
from tests.waiting import DEADLINE, running, until

TAKEN = b"connected to etcd with new certificates"
PROGRAMS = Path(sys.executable).parent


class Traffic:
    """Calls made again and again for as long as it is entered; the first that fails is raised by whoever waits for more."""

    def __init__(self, *calls: Callable[[], Any]) -> None:
        self._calls = calls
        self._counts = [0] * len(calls)

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.create_task(self._again(number)) for number in range(len(self._calls))]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _again(self, number: int) -> None:
        while True:
            await self._calls[number]()
            self._counts[number] += 1

    async def more(self, by: int = 20) -> None:
        """Wait until each call was made so many more times."""
        goals = [count + by for count in self._counts]

        def made() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return all(count >= goal for count, goal in zip(self._counts, goals, strict=True))

        await until(made, "traffic goes on", timeout=3 * DEADLINE)


async def test_the_apis_certificates_are_renewed_under_traffic() -> None:
    """Its own towards clients, and its own towards etcd: on old and on new connections no call fails."""
    async with Cloud() as cloud:
        network = await cloud.api.create("Network", name="n")
        api = cloud.replicas[0]

        async def on_an_old_connection() -> None:
            await cloud.api.update("Network", network.id, mask=["description"], description="x")

        async def on_a_new_connection() -> None:
            # No call may fail, and one whose handshake takes longer than its connection may fails at once.
            async with Client(api, connect=2 * DEADLINE) as fresh:
                await fresh.get("Network", network.id)

        async with Traffic(on_an_old_connection, on_a_new_connection) as traffic:
            await traffic.more()
            cloud.authority.renew("api0")
            new = serial(cloud.authority.certificate("api0"))

            async def shown() -> bool:
                return await presented(api.target, cloud.authority) == new

            await until(shown, "new connections see the new certificate")
            await traffic.more()
            for turn in (1, 2):
                cloud.authority.renew("api0-etcd")
                await until(lambda turn=turn: api.log.read_bytes().count(TAKEN) == turn, "the API has connected anew")
                await traffic.more()
        assert api.running
        assert b"Traceback" not in api.log.read_bytes()


async def test_a_nodes_certificate_is_replaced_under_traffic(cloud: Cloud) -> None:
    """Calls, status and watches go on; what is used afterwards is the new certificate, since it is another node's."""
    for node in ("r1", "r2"):
        await cloud.api.create("Node", id=node)
    first, second = issue(cloud.authority, "r1", Use.NODE), issue(cloud.authority, "r2", Use.NODE)
    store = Store([cloud.etcd.endpoint], first)
    feed = Feed(store)
    feed.watch(keys.NODES)

    async def lets(name: str) -> bool:
        try:
            await store.transact([], [client.put(keys.agent_status(name), b"")])
        except StoreUnavailable:
            return False
        return True

    try:
        await until(lambda: lets("r1"), "r1 is let in")
        async with running(feed.run()):
            assert isinstance(await asyncio.wait_for(feed.notices.get(), DEADLINE), Listed)
            async with Traffic(store.revision, lambda: store.get(keys.NODES_CHANGE)) as traffic:
                await traffic.more()
                # One file after the other, as an operator copies them: in between they do not match.
                shutil.copy(second.key, first.key)
                await traffic.more()
                shutil.copy(second.certificate, first.certificate)
                await until(lambda: lets("r2"), "it is r2 now")
                assert not await lets("r1")
                await traffic.more()
            while not feed.notices.empty():
                assert not isinstance(feed.notices.get_nowait(), Lost)
            await cloud.api.create("Node", id="r3")
            notice = await asyncio.wait_for(feed.notices.get(), DEADLINE)
            assert isinstance(notice, Changed)
    finally:
        await store.close()


async def test_files_that_are_broken_while_it_runs_change_nothing(cloud: Cloud) -> None:
    await cloud.api.create("Node", id="r4")
    held = issue(cloud.authority, "r4", Use.NODE)
    store = Store([cloud.etcd.endpoint], held)

    async def served() -> bool:
        try:
            await store.get(keys.FORMAT)
        except StoreUnavailable:
            return False
        return True

    try:
        await until(served, "r4 is let in")
        with capture_logs() as logs:
            held.certificate.write_text("not a certificate")

            async def told() -> bool:
                assert await served()
                return any("not taken up" in line["event"] for line in logs)

            await until(told, "it is said")
        assert [line["detail"] for line in logs if "not taken up" in line["event"]] == [
            f"etcd_certificate: {held.certificate} holds no certificate in PEM form"
        ]
        held.certificate.unlink()
        assert await served()
    finally:
        await store.close()


class Faulty:
    """An etcd over TLS, one in the clear, and files of every kind that does not do."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.authority, self.other = Authority(folder / "ca"), Authority(folder / "other")
        for made in (self.authority, self.other):
            made.init()
        (folder / "tls").mkdir()
        (folder / "plain").mkdir()
        self.etcd, self.plain = Etcd(folder / "tls", self.authority), Etcd(folder / "plain")
        self.good = issue(self.authority, "good", Use.API)
        self.foreign = issue(self.other, "foreign", Use.API)
        with monkeypatch.context() as patch:
            patch.setattr(authority_module, "_now", lambda: datetime.now(UTC).replace(microsecond=0) - timedelta(days=30))
            self.expired = issue(self.authority, "expired", Use.API)
        self._two = asyncio.Semaphore(2)  # as many as there are cores: a program is given its time from its start
        (folder / "tokens.toml").touch()
        (folder / "text").write_text("text")

    async def program(self, name: str, tls: Tls | None, endpoint: str, *extra: str) -> tuple[int, list[str]]:
        """Exit code and the lines that a program ends with."""
        lines = [f'etcd = ["{endpoint}"]', *extra]
        if tls:
            lines += [f'etcd_ca = "{tls.ca}"', f'etcd_certificate = "{tls.certificate}"', f'etcd_key = "{tls.key}"']
        if name == "kumi-api":
            lines += [
                f'listen = ["unix:{self.folder}/api.sock"]',
                f'tls_certificate = "{self.good.certificate}"',
                f'tls_key = "{self.good.key}"',
                f'tokens = "{self.folder}/tokens.toml"',
            ]
        else:
            lines.append('node = "h1"')
        with tempfile.NamedTemporaryFile("w", suffix=".toml", dir=self.folder, delete=False) as config:
            config.write("\n".join(lines))
        async with self._two:
            return await self._run(name, config.name)

    async def _run(self, name: str, config: str) -> tuple[int, list[str]]:
        argv = [PROGRAMS / name, "--config", config]
        pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*argv, stdout=none, stderr=pipe)
        try:
            _, errors = await asyncio.wait_for(process.communicate(), DEADLINE)
        except TimeoutError:
            process.kill()
            _, errors = await process.communicate()
            raise AssertionError(f"{name} does not end: {errors.decode()}") from None
        text = errors.decode()
        assert "Traceback" not in text, text
        assert process.returncode is not None
        return process.returncode, [line for line in text.splitlines() if line.startswith(f"{name}: ")]


async def test_each_failure_of_tls_is_one_line_that_names_file_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Faulty(tmp_path, monkeypatch)
    good, etcd, plain = made.good, made.etcd.endpoint, made.plain.endpoint
    text, nobody = tmp_path / "text", issue(made.authority, "operator", Use.CLIENT)
    cases: list[tuple[str, Tls | None, str, str]] = [
        (
            "kumi-api",
            replace(good, ca=made.other.certificate()),
            etcd,
            f"is not accepted by etcd_ca {made.other.certificate()}",
        ),
        ("kumi-api", made.expired, etcd, f"etcd_certificate: {made.expired.certificate} has expired on "),
        ("kumi-api", replace(made.foreign, ca=good.ca), etcd, f"does not accept etcd_certificate {made.foreign.certificate}"),
        ("kumi-api", None, etcd, "speaks TLS; name etcd_ca, etcd_certificate and etcd_key in the configuration"),
        ("kumi-api", good, plain, "does not speak TLS"),
        (
            "kumi-api",
            replace(good, key=made.expired.key),
            etcd,
            f"etcd_key: {made.expired.key} is not the key of {good.certificate}",
        ),
        ("kumi-api", replace(good, ca=text), etcd, f"etcd_ca: {text} holds no certificate"),
        ("kumi-api", replace(good, key=tmp_path / "none"), etcd, "which is not a readable file"),
        ("kumi-api", nobody, etcd, "is that of 'operator', but the API is 'kumi-api' in etcd"),
        ("kumi-agent", made.expired, etcd, f"etcd_certificate: {made.expired.certificate} has expired on "),
        ("kumi-agent", replace(good, certificate=text), etcd, f"etcd_certificate: {text} holds no certificate"),
    ]
    try:
        await asyncio.gather(made.etcd.begin(), made.plain.begin())
        partly = ("etcd_ca", "etcd_key must be set too: etcd_ca, etcd_certificate, etcd_key go together")
        found = await asyncio.gather(
            *(made.program(name, tls, endpoint) for name, tls, endpoint, _ in cases),
            made.program("kumi-agent", None, etcd, f'etcd_certificate = "{good.certificate}"'),
        )
        for (code, lines), said in zip(found, [*(case[3] for case in cases), partly[1]], strict=True):
            assert (code, len(lines)) == (1, 1), (lines, said)
            assert said in lines[0]
    finally:
        made.etcd.kill()
        made.plain.kill()


async def test_a_certificate_of_etcd_for_another_name_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    authority.init()
    etcd = Etcd(tmp_path, authority)
    wrong = authority.issue("wrong", Use.API)
    for path, by in ((authority.certificate("etcd"), wrong.certificate), (authority.key("etcd"), wrong.key)):
        shutil.copy(by, path)
    etcd.start()
    store = Store([etcd.endpoint], issue(authority, "api", Use.API))
    try:
        said = f"the certificate of etcd at {etcd.endpoint} does not carry the name 'etcd'"

        async def named() -> bool:
            return await store.fault() == said

        await until(named, "it is said")
    finally:
        await store.close()
        etcd.kill()


async def test_an_agent_waits_for_a_certificate_that_etcd_takes_and_for_its_node(cloud: Cloud) -> None:
    """It tells what is in the way, once for each thing, and goes on when it is gone."""
    other = Authority(cloud.folder / "other")
    other.init()
    held, right = issue(other, "w1", Use.NODE), issue(cloud.authority, "w1", Use.NODE)
    held = replace(held, ca=right.ca)
    store = Store([cloud.etcd.endpoint], held)
    status = Status(store, "w1")
    try:
        with capture_logs() as logs:
            async with running(_until_status_is_read(store, status, "w1", lambda: None)):

                def told(words: str) -> bool:
                    return any(words in f"{line['event']} {line.get('detail')}" for line in logs)

                await until(lambda: told(f"does not accept etcd_certificate {held.certificate}"), "a certificate")
                shutil.copy(right.key, held.key)
                shutil.copy(right.certificate, held.certificate)
                await until(lambda: told("waiting for Node w1; `kumi node create w1` lets it in"), "its node")
                await cloud.api.create("Node", id="w1")
                await until(lambda: _read(store), "it is let in")
            waits = [(line["event"], line["detail"]) for line in logs if line["event"].startswith("waiting")]
            assert len(waits) == len(set(waits)), waits
    finally:
        await store.close()


async def _read(store: Store) -> bool:
    try:
        await store.get(keys.agent_status("w1"))
    except StoreUnavailable:
        return False
    return True


def test_a_key_with_a_password_is_said_to_be_one(tmp_path: Path) -> None:
    from controlplane.errors import BadConfig
    from controlplane.tls import load

    made = Authority(tmp_path / "ca")
    made.init()
    held = issue(made, "h1", Use.NODE)
    key = serialization.load_pem_private_key(held.key.read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x"))
    held.key.write_bytes(key.private_bytes(*form))
    with pytest.raises(BadConfig, match="holds no private key in PEM form without a password"):
        load(held)
