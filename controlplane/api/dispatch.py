"""What every call goes through: token → caller, policy, body, trace, method; and the one place where errors become status."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, NoReturn

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from controlplane.errors import ApiError, Code, StoreUnavailable, unavailable
from controlplane.identity import Caller, authorize
from controlplane.services.base import Context
from controlplane.services.defaults import Installation
from controlplane.store.commit import Hints
from controlplane.store.txn import Origin
from controlplane.tokens import Tokens

DOMAIN = "kumihimo"
RETRY_DELAY_MS = 500
READMIT = 1.0  # seconds between two looks at the token of a stream
# An error travels in the trailing headers, of which gRPC takes 8 KiB: what does not fit would lose code and reason too.
LONGEST_TEXT = 1000  # bytes of a message or of a value
LARGEST_STATUS = 4800  # bytes, which base64 makes 6400

Handler = Callable[[Any, Context, Origin], Awaitable[Any]]
Method = Callable[[bytes, Any], Awaitable[Any]]
Parse = Callable[[bytes], Any]
StreamHandler = Callable[[Any, Context, Origin], AsyncGenerator[Any, None]]
StreamMethod = Callable[[bytes, Any], Awaitable[None]]

_log = structlog.get_logger("kumihimo.api")
_trace_context = TraceContextTextMapPropagator()


class Dispatch:
    """Wraps handlers into gRPC methods."""

    def __init__(self, tokens: Tokens, installation: Installation, hints: Hints) -> None:
        self._tokens = tokens
        self._installation = installation
        self._hints = hints
        self._tracer = trace.get_tracer("kumihimo.api")

    def method(self, full_name: str, kind: str, verb: str, handler: Handler, parse: Parse) -> Method:
        """The gRPC method of a handler. full_name: for example kumihimo.v1.Ports/Create. parse: a body → the request."""

        async def call(body: bytes, servicer: Any) -> Any:
            started = time.perf_counter()
            request = None
            with self._span(full_name, servicer) as metadata:
                try:
                    caller = await self._admit(kind, verb, metadata)
                    request = parse(body)
                    context, origin = self._known(caller, full_name, request, metadata)
                    reply = await handler(request, context, origin)
                except Exception as error:
                    await _refuse(servicer, full_name, request, error)
            _done(full_name, origin, getattr(reply, "revision", 0), started)
            return reply

        return call

    def stream(self, full_name: str, kind: str, verb: str, handler: StreamHandler, parse: Parse) -> StreamMethod:
        """The same for a handler that yields its reply in parts.

        No generator, which would end when the collector finds it: a client that goes ends this at once.
        """

        async def call(body: bytes, servicer: Any) -> None:
            started = time.perf_counter()
            request = None
            with self._span(full_name, servicer) as metadata:
                try:
                    caller = await self._admit(kind, verb, metadata)
                    request = parse(body)
                    context, origin = self._known(caller, full_name, request, metadata)
                    admitted = time.monotonic()
                    async with contextlib.aclosing(handler(request, context, origin)) as parts:
                        async for part in parts:
                            # A stream does not outlive what admitted its caller.
                            if time.monotonic() - admitted > READMIT:
                                await self._admit(kind, verb, metadata)
                                admitted = time.monotonic()
                            await servicer.write(part)
                except Exception as error:
                    await _refuse(servicer, full_name, request, error)
            _done(full_name, origin, 0, started)

        return call

    @contextlib.contextmanager
    def _span(self, full_name: str, servicer: Any) -> Iterator[dict[str, str]]:
        """The span of a call, in the caller's trace; the call's metadata."""
        metadata = {key: value for key, value in servicer.invocation_metadata() if isinstance(value, str)}
        parent = _trace_context.extract(metadata) if "traceparent" in metadata else None
        with self._tracer.start_as_current_span(full_name, context=parent, kind=SpanKind.SERVER):
            yield metadata

    async def _admit(self, kind: str, verb: str, metadata: dict[str, str]) -> Caller:
        """Who calls, if he may. Raises UNAUTHENTICATED, ROLE_REQUIRED."""
        caller = await self._tokens.authenticate(metadata.get("authorization"))
        authorize(caller, kind, verb)
        return caller

    def _known(self, caller: Caller, full_name: str, request: Any, metadata: dict[str, str]) -> tuple[Context, Origin]:
        outgoing: dict[str, str] = {}
        if "traceparent" in metadata or trace.get_current_span().is_recording():
            # What could not be read as a trace goes no further.
            _trace_context.inject(outgoing)
        return (
            Context(caller, self._installation, self._installation.now(), self._hints),
            Origin(
                actor=caller.identity,
                project_id=caller.project,
                method=full_name,
                request_id=getattr(request, "request_id", ""),
                trace_context=outgoing.get("traceparent", ""),
            ),
        )


async def _refuse(servicer: Any, full_name: str, request: Any, error: Exception) -> NoReturn:
    """The one place where errors become status."""
    log = _log.bind(method=full_name, request_id=_cut(getattr(request, "request_id", "")) or None)
    if isinstance(error, StoreUnavailable):
        log.warning("store unavailable", detail=str(error))
        error = unavailable(error)
    elif isinstance(error, ApiError):
        log.info("refused", reason=error.reason, detail=_cut(error.message))
    else:
        # The top of a call: a defect of ours must not show its inside to the client, and must be in the log.
        log.error("defect", exc_info=error)
        error = ApiError(Code.INTERNAL, "DEFECT", f"a defect in {full_name}; the server's log has the rest")
    await abort(servicer, error)


def _done(full_name: str, origin: Origin, revision: int, started: float) -> None:
    _log.info(
        "done",
        method=full_name,
        actor=origin.actor,
        request_id=_cut(origin.request_id) or None,
        revision=revision,
        ms=round((time.perf_counter() - started) * 1e3, 2),
    )


async def abort(servicer: Any, error: ApiError) -> NoReturn:
    """End a call with google.rpc.Status in the trailing metadata, as the rich error model wants it (AIP-193)."""
    message = _cut(error.message)
    status = status_pb2.Status(code=error.code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        if info.ByteSize() < LONGEST_TEXT:
            info.metadata[key] = _cut(value)
    status.details.append(_packed(info))
    if "kind" in error.metadata:
        resource = error_details_pb2.ResourceInfo(
            resource_type=error.metadata["kind"], resource_name=_cut(error.metadata.get("id", "")), description=error.reason
        )
        status.details.append(_packed(resource))
    if error.code is Code.FAILED_PRECONDITION:
        failure = error_details_pb2.PreconditionFailure()
        failure.violations.add(type=error.reason, description=message)
        status.details.append(_packed(failure))
    if "quota" in error.metadata:
        exceeded = error_details_pb2.QuotaFailure()
        exceeded.violations.add(subject=_cut(error.metadata["quota"]), description=message)
        status.details.append(_packed(exceeded))
    if status.code == code_pb2.UNAVAILABLE:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(RETRY_DELAY_MS)
        status.details.append(_packed(retry))
    if error.violations:
        status.details.append(_packed(_violations(error, LARGEST_STATUS - status.ByteSize())))
    await servicer.abort(error.code, message, (("grpc-status-details-bin", status.SerializeToString()),))
    raise AssertionError("abort returns by raising")


def _violations(error: ApiError, room: int) -> error_details_pb2.BadRequest:
    """As many as there is room for, in bytes; at least the first."""
    bad = error_details_pb2.BadRequest()
    for violation in error.violations:
        bad.field_violations.add(field=_cut(violation.field), description=_cut(violation.message), reason=violation.reason)
        if len(bad.field_violations) > 1 and bad.ByteSize() > room:
            del bad.field_violations[-1]
            break
    return bad


def _cut(text: str) -> str:
    """A text of at most LONGEST_TEXT bytes as a header carries it: what is not ASCII takes three bytes for each."""
    taken = 0
    for number, character in enumerate(text):
        taken += 1 if character.isascii() else 3 * len(character.encode())
        if taken > LONGEST_TEXT:
            return text[:number] + "…"
    return text


def _packed(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
