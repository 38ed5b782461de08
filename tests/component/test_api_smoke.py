from tests.component.cloud import Cloud, consistent
import time
async def test_smoke(cloud: Cloud) -> None:
    n = await cloud.api.create("Network", name="x")
    s = await cloud.api.create("Subnet", network_id=n.id, cidr="10.0.0.0/24")
    p = await cloud.api.create("Port", network_id=n.id)
    print(n, s, p)
    await consistent(cloud.store)
    t = time.time()
    for i in range(100):
        await cloud.api.get("Network", n.id)
    print("get", (time.time() - t)/100)
async def test_smoke2(cloud: Cloud) -> None:
    t = time.time(); print(await cloud.settled(), time.time()-t)
