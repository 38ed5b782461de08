"""How a restoration of etcd from a backup is noticed and taken over.

A restored etcd is a new cluster with an id of its own (`kumi restore` sees to that), while `meta/cluster` in it still names the
one that was backed up. Whoever finds them to differ writes the new id and, for as long as a node that lives may be silent, the
leased key `meta/restored`. What that means to Wait is said in controlplane/progress.py.

A restoration that nobody was told of (same id) shows by its revisions only, and is not found.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

import structlog

from controlplane.errors import StoreUnavailable
from controlplane.store import client, keys
from controlplane.store.cache import Cache
from controlplane.store.client import Store
from kumihimo.v1 import store_pb2

GRACE = 10  # seconds; a node that has not renewed its lease for so long is dead (agent/reconcile/alive.py)
RETRY = 0.5

_log = structlog.get_logger("kumihimo.store")


async def take_over(store: Store) -> None:
    """Write down which etcd cluster this is; when it was another one, that the store was restored just now."""
    entry = await store.get(keys.CLUSTER)
    known = store_pb2.StoreCluster.FromString(entry.value) if entry else store_pb2.StoreCluster()
    if known.id == store.cluster:
        return
    now = store_pb2.StoreCluster(id=store.cluster)
    now.since.GetCurrentTime()
    operations = [client.put(keys.CLUSTER, now.SerializeToString())]
    if known.id:
        lease = await store.grant(GRACE)
        operations.append(client.put(keys.RESTORED, known.SerializeToString(), lease=lease))
    guard = client.modified_at(keys.CLUSTER, entry.mod_revision if entry else 0)
    written = await store.transact([guard], operations)
    if written.succeeded and known.id:
        _log.warning("the store was restored from a backup", revision=written.revision)


async def watch(store: Store, cache: Cache) -> NoReturn:
    """Take over every cluster that the cache comes to, until cancelled."""
    taken_over = 0
    while True:
        if cache.cluster == taken_over:
            await cache.moved()
            continue
        cluster = cache.cluster
        try:
            await take_over(store)
        except StoreUnavailable as error:
            _log.warning("not taken over", detail=str(error))
            await asyncio.sleep(RETRY)
        else:
            taken_over = cluster
