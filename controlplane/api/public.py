"""What is answered without a token: health and reflection. Small requests only, since anybody may send them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from controlplane.api.body import parse
from controlplane.api.dispatch import abort
from controlplane.errors import ApiError

LARGEST = 4096  # bytes


def handlers(services: Sequence[str]) -> list[grpc.GenericRpcHandler]:
    """A gRPC handler of each. services: the names that reflection tells beside these two."""
    checks: Any = health.aio.HealthServicer()
    names = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
    mirror: Any = reflection.aio.ReflectionServicer(names)

    async def check(body: bytes, servicer: Any) -> Any:
        return await checks.Check(await _read(health_pb2.HealthCheckRequest, body, servicer), servicer)

    async def watch(body: bytes, servicer: Any) -> None:
        await checks.Watch(await _read(health_pb2.HealthCheckRequest, body, servicer), servicer)

    async def info(bodies: AsyncIterator[bytes], servicer: Any) -> AsyncIterator[Any]:
        async def requests() -> AsyncIterator[Any]:
            async for body in bodies:
                yield await _read(reflection_pb2.ServerReflectionRequest, body, servicer)

        async for reply in mirror.ServerReflectionInfo(requests(), servicer):
            yield reply

    health_reply = health_pb2.HealthCheckResponse.SerializeToString
    of_health: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Check": grpc.unary_unary_rpc_method_handler(check, response_serializer=health_reply),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, response_serializer=health_reply),
    }
    of_reflection: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            info, response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString
        )
    }
    return [
        grpc.method_handlers_generic_handler(health.SERVICE_NAME, of_health),
        grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, of_reflection),
    ]


async def _read(message: type[Any], body: bytes, servicer: Any) -> Any:
    try:
        return parse(message, body, LARGEST)
    except ApiError as error:
        await abort(servicer, error)
