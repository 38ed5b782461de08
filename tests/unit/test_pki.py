"""`kumi pki`: what certificates say, what is never overwritten, and one line for each failure."""

from __future__ import annotations

import errno
import json
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from controlplane.admin.authority import Authority, AuthorityError, Use
from controlplane.admin.pki import pki


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "ca")
    made.init()
    return made


def kumi(*arguments: object) -> Result:
    return CliRunner().invoke(pki, [str(item) for item in arguments])


def line(result: Result) -> str:
    """The one line of a failure."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    (found,) = result.stderr.splitlines()
    return found


def loaded(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def usage(path: Path) -> set[Any]:
    return set(loaded(path).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_each_use_has_its_user_its_names_and_its_purpose(authority: Authority) -> None:
    etcd = authority.issue("e1", Use.ETCD, ["192.0.2.1", "etcd1.example.org"])
    api = authority.issue("a1", Use.API)
    node = authority.issue("h1", Use.NODE)
    client = authority.issue("root", Use.CLIENT)
    assert [item.user for item in (etcd, api, node, client)] == ["etcd", "kumi-api", "node-h1", "root"]
    assert etcd.names == ("etcd", "localhost", "192.0.2.1", "etcd1.example.org")
    assert api.names == ("kumi-api", "localhost")
    assert (node.names, client.names) == (("node-h1.invalid",), ())
    both = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert usage(etcd.certificate) == usage(api.certificate) == both
    # Root of a node can play no server with what it has but that node's agent.
    assert usage(node.certificate) == both
    assert usage(client.certificate) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    key = loaded(node.certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert [(item.name, item.use) for item in authority.list()] == [
        ("ca", "ca"),
        ("a1", "api"),
        ("e1", "etcd"),
        ("h1", "node"),
        ("root", "client"),
    ]


@pytest.mark.parametrize("name", ["etcd", "kumi-api", "node-h1"])
def test_a_client_does_not_get_the_name_of_a_member_an_api_or_a_node(authority: Authority, name: str) -> None:
    with pytest.raises(AuthorityError, match=f"cannot be called {name}"):
        authority.issue(name, Use.CLIENT)


def test_openssl_takes_the_chain_and_the_pair(authority: Authority) -> None:
    api = authority.issue("a1", Use.API)
    context = ssl.create_default_context(cafile=str(authority.certificate()))
    context.load_cert_chain(api.certificate, api.key)
    client_side, server_side = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(server_side, client_side, server_hostname="kumi-api")
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(api.certificate, api.key)
    server_context.load_verify_locations(authority.certificate())
    server_context.verify_mode = ssl.CERT_REQUIRED
    server = server_context.wrap_bio(client_side, server_side, server_side=True)
    done = set()
    for _ in range(6):
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    assert done == {client, server}


def test_keys_are_their_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = Authority(tmp_path / "ca")
        keys = [made.init().key, made.issue("h1", Use.NODE).key]
    finally:
        os.umask(old)
    assert [stat.S_IMODE(path.stat().st_mode) for path in keys] == [0o600, 0o600]
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700


def test_issue_overwrites_nothing(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    authority.issue("h1", Use.NODE)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "ca.crt exists and is not overwritten" in line(kumi("init", folder))
    assert "h1.crt exists and is not overwritten" in line(kumi("issue", folder, "h1", "--for", "node"))
    (folder / "h2.key").write_text("somebody's")
    assert "h2.key exists and is not overwritten" in line(kumi("issue", folder, "h2", "--for", "node"))
    (folder / "h2.key").unlink()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_renew_keeps_key_user_and_names(authority: Authority) -> None:
    old = authority.issue("e1", Use.ETCD, ["192.0.2.1"], days=10)
    key, serial = old.key.read_bytes(), loaded(old.certificate).serial_number
    new = authority.renew("e1", 20)
    assert (new.user, new.names, new.key.read_bytes()) == (old.user, old.names, key)
    assert usage(new.certificate) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert loaded(new.certificate).serial_number != serial
    assert timedelta(days=19) < new.not_after - datetime.now(UTC) <= timedelta(days=20)
    again = authority.renew("e1")
    assert timedelta(days=19) < again.not_after - datetime.now(UTC) <= timedelta(days=20)


def test_a_renewed_authority_vouches_for_what_it_issued_before(authority: Authority) -> None:
    node = authority.issue("h1", Use.NODE)
    old = loaded(authority.certificate())
    authority.renew("ca")
    new = loaded(authority.certificate())
    assert new.serial_number != old.serial_number
    loaded(node.certificate).verify_directly_issued_by(new)


def test_nothing_outlives_its_authority(authority: Authority) -> None:
    ca = authority.renew("ca", 5)
    assert authority.issue("h1", Use.NODE, days=300).not_after == ca.not_after


def test_list_as_table_and_as_json(authority: Authority, tmp_path: Path) -> None:
    authority.issue("h1", Use.NODE)
    table = kumi("list", tmp_path / "ca").stdout.splitlines()
    assert table[0].split() == ["NAME", "FOR", "USER", "NAMES", "VALID", "UNTIL"]
    assert table[2].split()[:3] == ["h1", "node", "node-h1"]
    items = json.loads(kumi("list", tmp_path / "ca", "-o", "json").stdout)
    assert [(item["name"], item["for"], item["user"]) for item in items][1] == ("h1", "node", "node-h1")
    assert datetime.fromisoformat(items[1]["not_after"]) > datetime.now(UTC)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["issue", "ca", "../x", "--for", "node"], "is no name for a certificate"),
        (["issue", "ca", "ca", "--for", "node"], "is no name for a certificate"),
        (["issue", "ca", "x" * 60, "--for", "node"], "65 characters, 64 fit"),
        (["issue", "ca", "h1", "--for", "node", "--san", "a b"], "'a b' is neither an address nor a DNS name"),
        (["issue", "elsewhere", "h1", "--for", "node"], "elsewhere is no authority: it has no ca.crt; `kumi pki init"),
        (["list", "elsewhere"], "elsewhere is no authority"),
        (["list", "file"], "file is no authority"),
        (["init", "file"], "file: File exists"),
        (["renew", "ca", "h9"], "h9.crt does not exist; `kumi pki list"),
    ],
)
def test_a_failure_is_one_line(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert said in line(kumi(*arguments))


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only file")],
)
@pytest.mark.parametrize("at", [1, 2], ids=["key", "certificate"])
def test_a_write_that_fails_leaves_nothing(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str, at: int
) -> None:
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    assert said in line(kumi("issue", tmp_path / "ca", "h1", "--for", "node"))
    assert {path.name for path in (tmp_path / "ca").iterdir()} == {"ca.crt", "ca.key"}


def test_a_renewal_that_fails_leaves_the_old_certificate(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = authority.issue("h1", Use.NODE).certificate.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "h1.crt: No space left on device" in line(kumi("renew", tmp_path / "ca", "h1"))
    assert authority.certificate("h1").read_bytes() == old
    assert {path.name for path in (tmp_path / "ca").iterdir()} == {"ca.crt", "ca.key", "h1.crt", "h1.key"}


def test_damaged_files_are_named(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    other = Authority(tmp_path / "other")
    other.init()
    authority.key().write_bytes(other.key().read_bytes())
    assert "ca.key is not the key of" in line(kumi("issue", folder, "h1", "--for", "node"))
    authority.key().write_text("nothing")
    assert "ca.key holds no private key" in line(kumi("issue", folder, "h1", "--for", "node"))
    authority.certificate().write_text("nothing")
    assert "ca.crt holds no certificate" in line(kumi("list", folder))


def test_every_command_has_an_example() -> None:
    assert [name for name, command in pki.commands.items() if "Example" not in (command.epilog or "")] == []
    assert "Example" in (pki.help or "")
