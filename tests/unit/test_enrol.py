"""Bundles: what is accepted, what is refused, what is made; without a host."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509

from agent.enrol import invite, unit
from agent.enrol.bundle import Bundle, BundleError, put, read
from controlplane.admin import authority as admin
from controlplane.admin.authority import Authority, Use
from tests.fakes.api import FakeApi, Kumi

pytest_plugins = ("tests.fakes.api",)
BUNDLE = Bundle("h4", ("192.0.2.10:2379",), "CA", "CERTIFICATE", "KEY")


def test_a_bundle_is_read_as_it_was_written() -> None:
    assert read(BUNDLE.text()) == BUNDLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.clear(), "this is no bundle"),
        (lambda data: data.update(kumihimo_bundle=2), "of another release; format 1 is accepted"),
        (lambda data: data.pop("key"), "not whole; ca, certificate, etcd, key, node must be in it"),
        (lambda data: data.update(more="x"), "not whole"),
        (lambda data: data.update(etcd="192.0.2.10:2379"), "not whole"),
        (lambda data: data.update(key=7), "it must hold texts only"),
        (lambda data: data.update(etcd=[7]), "it must hold texts only"),
        # It becomes the name of files.
        (lambda data: data.update(node="../../etc/cron.d/x"), "the bundle's node: "),
    ],
)
def test_what_is_no_bundle_is_refused(change: Any, message: str) -> None:
    data = json.loads(BUNDLE.text())
    change(data)
    with pytest.raises(BundleError, match=message):
        read(json.dumps(data))
    with pytest.raises(BundleError, match="this is no bundle"):
        read("[]")


def test_a_file_is_written_once_and_is_its_owners_from_the_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "h4.key"
    old = os.umask(0)
    try:
        assert put(path, "secret", 0o600)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    stamp = path.stat().st_mtime_ns
    assert not put(path, "secret", 0o600)
    assert path.stat().st_mtime_ns == stamp
    path.chmod(0o644)
    assert put(path, "secret", 0o600), "the mode is part of it"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["h4.key"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Authority(tmp_path / "ca").init()
    return tmp_path / "ca"


def test_a_72_an_inventory_makes_nodes_and_a_bundle_for_each(kumi: Kumi, api: FakeApi, folder: Path, tmp_path: Path) -> None:
    words = ["node", "invite", "h4", "h5", "--pki", str(folder), "--etcd", "192.0.2.10:2379", "--to", str(tmp_path / "to")]
    first = kumi(*words)
    assert (first.code, first.err) == (0, ""), first
    assert first.out.splitlines()[:2] == ["created node h4", "created node h5"]
    found = read((tmp_path / "to" / "h5.bundle").read_text())
    assert (found.node, found.etcd, found.ca) == ("h5", ("192.0.2.10:2379",), (folder / "ca.crt").read_text())
    assert found.key == (folder / "h5.key").read_text()
    again = kumi(*words)
    assert [line.partition(",")[0] for line in again.out.splitlines()] == [
        f"{tmp_path}/to/{name}.bundle is as it was" for name in ("h4", "h5")
    ]
    bad = tmp_path / "nodes.yaml"
    bad.write_text("- {kind: node, id: h6}\n- {kind: network, name: web}\n")
    result = kumi("node", "invite", "-f", str(bad), *words[4:])
    assert (result.code, result.err) == (1, f'kumi: {bad}:2: network "web" is no node; nodes are accepted\n')
    assert not (folder / "h6.crt").exists(), "nothing is made before all is known to be right"


def test_faults_of_the_folder_come_before_anything_is_made(kumi: Kumi, api: FakeApi, folder: Path, tmp_path: Path) -> None:
    Authority(folder).issue("taken", Use.API)
    words = ["--pki", str(folder), "--etcd", "192.0.2.10:2379", "--to", str(tmp_path)]
    assert "taken.crt is for api, not for a node" in kumi("node", "invite", "taken", *words).err
    assert "is no authority" in kumi("node", "invite", "h4", *words[2:], "--pki", str(tmp_path / "no")).err
    assert kumi("node", "invite", *words).code == 2
    assert kumi("node", "invite", "-f", "-", *words).code == 2
    assert not [call for call in api.calls if call.name.startswith("Nodes/")]


def test_an_old_certificate_gets_new_dates_and_the_nodes_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(folder)
    with monkeypatch.context() as old:
        old.setattr(admin, "_own_names", lambda use, name: [])
        assert authority.issue("h4", Use.NODE).names == ()
    key = authority.key("h4").read_bytes()
    found = invite._certified(authority, "h4")
    assert (found.names, authority.key("h4").read_bytes()) == (("node-h4.invalid",), key)
    assert invite._certified(authority, "h4") == found
    short = authority.issue("h5", Use.NODE, days=2)
    assert invite._certified(authority, "h5").not_after >= short.not_after
    authority.renew("h5", days=200)
    assert invite._certified(authority, "h5").not_after > short.not_after + timedelta(days=100)
    assert isinstance(x509.load_pem_x509_certificate(authority.certificate("h5").read_bytes()), x509.Certificate)


def test_join_needs_root_and_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.enrol.join import join

    result = CliRunner().invoke(join, ["-"], input="no bundle")
    assert (result.exit_code, result.stderr) == (1, "Error: this is no bundle; `kumi node invite` makes one\n")
    monkeypatch.setattr("agent.enrol.join.os", SimpleNamespace(geteuid=lambda: 1000))
    result = CliRunner().invoke(join, ["-"], input=BUNDLE.text())
    assert "run it as root" in result.stderr


def test_the_tree_has_the_unit() -> None:
    assert unit.source().read_text().startswith("[Unit]")
