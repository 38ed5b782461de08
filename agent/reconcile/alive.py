"""The node's one leased key: kept while the agent runs and ovs-vswitchd answers.

Only the control plane looks at it (who is waited for, who may be forgotten). Nothing in the data plane depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import structlog

from agent.drivers import unixctl
from controlplane.errors import StoreUnavailable
from controlplane.store import client, keys
from controlplane.store.client import Store

TTL = 10  # seconds until a silent node counts as dead
RENEW = 3.0
RETRY = 0.5
ANSWER = 2.0

_log = structlog.get_logger("kumihimo.agent")


async def run(store: Store, node_id: str, rundir: Path) -> None:
    """Hold `alive/{node}` until cancelled; then give it back."""
    lease, cluster = 0, 0
    try:
        while True:
            pause = RENEW
            try:
                await _switch_answers(rundir)
                # A restored etcd may know the lease and yet not the key.
                if lease and (not await store.keep_alive(lease) or store.cluster != cluster):
                    lease = 0
                if not lease:
                    lease = await store.grant(TTL)
                    await store.transact([], [client.put(keys.alive(node_id), b"", lease=lease)])
                    cluster = store.cluster
                    _log.info("alive", lease=format(lease, "x"))
            except StoreUnavailable as error:
                pause = max(RETRY, error.pause)
            except (ConnectionError, OSError, TimeoutError) as error:
                _log.warning("ovs-vswitchd does not answer", detail=str(error) or "timeout")
                pause = RETRY
            await asyncio.sleep(pause)
    finally:
        if lease:
            with contextlib.suppress(StoreUnavailable, asyncio.CancelledError):
                await store.revoke(lease)


async def _switch_answers(rundir: Path) -> None:
    async with unixctl.connect(rundir, timeout=ANSWER) as control:
        await control.call("version")
