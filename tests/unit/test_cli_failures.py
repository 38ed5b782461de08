"""Whatever fails, a person sees one line per fault, a documented exit code, and no stack trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
import grpc
import pytest

from cli import client, errors, settings
from cli.main import root
from tests.fakes.api import SERVER_NAME, TOKEN, FakeApi, Fault, Kumi, Serving, make_certificate

pytest_plugins = ("tests.fakes.api",)
Code = grpc.StatusCode
ID = "0192f0c4-7a3e-7c1d-8f2a-00000000000a"


def _profile(config: Path, **changes: str) -> None:
    old = settings.load().profiles["admin"]
    fields = {name: getattr(old, name) for name in settings.FIELDS} | changes
    settings.save(settings.Config(config, "admin", {"admin": settings.Profile(**fields)}))


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (Code.INVALID_ARGUMENT, "CIDR_INVALID", 1),
        (Code.ALREADY_EXISTS, "SEGMENT_TAKEN", 1),
        (Code.FAILED_PRECONDITION, "RESOURCE_IN_USE", 1),
        (Code.ABORTED, "ETAG_MISMATCH", 1),
        (Code.RESOURCE_EXHAUSTED, "NO_FREE_ADDRESS", 1),
        (Code.UNIMPLEMENTED, "FEATURE_NOT_SUPPORTED", 1),
        (Code.NOT_FOUND, "REFERENCE_NOT_FOUND", 4),
        (Code.PERMISSION_DENIED, "ROLE_REQUIRED", 5),
        (Code.DEADLINE_EXCEEDED, "WAIT_TIMEOUT", 7),
    ],
)
def test_reason_and_exit_code(code: grpc.StatusCode, reason: str, exit_code: int, kumi: Kumi, api: FakeApi) -> None:
    api.faults["Networks/Create"] = [Fault(code, reason, "the sentence\nof the server")]
    result = kumi("network", "create", "a")
    assert (result.code, result.out, result.err) == (exit_code, "", f"kumi: the sentence of the server [{reason}]\n")


def test_one_line_for_each_fault_of_a_field(kumi: Kumi, api: FakeApi) -> None:
    violations = [
        ("resource.cidr", "CIDR_INVALID", "cidr must be an IPv4 or IPv6 prefix"),
        ("resource.host_routes[1].nexthop", "IP_INVALID", "must be an address"),
        ("update_mask", "", "cannot be empty"),
    ]
    api.faults["Networks/Create"] = [Fault(Code.INVALID_ARGUMENT, "CIDR_INVALID", "3 faults", violations)]
    assert kumi("network", "create", "a").err.splitlines() == [
        "kumi: cidr must be an IPv4 or IPv6 prefix [CIDR_INVALID]",
        "kumi: host_routes[1].nexthop: must be an address [IP_INVALID]",
        "kumi: update_mask: cannot be empty [CIDR_INVALID]",
    ]


@pytest.mark.parametrize("reason", ["TOKEN_EXPIRED", "TOKEN_INVALID"])
def test_refused_token_names_its_file(reason: str, kumi: Kumi, api: FakeApi, tmp_path: Path) -> None:
    api.faults["Networks/List"] = [Fault(Code.UNAUTHENTICATED, reason, "the token is not accepted")]
    result = kumi("network", "list")
    assert (result.code, result.err) == (
        5,
        f"kumi: the token is not accepted [{reason}] (token file: {tmp_path}/token)\n",
    )
    assert TOKEN not in result.err


def test_no_token_file_says_how_to_name_one(kumi: Kumi, api: FakeApi, config: Path) -> None:
    _profile(config, token_file="")
    api.faults["Networks/List"] = [Fault(Code.UNAUTHENTICATED, "TOKEN_MISSING", "no token")]
    assert "`kumi profile set NAME --token-file FILE` names one" in kumi("network", "list").err
    assert "authorization" not in api.calls[0].metadata


def test_error_without_details(kumi: Kumi, api: FakeApi, serving: Serving) -> None:
    api.faults["Networks/List"] = [Fault(Code.INTERNAL, "", "boom")]
    result = kumi("network", "list")
    assert (result.code, result.err) == (1, f"kumi: the API server at {serving.endpoint} failed: INTERNAL boom\n")


@pytest.mark.parametrize("code", [Code.DEADLINE_EXCEEDED, Code.CANCELLED])
def test_a_deadline_that_the_server_finds_first_is_one_too(
    code: grpc.StatusCode, kumi: Kumi, api: FakeApi, serving: Serving
) -> None:
    """It then resets the call, which gRPC shows as CANCELLED: some in a thousand, and more on a busy machine."""
    api.faults["Networks/List"] = [Fault(code)]
    result = kumi("network", "list")
    assert (result.code, result.err) == (7, f"kumi: the API server at {serving.endpoint} did not answer in time\n")


def test_no_server(kumi: Kumi, config: Path, tmp_path: Path) -> None:
    _profile(config, endpoint=f"unix:{tmp_path}/nobody.sock")
    result = kumi("network", "list")
    assert result.code == 6
    assert result.err.startswith(f"kumi: no API server answers at unix:{tmp_path}/nobody.sock (")
    assert result.err.count("\n") == 1


def test_wrong_ca(kumi: Kumi, config: Path, tmp_path: Path, serving: Serving, api: FakeApi) -> None:
    other = make_certificate(tmp_path, SERVER_NAME)
    _profile(config, ca=str(other.certificate))
    result = kumi("network", "list")
    assert result.code == 6
    assert result.err.startswith(f"kumi: the server at {serving.endpoint} presents a certificate that the profile's ca")
    assert result.err.count("\n") == 1
    assert not api.calls, "a token goes to no server that is not vouched for"


def test_wrong_server_name(kumi: Kumi, config: Path) -> None:
    _profile(config, server_name="somebody-else")
    result = kumi("network", "list")
    assert result.code == 6
    assert "is for another name; set the name it carries with `kumi profile set NAME --server-name HOST`" in result.err


@pytest.mark.parametrize("field", ["ca", "token_file"])
@pytest.mark.parametrize("content", [None, b"", b"rubbish \xff\n"])
def test_missing_or_bad_files(field: str, content: bytes | None, kumi: Kumi, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    _profile(config, **{field: str(path)})
    result = kumi("network", "list")
    assert result.code == 1
    assert result.err.startswith(f"kumi: the profile's {field} {path} ")
    assert result.err.count("\n") == 1
    assert "rubbish" not in result.err


def test_last_resort_is_a_line(kumi: Kumi, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> NoReturn:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(client, "connect", broken)
    result = kumi("network", "list")
    assert (result.code, result.err) == (
        1,
        "kumi: unexpected failure: RuntimeError: first second (KUMI_DEBUG=1 shows where)\n",
    )
    monkeypatch.setenv("KUMI_DEBUG", "1")
    assert "Traceback" in kumi("network", "list").err


def test_interrupt(kumi: Kumi, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "connect", interrupted)
    result = kumi("network", "list")
    assert (result.code, result.err.strip()) == (130, "kumi: interrupted")


def test_plugin_errors_read_like_our_own(kumi: Kumi, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def strange() -> NoReturn:
        raise client.CliError("one\ntwo", 3)

    monkeypatch.setitem(root.commands, "strange", strange)
    result = kumi("strange")
    assert (result.code, result.err) == (3, "kumi: one\nkumi: two\n")


def test_client_for_plugins(api: FakeApi, config: Path) -> None:
    api.add("port", id=ID, name="web")
    with client.connect(settings.Settings()) as made:
        for kind in ("Port", "port"):
            assert made.find(kind, "web").id == made.find(kind, ID).id == ID
        with pytest.raises(client.CliError, match="'Zebra' is no kind of this API; it has: ") as caught:
            made.find("Zebra", "x")
        assert caught.value.exit_code == errors.USAGE
        with pytest.raises(client.CliError, match="no port has the id or name 'x'") as caught:
            made.find("Port", "x")
        assert caught.value.exit_code == errors.NOT_FOUND
        assert made.wait(5, [ID], active=True, timeout=0.5).revision == 5
    (request,) = api.requests("Operations/Wait")
    assert (request.active, request.timeout.nanos, list(request.ids)) == (True, 500_000_000, [ID])


def test_change_without_request_id_is_not_repeated(api: FakeApi, config: Path) -> None:
    api.faults["Networks/Create"] = [Fault(Code.UNAVAILABLE, "STORE_UNAVAILABLE", "away")]
    from cli.kinds import kinds

    request: Any = kinds()["network"].request("Create")
    with client.connect(settings.Settings()) as made, pytest.raises(client.CliError):
        made.call("Networks", "Create", request)
    assert len(api.calls) == 1


def test_process_writes_nothing_but_the_line(config: Path, tmp_path: Path, serving: Serving) -> None:
    """The whole process, the native library's own log included."""
    _profile(config, ca=str(make_certificate(tmp_path, SERVER_NAME).certificate))
    done = subprocess.run(
        [sys.executable, "-c", "from cli.main import main; main()", "network", "list"],
        env={**os.environ, "KUMI_CONFIG": str(config)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("kumi: the server at ")
    assert done.stderr.count("\n") == 1
