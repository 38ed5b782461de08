"""C-09: what is deleted is gone, on every host and in etcd, in whatever order it went."""

from __future__ import annotations

import pytest

from deploy.lab import Host
from tests.system.cloud import Cloud, Scene, dump


@pytest.mark.parametrize("order", ["detached", "attached", "agent-dead"])
def test_c_09_nothing_of_ours_remains(order: str, scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    """Detached first; by force while attached; while the node's agent was dead."""
    scene.assert_bare()
    base = {host.name: (dump(host, "flows"), host.run("ovs-vsctl list-ports br-int")) for host in (h1, h2)}
    networks = [scene.network(), scene.network(cloud.alice)]
    vms = [scene.vm(network, host) for network in networks for host in (h1, h2, h2)]
    assert all(vm.workload.dhcp()["ip"] == vm.ip for vm in vms)
    assert len(cloud.leftovers()) > 40, "there is a lot to remove"
    if order == "agent-dead":
        h2.kill_agent()
    for vm in vms:
        if order == "detached":
            vm.unplug()
        vm.api.delete(vm.port, force=True)
    for api, network in scene.networks:
        api.delete(network)
    h2.start_agent()
    for vm in vms:
        vm.unplug()
    scene.assert_bare()
    assert {host.name: (dump(host, "flows"), host.run("ovs-vsctl list-ports br-int")) for host in (h1, h2)} == base


def test_a_58_the_last_port_of_a_host_takes_the_networks_services_with_it(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host
) -> None:
    network = scene.network()
    scene.vm(network, h1)
    last = scene.vm(network, h2)
    assert f"kumi-{network.id}" in h2.workloads
    scene.remove(last)
    cloud.admin.wait(0)
    left = [line for line in cloud.leftovers() if line.startswith(f"{h2.name}:")]
    assert left == [], "h1 still serves the network, h2 has nothing of it"
    assert f"kumi-{network.id}" in h1.workloads
