"""Who calls, and what they may do: tokens, roles, and the one policy table.

A token is a secret of the client's; the server's file holds only its SHA-256, so that the file gives nothing away.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from controlplane.errors import ApiError, BadConfig, Code


class Role(IntEnum):
    """Each role includes those before it."""

    READER = 1
    MEMBER = 2
    ADMIN = 3
    OPERATOR = 4


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated client: identity, the project it acts for, its highest role there."""

    identity: str
    project: str
    role: Role

    @property
    def is_operator(self) -> bool:
        return self.role >= Role.OPERATOR

    def sees(self, project_id: str) -> bool:
        """Whether an object of this project is visible; what is not is NOT_FOUND."""
        return self.is_operator or project_id == self.project


# (kind, verb) → the least role; "*" stands for every kind that has no line of its own.
POLICY: dict[tuple[str, str], Role] = {
    ("*", "Get"): Role.READER,
    ("*", "List"): Role.READER,
    ("*", "Watch"): Role.READER,
    ("*", "Create"): Role.MEMBER,
    ("*", "Update"): Role.MEMBER,
    ("*", "Delete"): Role.MEMBER,
    ("Node", "Get"): Role.OPERATOR,
    ("Node", "List"): Role.OPERATOR,
    ("Node", "Watch"): Role.OPERATOR,
    ("Node", "Create"): Role.OPERATOR,
    ("Node", "Update"): Role.OPERATOR,
    ("Node", "Delete"): Role.OPERATOR,
    ("Quota", "Create"): Role.OPERATOR,
    ("Quota", "Update"): Role.OPERATOR,
    ("Quota", "Delete"): Role.OPERATOR,
    ("Operations", "Wait"): Role.READER,
    # What it contains is asked for object by object.
    ("Operations", "Apply"): Role.READER,
    ("Operations", "ListChanges"): Role.READER,
}


def authorize(caller: Caller, kind: str, verb: str) -> None:
    """Raise PERMISSION_DENIED / ROLE_REQUIRED unless the policy table allows the call."""
    least = POLICY.get((kind, verb)) or POLICY["*", verb]
    if caller.role < least:
        raise ApiError(
            Code.PERMISSION_DENIED,
            "ROLE_REQUIRED",
            f"{verb} of {kind} needs the role {least.name.lower()}; {caller.identity} has {caller.role.name.lower()}",
            {"role": least.name.lower()},
        )


class Tokens:
    """The callers of a token file: `[[tokens]]` with sha256 (hex), identity, project, roles."""

    def __init__(self, path: Path) -> None:
        self._callers = dict(_read(path))

    def authenticate(self, authorization: str | None) -> Caller:
        """The caller of an `authorization: Bearer …` header. Raises UNAUTHENTICATED."""
        if not authorization:
            raise ApiError(Code.UNAUTHENTICATED, "TOKEN_MISSING", "the call has no token; send authorization: Bearer …")
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        caller = self._callers.get(digest) if scheme.lower() == "bearer" else None
        if caller is None:
            raise ApiError(Code.UNAUTHENTICATED, "TOKEN_INVALID", "the token is not known here; ask for a new one")
        return caller


def _read(path: Path) -> list[tuple[str, Caller]]:
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadConfig(f"tokens: {path}: {error}") from None
    found = []
    for number, line in enumerate(content.get("tokens", [])):
        try:
            role = max(Role[name.upper()] for name in line["roles"])
            caller = Caller(str(line["identity"]), str(line["project"]), role)
            digest = bytes.fromhex(line["sha256"]).hex()
        except (KeyError, ValueError, TypeError) as error:
            raise BadConfig(
                f"{path}: tokens[{number}]: {error}; accepted: sha256, identity, project and"
                " roles of reader, member, admin, operator"
            ) from None
        found.append((digest, caller))
    return found
