"""Networks are apart, and what they send between hosts is what it must be and no more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controlplane.values import service_mac
from deploy.lab import Host, wait_until
from tests.system import frames
from tests.system.cloud import Cloud, Scene, Vm
from tests.system.frames import Tunnelled, tunnelled


def datagram(sender: Vm, target_mac: str, target_ip: str, marker: bytes) -> bytes:
    """Something that nobody answers."""
    return frames.silent(sender.mac, target_mac, sender.ip, target_ip, marker)


def crossing(path: Path, marker: bytes) -> list[Tunnelled]:
    """The captured tunnel packets that carry a marker."""
    return [packet for packet in tunnelled(path) if marker in packet.inner]


def wait_captured(path: Path, marker: bytes) -> None:
    """Wait until a marker is in the file, and so everything before it."""
    wait_until(lambda: len(crossing(path, marker)) > 0, "it is captured")


def test_b_net_01_same_addresses_in_two_networks_never_meet(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host, tmp_path: Path
) -> None:
    """Two projects, one range, even the same MACs, on the same hosts: unicast, broadcast, ARP, DHCP stay inside."""
    places = [
        (h1, "10.0.0.11", "fa:16:3e:00:00:11"),
        (h2, "10.0.0.12", "fa:16:3e:00:00:12"),
        (h1, "10.0.0.13", "fa:16:3e:00:00:13"),
    ]
    networks = {api: scene.network(api) for api in (cloud.alice, cloud.bob)}
    groups = {api: [scene.vm(net, host, ip=ip, mac_address=mac) for host, ip, mac in places] for api, net in networks.items()}
    vni = {api: cloud.admin.get(network).segmentation_id for api, network in networks.items()}
    assert vni[cloud.alice] != vni[cloud.bob]
    capture_file = tmp_path / "underlay.pcap"
    for api, others in ((cloud.alice, cloud.bob), (cloud.bob, cloud.alice)):
        first, second, third = groups[api]
        for vm in (*groups[api], *groups[others]):
            vm.guest.clear()
        capture_file.unlink(missing_ok=True)
        with cloud.lab.capture("underlay", "udp port 4789", write=capture_file):
            unicast, local, broadcast, multicast = (os.urandom(16) for _ in range(4))
            first.guest.send(
                datagram(first, second.mac, second.ip, unicast),
                datagram(first, third.mac, third.ip, local),
                datagram(first, frames.BROADCAST, "255.255.255.255", broadcast),
                datagram(first, "01:00:5e:01:02:03", "224.1.2.3", multicast),
                frames.arp(first.mac, first.ip, "10.0.0.77"),
            )
            second.guest.wait_for(unicast)
            for receiver in (second, third):
                receiver.guest.wait_for(broadcast)
                receiver.guest.wait_for(multicast)
            third.guest.wait_for(local)
            assert first.workload.ping(second.ip, count=3, interval=0.05).received == 3
            assert first.workload.dhcp()["ip"] == first.ip
            wait_captured(capture_file, unicast)
        own = frames.mac_bytes(service_mac(cloud.admin.get(networks[others]).key))
        strange = [frame.hex() for vm in groups[others] for frame in vm.guest.seen() if frame[6:12] != own]
        assert strange == [], "the other network's own DHCP service aside, no frame is seen in it"
        assert not first.guest.has(broadcast), "nothing comes back to its sender"
        packets = tunnelled(capture_file)
        assert {packet.vni for packet in packets} == {vni[api]}, "B-NET-03: the network's VNI, and no other, on the wire"
        for marker in (unicast, broadcast, multicast):
            ends = [(packet.source, packet.target) for packet in crossing(capture_file, marker)]
            assert ends == [(h1.underlay, h2.underlay)]
        assert crossing(capture_file, local) == []


def test_b_net_20_no_arp_for_known_addresses_and_no_dhcp_crosses_the_underlay(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host, h3: Host, tmp_path: Path
) -> None:
    network = scene.network()
    vms = [scene.vm(network, host) for host in (h1, h2, h3)]
    server = cloud.admin.client.find("Subnet", cloud.admin.get(network).subnets[0]).dhcp_server_ip
    path = tmp_path / "underlay.pcap"
    with cloud.lab.capture("underlay", "udp port 4789", write=path):
        for vm in vms:
            vm.workload.run("ip address flush dev eth0")
            assert vm.workload.dhcp()["ip"] == vm.ip
        for vm in vms:
            for other in vms:
                if vm is not other:
                    found = vm.guest.probe([frames.arp(vm.mac, vm.ip, other.ip)], {"arp": frames.expect_arp(other.ip)})
                    assert found["arp"], f"{vm.ip} is told where {other.ip} is"
                    assert vm.workload.ping(other.ip, count=1).received == 1
            assert vm.guest.probe([frames.arp(vm.mac, vm.ip, server)], {"arp": frames.expect_arp(server)})["arp"]
        last = os.urandom(16)
        vms[0].guest.send(datagram(vms[0], vms[1].mac, vms[1].ip, last))
        wait_captured(path, last)
    inner = [packet.inner for packet in tunnelled(path)]
    assert len(inner) > 12
    assert [frame.hex() for frame in inner if frames.is_arp_request(frame)] == []
    assert [frame.hex() for frame in inner if frames.dhcp_ports(frame)] == []


@pytest.mark.parametrize("kind", ["broadcast", "multicast"])
def test_b_net_01_broadcast_goes_once_to_each_node_with_members(
    kind: str, scene: Scene, cloud: Cloud, h1: Host, h2: Host, h3: Host, tmp_path: Path
) -> None:
    target = (frames.BROADCAST, "255.255.255.255") if kind == "broadcast" else ("01:00:5e:01:02:03", "224.1.2.3")
    network = scene.network()
    sender = scene.vm(network, h1)
    receivers = [scene.vm(network, h2), scene.vm(network, h2)]

    def ends(path: Path) -> list[tuple[str, str]]:
        marker, last = os.urandom(16), os.urandom(16)
        with cloud.lab.capture("underlay", "udp port 4789", write=path):
            sender.guest.send(datagram(sender, *target, marker), datagram(sender, receivers[0].mac, receivers[0].ip, last))
            for receiver in receivers:
                receiver.guest.wait_for(marker)
            wait_captured(path, last)
        for receiver in receivers:
            assert sum(marker in frame for frame in receiver.guest.seen()) == 1, "no copy too many"
        return sorted((packet.source, packet.target) for packet in crossing(path, marker))

    assert ends(tmp_path / "one.pcap") == [(h1.underlay, h2.underlay)], "two members there, one copy; none for h3"
    receivers.append(scene.vm(network, h3))
    assert ends(tmp_path / "two.pcap") == [(h1.underlay, h2.underlay), (h1.underlay, h3.underlay)]
    gone = receivers.pop()
    scene.remove(gone)
    cloud.admin.wait(0)
    assert ends(tmp_path / "three.pcap") == [(h1.underlay, h2.underlay)], "a node that has lost its last member is left out"
