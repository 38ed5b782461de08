"""A thin asynchronous etcd v3 client on generated stubs: guarded transactions, pages of one snapshot, leases.

Source: etcd API reference v3.4 (rpc.proto). Watches are in `feed.py`, users and roles in `access.py`.

Over TLS, when the certificate files change a second connection is made with the new ones; once etcd has accepted it, calls go
there, and the old one is closed when its calls have ended. Each watch stream has a connection of its own: over TLS etcd 3.4
starves the streams of a connection that is busy with reads, and a stream outlives a change of certificates.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as rpc

from controlplane.errors import StoreFull, StoreRefused, StoreUnavailable
from controlplane.store import keys
from controlplane.tls import ETCD_NAME, Tls, Watched, fault

TIMEOUT = 5.0  # seconds for one call; etcd answers in milliseconds or not at all
PAGE = 2000  # keys of one range reply
STALE_ATTEMPTS = 100
STALE_PAUSE = 0.01  # seconds; users of many new nodes change etcd's revision of them for a while

_STALE = ("etcdserver: revision of auth store is old", "auth: revision in header is old")
"""Users or roles changed between etcd's taking a request and its doing it; it has not done it. As 3.4 and 3.5 say it."""
REFUSED = ("permission denied", "user name is empty")
FULL = (
    "etcd is out of space; reads go on, writes wait until space is made: `etcdctl compact`, `etcdctl defrag` (or start it with"
    " a larger --quota-backend-bytes), then `etcdctl alarm disarm`"
)

_NOT_SENT = "Internal error from Core"  # what the library says of a call whose time was over before it could be sent
_UNAVAILABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.NOT_FOUND,  # a lease that ran out
}

_log = structlog.get_logger("kumihimo.store")


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

    def __init__(self, endpoints: Sequence[str], tls: Tls | None = None) -> None:
        """Without `tls` etcd is spoken to in the clear. Raises BadConfig when its files cannot be used."""
        self.endpoints = ", ".join(endpoints)
        self.cluster = 0
        self._endpoints = endpoints
        self._tls = tls
        self._files = Watched(tls) if tls else None
        self._background: set[asyncio.Task[None]] = set()
        self._successor: asyncio.Task[None] | None = None
        self._use(self._connect())

    @property
    def user(self) -> str:
        """The user that etcd takes us for; empty without TLS."""
        return self._files.loaded.user if self._files else ""

    def _use(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.kv = rpc.KVStub(channel)
        self.leases = rpc.LeaseStub(channel)
        self.maintenance = rpc.MaintenanceStub(channel)
        self.auth = rpc.AuthStub(channel)

    def _connect(self) -> grpc.aio.Channel:
        options: list[tuple[str, Any]] = [
            ("grpc.lb_policy_name", "round_robin"),
            ("grpc.max_receive_message_length", -1),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 3_000),
            # A server that comes back is found at once, not after two minutes of back-off.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.default_authority", ETCD_NAME),
            # A connection of its own for each channel.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self._files is None:
            return grpc.aio.insecure_channel(target(self._endpoints), options)
        held = self._files.loaded
        credentials = grpc.ssl_channel_credentials(held.ca, held.key, held.certificate)
        options.append(("grpc.ssl_target_name_override", ETCD_NAME))
        return grpc.aio.secure_channel(target(self._endpoints), credentials, options)

    def stream(self) -> tuple[grpc.aio.Channel, Any]:
        """A connection of its own, to be closed by whoever asked for it, and the watch service on it."""
        channel = self._connect()
        return channel, rpc.WatchStub(channel)

    async def close(self) -> None:
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channel.close()

    async def call(self, method: Any, request: Any) -> Any:
        """One unary call; transport failures become StoreUnavailable, a refusal StoreRefused."""
        self._look()
        turn = 0
        while True:
            turn += 1
            try:
                reply = await method(request, timeout=TIMEOUT)
            except grpc.aio.AioRpcError as error:
                if error.details() in _STALE and turn < STALE_ATTEMPTS:
                    await asyncio.sleep(STALE_PAUSE)
                    continue
                raise self.failure(error) from error
            # Not every answer says it: of alarms etcd 3.4 gives an empty header.
            self.cluster = reply.header.cluster_id or self.cluster
            return reply

    def failure(self, error: grpc.aio.AioRpcError) -> Exception:
        """What a failed call is to its caller; the error itself when it is an answer about the request."""
        detail = (error.details() or error.code().name).splitlines()[0]
        if detail.endswith(REFUSED):
            return StoreRefused(f"etcd at {self.endpoints} refuses user {self.user or '(none)'}: {detail}")
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "database space exceeded" in detail:
            return StoreFull(FULL)
        # A lease that is gone is no defect: a restored etcd does not know the leases granted after its backup.
        given_up = error.code() is grpc.StatusCode.INTERNAL and detail == _NOT_SENT
        if error.code() in _UNAVAILABLE or detail in _STALE or "lease not found" in detail or given_up:
            return StoreUnavailable(f"etcd at {self.endpoints}: {detail}")
        return error

    async def fault(self) -> str:
        """What is wrong with TLS, as a sentence; empty when nothing is, or nobody answers."""
        for endpoint in self._endpoints:
            if found := await fault(endpoint, self._tls):
                return found
        return ""

    def _look(self) -> None:
        """Begin to connect anew when the certificate files have changed."""
        if self._files is None or not self._files.changed():
            return
        if self._successor is not None:
            self._successor.cancel()
        self._successor = self._spawn(self._succeed())

    async def _succeed(self) -> None:
        """Use a new connection once etcd has accepted it; until then, and if it never does, the old one serves."""
        channel, old = self._connect(), self._channel
        try:
            await channel.channel_ready()
        except asyncio.CancelledError:
            await channel.close()
            raise
        self._use(channel)
        self._spawn(self._retire(old))
        _log.info("connected to etcd with new certificates", user=self.user)

    async def _retire(self, channel: grpc.aio.Channel) -> None:
        try:
            await asyncio.sleep(2 * TIMEOUT)  # no call lasts longer
        finally:
            await channel.close()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def transact(self, compare: Iterable[Part], operations: Iterable[Part]) -> Written:
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

        self._look()
        try:
            async for reply in self.leases.LeaseKeepAlive(one(), timeout=TIMEOUT):
                self.cluster = reply.header.cluster_id
                return max(0, int(reply.TTL))
        except grpc.aio.AioRpcError as error:
            raise self.failure(error) from error
        return 0


def entry(kv: Any) -> Entry:
    return Entry(kv.value, kv.create_revision, kv.mod_revision)


# A transaction is made of plain parts at once: put together of messages, each would be copied twice, at four times the cost.
Part = Mapping[str, Any]
_CREATE, _MOD, _EQUAL, _LESS = pb.Compare.CREATE, pb.Compare.MOD, pb.Compare.EQUAL, pb.Compare.LESS


def put(key: str, value: bytes, lease: int = 0) -> Part:
    return {"request_put": {"key": key.encode(), "value": value, "lease": lease}}


def delete(key: str, prefix: bool = False) -> Part:
    return {"request_delete_range": {"key": key.encode(), "range_end": keys.end_of(key) if prefix else b""}}


def created_at(key: str, revision: int) -> Part:
    """The key is the same incarnation as seen; 0: there is none."""
    return {"key": key.encode(), "target": _CREATE, "result": _EQUAL, "create_revision": revision}


def modified_at(key: str, revision: int) -> Part:
    """The key has not changed since seen; 0: there is none."""
    return {"key": key.encode(), "target": _MOD, "result": _EQUAL, "mod_revision": revision}


def empty(prefix: str) -> Part:
    """No key has this prefix: a comparison over an empty range sees one key with create revision 0."""
    return {**created_at(prefix, 0), "range_end": keys.end_of(prefix)}


def unchanged_since(prefix: str, revision: int) -> Part:
    """No key with this prefix was added or changed after `revision` (a deletion is not seen)."""
    end = keys.end_of(prefix)
    return {"key": prefix.encode(), "range_end": end, "target": _MOD, "result": _LESS, "mod_revision": revision + 1}
