"""What decides the speed of the data plane: how many cached flows a known set of packets makes, and what each one does.

A packet takes one pass, and one more for each port whose security groups it meets; and the connections between two ports share
a handful of cached flows: of their numbers only so many bits are looked at as tell a source port from that of DHCP servers,
which port security guards.
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


def passes(flows: list[Megaflow]) -> list[set[str]]:
    """What the flows do, pass by pass: the first, and those that each continues. Numbers of passes are left out."""
    found, places = [], {"0"}
    while here := [flow for flow in flows if re.match(r"recirc_id\((?:0x)?(\w+)\)", flow.match)[1] in places]:  # type: ignore[index]
        found.append({re.sub(r"recirc\(0x\w+\)", "recirc", flow.actions) for flow in here})
        places = {number for flow in here for number in re.findall(r"recirc\(0x(\w+)\)", flow.actions)}
    return found


def test_connections_share_one_cached_flow_of_each_pass(scene: Scene, h1: Host, h2: Host) -> None:
    """A packet is looked up once more for each port whose groups it meets, the sender's and the receiver's, each on its own
    host: tracking has to come between. The first of a connection is once more, when it has become known. All connections share
    those flows, new ones and established ones."""
    network = scene.network()
    sender, near, far = (scene.vm(network, host) for host in (h1, h1, h2))
    for receiver in (near, far):
        zones = [vm.ofport for vm in (sender, receiver)]
        for known in (False, True):
            for host in (h1, h2):
                host.run(["ovs-appctl", "revalidator/purge"])
            send_many(sender, receiver)
            # What is new becomes known, with the policy's generation; what is known only passes.
            sent, received = (
                [rf"ct\(zone={zone}\),recirc"] + [rf"ct\(commit,zone={zone},mark=0x\w+/0xffffffff\),recirc"] * (not known)
                for zone in zones
            )
            if receiver is near:
                expected = [*sent, *received, re.escape(near.tap)]
            else:
                expected = [*sent, r"tnl_push\(.*vni=0x[0-9a-f]+.*"]
            flows = megaflows(h1, sender.tap)
            first = [flow for flow in flows if flow.match.startswith("recirc_id(0)")]
            assert 1 <= len(first) <= SHARED, first
            assert len(flows) - len(first) == len(expected) - 1, flows
            assert_passes(flows, expected)
            if receiver is far:
                # On the other host: out of the tunnel, and to the port, whatever the connection is.
                inner = megaflows(h2, "vxlan_sys_4789")
                expected = [*received, re.escape(far.tap)]
                assert len(inner) == len(expected), inner
                assert_passes(inner, expected)
            send_many(receiver, sender)


def assert_passes(flows: list[Megaflow], expected: list[str]) -> None:
    found = passes(flows)
    assert len(found) == len(expected), found
    for here, pattern in zip(found, expected, strict=True):
        assert [bool(re.fullmatch(pattern, actions)) for actions in here] == [True], f"{pattern} and nothing else: {here}"
