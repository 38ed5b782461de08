"""Every type of network, side by side on the same hosts, with the same addresses, MACs and numbers in all of them.

What keeps them apart is the type and the number on the wire alone, so each test that passes shows both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from controlplane.values import eui64
from deploy.lab import Host, wait_until
from deploy.lab.place import Place
from kumihimo.v1 import network_pb2, node_pb2, operations_pb2, port_pb2, segment_pb2
from tests.system import frames, frames6
from tests.system.cloud import PATIENCE, Cloud, Guest, Scene, Vm, bridges
from tests.system.test_outages import durations, state, wait_compiled

TUNNELS = ("vxlan", "geneve", "gre")
TYPES = (*TUNNELS, "vlan", "flat", "local")
TRIED = TYPES if os.environ.get("KUMI_FULL") else ("gre",)  # by the matrix of every pair
PREFIX6 = "fd00:5::/64"
NUMBER = 501
LARGEST = {"vxlan": (1 << 24) - 1, "geneve": (1 << 24) - 1, "gre": (1 << 32) - 1, "vlan": 4094}
MTU = {"vxlan": 1550, "geneve": 1550, "gre": 1558, "vlan": 1600, "flat": 1600, "local": 1600}
PROJECTS = ("demo", "other")
HEADERS = 28  # IPv4 and ICMP
MACS = [f"fa:16:3e:00:05:{number:02x}" for number in range(1, 5)]


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


def workloads(scene: Scene, made: Any, places: tuple[Host, ...], subnet6: str = "") -> list[Vm]:
    """Workloads with the addresses and MACs that those of every other network have; of an IPv6 subnet too, if it is given."""
    found = []
    for number, (host, mac) in enumerate(zip(places, MACS, strict=False), 1):
        addresses = [port_pb2.FixedIp(ip_address=f"10.5.0.{10 + number}")]
        addresses += [port_pb2.FixedIp(subnet_id=subnet6)] if subnet6 else []
        found.append(scene.vm(made, host, mac_address=mac, fixed_ips=addresses))
    return found


def ip6(vm: Vm) -> str:
    return next(str(fixed.ip_address) for fixed in vm.port.fixed_ips if ":" in fixed.ip_address)


def datagram(sender: Vm, target_mac: str, target_ip: str, marker: bytes) -> bytes:
    """Something that nobody answers."""
    return frames.silent(sender.mac, target_mac, sender.ip, target_ip, marker)


def datagrams(sender: Vm, others: list[Vm], markers: dict[str, bytes], family: int) -> list[bytes]:
    """One to each of the others, and one to all of them, each with its marker."""
    if family == 6:
        silent = partial(frames6.silent, sender.mac)
        to_all = silent("33:33:00:00:00:01", ip6(sender), "ff02::1", markers["all"])
        return [*(silent(vm.mac, ip6(sender), ip6(vm), markers[vm.ip]) for vm in others), to_all]
    to_all = datagram(sender, frames.BROADCAST, "255.255.255.255", markers["all"])
    return [*(datagram(sender, vm.mac, vm.ip, markers[vm.ip]) for vm in others), to_all]


def assert_fits(sender: Vm, ip: str, mtu: int) -> None:
    """A packet of the network's MTU passes, and one byte more is refused by the guest itself, with the figure."""
    sender.workload.run("ip address flush dev eth0")
    assert sender.workload.dhcp()["mtu"] == str(mtu), "B-NET-12: the guest is told"
    assert sender.workload.ping(ip, count=2, interval=0.05, size=mtu - HEADERS).received == 2
    text = sender.workload.run(f"ping -n -c 1 -W 1 -M do -s {mtu - HEADERS + 1} {ip} 2>&1 || true")
    assert f"message too long, mtu={mtu}" in text


def wait_captured(marker: bytes, *paths: Path, copies: int = 1) -> None:
    """Wait until so many copies of a marker are in the capture files, and so everything before them."""
    wait_until(lambda: sum(path.read_bytes().count(marker) for path in paths) >= copies, "it is captured")


def seen_on(wire: Path, marker: bytes) -> list[int]:
    """The VLANs in which a marker crossed the provider's wire."""
    return [frames.tag_of(frame) for frame in frames.captured(wire) if marker in frame]


def exchange(
    cloud: Cloud, groups: dict[str, list[Vm]], folder: Path, kinds: dict[str, str] | None = None, family: int = 4
) -> dict[str, dict[str, tuple[list[Any], list[int]]]]:
    """Each first sends to all others of its network, one by one and by broadcast; only they may hear, and each once.

    groups: by network, whose type `kinds` says; it is the name of the network when not given.

    Returns, by network and receiver, how it crossed: (kind, number, ends) on the underlay, VLANs on the provider's wire.
    """

    def is_local(name: str) -> bool:
        return (kinds or {}).get(name, name) == "local"

    underlay, provider = folder / "underlay.pcap", folder / "provider.pcap"
    markers: dict[str, dict[str, bytes]] = {}
    for vms in groups.values():
        for vm in vms:
            vm.guest.clear()
    with cloud.lab.capture("underlay", write=underlay), cloud.lab.capture("provider", write=provider):
        for name, (first, *others) in groups.items():
            markers[name] = {vm.ip: os.urandom(16) for vm in others} | {"all": os.urandom(16)}
            first.guest.send(*datagrams(first, others, markers[name], family))
        for name, (first, *others) in groups.items():
            for vm in others:
                if not is_local(name) or vm.host is first.host:
                    vm.guest.wait_for(markers[name][vm.ip])
                    vm.guest.wait_for(markers[name]["all"])
            kind = (kinds or {}).get(name, name)
            copies = len({vm.host.name for vm in others} - {first.host.name}) if kind in TUNNELS else kind != "local"
            wait_captured(markers[name]["all"], underlay, provider, copies=copies)
    for name, vms in groups.items():
        for vm in vms:
            heard = [(other, to) for other, sent in markers.items() for to, mark in sent.items() if vm.guest.has(mark)]
            reached = vm is not vms[0] and (not is_local(name) or vm.host is vms[0].host)
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
        groups[kind] = workloads(scene, made, (h1, h2, h1) if kind in ("vxlan", "vlan", "local") else (h1, h2))
    found = exchange(cloud, groups, tmp_path)
    for kind, vms in groups.items():
        assert_crossed(kind, numbers[kind], vms, found[kind], 4)
        last = vms[1] if kind != "local" else vms[2]
        assert_fits(vms[0], last.ip, MTU[kind])
    assert_adopted(cloud, h1, groups["vlan"][0])


def assert_adopted(cloud: Cloud, host: Host, vm: Vm) -> None:
    """C-07: an agent that starts again finds everything of every type as it should be, and replaces nothing."""
    before, ages, began, written = state(host), durations(host), time.monotonic(), host.agent.log.stat().st_size
    host.kill_agent()
    host.start_agent()
    wait_compiled(host, written)
    touched = cloud.admin.update(port_pb2.Port(id=vm.id, description="seen"), "description")
    cloud.admin.wait(touched.revision, vm.id)
    passed = time.monotonic() - began
    assert state(host) == before
    now = durations(host)
    assert [flow for flow, age in ages.items() if now[flow] < age + passed - 0.5] == []


@pytest.fixture
def machine(cloud: Cloud, wire: None, h3: Host) -> Iterator[Place]:
    """A physical machine on VLAN 77 of the wire: a router with a global address, and the world behind it, 198.51.100.1.

    It hangs on a switch that is not ours, a bridge br-wire of h3, which is NIC phy1's.
    """
    made = h3.add_workload("machine")
    h3.run(f"""
        ovs-vsctl add-br br-wire -- set bridge br-wire datapath_type={h3.datapath} -- add-port br-wire phy1
        ip link add wire0 mtu 1600 type veth peer name eth0 mtu 1600 address 02:00:00:00:00:77 netns machine
        ip link set wire0 up
        ethtool -K wire0 tx off >/dev/null
        ip netns exec machine ethtool -K eth0 tx off >/dev/null
        ip -n machine address add 203.0.113.1/24 dev eth0
        ip -n machine address add 198.51.100.1/32 dev lo
        ip -n machine link set eth0 up
        ovs-vsctl add-port br-wire wire0 tag=77
    """)
    yield made
    h3.remove_workload("machine")
    h3.run("ovs-vsctl del-br br-wire")


def test_b_net_02_a_workload_with_a_global_address_straight_on_a_provider_vlan(
    scene: Scene, cloud: Cloud, machine: Place, h1: Host, h2: Host, h3: Host, tmp_path: Path
) -> None:
    """B-NET-07: the operator's VLAN; machines and workloads reach each other, on our bridge and on a foreign one."""
    made = network(scene, "vlan", 77, "203.0.113.0/24", subnet={"gateway_ip": "203.0.113.1"})
    one, two = (scene.vm(made, host, **scene.open()) for host in (h1, h2))
    for vm in (one, two):
        vm.workload.run("ip address flush dev eth0")
        assert vm.workload.dhcp()["router"] == "203.0.113.1"
        assert vm.workload.ping("198.51.100.1", count=2, interval=0.05).received == 2, "through the machine"
        assert machine.ping(vm.ip, count=2, interval=0.05).received == 2
    # The bridge of h3 is somebody else's: it is used, and keeps everything that it has.
    before = h3.run("ovs-vsctl get bridge br-wire fail_mode external_ids")
    map_bridges(cloud, h3, phys="br-wire")
    three = scene.vm(made, h3, **scene.open())
    assert three.sees(one)
    assert machine.ping(three.ip, count=2, interval=0.05).received == 2
    assert sorted(h3.run("ovs-vsctl list-ports br-wire").split()) == ["phy-br-wire", "phy1", "wire0"]
    scene.remove(three)
    map_bridges(cloud, h3)
    assert h3.run("ovs-vsctl get bridge br-wire fail_mode external_ids") == before
    assert sorted(h3.run("ovs-vsctl list-ports br-wire").split()) == ["phy1", "wire0"]


def test_b_net_02_ipv6_straight_on_a_provider_vlan_with_the_wires_own_router(
    scene: Scene, cloud: Cloud, machine: Place, h1: Host, h2: Host, h3: Host
) -> None:
    """Neighbours are found in both directions; a router of the wire is heard, and asked, beside our own advertisements."""
    made = network(scene, "vlan", 77, "203.0.113.0/24")
    cloud.admin.create(network_pb2.Subnet(network_id=made.id, cidr="fd00:77::/64"))
    machine.run("ip address add fd00:77::1/64 dev eth0 nodad")
    router = Guest(h3.workload("machine"))
    try:
        vms = [scene.vm(made, host, **scene.open()) for host in (h1, h2)]
        for vm in vms:
            vm.workload.speak6()
        one, two = (vm.workload.slaac()[0] for vm in vms)
        assert vms[0].workload.ping(two, count=2, interval=0.05).received == 2
        for vm, address in zip(vms, (one, two), strict=True):
            assert vm.workload.ping("fd00:77::1", count=2, interval=0.05).received == 2
            assert machine.ping(address, count=2, interval=0.05).received == 2
        heard = router.seen()
        assert [frame for frame in heard if frames6.icmp_kind(frame) == frames6.RA] == [], "ours stay on their host"
        for vm, address in zip(vms, (one, two), strict=True):
            mine = [frame for frame in heard if frame[6:12] == frames.mac_bytes(vm.mac)]
            assert any(frames6.icmp_kind(frame) == frames6.RS for frame in mine)
            probed = [frame[62:78] for frame in mine if frames6.icmp_kind(frame) == frames6.NS]
            assert frames6.ip_bytes(address) in probed, "a machine that has the address could say so"
        mac = "02:00:00:00:00:77"
        router.send(frames6.router_advertise(mac, eui64(ip_network("fe80::/64"), mac), os.urandom(16)))
        for vm in vms:
            wait_until(lambda vm=vm: "default via fe80::" in vm.workload.run("ip -6 route"), "the router is heard")  # type: ignore[misc]
    finally:
        router.close()


def test_b_net_06_a_flat_network_reaches_what_is_outside(scene: Scene, cloud: Cloud, wire: None, h1: Host, h2: Host) -> None:
    """Untagged, straight on the wire, with a global address: the lab's outside is 203.0.113.1."""
    made = network(scene, "flat", cidr="203.0.113.0/24")
    one, two = (scene.vm(made, host, **scene.open()) for host in (h1, h2))
    for vm in (one, two):
        assert vm.workload.ping("203.0.113.1", count=2, interval=0.05, size=1600 - HEADERS).received == 2
        assert cloud.lab.outside.ping(vm.ip, count=2, interval=0.05).received == 2
    assert one.sees(two)


def test_b_net_02_what_is_unknown_goes_to_the_wire_alone_and_nothing_returns_to_it(
    scene: Scene, cloud: Cloud, machine: Place, h1: Host, h2: Host, tmp_path: Path
) -> None:
    made = network(scene, "vlan", 77, "203.0.113.0/24")
    one, beside, away = (scene.vm(made, host, **scene.open()) for host in (h1, h1, h2))
    eth0 = "02:00:00:00:00:77"
    path = tmp_path / "provider.pcap"
    outward = {name: os.urandom(16) for name in ("nobody", "broadcast", "multicast", "beside", "away")}
    with cloud.lab.capture("provider", write=path):
        one.guest.send(
            datagram(one, "fa:16:3e:99:99:99", "203.0.113.99", outward["nobody"]),
            datagram(one, frames.BROADCAST, "255.255.255.255", outward["broadcast"]),
            datagram(one, "01:00:5e:01:02:03", "224.1.2.3", outward["multicast"]),
            datagram(one, beside.mac, beside.ip, outward["beside"]),
            frames.arp(one.mac, one.ip, "203.0.113.99"),
            frames.arp(one.mac, one.ip, away.ip),
            datagram(one, away.mac, away.ip, outward["away"]),
        )
        away.guest.wait_for(outward["away"])
        away.guest.wait_for(outward["multicast"])
        wait_captured(outward["away"], path)
        # The wire speaks: to everybody, to a workload, and to somebody it does not know.
        inward = {name: os.urandom(16) for name in ("broadcast", "nobody", "one")}
        guest = Guest(machine, "eth0")
        guest.send(
            frames.silent(eth0, frames.BROADCAST, "203.0.113.1", "255.255.255.255", inward["broadcast"]),
            frames.silent(eth0, "fa:16:3e:99:99:99", "203.0.113.1", "203.0.113.99", inward["nobody"]),
            frames.silent(eth0, one.mac, "203.0.113.1", one.ip, inward["one"]),
        )
        one.guest.wait_for(inward["one"])
        for vm in (one, beside, away):
            vm.guest.wait_for(inward["broadcast"])
        guest.close()
        wait_captured(inward["one"], path)
    on_wire = list(frames.captured(path))
    for name, marker in (outward | {f"in-{name}": marker for name, marker in inward.items()}).items():
        tags = [frames.tag_of(frame) for frame in on_wire if marker in frame]
        assert tags == ([] if name == "beside" else [77]), f"{name}: once, with the network's tag, and not back"
    asked = [frame[42:46] for frame in on_wire if frame[16:18] == b"\x08\x06" and frame[24:26] == b"\0\x01"]
    assert frames.ip_bytes("203.0.113.99") in asked, "somebody on the wire may have it"
    assert frames.ip_bytes(away.ip) not in asked, "B-NET-20: known, and so answered on the spot"
    for vm in (beside, away):
        assert not vm.guest.has(outward["nobody"])
        assert not vm.guest.has(inward["nobody"])
    for vm in (one, beside, away):
        for marker in (*outward.values(), *inward.values()):
            assert sum(marker in frame for frame in vm.guest.seen()) <= 1


def test_b_net_02_a_node_that_is_not_on_the_physical_network_says_so_and_nothing_else_suffers(
    scene: Scene, cloud: Cloud, wire: None, h1: Host, h3: Host
) -> None:
    made, other = network(scene, "vlan", 99), scene.network()
    near = scene.vm(made, h1)
    fine = [scene.vm(other, host) for host in (h1, h3)]
    lost = scene.vm(made, h3, plug=False)
    lost.plug()

    def condition() -> Any:
        port = cloud.admin.get(lost.port)
        return next((item for item in port.conditions if item.type == "Wired" and item.reason != "NOT_YET_APPLIED"), None)

    wait_until(lambda: condition() is not None, "the node says what is wrong", PATIENCE)
    assert condition().reason == "SEGMENT_NOT_ON_NODE"
    assert "physical network phys is not in the bridge_mappings of node h3" in condition().message
    assert fine[1].sees(fine[0])
    assert f"kumi-{made.id}" not in h3.workloads
    # A mapping to what the host does not have is told as what it is, and is made good at once.
    node = cloud.admin.update(node_pb2.Node(id="h3", bridge_mappings={"phys": "eth7"}), "bridge_mappings")
    wait_until(lambda: "eth7 on br-phys" in condition().message, "the node says what is wrong", PATIENCE)
    assert [item.reason for item in cloud.admin.get(node).conditions if item.type == "Applied"] == ["INTERFACE"]
    assert fine[1].sees(fine[0])
    map_bridges(cloud, h3, phys="phy1")
    lost.active()
    lost.set_address()
    assert lost.sees(near)
    scene.remove(lost)
    map_bridges(cloud, h3)


def test_b_net_12_an_underlay_that_is_too_narrow_is_told_by_the_network(
    scene: Scene, cloud: Cloud, wire: None, h2: Host
) -> None:
    """The switch drops what is too large for the wire, and says nothing."""
    tunnel, vlan = scene.network(), network(scene, "vlan", 5)
    vms = [scene.vm(made, h2) for made in (tunnel, vlan)]
    assert vms

    def told(made: Any) -> list[str]:
        return [item.message for item in cloud.admin.get(made).conditions if item.reason == "UNDERLAY_MTU"]

    assert told(tunnel) == told(vlan) == []
    for nic, made, text in (
        ("phy0", tunnel, "mtu is 1550, and such a packet takes 1600 bytes on br-phy, which carries 1599"),
        ("phy1", vlan, "mtu is 1600, and such a packet takes 1600 bytes on br-phys, which carries 1599"),
    ):
        h2.run(f"ip link set {nic} mtu 1599")
        try:
            wait_until(lambda made=made: bool(told(made)), "it is told", PATIENCE)  # type: ignore[misc]
            assert text in told(made)[0]
            assert told(made)[0].startswith("node h2: ")
            cloud.admin.wait(cloud.admin.get(made).revision)
        finally:
            h2.run(f"ip link set {nic} mtu 1600; ip link set br-phy mtu 1600")
        wait_until(lambda made=made: not told(made), "it is taken back", PATIENCE)  # type: ignore[misc]


def test_b_net_02_a_mapped_interface_that_is_down_is_brought_up_and_stays_up(
    scene: Scene, cloud: Cloud, wire: None, h1: Host, h2: Host
) -> None:
    map_bridges(cloud, h2)
    h2.run("ip link set phy1 down")
    map_bridges(cloud, h2, phys="phy1")
    one, two = workloads(scene, network(scene, "flat"), (h1, h2))
    assert one.sees(two), "naming it is all that it takes"
    began = time.monotonic()
    h2.run("ip link set phy1 down")

    def told() -> bool:
        request = operations_pb2.ListDriftRequest(node="h2")
        found = cloud.admin.client.call("Operations", "ListDrift", request).items
        return any((drift.kind, drift.object) == ("uplink", "phy1") for drift in found)

    wait_until(told, "it is told", PATIENCE)
    wait_until(lambda: "UP" in h2.run("ip -o link show phy1 up"), "it is up again", PATIENCE)
    assert time.monotonic() - began < 10
    assert one.sees(two)


def test_a_75_a_changed_tunnel_address_converges_all_peers(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host, h3: Host, tmp_path: Path
) -> None:
    made = scene.network()
    one, two, three = (scene.vm(made, host) for host in (h1, h2, h3))
    new = "192.168.50.102"
    path = tmp_path / "underlay.pcap"
    for address in (new, h2.underlay):
        h2.run(f"ip address add {address}/24 dev br-phy 2>/dev/null || true")
        node = cloud.admin.update(node_pb2.Node(id="h2", tunnel_ip=address), "tunnel_ip")
        cloud.admin.wait(node.revision)
        path.unlink(missing_ok=True)
        marker = os.urandom(16)
        with cloud.lab.capture("underlay", write=path):
            assert one.sees(two)
            assert two.sees(three)
            one.guest.send(datagram(one, two.mac, two.ip, marker))
            two.guest.wait_for(marker)
            wait_captured(marker, path)
        ends = {end for packet in frames.tunnelled(path) for end in (packet.source, packet.target)}
        assert ends == {h1.underlay, address, h3.underlay}
    h2.run(f"ip address del {new}/24 dev br-phy")


def test_b_net_03_to_05_over_an_ipv6_underlay(cloud6: Cloud, tmp_path: Path) -> None:
    """Every tunnel type at once, all numbers equal; the MTU is 20 less."""
    scene, (one, two) = Scene(cloud6), cloud6.hosts
    groups = {}
    for kind in TUNNELS:
        made = network(scene, kind, NUMBER)
        assert made.mtu == MTU[kind] - 20
        groups[kind] = workloads(scene, made, (one, two))
    found = exchange(cloud6, groups, tmp_path)
    for kind, vms in groups.items():
        assert_crossed(kind, NUMBER, vms, found[kind], 6)
        assert_fits(vms[0], vms[1].ip, MTU[kind] - 20)
    assert {"kumi-vxlan", "kumi-geneve", "kumi-gre"} <= set(one.run("ovs-vsctl list-ports br-int").split())
    scene.close()


@pytest.mark.parametrize("kind", TRIED)
def test_a_64_two_projects_on_three_hosts_in_one_type(
    kind: str, scene: Scene, cloud: Cloud, wire: None, h1: Host, h2: Host, h3: Host, tmp_path: Path
) -> None:
    """Neighbours within one type, at the ends of its numbers; every pair, on one host and across, IPv4 and IPv6."""
    map_bridges(cloud, h3, phys="phy1")
    groups, numbers, kinds = {}, {}, {}
    for project, number in zip(PROJECTS, (1, LARGEST.get(kind, 0)), strict=True):
        if kind == "flat" and groups:
            break  # a physical network carries one
        made = network(scene, kind, number, project_id=project)
        numbers[project] = made.segmentation_id
        subnet6 = cloud.admin.create(network_pb2.Subnet(network_id=made.id, cidr=PREFIX6))
        groups[project] = workloads(scene, made, (h1, h2, h3, h1), subnet6.id)
        kinds[project] = kind
    for turn in range(4):
        turned = {project: [*vms[turn:], *vms[:turn]] for project, vms in groups.items()}
        for family in (4, 6):
            found = exchange(cloud, turned, tmp_path, kinds, family)
            for project, vms in turned.items():
                assert_crossed(kind, numbers[project], vms, found[project], 4)
    for project, vms in groups.items():
        for sender in vms:
            for vm in vms:
                if vm is not sender and (kind != "local" or vm.host is sender.host):
                    assert sender.sees(vm), f"{sender.ip} to {vm.ip} of {project}"
        reached = vms[3] if kind == "local" else vms[1]
        assert_fits(vms[0], reached.ip, MTU[kind])
