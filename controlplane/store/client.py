"""A thin asynchronous etcd v3 client on generated stubs: guarded transactions, pages of one snapshot, leases.

Source: etcd API reference v3.4 (rpc.proto). Watches are in `feed.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as rpc

from controlplane.errors import StoreFull, StoreUnavailable
from controlplane.store import keys

TIMEOUT = 5.0  # seconds for one call; etcd answers in milliseconds or not at all
PAGE = 2000  # keys of one range reply
FULL = (
    "etcd is out of space; reads go on, writes wait until space is made: `etcdctl compact`, `etcdctl defrag` (or start it with"
    " a larger --quota-backend-bytes), then `etcdctl alarm disarm`"
)

_UNAVAILABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.NOT_FOUND,  # a lease that ran out
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored value with the revisions of its making and of its last change."""

    value: bytes
    create_revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Written:
    """Outcome of a transaction. succeeded: the comparisons held and the operations were done, at `revision`."""

    succeeded: bool
    revision: int


def target(endpoints: Sequence[str]) -> str:
    """The gRPC target of a list of `host:port`, or of one `unix:/path`."""
    if len(endpoints) == 1 and endpoints[0].startswith("unix:"):
        return endpoints[0]
    return "ipv4:" + ",".join(endpoints)


class Store:
    """One connection to an etcd cluster. Methods raise StoreUnavailable when it does not answer in time.

    cluster: the id of the cluster that answered last. It changes when etcd was restored from a backup; then revisions, and
    leases, of the former one mean nothing any more.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:
        self.endpoints = ", ".join(endpoints)
        self.cluster = 0
        options = [
            ("grpc.lb_policy_name", "round_robin"),
            ("grpc.max_receive_message_length", -1),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 3_000),
            # A server that comes back is found at once, not after two minutes of back-off.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.default_authority", "etcd"),
        ]
        self._channel = grpc.aio.insecure_channel(target(endpoints), options)
        self.kv = rpc.KVStub(self._channel)
        self.watches = rpc.WatchStub(self._channel)
        self.leases = rpc.LeaseStub(self._channel)
        self.maintenance = rpc.MaintenanceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def call(self, method: Any, request: Any) -> Any:
        """One unary call; transport failures become StoreUnavailable."""
        try:
            reply = await method(request, timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            raise self.failure(error) from error
        self.cluster = reply.header.cluster_id
        return reply

    def failure(self, error: grpc.aio.AioRpcError) -> Exception:
        """What a failed call is to its caller: StoreUnavailable or StoreFull; the error itself when it is a defect of ours."""
        detail = (error.details() or error.code().name).splitlines()[0]
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "database space exceeded" in detail:
            return StoreFull(FULL)
        # A lease that is gone is no defect: a restored etcd does not know the leases granted after its backup.
        if error.code() in _UNAVAILABLE or "requested lease not found" in detail:
            return StoreUnavailable(f"etcd at {self.endpoints}: {detail}")
        return error

    async def transact(self, compare: Iterable[Any], operations: Iterable[Any]) -> Written:
        """All operations if every comparison holds, else none."""
        reply = await self.call(self.kv.Txn, pb.TxnRequest(compare=compare, success=operations))
        return Written(reply.succeeded, reply.header.revision)

    async def revision(self) -> int:
        """The store's revision now, by a linearizable read."""
        request = pb.RangeRequest(key=keys.FORMAT.encode(), keys_only=True)
        reply = await self.call(self.kv.Range, request)
        return int(reply.header.revision)

    async def get(self, key: str, at: int = 0) -> Entry | None:
        """What is at a key, or was at a revision."""
        reply = await self.call(self.kv.Range, pb.RangeRequest(key=key.encode(), revision=at))
        return entry(reply.kvs[0]) if reply.kvs else None

    async def pages(self, prefix: str, limit: int = PAGE, at: int = 0) -> AsyncIterator[tuple[int, Sequence[Any]]]:
        """(revision, key-values) pages of one snapshot of all keys with this prefix; at least one page. at: its revision."""
        key, end, revision, cluster = prefix.encode() or b"\0", keys.end_of(prefix), at, 0
        while True:
            request = pb.RangeRequest(key=key, range_end=end, limit=limit, revision=revision)
            reply = await self.call(self.kv.Range, request)
            revision, cluster = revision or reply.header.revision, cluster or self.cluster
            if cluster != self.cluster:
                raise StoreUnavailable(f"etcd at {self.endpoints}: it was restored from a backup while it was read")
            yield revision, reply.kvs
            if not reply.more:
                return
            key = reply.kvs[-1].key + b"\0"

    async def newest(self, prefix: str, limit: int, until: int = 0, since: int = 0) -> Sequence[Any]:
        """Key-values below a prefix, the last changed first, changed between two revisions; 0: no bound."""
        request = pb.RangeRequest(
            key=prefix.encode(),
            range_end=keys.end_of(prefix),
            limit=limit,
            min_mod_revision=since,
            max_mod_revision=until,
            sort_order=pb.RangeRequest.DESCEND,
            sort_target=pb.RangeRequest.MOD,
        )
        return list((await self.call(self.kv.Range, request)).kvs)

    async def grant(self, ttl: int) -> int:
        """A new lease of `ttl` seconds; its id."""
        return int((await self.call(self.leases.LeaseGrant, pb.LeaseGrantRequest(TTL=ttl))).ID)

    async def revoke(self, lease: int) -> None:
        await self.call(self.leases.LeaseRevoke, pb.LeaseRevokeRequest(ID=lease))

    async def keep_alive(self, lease: int) -> int:
        """Renew a lease once; the seconds it now has, 0 when it is gone."""

        async def one() -> AsyncIterator[Any]:
            yield pb.LeaseKeepAliveRequest(ID=lease)

        try:
            async for reply in self.leases.LeaseKeepAlive(one(), timeout=TIMEOUT):
                self.cluster = reply.header.cluster_id
                return max(0, int(reply.TTL))
        except grpc.aio.AioRpcError as error:
            raise StoreUnavailable(f"etcd at {self.endpoints}: {error.code().name}") from error
        return 0


def entry(kv: Any) -> Entry:
    return Entry(kv.value, kv.create_revision, kv.mod_revision)


def put(key: str, value: bytes, lease: int = 0) -> Any:
    return pb.RequestOp(request_put=pb.PutRequest(key=key.encode(), value=value, lease=lease))


def delete(key: str, prefix: bool = False) -> Any:
    end = keys.end_of(key) if prefix else b""
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key.encode(), range_end=end))


def created_at(key: str, revision: int) -> Any:
    """The key is the same incarnation as seen; 0: there is none."""
    return pb.Compare(key=key.encode(), target=pb.Compare.CREATE, result=pb.Compare.EQUAL, create_revision=revision)


def modified_at(key: str, revision: int) -> Any:
    """The key has not changed since seen; 0: there is none."""
    return pb.Compare(key=key.encode(), target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=revision)


def empty(prefix: str) -> Any:
    """No key has this prefix: a comparison over an empty range sees one key with create revision 0."""
    return pb.Compare(
        key=prefix.encode(),
        range_end=keys.end_of(prefix),
        target=pb.Compare.CREATE,
        result=pb.Compare.EQUAL,
        create_revision=0,
    )


def unchanged_since(prefix: str, revision: int) -> Any:
    """No key with this prefix was added or changed after `revision` (a deletion is not seen)."""
    return pb.Compare(
        key=prefix.encode(),
        range_end=keys.end_of(prefix),
        target=pb.Compare.MOD,
        result=pb.Compare.LESS,
        mod_revision=revision + 1,
    )
