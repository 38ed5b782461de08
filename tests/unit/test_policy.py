"""Roles and the one policy table."""

from __future__ import annotations

import pytest

from controlplane.errors import ApiError, Code
from controlplane.identity import POLICY, Caller, Role, authorize

LINES = [(kind, verb, least) for kind, verbs in POLICY.items() for verb, least in verbs.items()]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("kind", "verb", "least"), LINES)
def test_each_line_admits_its_role_and_those_above(kind: str, verb: str, least: Role, role: Role) -> None:
    caller = Caller("alice", "demo", role)
    asked = "Port" if kind == "*" else kind
    if role >= least:
        authorize(caller, asked, verb)
        return
    with pytest.raises(ApiError) as caught:
        authorize(caller, asked, verb)
    assert (caught.value.code, caught.value.reason) == (Code.PERMISSION_DENIED, "ROLE_REQUIRED")
    assert least.name.lower() in caught.value.message


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    ("kind", "verb"),
    # A verb that nobody decided about, of a kind without lines and of one with; and "*" lends no verb to a kind with lines.
    [("Port", "Explode"), ("Node", "Explode"), ("Operations", "Get")],
)
def test_what_has_no_line_is_allowed_to_nobody(kind: str, verb: str, role: Role) -> None:
    with pytest.raises(ApiError) as caught:
        authorize(Caller("alice", "demo", role), kind, verb)
    assert (caught.value.code, caught.value.reason) == (Code.PERMISSION_DENIED, "ROLE_REQUIRED")
    assert caught.value.message == f"{verb} of {kind} is allowed to no role"


def test_only_operators_see_beyond_their_project() -> None:
    for role in Role:
        caller = Caller("alice", "demo", role)
        assert caller.sees("demo")
        assert caller.sees("other") == (role is Role.OPERATOR) == caller.is_operator
