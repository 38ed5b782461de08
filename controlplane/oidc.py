"""JWTs of one OIDC issuer → callers. Imported only by an API whose configuration has `[oidc]`.

Owns: the issuer's public keys, and the tokens that were found good, by digest. Invariants: which algorithms a key may have
signed with follows from the key, never from the token; a token is good until it expires or any key of the issuer changes;
keys are read off the event loop, once for all who wait, and an issuer that is away changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import jwt
import structlog

from controlplane.config import Oidc
from controlplane.errors import ApiError, BadConfig, Code
from controlplane.identity import Caller, Role

LEEWAY = 10  # seconds that the issuer's clock and ours may differ by
REFRESH = 60.0  # seconds after which a key that was withdrawn is known to be
PAUSE = 5.0  # least seconds between two readings that unknown keys cause
FETCH_TIMEOUT = 3.0
LARGEST_JWKS = 1 << 20  # bytes
SMALLEST_RSA = 2048  # bits
MOST_KNOWN = 10_000  # tokens
LONGEST_SUBJECT = 255  # characters, as OpenID Connect has it

# What may be signed with a key of a type and curve: asymmetric alone, so that a public key is never taken for a shared secret.
ALGORITHMS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
_PUBLIC = ("kty", "crv", "n", "e", "x", "y")
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
# All that the libraries raise for a token or a key that they stumble over.
_UNREADABLE = (jwt.PyJWTError, ValueError, TypeError)

_log = structlog.get_logger("kumihimo.oidc")


@dataclass(frozen=True, slots=True)
class Key:
    """A public key and what may be signed with it."""

    material: Any
    algorithms: tuple[str, ...]


class Keys:
    """The issuer's published keys (JWKS, RFC 7517) by key id; `changed` is called when they are not what they were."""

    def __init__(self, source: str, changed: Callable[[], None]) -> None:
        self._source = source
        self._changed = changed
        self._document: Any = None
        self._keys: Mapping[str, Key] = {}
        self._reading: asyncio.Task[None] | None = None
        self._tried = float("-inf")
        self._failed = False
        if not _is_url(source):
            # A file is there or the configuration is wrong; a server may come later than we do.
            try:
                self._take(*self._read())
            except (OSError, ValueError, RecursionError) as error:
                raise BadConfig(f"oidc.jwks: {source}: {error}") from None

    async def find(self, key_id: str) -> Key | None:
        """The key of this id; one that is not known is looked for at the source, now and then."""
        if key_id not in self._keys and (self._is_reading() or time.monotonic() >= self._tried + PAUSE):
            await self.reload()
        return self._keys.get(key_id)

    async def reload(self) -> None:
        """Read the source; those who ask meanwhile share the reading, and none of them ends it by going away."""
        if self._reading is None or self._reading.done():
            self._tried = time.monotonic()
            self._reading = asyncio.create_task(self._reload())
        await asyncio.shield(self._reading)

    def _is_reading(self) -> bool:
        return self._reading is not None and not self._reading.done()

    async def _reload(self) -> None:
        try:
            found = await asyncio.to_thread(self._read)
        except (OSError, HTTPException, ValueError, RecursionError) as error:
            if not self._failed:
                _log.warning("issuer's keys not read, the last ones stay", source=self._source, detail=str(error))
            self._failed = True
        else:
            self._failed = False
            self._take(*found)

    def _take(self, document: Any, keys: Mapping[str, Key]) -> None:
        if document == self._document:
            return
        self._document, self._keys = document, keys
        self._changed()
        _log.info("issuer's keys read", source=self._source, keys=", ".join(keys), unfit=len(document["keys"]) - len(keys))

    def _read(self) -> tuple[Any, Mapping[str, Key]]:
        """Document and usable keys. Raises OSError, HTTPException, ValueError, RecursionError. Runs in a thread."""
        raw = _download(self._source) if _is_url(self._source) else Path(self._source).read_bytes()
        document = json.loads(raw)
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise ValueError('it is no JWKS; an object with the list "keys" is accepted')
        found = {}
        for item in document["keys"]:
            key = _key(item)
            if key is not None:
                found[item["kid"]] = key
        return document, found


class Verifier:
    """The callers of the issuer's tokens."""

    def __init__(self, settings: Oidc, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._now = now
        self._known: dict[bytes, tuple[Caller, float]] = {}  # digest → caller, and when the token expires
        self._keys = Keys(settings.jwks, self._known.clear)

    async def run(self) -> None:
        """Follow the issuer's keys, until cancelled."""
        while True:
            await self._keys.reload()
            await asyncio.sleep(REFRESH)

    async def caller(self, token: str, digest: bytes) -> Caller:
        """Who a token speaks for. digest: of the token. Raises UNAUTHENTICATED; PERMISSION_DENIED without a role of ours."""
        known = self._known.get(digest)
        if known is not None:
            if self._now() < known[1]:
                return known[0]
            del self._known[digest]
            _refuse_expired()
        claims = await self._verified(token)
        caller = self._caller_of(claims)
        while len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[digest] = caller, int(claims["exp"]) + LEEWAY
        return caller

    async def _verified(self, token: str) -> Mapping[str, Any]:
        """The claims of a token whose signature and claims are right."""
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
        except _UNREADABLE:
            _refuse("is no JWT that can be read")
        key = await self._keys.find(key_id) if isinstance(key_id, str) else None
        if key is None:
            _refuse("is signed with a key that the issuer does not publish")
        try:
            return jwt.decode(
                token,
                key.material,
                algorithms=key.algorithms,
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=LEEWAY,
                options={"require": ["iss", "aud", "exp", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            _refuse_expired()
        except (jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError):
            _refuse("is not valid yet")
        except jwt.InvalidIssuerError:
            _refuse(f"is not of the issuer {self._settings.issuer}")
        except jwt.InvalidAudienceError:
            _refuse(f"is not for the audience {self._settings.audience}")
        except jwt.MissingRequiredClaimError as error:
            _refuse(f"has no claim {error.claim}")
        except _UNREADABLE:
            _refuse("has a signature or a claim that is wrong")

    def _caller_of(self, claims: Mapping[str, Any]) -> Caller:
        subject, project = claims["sub"], claims.get(self._settings.project_claim)
        if not 0 < len(subject) <= LONGEST_SUBJECT:
            _refuse(f"has a claim sub of {len(subject)} characters; 1 to {LONGEST_SUBJECT} are accepted")
        if not isinstance(project, str) or not _PROJECT.fullmatch(project):
            _refuse(f"names no project; the claim {self._settings.project_claim} must hold an id of letters, digits and ._:-")
        # Identities stand in keys and in log lines. Quoted, they hold nothing that means something there, and stay distinct.
        try:
            identity = self._settings.subject_prefix + quote(subject, safe="@:|+=,~")
        except UnicodeEncodeError:
            _refuse("has a claim sub that is no text")
        given = claims.get(self._settings.roles_claim)
        names = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
        # An issuer has roles of other services too.
        roles = [role for role in Role if role.name.lower() in names]
        if not roles:
            raise ApiError(
                Code.PERMISSION_DENIED,
                "ROLE_REQUIRED",
                f"{identity} has no role here; the claim {self._settings.roles_claim} must hold"
                " one of reader, member, admin, operator",
            )
        return Caller(identity, project, max(roles))


def _refuse(why: str) -> NoReturn:
    raise ApiError(Code.UNAUTHENTICATED, "TOKEN_INVALID", f"the token {why}; ask for a new one")


def _refuse_expired() -> NoReturn:
    raise ApiError(Code.UNAUTHENTICATED, "TOKEN_EXPIRED", "the token has expired; ask for a new one")


def _key(item: Any) -> Key | None:
    """A key of a JWKS; None for one that signs nothing that is accepted here. Private parts are not even looked at."""
    if not isinstance(item, dict) or not isinstance(item.get("kid"), str):
        return None
    fitting = ALGORITHMS.get((str(item.get("kty")), str(item.get("crv", ""))), ())
    algorithms = tuple(name for name in fitting if item.get("alg", name) == name)
    if not algorithms or item.get("use", "sig") != "sig":
        return None
    try:
        if "verify" not in item.get("key_ops", ["verify"]):
            return None
        key = jwt.PyJWK({name: item[name] for name in _PUBLIC if name in item}, algorithms[0]).key
    except _UNREADABLE:
        return None
    if item["kty"] == "RSA" and key.key_size < SMALLEST_RSA:
        return None
    return Key(key, algorithms)


def _is_url(source: str) -> bool:
    return urlsplit(source).scheme in ("http", "https")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys come from where the configuration says, or not at all."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _download(url: str) -> bytes:
    """Raises OSError, HTTPException, ValueError."""
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if urlsplit(url).scheme == "http":
        handlers.append(urllib.request.ProxyHandler({}))  # plain HTTP is for loopback alone
    deadline = time.monotonic() + FETCH_TIMEOUT
    raw = b""
    with urllib.request.build_opener(*handlers).open(url, timeout=FETCH_TIMEOUT) as response:
        # In pieces: the timeout is for each of them, and a server that gives one byte at a time must not hold us.
        while piece := response.read1(1 << 16):
            raw += piece
            if len(raw) > LARGEST_JWKS:
                raise ValueError(f"it has more than {LARGEST_JWKS} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"it has not come within {FETCH_TIMEOUT:g} s")
    return raw
