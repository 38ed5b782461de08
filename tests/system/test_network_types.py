"""Every type of network, side by side on the same hosts, with the same addresses, MACs and numbers in all of them.

What keeps them apart is the type and the number on the wire alone, so each test that passes shows both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.lab import Host
from kumihimo.v1 import network_pb2, node_pb2, segment_pb2
from tests.system import frames
from tests.system.cloud import Cloud, Scene, Vm, bridges

TUNNELS = ("vxlan", "geneve", "gre")
TYPES = (*TUNNELS, "vlan", "flat", "local")
NUMBER = 501
LARGEST = {"vxlan": (1 << 24) - 1, "geneve": (1 << 24) - 1, "gre": (1 << 32) - 1, "vlan": 4094}
MTU = {"vxlan": 1550, "geneve": 1550, "gre": 1558, "vlan": 1600, "flat": 1600, "local": 1600}
PROJECTS = ("demo", "other")
HEADERS = 28  # IPv4 and ICMP
MACS = [f"fa:16:3e:00:05:{number:02x}" for number in range(1, 4)]


def map_bridges(cloud: Cloud, host: Host, **mappings: str) -> None:
    """Set a node's bridge_mappings and wait until its agent has come to it."""
    node = cloud.admin.update(node_pb2.Node(id=host.name, bridge_mappings=mappings), "bridge_mappings")
    cloud.admin.wait(node.revision)


@pytest.fixture(scope="module")
def wire(cloud: Cloud) -> Iterator[None]:
    """h1 and h2 attached to one physical network by their NIC phy1; afterwards as before."""
    cloud.ensure()
    cloud.admin.create(segment_pb2.PhysicalNetwork(id="phys", mtu=1600))
    for host in cloud.hosts[:2]:
        map_bridges(cloud, host, phys="phy1")
        assert host.run("ovs-vsctl port-to-br phy1").strip() == "br-phys"
    yield
    cloud.ensure()
    for host in cloud.hosts:
        map_bridges(cloud, host)
        assert sorted(bridges(host)) == ["br-int", "br-phy"]
        assert "int-br" not in host.run("ovs-vsctl list-ports br-int")
    cloud.admin.delete(segment_pb2.PhysicalNetwork(id="phys"))


def network(scene: Scene, kind: str, number: int = 0, cidr: str = "10.5.0.0/24", **fields: Any) -> Any:
    """A network of a type, of a project of its own in turn."""
    kinds = {"network_type": network_pb2.NetworkType.Value(f"NETWORK_TYPE_{kind.upper()}"), "segmentation_id": number}
    if kind in ("vlan", "flat"):
        kinds["physical_network"] = "phys"
    if kind in ("flat", "local"):
        kinds["segmentation_id"] = 0
    return scene.network(cidr=cidr, **kinds, **fields)


def three(scene: Scene, made: Any, places: tuple[Host, ...]) -> list[Vm]:
    """Workloads with the addresses and MACs that those of every other network have."""
    return [
        scene.vm(made, host, ip=f"10.5.0.{10 + number}", mac_address=mac)
        for number, (host, mac) in enumerate(zip(places, MACS, strict=False), 1)
    ]


def datagram(sender: Vm, target_mac: str, target_ip: str, marker: bytes) -> bytes:
    """Something that nobody answers."""
    return frames.echo(sender.mac, target_mac, sender.ip, target_ip, marker, frames.ECHO_REPLY)


def assert_fits(sender: Vm, ip: str, mtu: int) -> None:
    """A packet of the network's MTU passes, and one byte more is refused by the guest itself, with the figure."""
    sender.workload.run("ip address flush dev eth0")
    assert sender.workload.dhcp()["mtu"] == str(mtu), "B-NET-12: the guest is told"
    assert sender.workload.ping(ip, count=2, interval=0.05, size=mtu - HEADERS).received == 2
    text = sender.workload.run(f"ping -n -c 1 -W 1 -M do -s {mtu - HEADERS + 1} {ip} 2>&1 || true")
    assert f"message too long, mtu={mtu}" in text


def seen_on(wire: Path, marker: bytes) -> list[int]:
    """The VLANs in which a marker crossed the provider's wire."""
    return [frames.tag_of(frame) for frame in frames.captured(wire) if marker in frame]


def exchange(cloud: Cloud, groups: dict[str, list[Vm]], folder: Path) -> dict[str, dict[str, tuple[list[Any], list[int]]]]:
    """Each first sends to all others of its network, one by one and by broadcast; only they may hear, and each once.

    Returns, by network and receiver, how it crossed: (kind, number, ends) on the underlay, VLANs on the provider's wire.
    """
    underlay, provider = folder / "underlay.pcap", folder / "provider.pcap"
    markers: dict[str, dict[str, bytes]] = {}
    for vms in groups.values():
        for vm in vms:
            vm.guest.clear()
    with cloud.lab.capture("underlay", write=underlay), cloud.lab.capture("provider", write=provider):
        for name, (first, *others) in groups.items():
            markers[name] = {vm.ip: os.urandom(16) for vm in others} | {"all": os.urandom(16)}
            first.guest.send(
                *(datagram(first, vm.mac, vm.ip, markers[name][vm.ip]) for vm in others),
                datagram(first, frames.BROADCAST, "255.255.255.255", markers[name]["all"]),
            )
        for name, (first, *others) in groups.items():
            for vm in others:
                if name != "local" or vm.host is first.host:
                    vm.guest.wait_for(markers[name][vm.ip])
                    vm.guest.wait_for(markers[name]["all"])
    for name, vms in groups.items():
        for vm in vms:
            heard = [(other, to) for other, sent in markers.items() for to, mark in sent.items() if vm.guest.has(mark)]
            reached = vm is not vms[0] and (name != "local" or vm.host is vms[0].host)
            assert heard == ([(name, vm.ip), (name, "all")] if reached else []), f"{vm.ip} of {name}"
            for marker in markers[name].values():
                assert sum(marker in frame for frame in vm.guest.seen()) <= 1, "no copy too many"
    packets = frames.tunnelled(underlay)
    return {
        name: {
            to: (
                [(each.kind, each.vni, each.source, each.target) for each in packets if marker in each.inner],
                seen_on(provider, marker),
            )
            for to, marker in sent.items()
        }
        for name, sent in markers.items()
    }


def assert_crossed(name: str, number: int, vms: list[Vm], found: dict[str, tuple[list[Any], list[int]]], version: int) -> None:
    """What went to another host crossed once, in the network's own way, and what stayed on the host did not."""
    first, *others = vms
    away = {vm.host.name: vm.host for vm in others if vm.host is not first.host}
    for vm in others:
        tunnels, tags = found[vm.ip]
        crossing = name != "local" and vm.host is not first.host
        ends = [first.host, vm.host]
        addresses = [host.underlay6 if version == 6 else host.underlay for host in ends]
        assert tunnels == ([(name, number, *addresses)] if crossing and name in TUNNELS else [])
        assert tags == ([number] if crossing and name in ("vlan", "flat") else [])
    tunnels, tags = found["all"]
    assert len(tunnels) == (len(away) if name in TUNNELS else 0)
    assert {(kind, vni) for kind, vni, *_ in tunnels} <= {(name, number)}
    assert tags == ([number] if name in ("vlan", "flat") else []), "to the wire once, and not back to it"


def test_a_64_all_types_at_once_with_one_number_and_the_same_addresses(
    scene: Scene, cloud: Cloud, wire: None, h1: Host, h2: Host, tmp_path: Path
) -> None:
    """B-NET-02 to B-NET-06: six networks of two projects; the number 501 in four types; overlapping addresses and MACs."""
    groups, numbers = {}, {}
    for position, kind in enumerate(TYPES):
        made = network(scene, kind, NUMBER, project_id=PROJECTS[position % 2])
        numbers[kind] = made.segmentation_id
        assert made.mtu == MTU[kind]
        groups[kind] = three(scene, made, (h1, h2, h1) if kind in ("vxlan", "vlan", "local") else (h1, h2))
    found = exchange(cloud, groups, tmp_path)
    for kind, vms in groups.items():
        assert_crossed(kind, numbers[kind], vms, found[kind], 4)
        last = vms[1] if kind != "local" else vms[2]
        assert_fits(vms[0], last.ip, MTU[kind])
