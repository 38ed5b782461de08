"""Tokens → callers: the token file, and the JWTs of an issuer where one is configured (`controlplane/oidc.py`).

Invariants: a token is never kept and never logged, only its SHA-256 is; a token known already costs a digest and a look-up.
The file is read again when it changes, and one that cannot be used changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path

import structlog

from controlplane.config import Oidc
from controlplane.errors import ApiError, BadConfig, Code
from controlplane.identity import Caller, Role

LOOK_PAUSE = 1.0  # seconds between two looks at the file

_log = structlog.get_logger("kumihimo.tokens")


class Tokens:
    """The callers of a token file: `[[tokens]]` with sha256 (hex), identity, project, roles; and those of an issuer."""

    def __init__(self, path: Path, oidc: Oidc | None = None) -> None:
        self._path = path
        # No line of the file may be mistaken for a subject of the issuer.
        self._reserved = oidc.subject_prefix if oidc else ""
        self._state = _state(path)
        self._listed = _read(path, self._reserved)
        self._verifier = None
        if oidc is not None:
            # Not before it is needed: the libraries behind it take 15 MB.
            from controlplane.oidc import Verifier

            self._verifier = Verifier(oidc)

    async def authenticate(self, authorization: str | None) -> Caller:
        """The caller of an `authorization: Bearer …` header. Raises UNAUTHENTICATED."""
        if not authorization:
            raise ApiError(Code.UNAUTHENTICATED, "TOKEN_MISSING", "the call has no token; send authorization: Bearer …")
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() == "bearer":
            digest = hashlib.sha256(token.encode()).digest()
            caller = self._listed.get(digest)
            if caller is not None:
                return caller
            if self._verifier is not None and token.count(".") == 2:
                return await self._verifier.caller(token, digest)
        raise ApiError(Code.UNAUTHENTICATED, "TOKEN_INVALID", "the token is not known here; ask for a new one")

    async def run(self) -> None:
        """Follow the file and the issuer's keys, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            if self._verifier is not None:
                group.create_task(self._verifier.run())

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_PAUSE)
            self.look()

    def look(self) -> None:
        """Read the file again if it has changed."""
        state = _state(self._path)
        if state == self._state:
            return
        self._state = state
        try:
            self._listed = _read(self._path, self._reserved)
        except BadConfig as error:
            _log.warning("token file not read, the tokens known before stay", detail=str(error))
        else:
            _log.info("token file read", tokens=len(self._listed))


def _state(path: Path) -> tuple[int, int, int] | None:
    """What differs when a file was written or replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path, reserved: str) -> Mapping[bytes, Caller]:
    """SHA-256 → caller. Raises BadConfig."""
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadConfig(f"tokens: {path}: {error}") from None
    lines = content.get("tokens", [])
    if not isinstance(lines, list):
        raise BadConfig(f"{path}: tokens must be tables; each [[tokens]] is one token")
    found = {}
    for number, line in enumerate(lines):
        try:
            role = max(Role[name.upper()] for name in line["roles"])
            caller = Caller(str(line["identity"]), str(line["project"]), role)
            digest = bytes.fromhex(line["sha256"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise BadConfig(
                f"{path}: tokens[{number}]: {error}; accepted: sha256, identity, project and"
                " roles of reader, member, admin, operator"
            ) from None
        if reserved and caller.identity.startswith(reserved):
            raise BadConfig(
                f"{path}: tokens[{number}]: identity {caller.identity} begins as the issuer's subjects do;"
                f" one without {reserved} is accepted, or another oidc.subject_prefix"
            )
        found[digest] = caller
    return found
