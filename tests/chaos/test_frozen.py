"""A replica that stood still for longer than its leases live, as on a host that was suspended or starved."""

from __future__ import annotations

from controlplane.store import keys
from tests.component.cloud import CONTROLLERS, Cloud, consistent, freeze
from tests.waiting import until


async def test_a_replica_that_outlived_its_leases_serves_on_and_takes_its_controllers_up_again() -> None:
    """Several times: what goes wrong then depends on which of its tasks notices first."""
    async with Cloud() as cloud:
        for turn in range(3):
            await cloud.settled()
            with freeze(cloud.replicas[0]):

                async def lapsed() -> bool:
                    entries = await cloud.everything()
                    return not any(keys.controller(name) in entries for name in CONTROLLERS)

                await until(lapsed, "the leases have run out")
            network = await cloud.api.create("Network", name=f"after-{turn}")
            await cloud.settled()  # every controller is held again
            assert (await cloud.api.get("Network", network.id)).name == f"after-{turn}"
            await cloud.api.delete("Network", network.id)
            await cloud.settled()  # and works: the number is released
        await consistent(cloud.store)
