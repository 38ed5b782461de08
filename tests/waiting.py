"""The one way in which tests wait for what gives no event: ask until it is so, and fail at a deadline.

And the one way in which something of ours runs meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

DEADLINE = 20.0
"""Seconds for what usually takes less than one."""
PAUSE = 0.005  # seconds between two looks


async def until(condition: Callable[[], Any], what: str = "", timeout: float = DEADLINE) -> Any:
    """Ask until the answer is true, and return it; AssertionError naming `what` at the deadline. It may be awaitable."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what or inspect.getsource(condition).strip()}: not so after {timeout:g} s"
        await asyncio.sleep(PAUSE)


@contextlib.asynccontextmanager
async def running(*works: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
    """Tasks that run meanwhile: each has begun, and has ended afterwards. What one of them raises is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await until(lambda: all(inspect.getcoroutinestate(work) != inspect.CORO_CREATED for work in works), "all have begun")
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
