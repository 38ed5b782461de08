"""Wait: returns when every live node concerned has applied a revision, and never before.

Concerned is a node that has said so (progress.py); what it has applied it says only after Open vSwitch has confirmed it
and its caches have been revalidated (agent/drivers/openflow). Dead nodes are named, never waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from controlplane.api.output import LAGGING_SHOWN, Output
from controlplane.errors import ApiError, Code, StoreUnavailable, fault, unavailable
from controlplane.identity import Caller
from controlplane.progress import Lag, Progress
from controlplane.registry import KINDS, Kind
from controlplane.services import kernel
from controlplane.services.base import Context
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.client import Store
from controlplane.store.txn import Origin
from kumihimo.v1 import operations_pb2, resource_pb2, store_pb2

DEFAULT = 30.0
LONGEST = 600.0
LONGEST_LIST = 500


class Wait:
    """The method `Operations.Wait`."""

    def __init__(self, store: Store, cache: Cache, progress: Progress, output: Output) -> None:
        self._store = store
        self._cache = cache
        self._progress = progress
        self._output = output

    async def wait(self, request: Any, context: Context, origin: Origin) -> Any:
        timeout = request.timeout.ToMilliseconds() / 1000 if request.HasField("timeout") else DEFAULT
        if not 0 <= timeout <= LONGEST:
            raise fault("timeout", "VALUE_OUT_OF_RANGE", f"timeout is {timeout} s; 0 to {LONGEST:.0f} s is accepted")
        if len(request.ids) > LONGEST_LIST:
            raise fault("ids", "TOO_MANY_VALUES", f"ids has {len(request.ids)} entries; at most {LONGEST_LIST} are accepted")
        try:
            revision = await self._cache.sync()
            if request.revision > revision:
                raise _in_future(request.revision, f"the store is at {revision}")
        except StoreUnavailable as error:
            raise unavailable(error) from error
        wanted, cluster = request.revision or revision, self._cache.cluster
        # What a name stands for is fixed now: an object deleted meanwhile is still waited for where it was.
        scopes = await self._scopes(request.ids, context.caller)
        lagging: list[Lag] = []
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if self._cache.cluster != cluster:
                        raise _in_future(wanted, f"the store was restored from a backup and is at {self._cache.revision}")
                    lagging, dead = self._behind(scopes, wanted)
                    lagging += self._inactive(request.ids, context.caller) if request.active else []
                    if not lagging:
                        return self._response(dead, context.caller)
                    await self._cache.moved()
        except TimeoutError:
            raise self._too_slow(lagging, wanted, timeout, context.caller) from None

    async def _scopes(self, ids: Iterable[str], caller: Caller) -> set[str] | None:
        """The scopes whose nodes are waited for; None: all."""
        if not ids:
            return None
        scopes: set[str] = set()
        for object_id in ids:
            found = self._scopes_of(object_id, caller) or await self._scopes_of_gone(object_id, caller)
            if not found:
                # Never there, or another's: waiting for everything covers it, and tells nobody which of the two it is.
                return None
            scopes.update(found)
        return scopes

    def _scopes_of(self, object_id: str, caller: Caller) -> set[str]:
        for kind in KINDS.values():
            key = self._cache.locate(kind, object_id)
            found = self._cache.message(kind, key) if key else None
            if found is not None:
                return _concerned(kind, found, caller)
        return set()

    async def _scopes_of_gone(self, object_id: str, caller: Caller) -> set[str]:
        """Those of an object that was deleted, by its history; empty when that does not know."""
        try:
            newest = await self._store.newest(keys.change(object_id), 1)
        except StoreUnavailable as error:
            raise unavailable(error) from error
        for kv in newest:
            record = store_pb2.ChangeRecord.FromString(kv.value)
            kind = KINDS.get(record.kind)
            if kind is None or record.after:
                continue
            found = _concerned(kind, kind.new(record.before), caller)
            if found and kind.name == "Network":
                # Its ports went with it, and left their groups: these have changed since.
                groups = (scope for scope in self._progress.scopes() if keys.split(scope)[0] == keys.SECURITY)
                found |= {scope for scope in groups if self._progress.revision_of(scope) >= kv.mod_revision}
            return found
        return set()

    def _behind(self, scopes: set[str] | None, revision: int) -> tuple[list[Lag], list[Lag]]:
        lagging: list[Lag] = []
        dead: dict[str, Lag] = {}
        for scope in self._progress.scopes() if scopes is None else scopes:
            late, gone = self._progress.behind(scope, revision)
            lagging.extend(late)
            dead.update((lag.node, lag) for lag in gone)
        return lagging, list(dead.values())

    def _inactive(self, ids: Iterable[str], caller: Caller) -> list[Lag]:
        found: list[Lag] = []
        for object_id in ids:
            key = self._cache.locate(KINDS["Port"], object_id)
            stored = self._cache.message(KINDS["Port"], key) if key else None
            if stored is None or not caller.sees(stored.project_id):
                continue
            port = kernel.copy(stored)
            # The binding is written after the port, and an active port is one that the other nodes can reach.
            bound = self._cache.get(keys.bindings(port.network_id) + port.id)
            if bound is not None:
                found += self._progress.behind(keys.scope(port.network_id), bound.mod_revision)[0]
            self._output.fill(port, caller)
            if port.state != resource_pb2.STATE_ACTIVE:
                last = port.conditions[-1] if port.conditions else resource_pb2.Condition(reason="NOT_YET_APPLIED")
                node = next((place.node for place in port.binding if place.active), "")
                found.append(Lag(node, 0, last.reason, f"port {port.id}: {last.message}"))
        return found

    def _response(self, dead: list[Lag], caller: Caller) -> Any:
        response = operations_pb2.WaitResponse(revision=self._cache.revision)
        if caller.is_operator:
            response.dead.extend(lag.message_of() for lag in dead[:LAGGING_SHOWN])
        return response

    def _too_slow(self, lagging: list[Lag], revision: int, timeout: float, caller: Caller) -> ApiError:
        if caller.is_operator:
            shown = "; ".join(dict.fromkeys(lag.message for lag in lagging[:LAGGING_SHOWN]))
        else:
            shown = ", ".join(sorted({lag.reason for lag in lagging}))
        reasons = {lag.reason for lag in lagging}
        return ApiError(
            Code.DEADLINE_EXCEEDED,
            sorted(reasons)[0] if reasons else "NOT_YET_APPLIED",
            f"revision {revision} is not applied everywhere after {timeout:g} s: {shown}",
            {lag.node: lag.reason for lag in lagging[:LAGGING_SHOWN] if lag.node and caller.is_operator},
        )


def _concerned(kind: Kind, found: Any, caller: Caller) -> set[str]:
    """The scopes that hold an object."""
    if kind.name == "Node":
        return {""} if caller.is_operator else set()
    if not kind.folder or not caller.sees(found.project_id):
        return set()
    # A port is as it shall be when its node has its security groups as well.
    groups = found.security_group_ids if kind.name == "Port" else ()
    return {keys.scope(kind.parent_of(found) or found.id, kind.folder)} | {keys.scope(group, keys.SECURITY) for group in groups}


def _in_future(revision: int, told: str) -> ApiError:
    return ApiError(Code.OUT_OF_RANGE, "REVISION_IN_FUTURE", f"revision {revision} is in the future; {told}")
