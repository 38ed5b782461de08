"""The lease under request records: 24 hours of memory, one etcd lease an hour and replica."""

from __future__ import annotations

import asyncio
import time

from controlplane.store.client import Store

MEMORY = 24 * 3600  # seconds a request id is remembered, at least
RENEW = 3600


class RequestLease:
    """Gives a lease that lives for another 24 hours at least."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lease = 0
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def current(self) -> int:
        """The lease to put a request record under. Raises StoreUnavailable."""
        async with self._lock:
            if not self._lease or time.monotonic() > self._until:
                self._lease = await self._store.grant(MEMORY + RENEW)
                self._until = time.monotonic() + RENEW
            return self._lease
