"""How a workload comes to its port: `kumi attach`, the plain way of Open vSwitch, and every odd order of events."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import pytest

from cli.status import sentences
from deploy.lab import Host, LabError, wait_until
from kumihimo.v1 import node_pb2, port_pb2, resource_pb2
from tests.system.cloud import PATIENCE, Cloud, Scene, Vm

KUMI = str(Path(sys.prefix) / "bin" / "kumi")


def kumi(host: Host, *arguments: str, check: bool = True) -> str:
    """`kumi` as an operator types it on a host."""
    return host.run([KUMI, *arguments], env={"KUMI_CONFIG": "/etc/kumihimo/client.toml"}, check=check)


def reasons(cloud: Cloud, port: object) -> set[str]:
    return {condition.reason for condition in cloud.admin.get(port).conditions}


def test_a_68_kumi_attach_and_detach(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = scene.network(cloud.alice)
    other, fence = scene.vm(network, h1), scene.vm(network, h2)
    vm = scene.vm(network, h2, plug=False)
    said = kumi(h2, "attach", vm.id, "--netns", vm.workload.name)
    assert said == f"{vm.tap} on br-int is eth0 in {vm.workload.name}, MAC {vm.mac}"
    # It returns when the port is active, so the first packet arrives.
    assert vm.workload.dhcp()["ip"] == vm.ip
    assert vm.sees(other)
    assert vm.workload.ping(other.ip, count=2, interval=0.05).received == 2
    assert vm.workload.ping(other.ip, count=1, size=network.mtu - 28).received == 1, "a full packet of the network's MTU"
    assert "is wired" in kumi(h2, "status", vm.id)
    assert kumi(h2, "attach", vm.id, "--netns", vm.workload.name) == said, "again is fine"
    vm.stop()
    assert kumi(h2, "detach", vm.id) == f"{vm.tap} removed"
    assert kumi(h2, "detach", vm.id) == f"port {vm.id} is not attached on this host"
    cloud.wait_unbound(vm.port)
    assert not other.sees(vm, fence=fence), "nobody answers for it any more"


def test_b_prt_06_detach_and_attach_on_the_other_host(scene: Scene, cloud: Cloud, h1: Host, h2: Host, h3: Host) -> None:
    network = scene.network()
    watcher = scene.vm(network, h3)
    vm = scene.vm(network, h1)
    assert watcher.sees(vm)
    for host in (h2, h1):
        vm.unplug()
        cloud.wait_unbound(vm.port)
        vm = scene.move(vm, host)
        vm.plug()
        assert vm.active().binding[0].node == host.name
        assert vm.workload.dhcp()["ip"] == vm.ip
        cloud.admin.wait(0, network.id)
        assert watcher.sees(vm)


def test_a_port_plugged_twice_is_wired_once_and_status_says_why(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = scene.network()
    vm, other = scene.vm(network, h1), scene.vm(network, h2)
    second = scene.move(vm, h2)
    second.plug()
    second.set_address()
    wait_until(lambda: "PLUGGED_TWICE" in reasons(cloud, vm.port), "it is reported", PATIENCE)
    port = cloud.admin.get(vm.port)
    assert [binding.node for binding in port.binding] == ["h1"]
    assert port.state == resource_pb2.STATE_ACTIVE
    text = next(condition.message for condition in port.conditions if condition.reason == "PLUGGED_TWICE")
    assert "an interface on node h2 names this port too" in text
    assert other.sees(vm), "the first goes on"
    marker = b"from the second one!"
    second.guest.send(second.echo(other, marker))
    other.guest.probe([other.echo(vm, b"0123456789abcdef")], {"echo": [(12, "0800"), (34, "00")]})
    assert not other.guest.has(marker), "the second is not wired"
    vm.unplug()
    wait_until(lambda: [each.node for each in cloud.admin.get(vm.port).binding] == ["h2"], "the second takes over", PATIENCE)
    second.active()
    cloud.admin.wait(0, network.id)
    assert other.sees(second)


def test_kumi_status_says_that_a_port_is_plugged_twice(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = scene.network()
    vm = scene.vm(network, h1)
    second = scene.move(vm, h2)
    second.plug()
    wait_until(lambda: "PLUGGED_TWICE" in reasons(cloud, vm.port), "it is reported", PATIENCE)
    said = kumi(h1, "status", vm.id)
    assert "It is on node h1" in said
    assert "[PLUGGED_TWICE]" in said, said


def test_an_interface_that_names_no_port_is_reported_and_taken_when_the_port_comes(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host
) -> None:
    network = scene.network()
    other = scene.vm(network, h2)
    unborn = port_pb2.Port(
        id=str(uuid.uuid4()),
        network_id=network.id,
        mac_address="fa:16:3e:00:00:99",
        fixed_ips=[port_pb2.FixedIp(ip_address="10.0.0.99")],
    )
    vm = Vm(cloud.admin, unborn, h1, f"v{next(cloud.numbers)}", network.mtu)
    scene.vms.append(vm)
    vm.plug()
    key = f"/kumihimo/status/h1/port/{vm.id}"
    wait_until(lambda: key in cloud.etcd_keys(), "the node says that it has it", PATIENCE)
    ctl = [*cloud.lab.etcdctl, "get", key, "--print-value-only"]
    wait_until(
        lambda: "PORT_UNKNOWN" in cloud.lab.ctl.run(ctl),
        "the node says that nobody knows it",
        PATIENCE,
    )
    vm.port = cloud.admin.create(unborn)
    assert vm.port.id == unborn.id
    vm.active()
    vm.set_address()
    cloud.admin.wait(0, network.id)
    assert vm.sees(other)
    assert vm.workload.dhcp()["ip"] == "10.0.0.99"


def test_an_interface_with_an_error_is_said_and_mended(scene: Scene, cloud: Cloud, h1: Host) -> None:
    network = scene.network()
    vm = scene.vm(network, h1, plug=False)
    h1.run(f"ovs-vsctl --no-wait add-port br-int {vm.tap} -- set interface {vm.tap} external_ids:iface-id={vm.id}")
    wait_until(lambda: "INTERFACE_ERROR" in reasons(cloud, vm.port), "it is reported", PATIENCE)
    port = cloud.admin.get(vm.port)
    assert port.state == resource_pb2.STATE_ERROR
    assert "No such device" in " ".join(sentences(port))
    h1.run(f"ovs-vsctl del-port br-int {vm.tap}")
    vm.plug()
    vm.active()
    assert vm.workload.dhcp()["ip"] == vm.ip


def test_b_net_03_an_agent_that_starts_before_etcd_the_api_and_its_node(scene: Scene, cloud: Cloud, h1: Host, h3: Host) -> None:
    """The host is new to the cloud and up first; what it needs comes later, in the order of the text above."""
    cloud.admin.wait(cloud.admin.delete(node_pb2.Node(id="h3")))
    h3.kill_agent()
    cloud.lab.kill_api()
    cloud.lab.kill_etcd()
    written = h3.agent.log.stat().st_size
    h3.start_agent()
    wait_until(lambda: b"waiting for the store" in h3.agent.log.read_bytes()[written:], "it waits", PATIENCE)
    pid = h3.agent_pid
    cloud.lab.start_etcd()
    cloud.lab.start_api()
    network = scene.network()
    here = scene.vm(network, h1)
    vm = scene.vm(network, h3, plug=False)
    vm.plug()
    try:
        wait_until(lambda: b"waiting for Node h3" in h3.agent.log.read_bytes()[written:], "it says what is missing", PATIENCE)
        assert cloud.admin.get(vm.port).state != resource_pb2.STATE_ACTIVE
    finally:
        # Without a tunnel_ip: its agent has reported one.
        cloud.admin.create(node_pb2.Node(id="h3"))
    wait_until(lambda: cloud.admin.get(node_pb2.Node(id="h3")).tunnel_ip == h3.underlay, "its address is found", PATIENCE)
    vm.active()
    cloud.admin.wait(0)
    assert vm.workload.dhcp()["ip"] == vm.ip
    assert here.sees(vm)
    assert vm.sees(here)
    assert h3.agent_pid == pid


def test_attach_refuses_what_it_must_not_touch(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = scene.network()
    vm = scene.vm(network, h1)
    second = scene.move(vm, h2)
    for host, options, words in (
        (h2, [vm.id, "--netns", second.workload.name], "is attached to node h1; detach it there first"),
        (h1, [vm.id, "--netns", "nowhere"], "there is no network namespace nowhere"),
    ):
        with pytest.raises(LabError, match=words):
            kumi(host, "attach", *options)
    assert "eth0" not in second.workload.run("ip -brief link")
