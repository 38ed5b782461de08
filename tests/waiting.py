"""The one way in which tests wait for what gives no event: ask until it is so, and fail at a deadline."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
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
