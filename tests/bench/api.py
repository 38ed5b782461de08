"""The API with etcd, server and client on one machine; request id, change record, claims, token and TLS all on.

Baseline: guarded transactions of one key of 500 bytes straight to the same etcd, in turns with ours.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

from controlplane.store import client
from tests.bench.figures import Figure
from tests.component.cloud import Cloud

ROUNDS = 20
ALONE = 20
FLIGHT = 32
EACH = 8

_numbers = itertools.count(1)
Call = Callable[[], Awaitable[object]]


async def measure() -> list[Figure]:
    """All figures of this module."""
    async with Cloud() as cloud:
        await cloud.settled()
        network = await cloud.api.create("Network", name="bench")
        await cloud.api.create("Subnet", network_id=network.id, cidr="10.0.0.0/16")

        async def port() -> object:
            return await cloud.api.create("Port", network_id=network.id, request={"request_id": f"r{next(_numbers)}"})

        async def raw() -> object:
            key = f"/bench/{next(_numbers)}"
            return await cloud.store.transact([client.created_at(key, 0)], [client.put(key, bytes(500))])

        one = await port()

        async def get() -> object:
            return await cloud.api.get("Port", one.id)  # type: ignore[attr-defined]

        alone = await _turns(lambda: _each_ms(port, ALONE), lambda: _each_ms(raw, ALONE))
        flight = await _turns(lambda: _rate(port), lambda: _rate(raw))
        gets = await _turns(lambda: _each_ms(get, ALONE), lambda: _each_ms(cloud.store.revision, ALONE))
        etcd = "etcd transaction"
        return [
            Figure("create port, alone", "ms", *alone, etcd, "≤ 3 ms"),
            Figure(f"create port, {FLIGHT} in flight", "/s", *flight, etcd, "≥ 1,000 /s"),
            Figure("get port, alone", "ms", *gets, "etcd read", "≤ 1.5 ms"),
        ]


async def _turns(
    ours: Callable[[], Awaitable[float]], baseline: Callable[[], Awaitable[float]]
) -> tuple[list[float], list[float]]:
    """Ours and the baseline by turns, after one round of each to warm up."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        pair = (await ours(), await baseline())
        if number:
            found[0].append(pair[0])
            found[1].append(pair[1])
    return found


async def _each_ms(call: Call, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        await call()
    return (time.perf_counter() - began) * 1000 / count


async def _rate(call: Call) -> float:
    async def some() -> None:
        for _ in range(EACH):
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(FLIGHT)))
    return FLIGHT * EACH / (time.perf_counter() - began)
