"""What is asked of etcd itself rather than of the keys in it: limits, health, size, alarms, compaction, snapshots.

Source: etcd API reference v3.4 (rpc.proto, service Maintenance).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
from aetcd.rpc import rpc_pb2 as pb

from controlplane.errors import StoreFull
from controlplane.store.client import TIMEOUT, Store

# etcd lets a gRPC message be so much longer than --max-request-bytes before it refuses it unread (grpcOverheadBytes).
ROOM = 512 * 1024
# Seconds in which the next piece of a snapshot must come.
SILENCE = 30.0

_ALARMS = {pb.NOSPACE: "NOSPACE", pb.CORRUPT: "CORRUPT"}


@dataclass(frozen=True, slots=True)
class Member:
    """One server of the cluster as it describes itself. Sizes in bytes; `used` is what a defragmentation would leave."""

    id: int
    version: str
    size: int
    used: int
    leader: int
    term: int
    faults: tuple[str, ...]


async def takes_operations(store: Store, number: int) -> bool:
    """Whether a transaction may have so many operations."""
    nothing = pb.RequestOp(request_range=pb.RangeRequest(key=b"\0", count_only=True))
    return await _takes(store, pb.TxnRequest(success=[nothing] * number))


async def takes_bytes(store: Store, size: int) -> bool:
    """Whether a request may be `size` bytes long.

    Asked with a comparison of that length and nothing to do: it is a read, so neither etcd's log nor its store grows.
    """
    compare = pb.Compare(key=b"\0", target=pb.Compare.VALUE, value=bytes(size + ROOM))
    request = pb.TxnRequest(compare=[compare])
    compare.value = bytes(size + ROOM - (request.ByteSize() - size - ROOM))
    return await _takes(store, pb.TxnRequest(compare=[compare]))


async def _takes(store: Store, request: object) -> bool:
    try:
        # More work for etcd than any other call: seconds, where the machine has much else to do.
        await store.kv.Txn(request, timeout=4 * TIMEOUT)
    except grpc.aio.AioRpcError as error:
        if isinstance(store.failure(error), StoreFull):
            return True  # etcd 3.5 takes no transaction at all then; a write will say so
        if error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT):
            return False
        raise store.failure(error) from error
    return True


async def member(store: Store) -> Member:
    """The member that answers."""
    reply = await store.call(store.maintenance.Status, pb.StatusRequest())
    return Member(
        id=reply.header.member_id,
        version=reply.version,
        size=reply.dbSize,
        used=reply.dbSizeInUse,
        leader=reply.leader,
        term=reply.raftTerm,
        faults=tuple(reply.errors),
    )


async def alarms(store: Store) -> set[str]:
    """Alarms that any member has raised: NOSPACE, CORRUPT."""
    reply = await store.call(store.maintenance.Alarm, pb.AlarmRequest(action=pb.AlarmRequest.GET))
    return {_ALARMS.get(item.alarm, str(item.alarm)) for item in reply.alarms}


async def compact(store: Store, revision: int) -> None:
    """Forget what was before a revision; nothing happens when that has been done."""
    try:
        await store.call(store.kv.Compact, pb.CompactionRequest(revision=revision))
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.OUT_OF_RANGE:
            raise


async def snapshot(store: Store) -> AsyncIterator[tuple[bytes, int]]:
    """(piece, bytes that remain) of the member's database, with its SHA-256 as the last 32 bytes."""
    stream = store.maintenance.Snapshot(pb.SnapshotRequest())
    try:
        while True:
            reply = await stream.read()
            if reply is grpc.aio.EOF:
                return
            yield reply.blob, reply.remaining_bytes
    except grpc.aio.AioRpcError as error:
        raise store.failure(error) from error
    finally:
        stream.cancel()
