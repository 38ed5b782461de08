"""JWTs of an issuer: what is accepted, what is refused and why, and how keys come and go."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import oidc
from controlplane.config import Oidc
from controlplane.errors import ApiError, BadConfig, Code
from controlplane.identity import Caller, Role
from controlplane.oidc import ALGORITHMS, LEEWAY, Verifier
from tests.fakes.issuer import AUDIENCE, ISSUER, Issuer, published
from tests.waiting import until

CAROL = Caller("oidc:carol", "demo", Role.MEMBER)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with published(Issuer()) as made:
        made.rotate("one")
        yield made


def settings_of(issuer: Issuer, **changes: str) -> Oidc:
    return replace(Oidc(ISSUER, AUDIENCE, issuer.url), **changes)


@pytest.fixture
def verifier(issuer: Issuer) -> Verifier:
    return Verifier(settings_of(issuer))


async def caller(verifier: Verifier, token: str) -> Caller:
    return await verifier.caller(token, hashlib.sha256(token.encode()).digest())


async def reason(verifier: Verifier, token: str) -> tuple[str, str]:
    """Why a token is refused: (reason, message)."""
    with pytest.raises(ApiError) as caught:
        await caller(verifier, token)
    denied = caught.value.reason == "ROLE_REQUIRED"
    assert caught.value.code is (Code.PERMISSION_DENIED if denied else Code.UNAUTHENTICATED)
    for part in token.split("."):
        assert len(part) < 8 or part not in caught.value.message
    return caught.value.reason, caught.value.message


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "ES384", "ES512", "EdDSA"])
async def test_a_token_of_the_issuer_is_its_subject(issuer: Issuer, verifier: Verifier, algorithm: str) -> None:
    issuer.rotate("k", algorithm)
    assert await caller(verifier, issuer.token()) == CAROL
    assert await caller(verifier, issuer.token(aud=["other", AUDIENCE], roles="offline reader admin")) == Caller(
        "oidc:carol", "demo", Role.ADMIN
    )


async def test_no_subject_is_an_identity_of_the_file_or_of_another_subject(issuer: Issuer, verifier: Verifier) -> None:
    identities = [
        (await caller(verifier, issuer.token(sub=subject))).identity
        for subject in ("alice", "a/b", "a%2Fb", "a_b", "a b", "a\nb", "oidc:a", "組", "auth0|7", "x@example.com")
    ]
    assert len(set(identities)) == len(identities)
    for identity in identities:
        assert identity.startswith("oidc:")
        assert identity.isascii()
        assert not set(identity) & set("/ \n\"'")
    assert identities[-2:] == ["oidc:auth0|7", "oidc:x@example.com"]
    bare = Verifier(settings_of(issuer, subject_prefix=""))
    assert (await caller(bare, issuer.token(sub="alice"))).identity == "alice"


async def test_claims_have_the_names_that_are_configured(issuer: Issuer) -> None:
    verifier = Verifier(settings_of(issuer, project_claim="tenant", roles_claim="https://example.com/roles"))
    token = issuer.token(**{"project_id": None, "roles": None, "tenant": "t1", "https://example.com/roles": ["operator"]})
    assert await caller(verifier, token) == Caller("oidc:carol", "t1", Role.OPERATOR)


NOW = int(time.time())
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "expired": ({"exp": NOW - 20}, "TOKEN_EXPIRED", "has expired"),
    "not yet valid": ({"nbf": NOW + 3600}, "TOKEN_INVALID", "not valid yet"),
    "issued in the future": ({"iat": NOW + 3600}, "TOKEN_INVALID", "not valid yet"),
    "never expires": ({"exp": None}, "TOKEN_INVALID", "no claim exp"),
    "expiry is text": ({"exp": "soon"}, "TOKEN_INVALID", "wrong"),
    "expiry is infinite": ({"exp": float("inf")}, "TOKEN_INVALID", "wrong"),
    "another issuer": ({"iss": ISSUER + "/"}, "TOKEN_INVALID", f"not of the issuer {ISSUER}"),
    "no issuer": ({"iss": None}, "TOKEN_INVALID", "no claim iss"),
    "another audience": ({"aud": "shop"}, "TOKEN_INVALID", f"not for the audience {AUDIENCE}"),
    "no audience": ({"aud": None}, "TOKEN_INVALID", "no claim aud"),
    "no subject": ({"sub": None}, "TOKEN_INVALID", "no claim sub"),
    "empty subject": ({"sub": ""}, "TOKEN_INVALID", "sub"),
    "long subject": ({"sub": "x" * 256}, "TOKEN_INVALID", "256 characters"),
    "subject is no text": ({"sub": "\ud800"}, "TOKEN_INVALID", "no text"),
    "no project": ({"project_id": None}, "TOKEN_INVALID", "project_id"),
    "project is a list": ({"project_id": ["demo"]}, "TOKEN_INVALID", "project_id"),
    "project with a slash": ({"project_id": "demo/x"}, "TOKEN_INVALID", "project_id"),
    "long project": ({"project_id": "p" * 65}, "TOKEN_INVALID", "project_id"),
    "no roles": ({"roles": None}, "ROLE_REQUIRED", "oidc:carol has no role here"),
    "roles of others": ({"roles": ["king", {"a": 1}, 4, None]}, "ROLE_REQUIRED", "claim roles"),
    "roles are a number": ({"roles": 4}, "ROLE_REQUIRED", "claim roles"),
}


@pytest.mark.parametrize(("changes", "expected", "text"), REFUSED.values(), ids=REFUSED)
async def test_refused(issuer: Issuer, verifier: Verifier, changes: dict[str, Any], expected: str, text: str) -> None:
    token = issuer.token(**changes)
    for _ in range(2):  # what is refused is not remembered as good
        found, message = await reason(verifier, token)
        assert (found, text in message) == (expected, True), message


async def test_clocks_may_differ_a_little(issuer: Issuer, verifier: Verifier) -> None:
    now = int(time.time())
    assert await caller(verifier, issuer.token(exp=now - 4, iat=now + 4, nbf=now + 4)) == CAROL


def _segment(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_a_token_that_the_issuer_did_not_sign_is_refused(issuer: Issuer, verifier: Verifier) -> None:
    """Unsigned, signed with the public key as a shared secret, with another key, changed after, or by another algorithm."""
    issuer.rotate("one", "RS256")
    good = issuer.token()
    assert await caller(verifier, good) == CAROL
    header, payload, signature = good.split(".")
    public = issuer.keys["one"][1].public_key()
    forged = []
    for algorithm in ("none", "None", "NONE", ""):
        forged.append(f"{_segment({'alg': algorithm, 'kid': 'one'})}.{payload}.")
    for secret in (
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        b"",
    ):
        start = f"{_segment({'alg': 'HS256', 'kid': 'one'})}.{payload}"
        digest = hmac.digest(secret, start.encode(), "sha256")
        forged.append(f"{start}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}")
    other = Issuer()
    other.rotate("one", "RS256")
    forged.append(other.token())
    other.rotate("one", "ES256")
    forged.append(other.token())
    forged.append(other.token(headers={"jwk": other.jwk("one"), "jku": "http://127.0.0.1:1/keys"}))
    forged.append(f"{header}.{_segment(issuer.claims(roles=['operator']))}.{signature}")
    forged.append(f"{header}.{payload}.")
    forged.append(other.token(exp=1))  # nor is one told about claims that nobody vouches for
    for token in forged:
        found, message = await reason(verifier, token)
        assert (found, "wrong" in message) == ("TOKEN_INVALID", True), message
    for extra in ({"crit": ["exp"]}, {"b64": False, "crit": ["b64"]}):
        assert (await reason(verifier, issuer.token(headers=extra)))[0] == "TOKEN_INVALID"


def test_only_asymmetric_algorithms_are_ever_accepted() -> None:
    names = {name for fitting in ALGORITHMS.values() for name in fitting}
    assert names == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Issuer, Verifier]:
    issuer = Issuer()
    issuer.rotate("one")
    path = tmp_path_factory.mktemp("issuer") / "keys.json"
    path.write_bytes(issuer.jwks())
    return issuer, Verifier(Oidc(ISSUER, AUDIENCE, str(path)))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
async def test_garbage_is_refused_and_nothing_else(data: st.DataObject, ready: tuple[Issuer, Verifier]) -> None:
    """Never INTERNAL: whatever stands where a token should is TOKEN_INVALID."""
    issuer, verifier = ready
    segment = st.one_of(
        st.text("AZaz09-_=+/\x00é", max_size=40),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["alg", "kid"]), inner, max_size=2),
            max_leaves=6,
        ).map(_segment),
        st.sampled_from([*issuer.token().split(".")[:2], base64.urlsafe_b64encode(b"[" * 5000).decode()]),
    )
    token = ".".join([data.draw(segment) for _ in range(3)])
    assert (await reason(verifier, token))[0] == "TOKEN_INVALID"


TIMES = (b"1e999", b"-1e999", b"NaN", b'"soon"', b"[1]", b"{}", b"[" * 5000, b"1" * 5000)
SIGNED = [b"[]", b"1", b"null", b"{", b"\xff", b"[" * 5000]
SIGNED += [b'{"' + claim + b'": ' + value + b"}" for claim in (b"exp", b"iat", b"nbf") for value in TIMES]
SIGNED += [b'{"exp": 9999999999, "' + claim + b'": ' + value + b"}" for claim in (b"iss", b"aud") for value in TIMES]
SIGNED += [b'{"exp": 9999999999, "sub": ' + value + b"}" for value in TIMES if value != b'"soon"']


@pytest.mark.parametrize("claims", SIGNED)
async def test_garbage_that_is_signed_is_refused_too(issuer: Issuer, verifier: Verifier, claims: bytes) -> None:
    """With the claims that are right, and one that is not."""
    if claims.startswith(b'{"'):
        right = {name: value for name, value in issuer.claims().items() if f'"{name}"'.encode() not in claims}
        claims = claims[:-1] + b", " + json.dumps(right).encode()[1:]
    token = jwt.api_jws.encode(claims, issuer.keys["one"][1], "ES256", {"kid": "one"})
    assert (await reason(verifier, token))[0] == "TOKEN_INVALID"


def test_a_known_token_is_a_look_up(issuer: Issuer, verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        token = issuer.token()
        await caller(verifier, token)
        monkeypatch.setattr(jwt, "decode", None)
        monkeypatch.setattr(jwt, "get_unverified_header", None)
        digest = hashlib.sha256(token.encode()).digest()
        best = 1.0
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(1000):
                assert await verifier.caller(token, digest) == CAROL
            best = min(best, (time.perf_counter() - began) / 1000)
        assert best < 20e-6, "seconds; a verification costs several times as much"

    asyncio.run(run())


async def test_a_known_token_expires(issuer: Issuer) -> None:
    clock = [time.time()]
    verifier = Verifier(settings_of(issuer), now=lambda: clock[0])
    token = issuer.token(exp=int(clock[0]) + 60)
    assert await caller(verifier, token) == CAROL
    clock[0] += 60 + LEEWAY - 2
    assert await caller(verifier, token) == CAROL
    clock[0] += 3
    assert (await reason(verifier, token))[0] == "TOKEN_EXPIRED"


async def test_known_tokens_are_bounded(issuer: Issuer, verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "MOST_KNOWN", 3)
    tokens = [issuer.token(sub=f"s{number}") for number in range(7)]
    for token in tokens:
        await caller(verifier, token)
    assert [known.identity for known, _ in verifier._known.values()] == ["oidc:s4", "oidc:s5", "oidc:s6"]
    assert (await caller(verifier, tokens[0])).identity == "oidc:s0"


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every unknown key is looked for."""
    monkeypatch.setattr(oidc, "PAUSE", 0.0)


@pytest.mark.usefixtures("impatient")
async def test_keys_rotate_and_what_old_ones_signed_is_refused_at_once(issuer: Issuer, verifier: Verifier) -> None:
    old = issuer.token()
    assert await caller(verifier, old) == CAROL
    issuer.keys["two"] = issuer.keys["one"]
    issuer.rotate("two")
    assert await caller(verifier, issuer.token()) == CAROL
    found, message = await reason(verifier, old)
    assert (found, "does not publish" in message) == ("TOKEN_INVALID", True)


async def test_a_withdrawn_key_is_noticed_without_a_call(
    issuer: Issuer, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "REFRESH", 0.005)
    token = issuer.token()
    assert await caller(verifier, token) == CAROL
    follower = asyncio.create_task(verifier.run())
    issuer.document = b'{"keys": []}'
    try:
        await until(lambda: not verifier._known)
    finally:
        follower.cancel()
    assert (await reason(verifier, token))[0] == "TOKEN_INVALID"


async def test_unknown_keys_cause_one_reading_in_a_while(issuer: Issuer, verifier: Verifier) -> None:
    other = Issuer()
    for number in range(40):
        other.keys[f"k{number}"] = issuer.keys["one"]
    results = await asyncio.gather(*(reason(verifier, other.token(f"k{number}")) for number in range(40)))
    assert {found for found, _ in results} == {"TOKEN_INVALID"}
    assert issuer.asked == 1
    # Within the pause the keys that are known serve, and nothing is asked.
    assert (await reason(verifier, other.token("k0", sub="x")))[0] == "TOKEN_INVALID"
    assert await caller(verifier, issuer.token()) == CAROL
    assert issuer.asked == 1


async def test_a_slow_issuer_delays_those_alone_whose_key_is_not_known(issuer: Issuer, verifier: Verifier) -> None:
    known, fresh = issuer.token(), issuer.token(sub="dave")
    assert await caller(verifier, known) == CAROL
    issuer.slow = threading.Event()
    verifier._keys._tried = float("-inf")
    issuer.rotate("two")
    waiting = [asyncio.create_task(caller(verifier, issuer.token())) for _ in range(3)]
    await until(lambda: issuer.asked == 2)
    assert await caller(verifier, known) == CAROL
    assert (await caller(verifier, fresh)).identity == "oidc:dave"
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()  # one who goes away takes the keys from nobody
    issuer.slow.set()
    assert await asyncio.gather(*waiting[1:]) == [CAROL, CAROL]
    assert issuer.asked == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "document",
    [None, b"", b"{", b"[]", b'{"keys": 5}', b"\xff", b"[" * 100_000, b'{"keys": [], "x": "' + b"x" * (1 << 20) + b'"}'],
)
async def test_an_issuer_that_is_away_or_broken_keeps_the_last_keys(
    issuer: Issuer, verifier: Verifier, document: bytes | None
) -> None:
    token = issuer.token()
    assert await caller(verifier, token) == CAROL
    good = issuer.keys
    issuer.away, issuer.document = document is None, document
    issuer.rotate("two")
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert (await reason(verifier, issuer.token()))[0] == "TOKEN_INVALID"
        issuer.keys = good
        assert await caller(verifier, token) == CAROL
        assert await caller(verifier, issuer.token(sub="dave")) == replace(CAROL, identity="oidc:dave")
    assert [line["event"] for line in logs] == ["issuer's keys not read, the last ones stay"]
    issuer.away, issuer.document = False, None
    issuer.rotate("three")
    assert await caller(verifier, issuer.token()) == CAROL


@pytest.mark.usefixtures("impatient")
async def test_keys_that_sign_nothing_accepted_are_left_out(issuer: Issuer, verifier: Verifier) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    issuer.keys["weak"] = ("RS256", weak)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        weak_token = issuer.token("weak")
    shared = {"kty": "oct", "k": base64.urlsafe_b64encode(b"s" * 32).decode(), "kid": "shared"}
    good = issuer.jwk("one")
    unfit: list[Any] = [
        shared,
        issuer.jwk("weak"),
        {**good, "kid": "enc", "use": "enc"},
        {**good, "kid": "ops", "key_ops": ["sign"]},
        {**good, "kid": "ops2", "key_ops": 5},
        {**good, "kid": "alg", "alg": "HS256"},
        {**good, "kid": "curve", "crv": "P-384"},
        {**good, "kid": "point", "x": good["y"]},
        {**good, "kid": 5},
        {"kty": "EC", "crv": "P-256", "kid": "empty"},
        {"kid": "nothing"},
        7,
    ]
    issuer.document = json.dumps({"keys": [*unfit, good]}).encode()
    assert await caller(verifier, issuer.token("one")) == CAROL
    assert set(verifier._keys._keys) == {"one"}
    assert "does not publish" in (await reason(verifier, weak_token))[1]
    # A key that is said to sign one algorithm signs no other; private parts in what is published change nothing.
    issuer.rotate("r", "RS256")
    key = issuer.keys["r"][1]
    private = jwt.get_algorithm_by_name("RS256").to_jwk(key, as_dict=True)
    issuer.document = json.dumps({"keys": [{**private, "key_ops": ["verify"], "kid": "r", "alg": "RS512"}]}).encode()
    assert (await reason(verifier, issuer.token()))[0] == "TOKEN_INVALID"
    assert await caller(verifier, jwt.encode(issuer.claims(), key, "RS512", {"kid": "r"})) == CAROL


async def test_a_token_must_name_its_key(issuer: Issuer, verifier: Verifier) -> None:
    for headers in (None, {"kid": ""}, {"kid": "two"}):
        token = jwt.encode(issuer.claims(), issuer.keys["one"][1], "ES256", headers)
        assert "does not publish" in (await reason(verifier, token))[1]


@pytest.mark.usefixtures("impatient")
async def test_keys_from_a_file(tmp_path: Path) -> None:
    issuer = Issuer()
    issuer.rotate("one")
    path = tmp_path / "keys.json"
    for content in (None, b"{", b"[]"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadConfig, match=r"oidc\.jwks: .*keys\.json"):
            Verifier(Oidc(ISSUER, AUDIENCE, str(path)))
    path.write_bytes(issuer.jwks())
    verifier = Verifier(Oidc(ISSUER, AUDIENCE, str(path)))
    assert await caller(verifier, issuer.token()) == CAROL
    issuer.rotate("two")
    path.unlink()
    assert (await reason(verifier, issuer.token()))[0] == "TOKEN_INVALID"
    path.write_bytes(issuer.jwks())
    assert await caller(verifier, issuer.token()) == CAROL


async def test_keys_are_taken_from_the_place_configured_and_no_other(issuer: Issuer) -> None:
    with published(Issuer()) as elsewhere:
        elsewhere.rotate("one")
        issuer.moved_to = elsewhere.url
        assert (await reason(Verifier(settings_of(issuer)), elsewhere.token()))[0] == "TOKEN_INVALID"
        assert (issuer.asked, elsewhere.asked) == (1, 0)
