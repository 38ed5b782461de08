"""What was at an earlier revision: read from etcd, which remembers as much as the compactor leaves (store/client.py)."""

from __future__ import annotations

from typing import Any

import grpc

from controlplane.errors import ApiError, Code, StoreUnavailable, fault, unavailable
from controlplane.registry import Kind
from controlplane.store import keys
from controlplane.store.cache import parse
from controlplane.store.client import Entry, Store, entry
from kumihimo.v1 import store_pb2


class Past:
    """Reads of one store in the past. Objects come as they were stored, with revision and etag."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, kind: Kind, object_id: str, revision: int) -> Any | None:
        """An object as it was; None when there was none. Raises REVISION_COMPACTED, REVISION_IN_FUTURE."""
        parent_id = ""
        if kind.parent:
            index = await self._read(keys.index(kind.name, object_id), revision)
            if index is None:
                return None
            parent_id = store_pb2.Index.FromString(index.value).parent_id
        key = keys.place(kind, object_id, parent_id)
        if keys.resource(key) != (kind, object_id):
            return None
        found = await self._read(key, revision)
        return parse(kind, found) if found else None

    async def list(self, kind: Kind, revision: int) -> list[Any]:
        """Every object of a kind as it was, by id."""
        prefix = f"{keys.ROOT}{kind.folder}/" if kind.folder else keys.place(kind, "")
        found = {}
        try:
            _refuse_negative(revision)
            async for _, kvs in self._store.pages(prefix, at=revision):
                for kv in kvs:
                    here = keys.resource(kv.key.decode())
                    if here is not None and here[0] is kind:
                        found[here[1]] = parse(kind, entry(kv))
        except StoreUnavailable as error:
            raise unavailable(error) from error
        except grpc.aio.AioRpcError as error:
            raise _out_of_range(error, revision) from error
        return [found[object_id] for object_id in sorted(found)]

    async def _read(self, key: str, revision: int) -> Entry | None:
        try:
            _refuse_negative(revision)
            return await self._store.get(key, revision)
        except StoreUnavailable as error:
            raise unavailable(error) from error
        except grpc.aio.AioRpcError as error:
            raise _out_of_range(error, revision) from error


def _refuse_negative(revision: int) -> None:
    if revision < 0:
        raise fault("at_revision", "VALUE_OUT_OF_RANGE", f"at_revision is {revision}; 0 (now) or a revision is accepted")


def compacted(revision: int) -> ApiError:
    """What was before is no longer known."""
    text = f"revision {revision} is older than what the store remembers; read the present, or list again"
    return ApiError(Code.OUT_OF_RANGE, "REVISION_COMPACTED", text, {"revision": str(revision)})


def in_future(revision: int, current: int) -> ApiError:
    text = (
        f"revision {revision} has not been yet; the store is at {current}"
        if current
        else f"revision {revision} has not been yet"
    )
    return ApiError(Code.OUT_OF_RANGE, "REVISION_IN_FUTURE", text, {"revision": str(revision)})


def _out_of_range(error: grpc.aio.AioRpcError, revision: int) -> Exception:
    if error.code() is not grpc.StatusCode.OUT_OF_RANGE:
        return error
    return compacted(revision) if "compacted" in (error.details() or "") else in_future(revision, 0)
