"""C-13: a client that is cut off at any byte of the exchange, and asks again with its request id, has one object."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from controlplane.store import keys
from kumihimo.v1 import store_pb2
from tests.chaos.cluster import Insistent
from tests.chaos.proxy import Proxy
from tests.chaos.workload import CALLER
from tests.component.cloud import Api, Client, Cloud, Refused, consistent
from tests.seeds import FULL, seed

TRIALS = 1000 if FULL else 80
CALL = 5.0


class Through:
    """Where a Client finds an API behind a proxy."""

    def __init__(self, api: Api, proxy: Proxy) -> None:
        self.target = proxy.target
        self.certificate = api.certificate


@pytest.mark.timeout(1200)
async def test_c_13_a_client_cut_at_any_byte_has_exactly_one_object(cloud: Cloud, second_api: Client) -> None:
    """Creates and deletions in turn. The first try has a connection of its own, so that it is cut in the handshake as well."""
    number = seed()
    chance = random.Random(number)
    network = (await cloud.api.create("Network")).id
    await cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/20")
    others = [cloud.api, second_api]
    ids: dict[str, str] = {}
    landed = 0  # first tries that were carried out although their client was not told
    async with Proxy(cloud.replicas[0].target) as proxy:
        through: Any = Through(cloud.replicas[0], proxy)

        async def exchange(name: str, call: Any) -> None:
            """The first try through the proxy, then as often as needed past it."""
            nonlocal landed
            reply = None
            async with Client(through, CALL) as client:
                try:
                    reply = await call(client)
                except Refused as error:
                    error.must_be("")  # the transport's word, not the API's
            if reply is None and await cloud.store.get(keys.request(*CALLER, name)) is not None:
                landed += 1
            again = await Insistent(others, chance).ask(call)
            assert again.refused is None, (number, name, again.refused)
            if reply is not None:
                assert reply == again.reply, (number, name)
            if name not in ids and hasattr(again.reply, "id"):
                ids[name] = again.reply.id

        def create(name: str) -> Any:
            return lambda api: api.create("Port", network_id=network, name=name, request={"request_id": name})

        # How long an exchange is when nobody cuts it.
        await exchange("whole", create("whole"))
        size = {"cut_up": proxy.up, "cut_down": proxy.down}
        assert min(size.values()) > 500
        cuts = 0
        for trial in range(TRIALS):
            way = chance.choice(("cut_up", "cut_down"))
            # Most of an exchange is handshake; what matters more are the call and its answer at the end.
            end = size[way]
            at = chance.randrange(end) if trial % 3 == 0 else chance.randrange(max(0, end - 400), end)
            proxy.begin(**{way: at})
            name = f"byte-{trial}"
            if trial % 4 == 3:
                goes = ids[f"byte-{trial - 1}"]
                await exchange(name, lambda api, goes=goes, name=name: api.delete("Port", goes, request_id=name))
                ids[f"byte-{trial - 1}"] = ""
            else:
                await exchange(name, create(name))
            cuts += proxy.cuts > 0
            proxy.cuts = 0
    await cloud.settled()
    entries = await consistent(cloud.store)
    found = [store_pb2.ChangeRecord.FromString(entry.value) for key, entry in entries.items() if key.startswith(keys.CHANGES)]
    # The first port makes its project's default security group as well.
    records = Counter(record.request_id for record in found if record.kind == "Port")
    expected = {"whole", *(f"byte-{trial}" for trial in range(TRIALS))}
    assert {name: records[name] for name in expected} == dict.fromkeys(expected, 1), number
    there = {
        item.name: item.id for item in (await cloud.api.list("Port", page_size=1000, filter=f'network_id = "{network}"')).items
    }
    assert there == {name: port for name, port in ids.items() if port}
    print(f"{cuts} of {TRIALS} were cut; {landed} had been carried out")
    assert cuts > TRIALS / 2
    assert landed > TRIALS / 10
