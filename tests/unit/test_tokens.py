"""The token file: what a line says, and how it is read again."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from controlplane import config
from controlplane.config import Oidc
from controlplane.errors import ApiError, BadConfig, Code
from controlplane.identity import Caller, Role
from controlplane.tokens import Tokens
from tests.fakes.issuer import AUDIENCE, ISSUER, Issuer


def tokens(folder: Path, *lines: str, oidc: Oidc | None = None) -> Tokens:
    path = folder / "tokens.toml"
    path.write_text("\n".join(lines))
    return Tokens(path, oidc)


def line(token: str = "secret", roles: str = '["member"]', identity: str = "alice") -> str:  # noqa: S107
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[tokens]]\nsha256 = "{digest}"\nidentity = "{identity}"\nproject = "demo"\nroles = {roles}\n'


async def refused(known: Tokens, header: str | None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await known.authenticate(header)
    assert caught.value.code is Code.UNAUTHENTICATED
    return caught.value


async def test_a_token_is_known_by_its_digest(tmp_path: Path) -> None:
    known = tokens(tmp_path, line(roles='["reader", "admin"]'))
    for header in ("Bearer secret", "bearer secret", "Bearer  secret "):
        assert await known.authenticate(header) == Caller("alice", "demo", Role.ADMIN)
    for header in ("Bearer other", "Basic secret", "secret", "Bearer", "Bearer ", "Bearer a.b.c", "Bearer ..", "Basic a.b.c"):
        error = await refused(known, header)
        assert error.reason == "TOKEN_INVALID"
        assert "secret" not in error.message
    for missing in (None, ""):
        assert (await refused(known, missing)).reason == "TOKEN_MISSING"


@pytest.mark.parametrize(
    "text",
    [
        line(roles='["king"]'),
        line(roles="[]"),
        line(roles="[5]"),
        '[[tokens]]\nsha256 = "zz"\nidentity = "a"\nproject = "p"\nroles = ["member"]',
        '[[tokens]]\nidentity = "a"',
        "[[tokens",
        "tokens = 5",
        "[tokens]\na = 1",
    ],
)
def test_a_token_file_that_cannot_be_used_is_refused_and_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadConfig, match=r"tokens\.toml"):
        tokens(tmp_path, text)


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="tokens"):
        Tokens(tmp_path / "nothing.toml")


async def test_the_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    known = tokens(tmp_path, line("old"))
    path = tmp_path / "tokens.toml"
    with structlog.testing.capture_logs() as logs:
        known.look()
        assert logs == []
        for broken in ("[[tokens", line("new", roles='["king"]'), None):
            path.unlink() if broken is None else path.write_text(broken)
            for _ in range(3):
                known.look()
            assert (await known.authenticate("Bearer old")).identity == "alice"
        assert [entry["event"] for entry in logs] == ["token file not read, the tokens known before stay"] * 3
        assert str(path) in logs[0]["detail"]
        logs.clear()
        # Put in its place by a rename, with the size and the time of the old one: still another file.
        other = tmp_path / "new.toml"
        other.write_text(line("new"))
        other.rename(path)
        known.look()
        assert (await known.authenticate("Bearer new")).identity == "alice"
        assert (await refused(known, "Bearer old")).reason == "TOKEN_INVALID"
        time = path.stat().st_mtime_ns
        other.write_text(line("two"))
        os.utime(other, ns=(time, time))
        other.rename(path)
        known.look()
        assert (await refused(known, "Bearer new")).reason == "TOKEN_INVALID"
        assert [entry["event"] for entry in logs] == ["token file read"] * 2


async def test_the_file_and_the_issuer_share_no_identity(tmp_path: Path) -> None:
    issuer = Issuer()
    issuer.rotate("one")
    keys = tmp_path / "keys.json"
    keys.write_bytes(issuer.jwks())
    oidc = Oidc(ISSUER, AUDIENCE, str(keys))
    with pytest.raises(BadConfig, match=r"tokens\[1\]: identity oidc:alice begins as the issuer's subjects do"):
        tokens(tmp_path, line(), line(identity="oidc:alice"), oidc=oidc)
    both = tokens(tmp_path, line(), oidc=oidc)
    assert (await both.authenticate("Bearer secret")).identity == "alice"
    assert (await both.authenticate(f"Bearer {issuer.token(sub='alice')}")).identity == "oidc:alice"
    assert (await refused(both, f"Basic {issuer.token()}")).reason == "TOKEN_INVALID"
    assert tokens(tmp_path, line(identity="oidc:alice")) is not None, "without an issuer no identity is reserved"


def test_an_api_without_an_issuer_does_not_carry_the_libraries() -> None:
    code = "import sys, controlplane.api.server; print(sorted({'jwt', 'urllib.request'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


# -- [oidc] of the configuration --------------------------------------------------------------------------------------

RIGHT = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": "https://id.example.com/keys"}


def load(folder: Path, **oidc: object) -> config.Config:
    for name in ("api.crt", "api.key", "tokens.toml"):
        (folder / name).touch()
    path = folder / "api.toml"
    lines = [
        'listen = ["unix:a"]',
        'etcd = ["unix:b"]',
        f'tls_certificate = "{folder}/api.crt"',
        f'tls_key = "{folder}/api.key"',
    ]
    lines += [f'tokens = "{folder}/tokens.toml"', "[oidc]", *(f"{name} = {value!r}" for name, value in oidc.items())]
    path.write_text("\n".join(lines) + "\n")
    return config.load(path)


def test_an_issuer_is_configured_by_three_lines(tmp_path: Path) -> None:
    assert load(tmp_path, **RIGHT).oidc == Oidc(
        ISSUER, AUDIENCE, RIGHT["jwks"], project_claim="project_id", roles_claim="roles", subject_prefix="oidc:"
    )
    for url in ("http://127.0.0.1:8/keys", "http://localhost/keys", "http://[::1]:8/keys", "/etc/keys.json"):
        found = load(tmp_path, **RIGHT | {"jwks": url, "subject_prefix": ""}).oidc
        assert found is not None
        assert (found.jwks, found.subject_prefix) == (url, "")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"issuer": ""}, "oidc.issuer must be a text, for example 'https://id.example.com'"),
        ({"audience": 5}, "oidc.audience must be a text"),
        ({"roles_claim": ""}, "oidc.roles_claim must be a text"),
        ({"secret": "x"}, "oidc.secret means nothing"),
        ({"jwks": "http://id.example.com/keys"}, "plain http is accepted for loopback only"),
        ({"jwks": "http://127.0.0.1.example.com/keys"}, "plain http is accepted for loopback only"),
    ],
)
def test_an_issuer_that_is_configured_wrongly_is_refused(tmp_path: Path, changes: dict[str, object], text: str) -> None:
    with pytest.raises(BadConfig) as caught:
        load(tmp_path, **RIGHT | changes)
    assert text in str(caught.value)
    assert "api.toml" in str(caught.value)


def test_an_issuer_needs_all_three(tmp_path: Path) -> None:
    for name in RIGHT:
        with pytest.raises(BadConfig, match=rf"oidc\.{name} must be a text"):
            load(tmp_path, **{key: value for key, value in RIGHT.items() if key != name})
