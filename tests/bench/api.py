"""The API with etcd, server and client on one machine; request id, history, quota, claims, token and TLS all on.

Baselines: guarded transactions and reads straight to the same etcd, in turns with ours.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from controlplane.registry import KINDS
from controlplane.services.membership import sends_from
from controlplane.store import client, keys
from controlplane.store.txn import time_ordered_id
from kumihimo.v1 import operations_pb2, resource_pb2, security_pb2, store_pb2
from tests.bench.figures import Figure
from tests.bench.idle import wait_idle
from tests.component.cloud import Client, Cloud
from tests.waiting import until

ROUNDS = 20
ALONE = 20
FLIGHT = 32
EACH = 16
APPLIED = 500
REPLACED = 1000
MANY = 100_000
PAGE = 1000
TENANTS = 100
WATCHES = 10  # of each tenant
CHANGES = 200  # a second
SECONDS = 10

_numbers = itertools.count(1)
Call = Callable[[], Awaitable[object]]


async def measure() -> list[Figure]:
    """All figures of this module."""
    return [*await _idle(), *await _writes(), *await _lists(), *await _watches()]


async def _writes() -> list[Figure]:
    async with Cloud() as cloud:
        await cloud.settled()
        network = await cloud.api.create("Network", name="bench")
        await cloud.api.create("Subnet", network_id=network.id, cidr="10.0.0.0/8")

        async def port() -> object:
            return await cloud.api.create("Port", network_id=network.id, request={"request_id": f"r{next(_numbers)}"})

        async def raw() -> object:
            return await _transact(cloud, 1)

        second = await cloud.replica()

        async def port_over_two() -> object:
            number = next(_numbers)
            api = (cloud.api, second)[number % 2]
            return await api.create("Port", network_id=network.id, request={"request_id": f"r{number}"})

        one = await port()

        async def get() -> object:
            return await cloud.api.get("Port", one.id)  # type: ignore[attr-defined]

        async def apply() -> object:
            return await _apply(cloud.api, network.id)

        async def raw_apply() -> object:
            return await _transact(cloud, APPLIED * 7)

        async def topology() -> None:
            for _ in range(100):
                made = await cloud.api.create("Network")
                await cloud.api.create("Subnet", network_id=made.id, cidr="10.0.0.0/24")
                await cloud.api.create("Port", network_id=made.id)

        async def hundreds() -> None:
            async def each() -> None:
                made = await cloud.api.create("Network")
                await cloud.api.create("Subnet", network_id=made.id, cidr="10.0.0.0/24")
                await cloud.api.create("Port", network_id=made.id)

            await asyncio.gather(*(each() for _ in range(100)))

        async def raw_300() -> None:
            for _ in range(300):
                await raw()

        group = (await cloud.api.create("SecurityGroup", name="bench")).id

        async def replace() -> object:
            return await _replace(cloud.api, group)

        async def raw_replace() -> object:
            return await _transact(cloud, REPLACED * 7)

        alone = await _turns(lambda: _each_ms(port, ALONE), lambda: _each_ms(raw, ALONE))
        flight = await _turns(lambda: _rate(port), lambda: _rate(raw))
        over_two = await _turns(lambda: _rate(port_over_two), lambda: _rate(raw))
        gets = await _turns(lambda: _each_ms(get, ALONE), lambda: _each_ms(cloud.store.revision, ALONE))
        applies = await _turns(lambda: _each_ms(apply, 1), lambda: _each_ms(raw_apply, 1), 10)
        rates = [[APPLIED / ms * 1000 for ms in samples] for samples in applies]
        ones = await _turns(lambda: _each_ms(topology, 1), lambda: _each_ms(raw_300, 1), 5)
        together = await _turns(lambda: _each_ms(hundreds, 1), lambda: _each_ms(raw_300, 1), 5)
        replaced = await _turns(lambda: _each_ms(replace, 1), lambda: _each_ms(raw_replace, 1), 10)
        etcd = "etcd transaction"
        beside = f"etcd transaction of {REPLACED * 7} keys"
        return [
            Figure("create port, alone", "ms", *alone, etcd, "≤ 3 ms"),
            Figure(f"create port, {FLIGHT} in flight, one replica", "/s", *flight, etcd, "≥ 1,000 /s"),
            Figure(f"create port, {FLIGHT} in flight, two replicas", "/s", *over_two, etcd, "≥ 1,000 /s"),
            Figure("get port, alone", "ms", *gets, "etcd read", "≤ 1.5 ms"),
            Figure(f"apply of {APPLIED} ports", "/s", *rates, f"etcd transaction of {APPLIED * 7} keys", "≥ 3,000 /s"),
            Figure(f"{REPLACED} rules of a group replaced by others", "ms", *replaced, beside, "≤ 1,000 ms"),
            Figure("100 × (network, subnet, port), one by one", "ms", *ones, "300 etcd transactions", ""),
            Figure("the same, 100 in flight", "ms", *together, "300 etcd transactions", "≤ 1,000 ms"),
        ]


async def _transact(cloud: Cloud, count: int) -> object:
    names = [f"/bench/{next(_numbers)}" for _ in range(count)]
    return await cloud.store.transact(
        [client.created_at(name, 0) for name in names], [client.put(name, bytes(500 if count == 1 else 150)) for name in names]
    )


async def _apply(api: Client, network_id: str) -> object:
    request = operations_pb2.ApplyRequest(request_id=f"r{next(_numbers)}")
    for _ in range(APPLIED):
        request.objects.add().resource.Pack(KINDS["Port"].message(name=f"p{next(_numbers)}", network_id=network_id))
    return await api.call("Operations", "Apply", request)


async def _replace(api: Client, group: str) -> object:
    """Rules that no one has seen before take the place of as many."""
    request = security_pb2.ReplaceSecurityGroupRulesRequest(id=group, request_id=f"r{next(_numbers)}")
    network = f"10.{next(_numbers) & 255}.0.0/16"
    for port in range(1, REPLACED + 1):
        rule = request.rules.add(direction=security_pb2.DIRECTION_INGRESS, protocol="tcp", remote_ip_prefix=network)
        rule.port_range_min = rule.port_range_max = port
    return await api.call("SecurityGroups", "ReplaceRules", request)


async def _lists() -> list[Figure]:
    """A page of 1,000 as an operator and as a tenant, with 1,000 ports stored and with 100,000."""
    async with Cloud() as cloud:
        few = await _stored(cloud, "demo", PAGE)

        async def listed() -> object:
            return await cloud.api.list("Port", page_size=PAGE)

        async def mine() -> object:
            return await cloud.api.list("Port", by="alice", page_size=PAGE, filter=f'network_id = "{few}"')

        before = [await _each_ms(listed, 1) for _ in range(ROUNDS)]
        mine_before = [await _each_ms(mine, 1) for _ in range(ROUNDS)]
        await _stored(cloud, "other", MANY - PAGE)
        # Its controllers look at each port that was stored past them.
        await asyncio.to_thread(wait_idle, [cloud.replicas[0].pid])
        after = [await _each_ms(listed, 1) for _ in range(ROUNDS)]
        mine_after = [await _each_ms(mine, 1) for _ in range(ROUNDS)]
    beside = f"the same of {PAGE:,}"
    return [
        Figure(f"list {PAGE:,} of {MANY:,} ports", "ms", after, before, beside, "≤ 50 ms, flat"),
        Figure("a tenant lists his 1,000 of them, with a filter", "ms", mine_after, mine_before, beside, ""),
    ]


async def _stored(cloud: Cloud, project: str, count: int) -> str:
    """Ports of one network, put straight into the store; the network's id."""
    network = await cloud.api.create("Network", project_id=project)
    subnet = await cloud.api.create("Subnet", network_id=network.id, cidr="10.0.0.0/8")
    one = await cloud.api.create("Port", network_id=network.id)
    entry = await cloud.store.get(keys.ports(network.id) + one.id)
    assert entry is not None
    stored = KINDS["Port"].new(entry.value)
    index = store_pb2.Index(parent_id=network.id, project_id=project).SerializeToString()
    for first in range(0, count - 1, 1000):
        operations = []
        for number in range(first, min(first + 1000, count - 1)):
            stored.id, stored.name = time_ordered_id(), f"p{number}"
            stored.fixed_ips[0].ip_address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            operations.append(client.put(keys.ports(network.id) + stored.id, stored.SerializeToString()))
            operations.append(client.put(keys.index("Port", stored.id), index))
            member = store_pb2.Member(addresses=sends_from(stored)).SerializeToString()
            operations += [client.put(keys.members(group) + stored.id, member) for group in stored.security_group_ids]
        await cloud.store.transact([], operations)
    assert subnet.id
    return str(network.id)


async def _watches() -> list[Figure]:
    """Seconds from the request of a change to each watcher's event, over two replicas."""
    names = {f"tenant{number}": (f"project{number}", "member") for number in range(TENANTS)}
    async with Cloud(identities=names) as cloud:
        replicas = [cloud.api, await cloud.replica()]
        networks = [(await cloud.api.create("Network", by=name)).id for name in names]
        late: list[float] = []
        heard = 0
        ready = asyncio.Event()
        waiting = TENANTS * WATCHES

        async def listen(api: Client, name: str) -> None:
            nonlocal heard, waiting
            invoke = api.channel.unary_stream(
                "/kumihimo.v1.Networks/Watch",
                request_serializer=resource_pb2.WatchRequest.SerializeToString,
                response_deserializer=KINDS["Network"].reply("Watch").FromString,
            )
            metadata = (("authorization", f"Bearer {name}-token"),)
            async for event in invoke(resource_pb2.WatchRequest(include_initial=True), metadata=metadata):
                if event.type == resource_pb2.EVENT_TYPE_BOOKMARK:
                    waiting -= 1
                    if not waiting:
                        ready.set()
                elif event.type == resource_pb2.EVENT_TYPE_UPDATED:
                    heard += 1
                    late.append((time.perf_counter_ns() - int(event.resource.description)) / 1e6)

        watchers = [asyncio.create_task(listen(replicas[turn % 2], name)) for turn, name in enumerate(list(names) * WATCHES)]
        async with asyncio.timeout(120):
            await ready.wait()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:

            def change(number: int) -> None:
                text = str(time.perf_counter_ns())
                group.create_task(replicas[number % 2].update("Network", networks[number % TENANTS], description=text))
                if number + 1 == CHANGES * SECONDS:
                    begun.set()

            loop, begun = asyncio.get_running_loop(), asyncio.Event()
            for number in range(CHANGES * SECONDS):
                loop.call_later(number / CHANGES, change, number)
            await begun.wait()
        took = time.perf_counter() - began
        await until(lambda: heard >= CHANGES * SECONDS * WATCHES, "all is heard", 60)
        for watcher in watchers:
            watcher.cancel()
    late.sort()
    p99 = late[int(len(late) * 0.99)]
    what = (
        f"{TENANTS * WATCHES:,} watchers, {CHANGES * SECONDS / took:.0f} changes/s, each to {WATCHES} of them: change to event"
    )
    return [
        Figure(f"{what}, p99", "ms", [p99], [], "–", "≤ 1,000 ms"),
        Figure(f"{what}, median", "ms", [late[len(late) // 2]], [], "–", ""),
    ]


async def _idle() -> list[Figure]:
    """Memory of the API and of etcd when nothing is asked of them (proportional set size)."""
    async with Cloud() as cloud:
        await cloud.settled()
        api = _pss(cloud.replicas[0].pid)
        etcd = _pss(cloud.etcd.pid)
    return [Figure("memory idle, API and etcd", "MB", [api + etcd], [etcd], "etcd", "≤ 150 MB")]


def _pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


async def _turns(
    ours: Callable[[], Awaitable[float]], baseline: Callable[[], Awaitable[float]], rounds: int = ROUNDS
) -> tuple[list[float], list[float]]:
    """Ours and the baseline by turns, after one round of each to warm up."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
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
