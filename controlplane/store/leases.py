"""Leases under what the store forgets by itself: one etcd lease for all that is written in an hour, by replica."""

from __future__ import annotations

import asyncio
import time

from controlplane.store.client import Store


class RollingLease:
    """Gives a lease that lives for another `seconds` less `renew` at least; a new one every `renew` seconds."""

    def __init__(self, store: Store, seconds: int, renew: int) -> None:
        self._store = store
        self._seconds = seconds
        self._renew = renew
        self._lease = 0
        self._cluster = 0
        self._until = 0.0
        self._lock = asyncio.Lock()

    async def current(self) -> int:
        """The lease to put a key under. Raises StoreUnavailable."""
        if self._is_good:
            return self._lease
        async with self._lock:
            if not self._is_good:
                self._lease = await self._store.grant(self._seconds)
                self._cluster = self._store.cluster
                self._until = time.monotonic() + self._renew
            return self._lease

    @property
    def _is_good(self) -> bool:
        # A restored etcd may not know it.
        return bool(self._lease) and self._cluster == self._store.cluster and time.monotonic() < self._until

    def forget(self) -> None:
        """The lease may be gone: take a new one."""
        self._lease = 0
