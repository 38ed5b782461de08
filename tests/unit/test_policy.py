"""Tokens, roles and the one policy table."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from controlplane.errors import ApiError, BadConfig, Code
from controlplane.identity import POLICY, Caller, Role, Tokens, authorize


def tokens(folder: Path, *lines: str) -> Tokens:
    path = folder / "tokens.toml"
    path.write_text("\n".join(lines))
    return Tokens(path)


def line(token: str = "secret", roles: str = '["member"]', more: str = "") -> str:  # noqa: S107
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[tokens]]\nsha256 = "{digest}"\nidentity = "alice"\nproject = "demo"\nroles = {roles}\n{more}'


def test_a_token_is_known_by_its_digest(tmp_path: Path) -> None:
    known = tokens(tmp_path, line(roles='["reader", "admin"]'))
    for header in ("Bearer secret", "bearer secret", "Bearer  secret "):
        assert known.authenticate(header) == Caller("alice", "demo", Role.ADMIN)
    for header in ("Bearer other", "Basic secret", "secret", "Bearer", "Bearer "):
        with pytest.raises(ApiError) as caught:
            known.authenticate(header)
        assert (caught.value.code, caught.value.reason) == (Code.UNAUTHENTICATED, "TOKEN_INVALID")
        assert "secret" not in caught.value.message
    for missing in (None, ""):
        with pytest.raises(ApiError) as caught:
            known.authenticate(missing)
        assert caught.value.reason == "TOKEN_MISSING"


@pytest.mark.parametrize(
    "text",
    [
        line(roles='["king"]'),
        line(roles="[]"),
        '[[tokens]]\nsha256 = "zz"\nidentity = "a"\nproject = "p"\nroles = ["member"]',
        '[[tokens]]\nidentity = "a"',
        "[[tokens",
    ],
)
def test_a_token_file_that_cannot_be_used_is_refused_and_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadConfig, match=r"tokens\.toml"):
        tokens(tmp_path, text)


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="tokens"):
        Tokens(tmp_path / "nothing.toml")


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("kind", "verb"), sorted(POLICY))
def test_each_line_admits_its_role_and_those_above(kind: str, verb: str, role: Role) -> None:
    caller = Caller("alice", "demo", role)
    asked = "Port" if kind == "*" else kind
    if role >= POLICY[kind, verb]:
        authorize(caller, asked, verb)
        return
    with pytest.raises(ApiError) as caught:
        authorize(caller, asked, verb)
    assert (caught.value.code, caught.value.reason) == (Code.PERMISSION_DENIED, "ROLE_REQUIRED")
    assert POLICY[kind, verb].name.lower() in caught.value.message


def test_only_operators_see_beyond_their_project() -> None:
    for role in Role:
        caller = Caller("alice", "demo", role)
        assert caller.sees("demo")
        assert caller.sees("other") == (role is Role.OPERATOR) == caller.is_operator
