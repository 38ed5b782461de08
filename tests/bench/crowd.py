"""Many ports that the hosts of the lab know: they are on another node, which exists in the store alone."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from controlplane.store import client, keys
from controlplane.store.client import Store
from controlplane.tls import Tls
from deploy.lab import Lab, wait_until
from kumihimo.v1 import node_pb2, operations_pb2, port_pb2, store_pb2
from tests.bench.idle import wait_idle
from tests.system.cloud import Cloud

FEW, MANY = 10, 10_000
STEP = 500  # objects of one Apply
ELSEWHERE = "h9"
PATIENCE = 300.0


def add_elsewhere(cloud: Cloud) -> None:
    """The other node."""
    there = cloud.hosts[0].underlay.rsplit(".", 1)[0] + ".200"
    cloud.admin.create(node_pb2.Node(id=ELSEWHERE, tunnel_ip=there))


def fill(cloud: Cloud, network: Any, known: int) -> None:
    """Make ports of a network on ELSEWHERE until both hosts know so many, and wait until they have them."""
    have = sum(port.network_id == network.id for port in cloud.admin.list(port_pb2.Port))
    made: list[str] = []
    while have + len(made) < known:
        made += apply(cloud, network, min(STEP, known - have - len(made)))
    asyncio.run(_seen_elsewhere(cloud.lab, made))
    wait_until(lambda: all(port.binding for port in cloud.admin.list(port_pb2.Port)), "all are bound", PATIENCE)
    cloud.admin.wait(0, timeout=PATIENCE)
    # To take in 10,000 names at once takes dnsmasq half a minute (agent/DESIGN.md).
    server = ["dnsmasq", f"--conf-file=/var/lib/kumihimo/dhcp/{network.id}/dnsmasq.conf"]
    wait_idle([pid for host in cloud.hosts for pid in host.find(server)])


def apply(cloud: Cloud, network: Any, count: int) -> list[str]:
    """Make ports of a network; their ids."""
    request = operations_pb2.ApplyRequest(request_id=os.urandom(8).hex())
    for _ in range(count):
        request.objects.add().resource.Pack(port_pb2.Port(name=f"bench-{os.urandom(8).hex()}", network_id=network.id))
    reply = cloud.admin.client.call("kumihimo.v1.Operations", "Apply", request, timeout=60)
    return [found.id for found in reply.objects]


async def _seen_elsewhere(lab: Lab, ports: list[str]) -> None:
    """What the third node would have said, had it an agent."""
    tls = Tls(lab.files.ca, lab.files.tls("root.crt"), lab.files.tls("root.key"))
    store = Store([f"unix:{lab.directory}/etcd/localhost:2379"], tls)
    status = store_pb2.PortStatus(interface="tap0", ofport=1, wired=True).SerializeToString()
    for start in range(0, len(ports), STEP):
        await store.transact(
            [], [client.put(keys.port_status(ELSEWHERE, port), status) for port in ports[start : start + STEP]]
        )
    await store.close()
