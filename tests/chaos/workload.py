"""The load of the histories: many clients who create, change, delete, read and list the same few networks and ports.

Owns: what each client does next (seeded), how an answer becomes an operation of the history, and the books that must
balance afterwards (`account`): one change record and one request record for each write that was acknowledged, at the
revision that the client was told; none twice; none for what was refused.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from controlplane.registry import KINDS
from controlplane.store import keys
from controlplane.store.cache import parse
from controlplane.store.client import Entry
from kumihimo.v1 import store_pb2
from tests.chaos.cluster import Answer, Insistent, Unknown
from tests.chaos.linearizability import REFUSALS, History, Look, Operation, State
from tests.component.cloud import IDENTITIES, Client

OBJECTS = 16  # of each kind: few, so that clients meet
GIVES_UP = 0.2  # of writes, should they be lost
UNKNOWN = 3  # writes of unknown outcome for one object at most: each doubles what the checker has to try
GUARDED = 0.5  # of updates and deletions
CALLER = ("root", IDENTITIES["root"][0])  # and its project
VERBS = ("create", "update", "delete", "read", "list")
WEIGHTS = (25, 30, 15, 22, 8)


class Workload:
    """See the module. `done` counts steps; `history` is complete when `run` has returned."""

    def __init__(self, clients: Sequence[Client], seed: int) -> None:
        self._clients = clients
        self._seed = seed
        chance = random.Random(seed)
        self._ids = {
            kind: [str(uuid.UUID(int=chance.getrandbits(128))) for _ in range(OBJECTS)] for kind in ("Network", "Port")
        }
        self._parents: list[str] = []
        self._etags: dict[str, str] = {}
        self._writes: dict[str, Operation] = {}  # request id → what came of it
        self._unknown: Counter[str] = Counter()
        self.history = History()
        self.done = 0

    async def prepare(self) -> None:
        """The networks that the ports are in."""
        for _ in range(2):
            network = (await self._clients[0].create("Network")).id
            await self._clients[0].create("Subnet", network_id=network, cidr="10.0.0.0/24")
            self._parents.append(network)

    async def run(self, clients: int, steps: int) -> None:
        """Do that many steps more, by that many clients at once."""
        turns = iter(range(self.done, self.done + steps))
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(number, turns))

    async def _client(self, number: int, turns: Any) -> None:
        chance = random.Random(f"{self._seed}/{number}/{self.done}")
        insistent = Insistent(self._clients, chance)
        for turn in turns:
            kind = chance.choice(("Network", "Port"))
            verb = chance.choices(VERBS, WEIGHTS)[0]
            if verb == "list":
                await self._list(kind, insistent)
            elif verb == "read":
                await self._read(f"{kind}/{chance.choice(self._ids[kind])}", number, insistent)
            else:
                await self._write(
                    verb, f"{kind}/{chance.choice(self._ids[kind])}", f"{number}-{turn}", number, insistent, chance
                )
            self.done += 1

    async def _list(self, kind: str, insistent: Insistent) -> None:
        answer = await insistent.ask(lambda api: api.list(kind, page_size=1000))
        assert answer.refused is None, answer.refused
        wanted = frozenset(f"{kind}/{object_id}" for object_id in self._ids[kind])
        shown = {f"{kind}/{item.id}": State(item.name, item.etag) for item in answer.reply.items}
        shown = {key: state for key, state in shown.items() if key in wanted}
        self.history.looks.append(Look(answer.last, answer.end, answer.reply.revision, shown, wanted))

    async def _read(self, key: str, client: int, insistent: Insistent) -> None:
        kind, object_id = key.split("/")
        answer = await insistent.ask(lambda api: api.get(kind, object_id))
        seen = None
        if answer.refused is None:
            seen = State(answer.reply.name, answer.reply.etag)
            self._etags[key] = seen.etag
        else:
            answer.refused.must_be("RESOURCE_NOT_FOUND")
        self.history.operations.append(Operation("read", key, answer.last, answer.end, seen=seen, client=client))

    async def _write(self, verb: str, key: str, name: str, client: int, insistent: Insistent, chance: random.Random) -> None:
        guard = self._etags.get(key, "") if verb != "create" and chance.random() < GUARDED else ""
        call = self._call(verb, key, name, guard, chance)
        asked = Operation(verb, key, insistent.now(), None, "" if verb == "delete" else name, guard, client=client)
        gives_up = self._unknown[key] < UNKNOWN and chance.random() < GIVES_UP
        try:
            answer = await insistent.ask(call, gives_up)
        except Unknown:
            self._unknown[key] += 1
            self._note(name, asked)
            return
        if answer.refused is not None and answer.refused.reason == "CONCURRENT_CHANGE":
            return  # says that nothing happened: leaving it out is to take it at its word
        self._note(name, _told(asked, answer))
        if verb != "delete" and answer.refused is None:
            self._etags[key] = answer.reply.etag

    def _note(self, request_id: str, operation: Operation) -> None:
        self._writes[request_id] = operation
        self.history.operations.append(operation)

    def _call(self, verb: str, key: str, name: str, guard: str, chance: random.Random) -> Callable[[Client], Any]:
        kind, object_id = key.split("/")
        request = {"request_id": name}
        if verb == "create":
            # The same request each time, or its id would be that of another.
            fields = {"network_id": chance.choice(self._parents)} if kind == "Port" else {}
            return lambda api: api.create(kind, id=object_id, name=name, request=request, **fields)
        if verb == "update":
            return lambda api: api.update(kind, object_id, mask=["name"], name=name, etag=guard, request=request)
        return lambda api: api.delete(kind, object_id, etag=guard, **request)

    # -- afterwards -----------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Every object once more, by every replica: the last words of the history."""
        for client in self._clients:
            insistent = Insistent([client], random.Random(0))
            for kind, ids in self._ids.items():
                for object_id in ids:
                    await self._read(f"{kind}/{object_id}", -1, insistent)
                await self._list(kind, insistent)

    def account(self, entries: Mapping[str, Entry]) -> list[str]:
        """What in the store does not follow from what the clients were told."""
        found = []
        records: dict[str, list[int]] = {}
        for key, entry in entries.items():
            if key.startswith(keys.CHANGES):
                record = store_pb2.ChangeRecord.FromString(entry.value)
                if record.kind in self._ids:  # the first port makes its project's default security group as well
                    records.setdefault(record.request_id, []).append(entry.mod_revision)
        for name, operation in self._writes.items():
            revisions = records.get(name, [])
            remembered = keys.request(*CALLER, name) in entries
            if len(revisions) > 1:
                found.append(f"request {name} was carried out at revisions {revisions}")
            if remembered != bool(revisions):
                found.append(f"request {name}: {len(revisions)} change records, request record {remembered}")
            if operation.end is not None and revisions != ([operation.revision] if operation.revision else []):
                found.append(f"request {name}: {operation} but change records at {revisions}")
        last = {item.key: item for item in self.history.operations if item.client == -1}
        there = {}
        for key, entry in entries.items():
            kind, object_id = keys.resource(key) or (KINDS["Network"], "")
            if object_id in self._ids.get(kind.name, ()):
                message = parse(kind, entry)
                there[f"{kind.name}/{object_id}"] = State(message.name, message.etag)
        found.extend(
            f"{key}: shown {item.seen}, stored {there.get(key)}" for key, item in last.items() if item.seen != there.get(key)
        )
        return found


def _told(asked: Operation, answer: Answer) -> Operation:
    """The operation with what came of it. A refusal is not remembered: the last of several tries has decided it."""
    refused = answer.refused
    seen, revision, refusal, start = None, 0, "", answer.first
    if refused is not None:
        refused.must_be(*REFUSALS[asked.verb])
        start, refusal = answer.last, refused.reason
        if refusal == "ETAG_MISMATCH":
            seen = State("", refused.metadata["etag"])
    else:
        revision = answer.reply.revision
        if asked.verb != "delete":
            seen = State(answer.reply.name, answer.reply.etag)
    return Operation(asked.verb, asked.key, start, answer.end, asked.value, asked.guard, refusal, seen, revision, asked.client)
