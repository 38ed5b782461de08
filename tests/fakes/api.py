"""The API as the command line sees it: a gRPC server in this process, over TLS on a unix socket.

It records every call, keeps what it is given, and fails as told. It judges nothing: what a request may hold is tested
where that is decided. Test modules that name this module in `pytest_plugins` get its fixtures. It asserts nothing
and is imported before pytest hears of it: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from cli import client
from cli.kinds import kinds, method
from cli.main import run
from cli.tracing import Trace

SERVER_NAME = "kumi-api"
TOKEN = "not-so-secret-token"  # noqa: S105 - opens nothing


@dataclass(frozen=True)
class Call:
    """One request as it arrived. name: "Ports/Create"."""

    name: str
    request: Any
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Fault:
    """An error to answer with. violations: (field, reason, sentence)."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = ""
    violations: Sequence[tuple[str, str, str]] = ()

    def details(self) -> bytes:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain="kumihimo"))
        if self.violations:
            bad = error_details_pb2.BadRequest()
            for path, reason, sentence in self.violations:
                bad.field_violations.add(field=path, reason=reason, description=sentence)
            status.details.add().Pack(bad)
        return status.SerializeToString()


@dataclass
class FakeApi(grpc.GenericRpcHandler):
    """objects: per service what Get and List know. faults: "Ports/Create" -> errors, one for each next call.

    replies: answers, or faults, in place of made ones. streams: what the next calls of a method tell before they fail,
    waiting where an event (`waits`) stands among it.
    """

    calls: list[Call] = field(default_factory=list)
    objects: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    replies: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    streams: dict[str, list[list[Any]]] = field(default_factory=lambda: defaultdict(list))
    waits: threading.Event = field(default_factory=threading.Event)
    page: int = 1000

    def clear(self) -> None:
        for kept in (self.calls, self.objects, self.faults, self.replies, self.streams):
            kept.clear()
        self.page = 1000

    def add(self, noun: str, **fields: Any) -> Any:
        """Keep an object; its revision counts up from 1 unless given."""
        kind = kinds()[noun]
        kept = self.objects[kind.service.name]
        item = type(kind.new())(**{"revision": len(kept) + 1, **fields})
        kept.append(item)
        return item

    def requests(self, name: str) -> list[Any]:
        return [call.request for call in self.calls if call.name == name]

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        service, name = details.method.removeprefix("/").split("/")
        rpc = method(service, name)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            short = f"{service.rpartition('.')[2]}/{name}"
            self.calls.append(Call(short, request, dict(context.invocation_metadata())))
            if self.faults[short]:
                self._abort(context, self.faults[short].pop(0))
            if self.replies[short]:
                reply = self.replies[short].pop(0)
                if isinstance(reply, Fault):
                    self._abort(context, reply)
                return reply
            return self._answer(service.rpartition(".")[2], name, request, context)

        def answers(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            short = f"{service.rpartition('.')[2]}/{name}"
            self.calls.append(Call(short, request, dict(context.invocation_metadata())))
            for event in self.streams[short].pop(0) if self.streams[short] else ():
                if isinstance(event, threading.Event):
                    event.wait(60)
                else:
                    yield event
            self._abort(context, self.faults[short].pop(0) if self.faults[short] else Fault(grpc.StatusCode.OUT_OF_RANGE))

        make = grpc.unary_stream_rpc_method_handler if rpc.server_streaming else grpc.unary_unary_rpc_method_handler
        return make(
            answers if rpc.server_streaming else answer,
            request_deserializer=GetMessageClass(rpc.input_type).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _abort(self, context: grpc.ServicerContext, fault: Fault) -> None:
        if fault.reason:
            context.set_trailing_metadata((("grpc-status-details-bin", fault.details()),))
        context.abort(fault.code, fault.message)

    def _answer(self, service: str, name: str, request: Any, context: grpc.ServicerContext) -> Any:
        reply = GetMessageClass(method(service, name).output_type)()
        if name in ("Create", "Update"):
            reply.CopyFrom(request.resource)
            reply.id = reply.id or f"0192f0c4-7a3e-7c1d-8f2a-{len(self.calls):012x}"
            reply.revision = 40 + len(self.calls)
            self.objects[service] = [kept for kept in self.objects[service] if kept.id != reply.id] + [reply]
        elif name == "Get":
            found = [item for item in self.objects[service] if item.id == request.id]
            if not found:
                kind = service.removesuffix("s")
                self._abort(
                    context,
                    Fault(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND", f"{kind} {request.id} does not exist"),
                )
            reply = found[0]
        elif name == "List":
            start, size = int(request.page_token or 0), min(request.page_size or 100, self.page)
            matching = [item for item in self.objects[service] if _matches(item, request.filter)]
            reply.items.extend(matching[start : start + size])
            reply.revision = getattr(request, "at_revision", 0) or 90
            reply.next_page_token = str(start + size) if start + size < len(matching) else ""
        elif "revision" in reply.DESCRIPTOR.fields_by_name:
            reply.revision = getattr(request, "revision", 0) or 90 + len(self.calls)
        return reply


def _matches(item: Any, filter: str) -> bool:
    wanted = re.fullmatch(r'name = "(.*)"', filter)
    if wanted is None:
        return True
    name = re.sub(r"\\(.)", r"\1", wanted[1])
    return item.name.startswith(name[:-1]) if name.endswith("*") else bool(item.name == name)


@dataclass(frozen=True)
class Certificate:
    """PEM files of a server's certificate, which vouches for itself."""

    certificate: Path
    key: Path


def make_certificate(directory: Path, name: str) -> Certificate:
    made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", str(made.key), "-out", str(made.certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return made


@dataclass(frozen=True)
class Serving:
    """A fake API that listens."""

    api: FakeApi
    endpoint: str
    certificate: Certificate


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    directory = tmp_path_factory.mktemp("api")
    certificate = make_certificate(directory, SERVER_NAME)
    endpoint = f"unix:{directory}/api.sock"
    api = FakeApi()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[api])
    pair = (certificate.key.read_bytes(), certificate.certificate.read_bytes())
    server.add_secure_port(endpoint, grpc.ssl_server_credentials([pair]))
    server.start()
    yield Serving(api, endpoint, certificate)
    server.stop(grace=None).wait()


@pytest.fixture
def api(serving: Serving) -> FakeApi:
    """The fake, empty."""
    serving.api.clear()
    return serving.api


@dataclass(frozen=True)
class Result:
    """What a command line came to."""

    code: int
    out: str
    err: str


Kumi = Callable[..., Result]


@pytest.fixture
def config(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profiles file for the fake, named by $KUMI_CONFIG; no pauses between attempts."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    path = tmp_path / "client.toml"
    path.write_text(
        f'current = "admin"\n[profiles.admin]\nendpoint = "{serving.endpoint}"\nserver_name = "{SERVER_NAME}"\n'
        f'ca = "{serving.certificate.certificate}"\ntoken_file = "token"\n'
    )
    for name in ("KUMI_PROFILE", "KUMI_PROJECT", "KUMI_TRACE_FILE", "KUMI_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUMI_CONFIG", str(path))
    monkeypatch.setattr(client, "RETRY_SECONDS", (0.0, 0.0))
    return path


@pytest.fixture
def kumi(config: Path, capsys: pytest.CaptureFixture[str]) -> Kumi:
    """Runs a command line in this process."""

    def command(*arguments: str) -> Result:
        capsys.readouterr()
        code = run(arguments, Trace.begin())
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return command
