"""Who may call what: every method with every role and every bad token, tokens that rotate, and none of them in a log."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from controlplane.identity import POLICY
from controlplane.oidc import LEEWAY
from controlplane.registry import KINDS
from kumihimo.v1 import operations_pb2, resource_pb2
from tests.component.cloud import SERVER_NAME, Cloud, Refused, refused
from tests.fakes.issuer import AUDIENCE, ISSUER, Issuer, published
from tests.waiting import DEADLINE, until

Code = grpc.StatusCode
EMPTY = resource_pb2.ListRequest()

# -- the matrix -------------------------------------------------------------------------------------------------------

ROLES = ("reader", "member", "admin", "operator")

READ = ("Get", "List", "Watch")
WRITE = ("Create", "Update", "Delete")
TENANTS = {**dict.fromkeys(READ, "reader"), **dict.fromkeys(WRITE, "member")}
OPERATORS = dict.fromkeys(READ + WRITE, "operator")
READABLE = {**dict.fromkeys(READ, "reader"), **dict.fromkeys(WRITE, "operator")}

# Decided here once more, on purpose not read from the policy: kind → method → the least role. A method without a line is one
# that nobody has decided about, and fails.
DECIDED: dict[str, dict[str, str]] = {
    "Network": {**TENANTS, "GetIpAvailability": "reader"},
    "Subnet": TENANTS,
    "Port": {**TENANTS, **dict.fromkeys(("Bind", "Unbind"), "operator"), "Explain": "reader"},
    "SubnetPool": {**TENANTS, **dict.fromkeys(("AddPrefixes", "RemovePrefixes", "Onboard"), "member")},
    "AddressScope": TENANTS,
    "SecurityGroup": {**TENANTS, "ReplaceRules": "member"},
    "SecurityGroupRule": TENANTS,
    "AddressGroup": {**TENANTS, **dict.fromkeys(("AddAddresses", "RemoveAddresses"), "member")},
    "DefaultSecurityGroupRule": READABLE,
    "Node": {**OPERATORS, "Inspect": "operator"},
    "Settings": OPERATORS,
    "PhysicalNetwork": READABLE,
    "NetworkSegmentRange": READABLE,
    "AvailabilityZone": READABLE,
    "Quota": {**dict.fromkeys(READ, "reader"), **dict.fromkeys(WRITE, "operator")},
    "Operations": {"Wait": "reader", "ListChanges": "reader", "Apply": "member", "ListDrift": "operator", "Trace": "reader"},
}


def services() -> dict[str, Any]:
    """Kind, or the name of a service of no kind → its descriptor."""
    found = {name: kind.service for name, kind in KINDS.items()}
    for file in {kind.service.file for kind in KINDS.values()} | {operations_pb2.DESCRIPTOR}:
        for name, service in file.services_by_name.items():
            if service not in found.values():
                found[name] = service
    return found


METHODS = [(kind, method) for kind, service in services().items() for method in service.methods]


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with published(Issuer()) as made:
        made.rotate("first")
        yield made


@pytest_asyncio.fixture(scope="module")
async def strict(issuer: Issuer) -> AsyncIterator[Cloud]:
    """A control plane whose API knows the token file and an issuer."""
    async with Cloud(f'[oidc]\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\njwks = "{issuer.url}"\n') as cloud:
        yield cloud


def credentials(issuer: Issuer) -> dict[str, tuple[str | None, Code, str]]:
    """Name → token, and what every method says to it."""
    expired = issuer.token(exp=1, iat=0, roles=["operator"])
    stranger = Issuer()
    stranger.rotate("first")
    return {
        "no token": (None, Code.UNAUTHENTICATED, "TOKEN_MISSING"),
        "empty token": ("", Code.UNAUTHENTICATED, "TOKEN_INVALID"),
        "unknown token": ("wrong", Code.UNAUTHENTICATED, "TOKEN_INVALID"),
        "forged token": (stranger.token(roles=["operator"]), Code.UNAUTHENTICATED, "TOKEN_INVALID"),
        "expired token": (expired, Code.UNAUTHENTICATED, "TOKEN_EXPIRED"),
        "no role": (issuer.token(roles=["king"]), Code.PERMISSION_DENIED, "ROLE_REQUIRED"),
    }


async def outcome(cloud: Cloud, method: Any, token: str | None, seconds: float = 60.0) -> Refused | None:
    """The error of a call that changes nothing, None for an answer; of a stream its first message."""
    request = GetMessageClass(method.input_type)()
    if "validate_only" in method.input_type.fields_by_name:
        request.validate_only = True
    channel = cloud.api.channel
    invoke = channel.unary_stream if method.server_streaming else channel.unary_unary
    stub = invoke(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
    call = stub(request, metadata=metadata, timeout=seconds)
    try:
        await (call.read() if method.server_streaming else call)
    except grpc.aio.AioRpcError as error:
        return Refused.of(error)
    finally:
        call.cancel()
    return None


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("kind", "method"), METHODS, ids=lambda item: getattr(item, "name", item))
async def test_b_api_02_every_method_with_every_role(strict: Cloud, issuer: Issuer, kind: str, method: Any, role: str) -> None:
    assert method.name in DECIDED.get(kind, {}), f"who may call {method.full_name}? decide, and say it here and in POLICY"
    least = DECIDED[kind][method.name]
    allowed = ROLES.index(role) >= ROLES.index(least)
    # A stream that has nothing to say keeps silent for those who may listen, and refuses the others at once.
    error = await outcome(
        strict, method, issuer.token(sub=role, roles=[role]), 1.0 if allowed and method.server_streaming else 60
    )
    if allowed:
        assert error is None or error.code not in (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.INTERNAL, Code.UNKNOWN)
    else:
        assert error is not None
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "ROLE_REQUIRED")
        assert error.message == f"{method.name} of {kind} needs the role {least}; oidc:{role} has {role}"


@pytest.mark.parametrize("name", ["no token", "empty token", "unknown token", "forged token", "expired token", "no role"])
@pytest.mark.parametrize(("kind", "method"), METHODS, ids=lambda item: getattr(item, "name", item))
async def test_without_a_good_token_nothing_answers(strict: Cloud, issuer: Issuer, kind: str, method: Any, name: str) -> None:
    token, code, reason = credentials(issuer)[name]
    error = await outcome(strict, method, token)
    assert error is not None
    assert (error.code, error.reason) == (code, reason)


def test_the_policy_says_nothing_that_was_not_decided() -> None:
    """And nothing decided is missing in it, of methods to come too."""
    for kind, verbs in DECIDED.items():
        assert {verb: least.name.lower() for verb, least in POLICY.get(kind, POLICY["*"]).items()} == verbs, kind
    assert set(POLICY) - {"*"} <= set(DECIDED)


async def test_the_matrix_has_every_service_of_the_server(strict: Cloud) -> None:
    async def ask() -> Any:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    names: set[str] = set()
    stub = reflection_pb2_grpc.ServerReflectionStub(strict.api.channel)
    async for answer in stub.ServerReflectionInfo(ask(), timeout=20):
        names |= {service.name for service in answer.list_services_response.service}
    open_to_all = {health.SERVICE_NAME, reflection.SERVICE_NAME}
    served = {method.full_name for name in names - open_to_all for method in _service(name).methods}
    assert served == {method.full_name for _, method in METHODS}


def _service(name: str) -> Any:
    return descriptor_pool.Default().FindServiceByName(name)


# -- tokens that come and go ------------------------------------------------------------------------------------------


async def test_a_jwt_acts_in_its_project_under_its_subject(strict: Cloud, issuer: Issuer) -> None:
    token = issuer.token(sub="carol", project_id="demo")
    request = GetMessageClass(KINDS["Network"].service.methods_by_name["Create"].input_type)()
    network = await strict.api.call("Networks", "Create", request, token)
    assert (network.project_id, network.creator) == ("demo", "oidc:carol")
    get = resource_pb2.GetRequest(id=network.id)
    assert await strict.api.get("Network", network.id, by="alice") == network, "the project is the file's demo too"
    error = await refused(strict.api.call("Networks", "Get", get, issuer.token(sub="carol", project_id="other")))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "RESOURCE_NOT_FOUND")
    await strict.api.call("Networks", "Delete", resource_pb2.DeleteRequest(id=network.id), token)


async def test_both_kinds_of_tokens_rotate_without_a_restart(strict: Cloud, issuer: Issuer) -> None:
    """The running server: a new token file, a broken one, a new key of the issuer, an issuer that is away."""
    path = strict.folder / "tokens.toml"
    old = path.read_text()

    async def reason(token: str) -> str:
        try:
            await strict.api.call("Networks", "List", EMPTY, token)
        except Refused as error:
            return error.reason
        return ""

    async def known(token: str) -> bool:
        return await reason(token) == ""

    try:
        path.write_text(old.replace(_digest("bob-token"), _digest("bob-two")))
        await until(lambda: known("bob-two"), "the new token is known")
        assert await reason("bob-token") == "TOKEN_INVALID"
        assert await known("alice-token")
        path.write_text("[[tokens")
        await until(lambda: "token file not read" in strict.replicas[0].log.read_text(), "the broken file is in the log")
        assert await known("bob-two")
    finally:
        path.write_text(old)
    await until(lambda: known("bob-token"), "the old file is back")
    first = issuer.token()
    assert await known(first)
    issuer.rotate("second")
    await until(lambda: known(issuer.token()), "the new key is known")
    assert await reason(first) == "TOKEN_INVALID", "its key is published no more"
    second = issuer.token()
    issuer.away = True
    try:
        stranger = Issuer()
        stranger.rotate("third")
        assert await reason(stranger.token()) == "TOKEN_INVALID"
        assert await known(second)
        assert await known(issuer.token(sub="dave"))
    finally:
        issuer.away = False


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


async def test_no_log_line_holds_a_token(strict: Cloud, issuer: Issuer) -> None:
    """Good ones and bad ones, in every place where a client may have put one by mistake of its own or of ours."""
    good = issuer.token(sub="careful")
    broken = [good[:-4], good + "x", good.replace(".", "!", 1), "secret words", "root-token-of-another", f"{good}.{good}"]
    expired = issuer.token(exp=1)
    foreign = Issuer()
    foreign.rotate(next(iter(issuer.keys)))
    tokens = [good, "alice-token", "root-token", expired, foreign.token(), issuer.token(aud="shop"), *broken]
    tokens.append(issuer.token(roles=[], sub="roleless"))
    log = strict.replicas[0].log
    start = log.stat().st_size
    stub = strict.api.channel.unary_unary("/kumihimo.v1.Networks/Get", request_serializer=lambda message: message)
    for token in tokens:
        for scheme in ("Bearer ", "bearer  ", "Basic ", "Bearer Bearer ", ""):
            with pytest.raises(grpc.aio.AioRpcError):  # a good one asks for what is not there
                await stub(resource_pb2.GetRequest(id="x").SerializeToString(), metadata=(("authorization", scheme + token),))
    await strict.api.call("Networks", "List", EMPTY, good)
    await until(lambda: "oidc:careful" in log.read_bytes()[start:].decode(), "the last call is in the log")
    text = log.read_text()
    assert text[start:].count("event=refused") >= len(tokens) * 5 - 1
    for token in tokens:
        # Nor a part by which one could guess or use it; the words of the token that are ours to know are in no line either.
        for part in {token, *token.split(".")}:
            assert len(part) < 9 or part not in text
    digests = {_digest(token)[:16] for token in tokens}
    assert not [digest for digest in digests if digest in text]


async def test_kumi_says_in_one_line_that_its_token_has_expired(
    strict: Cloud, issuer: Issuer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The real command against the real API: exit code 5, the reason, the file to change, and not the token."""
    file, config = tmp_path / "token", tmp_path / "client.toml"
    config.write_text(
        f'current = "p"\n[profiles.p]\nendpoint = "{strict.replicas[0].target}"\nca = "{strict.authority.certificate()}"\n'
        f'server_name = "{SERVER_NAME}"\ntoken_file = "{file}"\n'
    )
    pipe = asyncio.subprocess.PIPE

    async def begin(*words: str) -> asyncio.subprocess.Process:
        path = str(Path(sys.executable).parent / "kumi")
        env = {**os.environ, "KUMI_CONFIG": str(config)}
        started = await asyncio.create_subprocess_exec(path, *words, env=env, stdout=pipe, stderr=pipe)
        request.addfinalizer(lambda: started.kill() if started.returncode is None else None)
        return started

    async def kumi(*words: str) -> tuple[int | None, str, str]:
        done = await begin(*words)
        out, err = await asyncio.wait_for(done.communicate(), 60)
        return done.returncode, out.decode(), err.decode()

    # One that is good for long enough to be used, on a machine that has much else to do.
    for seconds in (4, 16, 64):
        token = issuer.token(exp=int(time.time()) - LEEWAY + seconds)
        file.write_text(token + "\n")
        watching = await begin("network", "watch", "--initial")
        first = await kumi("network", "list")
        if first[0] == 0:
            break
        await watching.communicate()
    assert (first[0], first[2]) == (0, "")

    async def expired() -> bool:
        error = await outcome(strict, KINDS["Network"].service.methods_by_name["List"], token)
        if error is not None:
            error.must_be("TOKEN_EXPIRED")
        return error is not None

    await until(expired, "the token expires", 2 * seconds + DEADLINE)
    said = f"kumi: the token has expired; ask for a new one [TOKEN_EXPIRED] (token file: {file})\n"
    for words in (["network", "list"], ["port", "show", "p"], ["network", "create", "n"], ["node", "delete", "h1"]):
        assert await kumi(*words) == (5, "", said)
    # A stream that began with it tells nothing more.
    made = await strict.api.create("Network", project_id="demo")
    out, err = await asyncio.wait_for(watching.communicate(), DEADLINE)
    assert (watching.returncode, err.decode()) == (5, said)
    assert made.id not in out.decode()
    # The file is read again by each command.
    file.write_text(issuer.token() + "\n")
    assert (await kumi("network", "list"))[0] == 0
