"""Whether etcd is fit to hold the state: checked before the API serves, and watched while it does.

What makes it unfit for good (limits, version, a foreign layout, corruption) ends the start with one line that says what to
change. What passes (no space) does not: reads go on, and every write is told what to do (client.FULL).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import structlog

from controlplane.errors import StoreFull, StoreUnavailable
from controlplane.store import client, keys, maintenance, restored
from controlplane.store.client import FULL, Store
from controlplane.store.maintenance import Member
from kumihimo.v1 import store_pb2

LARGEST_REQUEST = 10 << 20  # bytes; of more etcd itself warns
OPERATIONS = 40_000
OLDEST = (3, 4)
CORRUPT = (
    "its data is corrupt on some member: take that member out (`etcdctl endpoint hashkv` tells which) and add it anew,"
    " or restore a backup with `kumi restore`"
)
NEARLY_FULL = 0.8  # of the quota
PERIOD = 10.0  # seconds between two looks

_log = structlog.get_logger("kumihimo.store")


class Unfit(Exception):
    """The store cannot be used as it is; the message says what to change."""


async def check(store: Store) -> None:
    """Refuse an etcd that cannot be used; mark an empty one as ours. Raises Unfit, StoreUnavailable."""
    at = f"etcd at {store.endpoints}"
    version = (await maintenance.member(store)).version
    if not is_new_enough(version):
        raise Unfit(f"{at} is version {version}; {'.'.join(map(str, OLDEST))} or later is needed")
    if "CORRUPT" in await maintenance.alarms(store):
        raise Unfit(f"{at} says CORRUPT: {CORRUPT}")
    if not await maintenance.takes_operations(store, OPERATIONS):
        raise Unfit(
            f"{at} takes too few operations in a transaction; start it with --max-txn-ops {OPERATIONS}"
            f" and --max-request-bytes {LARGEST_REQUEST}"
        )
    if not await maintenance.takes_bytes(store, LARGEST_REQUEST):
        raise Unfit(f"{at} takes too short requests; start it with --max-request-bytes {LARGEST_REQUEST}")
    await _check_format(store)
    try:
        await restored.take_over(store)
    except StoreFull as error:
        _log.error("writes are refused", detail=str(error))


async def _check_format(store: Store) -> None:
    entry = await store.get(keys.FORMAT)
    if entry is None:
        mark = store_pb2.StoreFormat(version=keys.FORMAT_VERSION).SerializeToString()
        await store.transact([client.created_at(keys.FORMAT, 0)], [client.put(keys.FORMAT, mark)])
        entry = await store.get(keys.FORMAT)
    found = store_pb2.StoreFormat.FromString(entry.value).version if entry else 0
    if found != keys.FORMAT_VERSION:
        raise Unfit(
            f"etcd at {store.endpoints} holds format {found}; this release reads format {keys.FORMAT_VERSION}:"
            " run the release that wrote it, or restore a backup of before"
        )


def is_new_enough(version: str) -> bool:
    """Whether an etcd of this version has all that is used of it."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= OLDEST


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong with etcd, by name, as a sentence, and what to do."""

    name: str
    what: str
    todo: str


def troubles(alarms: set[str], member: Member, quota: int) -> Iterator[Trouble]:
    """What is wrong with a member of this size, in a cluster with these alarms."""
    for alarm in sorted(alarms):
        todo = {"NOSPACE": FULL, "CORRUPT": CORRUPT}.get(alarm, "see `etcdctl alarm list`")
        yield Trouble(alarm, f"etcd has raised the alarm {alarm}", todo)
    if "NOSPACE" not in alarms and member.size > quota * NEARLY_FULL:
        yield Trouble(
            "SIZE",
            f"etcd's database has {member.size >> 20} of {quota >> 20} MiB, {member.used >> 20} of them in use",
            "`etcdctl defrag` gives back what is not in use; a shorter [store] history needs less; else start etcd with a"
            " larger --quota-backend-bytes and say so in [store] quota_bytes",
        )


async def watch(store: Store, quota: int) -> NoReturn:
    """Say in the log when something begins to be wrong with etcd, and when it is over, until cancelled."""
    said: set[str] = set()
    while True:
        # An etcd that is away is the cache's to tell.
        with contextlib.suppress(StoreUnavailable):
            found = {
                trouble.name: trouble
                for trouble in troubles(await maintenance.alarms(store), await maintenance.member(store), quota)
            }
            for name in found.keys() - said:
                _log.error("etcd needs attention", trouble=found[name].what, todo=found[name].todo)
            for name in said - found.keys():
                _log.info("etcd is well again", trouble=name)
            said = set(found)
        await asyncio.sleep(PERIOD)
