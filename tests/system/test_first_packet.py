"""The very first packet between two hosts arrives, whichever of them has heard of the other first."""

from __future__ import annotations

from deploy.lab import Host, wait_until
from tests.system.cloud import PATIENCE, Cloud, Scene


def forget(host: Host) -> None:
    """As if the host had never sent anything to another."""
    host.run(
        "ip neigh flush all dev br-phy; ip neigh flush all nud permanent dev br-phy; ovs-appctl tnl/neigh/flush >/dev/null"
    )


def test_b_net_03_the_first_packet_between_two_hosts_arrives(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    """The kernel of h2 knows h1 from h1's question, before its agent asks: its switch has seen no answer yet."""
    scene.assert_bare()
    for host in (h1, h2):
        forget(host)
    wait_until(lambda: h1.reaches(h2.underlay), "the underlay works", PATIENCE)
    assert h1.underlay not in h2.run("ovs-appctl tnl/neigh/flush >/dev/null; ovs-appctl tnl/neigh/show"), "not to the switch"
    assert h1.underlay in h2.run("ip neigh show dev br-phy"), "but known to the kernel"
    network = scene.network()
    near, far = scene.vm(network, h1), scene.vm(network, h2)
    cloud.admin.wait(0)
    assert far.sees(near)
    assert near.sees(far)
