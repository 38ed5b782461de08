"""`kumi-api` that cannot start: one line that names the file and the field, or what does not answer, and exit code 1."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from controlplane import config
from controlplane.api import server
from controlplane.errors import BadConfig, StoreUnavailable
from controlplane.store.client import Store
from controlplane.store.health import Unfit
from tests.component.cloud import Cloud, Etcd
from tests.waiting import DEADLINE

PROGRAM = Path(sys.executable).parent / "kumi-api"


@pytest.fixture
def right(shared_cloud: Cloud, tmp_path: Path) -> dict[str, Any]:
    """A configuration that an API starts with."""
    found = tomllib.loads((shared_cloud.folder / "api0.toml").read_text())
    return found | {"listen": [f"unix:{tmp_path}/api.sock"]}


def written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "api.toml"
    # Strings and lists of Python are those of TOML, as far as they are used here.
    lines = [f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for name, value in values.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def said(path: Path) -> str:
    """The one line of a program that ends with code 1; what it, and gRPC below it, logs on the way is none of it."""
    ended = subprocess.run(
        [str(PROGRAM), "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=DEADLINE + server.STORE_DEADLINE,
        check=False,
    )
    lines = [line for line in ended.stderr.splitlines() if not re.match(r"timestamp=|E\d{4} ", line)]
    assert ended.returncode == 1, ended.stderr
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("kumi-api: ")
    return lines[0]


WRONG: list[tuple[str, Any, str]] = [
    ("listen", 5, "listen must be a list of addresses"),
    ("listen", [], "listen must be a list of addresses"),
    ("listen", [5], "listen must be a list of addresses"),
    ("listen", ["nonsense"], "listen: 'nonsense' is no address"),
    ("listen", ["127.0.0.1:99999"], "listen: '127.0.0.1:99999' is no address"),
    ("listen", ["unix:"], "listen: 'unix:' is no address"),
    ("etcd", "127.0.0.1:2379", "etcd must be a list of addresses"),
    ("tls_certificate", True, "tls_certificate must name a file"),
    ("tls_key", ["a"], "tls_key must name a file"),
    ("tls_key", "/nowhere", "tls_key names /nowhere, which is not a readable file"),
    ("tokens", "/", "tokens names /, which is not a readable file"),
    ("oidc", 5, "oidc must be a table"),
    ("oidc", ["a"], "oidc must be a table"),
    ("oidc.issuer", 5, "oidc.issuer must be a text"),
    ("tracing", "on", "tracing must be a table"),
    ("tracing.file", 5, "tracing.file must name a file"),
    ("tracing.level", "x", "tracing.level means nothing"),
    ("defaults", 5, "defaults must be a table"),
    ("defaults.underlay_mtu", "1500", "defaults.underlay_mtu must be of type int"),
    ("defaults.underlay_mtu", True, "defaults.underlay_mtu must be of type int"),
    ("defaults.underlay_mtu", -1, "defaults.underlay_mtu is -1; 576 to 65535 is accepted"),
    ("defaults.underlay_ip_version", 5, "defaults.underlay_ip_version is 5; 4 or 6 is accepted"),
    ("defaults.network_type", 5, "defaults.network_type must be of type str"),
    ("defaults.network_type", "token-ring", "defaults.network_type is 'token-ring'"),
    ("defaults.mac_base", "zz", "defaults.mac_base is 'zz'"),
    ("defaults.dns_domain", "-", "defaults.dns_domain is '-'"),
    ("defaults.availability_zone", "", "defaults.availability_zone is ''"),
    ("colour", "red", "colour means nothing; accepted are"),
]


@pytest.mark.parametrize(("name", "value", "text"), WRONG)
def test_a_field_that_is_wrong_is_named(right: dict[str, Any], tmp_path: Path, name: str, value: Any, text: str) -> None:
    path = written(tmp_path, right | {name: value})
    with pytest.raises(BadConfig) as caught:
        config.load(path)
    assert f"{path}: {text}" in str(caught.value)


@pytest.mark.parametrize("missing", ["listen", "etcd", "tls_certificate", "tls_key", "tokens"])
def test_a_field_that_is_missing_is_named(right: dict[str, Any], tmp_path: Path, missing: str) -> None:
    del right[missing]
    with pytest.raises(BadConfig, match=f"{missing} must"):
        config.load(written(tmp_path, right))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    assert said(tmp_path / "none.toml") == f"kumi-api: {tmp_path}/none.toml: No such file or directory"
    broken = tmp_path / "broken.toml"
    for content in (b"listen = [", b"\xff\xfe"):
        broken.write_bytes(content)
        assert said(broken).startswith(f"kumi-api: {broken}: ")


def test_what_stands_in_the_way_is_named(right: dict[str, Any], tmp_path: Path) -> None:
    """Files whose content is wrong, and addresses that cannot be listened on."""
    other = tmp_path / "other"
    other.write_text("nonsense = [")
    assert f"tokens: {other}: " in said(written(tmp_path, right | {"tokens": str(other)}))
    for name, what in (("tls_key", "private key"), ("tls_certificate", "certificate"), ("etcd_ca", "certificate")):
        text = said(written(tmp_path, right | {name: str(other)}))
        assert text.startswith(f"kumi-api: {name}: {other} holds no {what} in PEM form")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"listen: {address} cannot be listened on" in said(written(tmp_path, right | {"listen": [address]}))
    for address in ("192.0.2.1:7443", f"unix:{tmp_path}/none/a.sock"):
        assert f"listen: {address} cannot be listened on" in said(written(tmp_path, right | {"listen": [address]}))


def test_a_store_that_is_not_there_is_named(right: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the time that it is given to come up."""
    monkeypatch.setattr(server, "STORE_DEADLINE", 1.0)
    monkeypatch.setattr(sys, "argv", ["kumi-api", "--config", str(written(tmp_path, right | {"etcd": ["127.0.0.1:1"]}))])
    with pytest.raises(SystemExit) as ended:
        server.main()
    assert ended.value.code == "kumi-api: etcd at 127.0.0.1:1 has not answered for 1 s; is it running?"


def test_a_store_that_is_slow_while_it_is_looked_at_is_asked_again(
    right: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter((StoreUnavailable("slow"), Unfit("the second answer")))

    async def check(store: Store) -> None:
        raise next(answers)

    monkeypatch.setattr(server.store_health, "check", check)
    monkeypatch.setattr(sys, "argv", ["kumi-api", "--config", str(written(tmp_path, right))])
    with pytest.raises(SystemExit) as ended:
        server.main()
    assert ended.value.code == "kumi-api: the second answer"


async def test_a_store_whose_limits_are_too_low_is_refused(right: dict[str, Any], tmp_path: Path) -> None:
    etcd = Etcd(tmp_path, options={"max-txn-ops": "128"})
    plain = {name: value for name, value in right.items() if not name.startswith("etcd")}
    try:
        await etcd.begin()
        text = said(written(tmp_path, plain | {"etcd": [etcd.endpoint]}))
    finally:
        etcd.kill()
    assert "takes too few operations in a transaction" in text
    assert "--max-txn-ops 40000" in text
