"""The release of values against those who take them again at the same time."""

from __future__ import annotations

from typing import Any

from controlplane.controllers.release import SWEEP, Release
from controlplane.progress import Progress
from controlplane.store import client, keys
from controlplane.store.client import Written
from controlplane.store.commit import Committer
from kumihimo.v1 import store_pb2
from tests.component.cloud import Cloud
from tests.component.test_store_feed import followed


def held(releasing: bool) -> bytes:
    return store_pb2.Claim(owner="x", project_id="demo", releasing=releasing).SerializeToString()


class Slow:
    """A store on which something happens once before the controller writes."""

    def __init__(self, cloud: Cloud, before: Any) -> None:
        self._cloud = cloud
        self._before = before

    async def transact(self, compare: Any, operations: Any) -> Written:
        before, self._before = self._before, None
        if before is not None:
            await before()
        return await self._cloud.store.transact(compare, operations)


async def test_c_09_a_value_taken_again_while_a_sweep_is_under_way_stays_taken() -> None:
    """The sweep judges all values, then frees one after the other; by then a project may have its own back."""
    names = [keys.claim("vxlan", number) for number in (1, 2)]
    async with Cloud() as cloud:
        cloud.replicas[0].stop()  # its controller would do the same work
        await cloud.write(*(client.put(name, held(True)) for name in names))
        async with followed(cloud.store) as (cache, _):

            async def take_again() -> None:
                await cache.reach(await cloud.write(client.put(names[1], held(False))))

            slow: Any = Slow(cloud, take_again)
            release = Release(Committer(slow, cache), Progress(cache))
            for name in names:
                release.changed(name, cache.get(name))
            # Not observed on purpose: what the sweep does not know yet is what etcd must refuse.
            await release.work([SWEEP])
        left = await cloud.everything()
        assert names[0] not in left
        assert store_pb2.Claim.FromString(left[names[1]].value).releasing is False
