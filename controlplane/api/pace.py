"""Long walks give way: between the objects of one large request the others are served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

TURN = 0.002  # seconds that a walk may hold the loop


async def paced(items: Iterable[T]) -> AsyncIterator[T]:
    """The items; after each turn others run, so what the walk must see unchanged has to be taken before."""
    began = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - began > TURN:
            await asyncio.sleep(0)
            began = time.perf_counter()
