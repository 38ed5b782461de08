"""C-13: whatever is sent, the API refuses it in its own words, serves its friends, and is what it was when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from tests.chaos.hostile import AUTHORIZATION, METADATA, METHODS, Absurd, Method
from tests.chaos.wire import Attack, Idle
from tests.component.cloud import SERVER_NAME, Api, Client, Cloud, Refused, consistent
from tests.seeds import FULL, seed
from tests.waiting import until

REQUESTS = 100_000 if FULL else 2_500
AT_ONCE = 24
CONNECTIONS = 6
ATTACKS = 4  # at once, below gRPC
IDLE = 4_000 if FULL else 1_000
ANSWER = 30.0  # seconds in which every call has an answer, whatever it asks
WAIT = 1.0  # seconds that the client of a Wait or a Watch stays
SERVED = 10.0  # seconds in which a friend is served; alone he waits for less than 0.1 s

# What the server may take, MB: the full form was measured with 211 to 278.
LARGEST = 300
LEFT = 170  # more than before, when the storm is over; 100 to 146 as measured, whatever the number of requests

Code = grpc.StatusCode
DEFECT = re.compile(r"timestamp=\S+ level=(error|critical)|Traceback|ERROR|Unexpected|[EF]\d{4} ")
# The transport's own words; everything else has a reason of ours.
TRANSPORT = {Code.RESOURCE_EXHAUSTED, Code.CANCELLED, Code.UNIMPLEMENTED, Code.DEADLINE_EXCEEDED}


def memory(api: Api, name: str = "VmRSS") -> int:
    """MB of a process; VmHWM: the most it ever had."""
    assert api.running, api.log.read_text(errors="replace")[-3000:]
    with open(f"/proc/{api.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) >> 10


def defects(api: Api) -> list[str]:
    """What the server says of itself that no client may cause: errors, tracebacks, words of the libraries below it."""
    return [
        f"{line[:200]} … {line[-1500:]}" if len(line) > 1700 else line
        for line in api.log.read_text(errors="replace").split("\n")
        if DEFECT.match(line)
    ]


class Storm:
    """Those who mean harm, and what they were told."""

    def __init__(self, api: Api, number: int) -> None:
        self._api = api
        self._left = REQUESTS
        self._chance = random.Random(number)
        self.absurd = Absurd(self._chance)
        self.told: Counter[str] = Counter()
        self.wrong: list[str] = []  # the first of the answers that should not be
        self.attacks: Counter[str] = Counter()
        self.over = asyncio.Event()

    async def run(self) -> None:
        options = [
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 1 << 20),
            ("grpc.absolute_max_metadata_size", 1 << 20),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
        ]
        credentials = grpc.ssl_channel_credentials(self._api.certificate)
        async with contextlib.AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(grpc.aio.secure_channel(self._api.target, credentials, options))
                for _ in range(CONNECTIONS)
            ]
            below = [asyncio.create_task(self._below(turn)) for turn in range(ATTACKS)]
            try:
                await asyncio.gather(*(self._client(channels[turn % CONNECTIONS]) for turn in range(AT_ONCE)))
            finally:
                self.over.set()
                await asyncio.gather(*below)

    async def _below(self, turn: int) -> None:
        attack = Attack(
            self._api.target.removeprefix("unix:"), random.Random(self._chance.random() + turn), "/kumihimo.v1.Ports/List"
        )
        while not self.over.is_set():
            self.attacks[await attack.one()] += 1

    async def _client(self, channel: grpc.aio.Channel) -> None:
        while self._left > 0:
            self._left -= 1
            method = self._chance.choice(METHODS)
            body = self.absurd.body(method)
            if method.streams:
                await self._watch(channel, method, body)
            else:
                await self._call(channel, method, body)

    def _metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        turn = self._chance.random()
        if turn < 0.05:
            return (("authorization", self._chance.choice(AUTHORIZATION)),)
        name = self._chance.choice(("root", "root", "root", "alice", "anna", "bob", "rita"))
        more = self._chance.choice(METADATA) if turn > 0.93 else ()
        return (("authorization", f"Bearer {name}-token"), *more)

    async def _call(self, channel: grpc.aio.Channel, method: Method, body: bytes) -> None:
        waits = method.path.endswith("/Wait")
        invoke = channel.unary_unary(method.path)
        call = invoke(body, metadata=self._metadata(), timeout=WAIT if waits else ANSWER)
        if self._chance.random() < 0.04:
            await asyncio.wait([asyncio.ensure_future(call.code())], timeout=self._chance.choice((0.0, 0.001, 0.01)))
            if call.cancel():
                self.told["cancelled by us"] += 1
                return
        try:
            reply = GetMessageClass(method.output).FromString(await call)
        except DecodeError as error:
            self._is_wrong(method, body, f"OK, and {error}")
            return
        except grpc.aio.AioRpcError as error:
            self._refused(method, body, error, waits)
            return
        self.told["OK"] += 1
        self._remember(method, reply)

    def _remember(self, method: Method, reply: Any) -> None:
        name = reply.DESCRIPTOR.name
        if name in self.absurd.known and method.path.endswith("/Create") and len(self.absurd.known[name]) < 200:
            self.absurd.known[name].append(reply.id)

    async def _watch(self, channel: grpc.aio.Channel, method: Method, body: bytes) -> None:
        """Reads a little, or nothing."""
        call = channel.unary_stream(method.path)(body, metadata=self._metadata(), timeout=WAIT)
        reads = self._chance.choice((0, 1, 5))
        try:
            async with asyncio.timeout(self._chance.choice((0.0, 0.01, 0.2))):
                async for event in call:
                    GetMessageClass(method.output).FromString(event)
                    reads -= 1
                    if reads <= 0:
                        break
        except TimeoutError:
            pass
        except grpc.aio.AioRpcError as error:
            self._refused(method, body, error, True)
            return
        call.cancel()
        self.told["watched"] += 1

    def _refused(self, method: Method, body: bytes, error: grpc.aio.AioRpcError, waits: bool) -> None:
        known = Refused.of(error)
        self.told[f"{known.code.name} {known.reason}"] += 1
        late = known.code is Code.DEADLINE_EXCEEDED and not known.reason and not waits
        if (
            known.code in (Code.INTERNAL, Code.UNKNOWN, Code.UNAVAILABLE)
            or late
            or not (known.reason or known.code in TRANSPORT)
        ):
            self._is_wrong(method, body, str(known))

    def _is_wrong(self, method: Method, body: bytes, answer: str) -> None:
        """Told shortly: a server that is gone answers a hundred thousand times so, and bodies have megabytes."""
        self.told["wrong"] += 1
        if len(self.wrong) < 20:
            self.wrong.append(f"{method.path} {len(body)} bytes {body[:200]!r}: {answer[:500]}")


class Friend:
    """A client with an honest wish, served all the while."""

    def __init__(self, api: Api) -> None:
        self._client = Client(api, SERVED)
        self.took: list[float] = []

    async def round(self) -> None:
        """Create, get, list, watch, delete; each in time."""
        api, by = self._client, "friend"
        network = await self._timed(api.create("Network", name="mine", by=by))
        revision = network.revision
        await self._timed(api.create("Subnet", network_id=network.id, cidr="10.0.0.0/24", by=by))
        port = await self._timed(api.create("Port", network_id=network.id, by=by))
        assert (await self._timed(api.get("Port", port.id, by=by))).mac_address == port.mac_address
        listed = await self._timed(api.list("Port", filter=f'network_id = "{network.id}"', by=by))
        assert [item.id for item in listed.items] == [port.id]
        assert await self._timed(self._first_event(revision)) == port.id
        await self._timed(api.delete("Port", port.id, by=by))
        await self._timed(api.delete("Network", network.id, force=True, by=by))

    async def _first_event(self, revision: int) -> str:
        call = self._client.channel.unary_stream(
            "/kumihimo.v1.Ports/Watch",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=METHOD_OF["/kumihimo.v1.Ports/Watch"].FromString,
        )(WATCH(start_revision=revision), metadata=(("authorization", "Bearer friend-token"),), timeout=SERVED)
        async for event in call:
            call.cancel()
            return str(event.resource.id)
        raise AssertionError("the watch has ended")

    async def _timed(self, call: Any) -> Any:
        began = time.perf_counter()
        try:
            return await call
        finally:
            self.took.append(time.perf_counter() - began)

    def worst(self) -> str:
        took = [seconds * 1e3 for seconds in sorted(self.took)]
        middle, late = took[len(took) // 2], took[len(took) * 99 // 100]
        return f"{len(took)} calls, median {middle:.0f} ms, p99 {late:.0f} ms, worst {took[-1]:.0f} ms"

    async def close(self) -> None:
        await self._client.channel.close()


METHOD_OF = {method.path: GetMessageClass(method.output) for method in METHODS}
WATCH = GetMessageClass(next(method.input for method in METHODS if method.streams))


@pytest.mark.timeout(3600)
async def test_c_13_hostile_requests_are_refused_and_friends_are_served() -> None:
    number = seed()
    async with Cloud(identities={"friend": ("friends", "member")}) as cloud:
        api = cloud.replicas[0]
        friend = Friend(api)
        idle = Idle(api.target.removeprefix("unix:"))
        for _ in range(5):
            await friend.round()
        print("alone:", friend.worst())
        friend.took.clear()
        before = memory(api)
        storm = Storm(api, number)
        await idle.hold(IDLE)
        with_idle = memory(api)
        began = time.monotonic()
        async with asyncio.TaskGroup() as both:
            task = both.create_task(storm.run())
            while not task.done():
                await friend.round()
                await asyncio.wait([task], timeout=0.05)
        seconds = time.monotonic() - began
        print(f"{REQUESTS} requests in {seconds:.0f} s; {dict(storm.attacks)}; {IDLE} idle connections")
        print("meanwhile:", friend.worst())
        print("\n".join(f"  {count:6} {what}" for what, count in storm.told.most_common()))
        idle.drop()
        await friend.round()
        most = memory(api, "VmHWM")
        print(f"memory: {before} MB, {with_idle} MB with idle connections, at most {most} MB, {memory(api)} MB after")
        bad = defects(api)
        wrong = [*storm.wrong, *bad[:10]]
        assert not wrong, "\n".join([str(number), *wrong])
        assert api.running
        assert most < LARGEST
        await until(lambda: memory(api) < before + LEFT, "memory falls back")
        await friend.close()
        await cloud.settled()
        await consistent(cloud.store)
