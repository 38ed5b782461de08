"""What 32 clients are told while API replicas and etcd members are killed has one explanation, and the books balance."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.chaos.cluster import Cluster, Nemesis
from tests.chaos.workload import Workload
from tests.component.cloud import faults
from tests.seeds import FULL, seed

CLIENTS = 32
STEPS = 10_000 if FULL else 1_200
ROUND = 200  # steps after which it is seen whether there were enough deeds
DEEDS = 4  # at least
PAUSE = 80  # steps between two deeds, at most


@pytest.mark.timeout(3000)
async def test_c_09_c_13_a_history_with_kills_is_linearizable_and_leaves_no_leak() -> None:
    number = seed()
    async with Cluster() as cluster:
        load = Workload(cluster.clients, number)
        await load.prepare()
        nemesis = Nemesis(cluster, number, lambda: load.done, PAUSE)
        async with asyncio.TaskGroup() as group:
            deaths = group.create_task(nemesis.run())
            await load.run(CLIENTS, STEPS)
            while len(nemesis.deeds) < DEEDS:
                await load.run(CLIENTS, ROUND)
            deaths.cancel()
        await cluster.whole()
        await load.look()
        entries = await cluster.everything()
    told = Counter((item.verb, item.refusal or ("unknown" if item.end is None else "done")) for item in load.history.operations)
    print(f"{dict(told)}, {len(load.history.looks)} lists; {nemesis.deeds}")
    found = [*load.history.faults(), *load.account(entries), *faults(entries)]
    assert not found, f"KUMI_SEED={number}: {nemesis.deeds}\n" + "\n".join(found)
    # The history is one that says something.
    assert min(told[verb, "done"] for verb in ("create", "update", "delete", "read")) > STEPS / 50
    assert min(told["create", "ID_TAKEN"], told["update", "ETAG_MISMATCH"], told["delete", "RESOURCE_NOT_FOUND"]) > 0
