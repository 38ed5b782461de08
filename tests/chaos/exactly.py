"""Limits that hold to the last one: many clients at once, on several replicas, ask for more than there is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from tests.component.cloud import Client, Refused

Create = Callable[[Client, int], Awaitable[Any]]
"""Asks a replica for one more; the number differs from call to call."""


async def crowd(clients: Sequence[Client], create: Create, calls: int, at_once: int) -> tuple[list[Any], list[Refused]]:
    """(replies, refusals) of that many calls, `at_once` of them at a time, over all replicas in turn."""
    numbers = iter(range(calls))
    made: list[Any] = []
    refused: list[Refused] = []

    async def one(client: Client) -> None:
        for number in numbers:
            try:
                made.append(await create(client, number))
            except Refused as error:
                refused.append(error)

    async with asyncio.TaskGroup() as group:
        for turn in range(at_once):
            group.create_task(one(clients[turn % len(clients)]))
    return made, refused


async def exactly(
    left: int, clients: Sequence[Client], create: Create, *, reason: str, more: int = 1, at_once: int = 64
) -> list[Any]:
    """Ask for `more` than are left: that many are refused for lack of them, all others are made."""
    made, refused = await crowd(clients, create, left + more, at_once)
    told = Counter((error.code, error.reason) for error in refused)
    assert told == Counter({(grpc.StatusCode.RESOURCE_EXHAUSTED, reason): more}), told
    assert len(made) == left
    return made
