"""An etcd of three members and several API replicas, each of which can be killed, frozen and started again.

Owns: how the members find each other (an address of 127/8 each, made from our process id, so that two runs on one host do
not meet), the seeded choice of what dies next (`Nemesis`), and the call that is asked again until it is answered (`Insistent`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from controlplane.errors import StoreUnavailable
from controlplane.store.client import Store
from tests.component.cloud import Api, Client, Cloud, Etcd, Process, Refused, freeze
from tests.waiting import until

MEMBERS = 3
REPLICAS = 3
CALL = 10.0  # seconds one call may take before its client asks elsewhere
PATIENCE = 90.0  # seconds in which a client that insists is answered


class Members(Process):
    """The cluster, where a Cloud has its one etcd. It speaks in the clear."""

    tls = None

    def __init__(self, folder: Path) -> None:
        super().__init__("etcd", [], folder)
        number = os.getpid() % 64516
        self.hosts = [f"127.{10 + member}.{number // 254}.{1 + number % 254}" for member in range(MEMBERS)]
        cluster = ",".join(f"m{member}=http://{host}:2380" for member, host in enumerate(self.hosts))
        self.members = [
            Etcd(
                folder,
                options={
                    "name": f"m{member}",
                    "data-dir": f"m{member}",
                    "listen-client-urls": f"http://{host}:2379",
                    "advertise-client-urls": f"http://{host}:2379",
                    "listen-peer-urls": f"http://{host}:2380",
                    "initial-advertise-peer-urls": f"http://{host}:2380",
                    "initial-cluster": cluster,
                    "initial-cluster-token": str(folder),
                    # Members and clients share two cores: an election for each hiccup would test nothing.
                    "heartbeat-interval": "50",
                    "election-timeout": "500",
                },
            )
            for member, host in enumerate(self.hosts)
        ]
        self.endpoint = ",".join(member.endpoint for member in self.members)

    async def begin(self) -> None:
        for member in self.members:
            member.start()
        for member in self.members:
            await answers(member)

    def kill(self) -> None:
        for member in self.members:
            member.kill()

    async def leader(self, but: Etcd | None = None) -> Etcd:
        """The member that leads, or another than `but` that does so. Raises AssertionError when none does for long."""

        async def led() -> Etcd | None:
            for member in self.members:
                if member.running and member is not but and await _leads(member):
                    return member
            return None

        found: Etcd = await until(led, "a member leads")
        return found


async def answers(member: Etcd) -> None:
    """Wait until a member that was started takes part."""
    store = Store([member.endpoint])

    async def answered() -> bool:
        assert member.running, member.log.read_text()[-2000:]
        try:
            return await store.revision() > 0
        except StoreUnavailable:
            return False

    try:
        await until(answered, "the member answers")
    finally:
        await store.close()


async def _leads(member: Etcd) -> bool:
    from aetcd.rpc import rpc_pb2 as pb

    store = Store([member.endpoint])
    try:
        status = await store.call(store.maintenance.Status, pb.StatusRequest())
        return bool(status.leader == status.header.member_id)
    except StoreUnavailable:
        return False
    finally:
        await store.close()


class Cluster(Cloud):
    """A Cloud on three members, with several replicas; `clients` has one client for each."""

    def __init__(self, replicas: int = REPLICAS) -> None:
        super().__init__()
        self.etcd: Any = Members(self.folder)
        self.members: list[Etcd] = self.etcd.members
        self.clients: list[Client] = []
        self._wanted = replicas

    async def __aenter__(self) -> Cluster:
        await super().__aenter__()
        try:
            await asyncio.gather(*(self.replica() for _ in range(self._wanted - 1)))
            self.clients = [Client(api, CALL) for api in self.replicas]
            for client in self.clients:
                self._exit.push_async_callback(client.channel.close)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def whole(self) -> None:
        """Wait until everything runs and answers, and the store has settled."""
        for process in (*self.members, *self.replicas):
            if not process.running:
                await process.begin()
        for member in self.members:
            await answers(member)

        async def settled() -> bool:
            try:
                await self.settled()
            except StoreUnavailable:
                return False
            return True

        await until(settled, "the store answers")
        for client in self.clients:
            await Insistent([client], random.Random(0)).ask(lambda api: api.list("Network", page_size=1))


# -- clients ----------------------------------------------------------------------------------------------------------


class Unknown(Exception):
    """A client gave up before it was told what came of its call."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client was told, and when it first and last asked."""

    reply: Any
    refused: Refused | None
    first: float
    last: float
    end: float
    tries: int


LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
"""Codes that leave open whether the call was carried out."""


class Insistent:
    """Asks one replica after the other until one answers."""

    def __init__(self, clients: Sequence[Client], chance: random.Random) -> None:
        self._clients = clients
        self._turn = chance.randrange(len(clients))

    def now(self) -> float:
        """The clock of the answers."""
        return time.monotonic()

    async def ask(self, call: Callable[[Client], Awaitable[Any]], gives_up: bool = False) -> Answer:
        """The answer, refusals included. Raises AssertionError when nobody answers for PATIENCE seconds.

        gives_up: it does not ask again when a call is lost, and raises Unknown.
        """
        tries, first, last = 0, 0.0, 0.0

        async def attempt() -> Answer | None:
            nonlocal tries, first, last
            tries, last = tries + 1, time.monotonic()
            first = first or last
            refused = None
            reply = None
            try:
                reply = await call(self._clients[self._turn])
            except Refused as error:
                if error.code in LOST:
                    self._turn = (self._turn + 1) % len(self._clients)
                    if gives_up:
                        raise Unknown from None
                    return None
                refused = error
            return Answer(reply, refused, first, last, time.monotonic(), tries)

        answer: Answer = await until(attempt, "some replica answers", PATIENCE)
        return answer


# -- what dies --------------------------------------------------------------------------------------------------------


class Nemesis:
    """Kills and freezes by a seeded plan, counted in `steps` of the load: `progress` says how many are done.

    Never more than one member and one replica at a time, but now and then a majority of members for a moment.
    """

    def __init__(self, cluster: Cluster, seed: int, progress: Callable[[], int], pause: int) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._progress = progress
        self._pause = pause
        self.deeds: list[str] = []

    async def run(self) -> None:
        """Until cancelled. What is down or frozen then is brought back."""
        deeds = [self._kill_api, self._kill_api, self._kill_member, self._kill_leader, self._freeze, self._kill_majority]
        while True:
            await self._steps(self._pause)
            deed = self._chance.choice(deeds)
            await deed()

    async def _steps(self, number: int) -> None:
        goal = self._progress() + self._chance.randint(1, number)
        await until(lambda: self._progress() >= goal, "the load goes on", PATIENCE)

    @contextlib.asynccontextmanager
    async def _down(self, what: str, *processes: Process) -> AsyncIterator[None]:
        self.deeds.append(f"{self._progress()} {what}")
        for process in processes:
            process.kill()
        try:
            yield
        finally:
            for process in processes:
                process.start()

    async def _kill_api(self) -> None:
        api: Api = self._chance.choice(self._cluster.replicas)
        async with self._down(f"kill {api.log.stem}", api):
            await self._steps(self._pause)
        await until(lambda: _serves(api), f"{api.log.stem} serves again")

    async def _kill_member(self) -> None:
        await self._kill(self._chance.choice(self._cluster.members))

    async def _kill_leader(self) -> None:
        await self._kill(await self._cluster.etcd.leader())

    async def _kill(self, member: Etcd) -> None:
        async with self._down(f"kill {member.log.stem}", member):
            await self._steps(self._pause)
        await answers(member)

    async def _kill_majority(self) -> None:
        """Both at once: nothing can be written until one is back."""
        some = self._chance.sample(self._cluster.members, 2)
        async with self._down("kill a majority", *some):
            pass
        for member in some:
            await answers(member)

    async def _freeze(self) -> None:
        one: Process = self._chance.choice([*self._cluster.members, *self._cluster.replicas])
        self.deeds.append(f"{self._progress()} freeze {one.log.stem}")
        with freeze(one):
            await self._steps(self._pause)


async def _serves(api: Api) -> bool:
    assert api.running, api.log.read_text()[-2000:]
    async with Client(api, 2.0) as client:
        try:
            await client.list("Network", page_size=1)
        except Refused:
            return False
    return True
