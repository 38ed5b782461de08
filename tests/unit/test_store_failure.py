"""What a failed call to etcd is to its caller: a store that is away, or a defect."""

from __future__ import annotations

import grpc
import pytest

from controlplane.errors import StoreFull, StoreUnavailable
from controlplane.store.client import Store


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("UNAVAILABLE", "failed to connect", StoreUnavailable),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", StoreUnavailable),
        ("INTERNAL", "Internal error from Core", StoreUnavailable),  # seen when the host was too busy to send in time
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", StoreFull),
        ("INTERNAL", "etcdserver: something of its own", grpc.aio.AioRpcError),
        ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", grpc.aio.AioRpcError),
    ],
)
async def test_what_a_failed_call_is(code: str, details: str, kind: type[Exception]) -> None:
    store = Store(["unix:/nowhere"])
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode[code], nothing, nothing, details=details)
    assert type(store.failure(error)) is kind
    await store.close()
