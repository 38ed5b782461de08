"""Where the agent answers: gRPC over mutual TLS, to the API and to operators alone.

Nothing listens without certificates. The address is that of the Node's `management_ip`, else the one from which this host
speaks to etcd; never all of them. The certificate is the node's own, taken up again when it changes. A caller is known by the
common name of its certificate, as in etcd: that of the API, or `root`. The certificates of other nodes open nothing.

`methods` are those of `Agent` in inspect.proto by name; one more is one entry more.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message_factory import GetMessageClass

from controlplane.errors import BadConfig
from controlplane.serving import Certificate
from controlplane.store.access import ROOT
from controlplane.tls import API_USER, Tls, Watched
from kumihimo.v1 import inspect_pb2

PORT = 7444
MAY_ASK = frozenset({API_USER, ROOT})
RECHECK = 1.0  # seconds between two looks at the address, which may change with the host's routes
SECONDS = 10.0  # that one answer may take
GRACE = 0.5
SERVICE = inspect_pb2.DESCRIPTOR.services_by_name["Agent"]
# What a stranger can make us hold: nobody gets further than the handshake without a certificate of our authority.
OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 10),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_allowed_incoming_connections", 100),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.so_reuseport", 0),
]

Method = Callable[[Any], Awaitable[Any]]

_log = structlog.get_logger("kumihimo.agent")


class Service:
    """Answers `methods` at `address()`, an IP address or "" (not known yet). told: (host:port, why it answers not)."""

    def __init__(
        self, tls: Tls, methods: Mapping[str, Method], address: Callable[[], str], told: Callable[[str, str], None]
    ) -> None:
        self._tls = tls
        self._methods = methods
        self._address = address
        self._told = told

    async def run(self) -> None:
        """Serve until cancelled, at whatever address is the right one."""
        async with asyncio.TaskGroup() as group:
            serving: asyncio.Task[None] | None = None
            at = ""
            while True:
                wanted = await asyncio.to_thread(self._address)  # a name may have to be looked up
                if serving is not None and wanted != at:
                    serving.cancel()
                    await asyncio.wait([serving])
                if serving is None or serving.done():
                    serving, at = group.create_task(self._serve(wanted)), wanted
                await asyncio.sleep(RECHECK)

    async def _serve(self, address: str) -> None:
        """Serve there until cancelled; returns when that cannot be done."""
        if not address:
            self._told("", "no management_ip, and no address by which this host reaches etcd")
            return
        target = f"[{address}]:{PORT}" if ip_address(address).version == 6 else f"{address}:{PORT}"
        server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=16)
        server.add_generic_rpc_handlers([self._handlers()])
        try:
            certificate = Certificate(Watched(self._tls), clients=True)
            server.add_secure_port(target, certificate.credentials)
            await server.start()
        except BadConfig as error:
            self._told("", str(error))
            return
        except (RuntimeError, OSError):
            self._told("", f"{target} cannot be listened on; it is taken, or no address of this host")
            return
        _log.info("answers questions", address=target)
        self._told(target, "")
        try:
            await certificate.renew(target)
        finally:
            await server.stop(GRACE)

    def _handlers(self) -> grpc.GenericRpcHandler:
        found = {}
        for method in SERVICE.methods:
            if method.name in self._methods:
                found[method.name] = grpc.unary_unary_rpc_method_handler(
                    _guarded(self._methods[method.name]),
                    request_deserializer=GetMessageClass(method.input_type).FromString,
                    response_serializer=GetMessageClass(method.output_type).SerializeToString,
                )
        return grpc.method_handlers_generic_handler(SERVICE.full_name, found)


def _guarded(method: Method) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        names = [name.decode(errors="replace") for name in context.auth_context().get("x509_common_name", ())]
        if len(names) != 1 or names[0] not in MAY_ASK:
            await _refuse(context, f"{', '.join(names) or 'nobody'} may not ask; {' and '.join(sorted(MAY_ASK))} may")
        try:
            async with asyncio.timeout(SECONDS):
                return await method(request)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"not answered within {SECONDS:g} s")

    return call


async def _refuse(context: Any, message: str) -> NoReturn:
    _log.warning("a question is refused", detail=message)
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, message)
    raise AssertionError("abort returns by raising")


def source_address(endpoints: Sequence[str]) -> str:
    """The address from which this host speaks to the first of these that it has a way to; "" when to none.

    Sends nothing there; blocks where a name must be looked up.
    """
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        try:
            family, kind, *_, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as probe:
                probe.connect(place)
                return str(probe.getsockname()[0])
        except (OSError, ValueError):
            continue  # a unix socket, a name that nobody knows, or no way there
    return ""
