"""What decides the speed of the data plane: how many cached flows a known set of packets makes, and what each one does.

A packet takes one pass, without recirculation; and the connections between two ports share a handful of cached flows: of
their numbers only so many bits are looked at as tell a source port from that of DHCP servers, which port security guards.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from deploy.lab import Host, wait_until
from tests.system import frames
from tests.system.cloud import Scene, Vm

CONNECTIONS = range(1_024, 65_536, 1_000)
SHARED = 6  # prefixes that tell all ports from 1,024 on from port 67


@dataclass(frozen=True, slots=True)
class Megaflow:
    """One cached flow: what it matches, and its actions, as Open vSwitch writes them."""

    match: str
    actions: str


def megaflows(host: Host, port: str) -> list[Megaflow]:
    """The cached flows of IPv4 packets that come in by a port of a host."""
    found = []
    for line in host.run(["ovs-appctl", "dpctl/dump-flows", "-m", "--names"]).splitlines():
        hit = re.search(r"(recirc_id\(.*), packets:.*actions:(.*?)(, dp-extra-info.*)?$", line)
        if hit and f"in_port({port})" in hit[1] and "eth_type(0x0800)" in hit[1]:
            found.append(Megaflow(hit[1], hit[2]))
    return found


def send_many(sender: Vm, receiver: Vm) -> None:
    """A UDP packet in each of many connections; wait until all have arrived."""
    marker = os.urandom(16)
    pair = (sender.mac, receiver.mac, sender.ip, receiver.ip)
    sender.guest.send(*(frames.udp(*pair, (port, port), marker) for port in CONNECTIONS))

    def arrived() -> bool:
        return sum(marker in frame for frame in receiver.guest.seen()) >= len(CONNECTIONS)

    wait_until(arrived, "all packets arrive")


def test_connections_share_one_cached_flow_of_one_pass(scene: Scene, h1: Host, h2: Host) -> None:
    network = scene.network()
    sender, near, far = (scene.vm(network, host) for host in (h1, h1, h2))
    ways = {near: re.escape(near.tap), far: r"tnl_push\(.*vni=0x[0-9a-f]+.*"}
    for receiver, way in ways.items():
        h1.run(["ovs-appctl", "revalidator/purge"])
        send_many(sender, receiver)
        flows = [flow for flow in megaflows(h1, sender.tap) if f"dst={receiver.mac}" in flow.match]
        assert 1 <= len(flows) <= SHARED, flows
        assert all(flow.match.startswith("recirc_id(0)") and "recirc" not in flow.actions for flow in flows)
        assert all(re.fullmatch(way, flow.actions) for flow in flows), flows
    # On the other host: out of the tunnel, and to the port, whatever the connection is.
    inner = [flow for flow in megaflows(h2, "vxlan_sys_4789") if f"dst={far.mac}" in flow.match]
    assert [flow.actions for flow in inner] == [far.tap], inner
