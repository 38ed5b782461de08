"""IPv6 of tenants: addresses by SLAAC and DHCPv6, neighbours found on the spot, networks apart."""

from __future__ import annotations

import os
import time
from ipaddress import ip_address
from pathlib import Path

from controlplane.values import eui64, prefix, service_mac
from deploy.lab import Host, wait_until
from kumihimo.v1 import network_pb2 as pb
from tests.system import frames, frames6
from tests.system.cloud import Cloud, Scene, Vm

MAC = "fa:16:3e:00:00:{:02x}"


def subnet(cloud: Cloud, network: pb.Network, cidr: str, mode: int = pb.IPV6_MODE_SLAAC, **fields: object) -> pb.Subnet:
    """An IPv6 subnet beside the IPv4 one that the scene makes."""
    made: pb.Subnet = cloud.admin.create(pb.Subnet(network_id=network.id, cidr=cidr, ipv6_ra_mode=mode, **fields))  # type: ignore[arg-type]
    return made


def ip6(vm: Vm) -> str:
    return str(vm.port.fixed_ips[1].ip_address)


def link_local(vm: Vm) -> str:
    return eui64(prefix("fe80::/64"), vm.mac)


def solicited(vm: Vm) -> frames6.Advertisement:
    """What the network says to a guest that asks, and answers who looks for it, as its kernel would."""
    vm.guest.clear()
    vm.guest.send(frames6.router_solicit(vm.mac, link_local(vm)))
    answered = 0

    def heard() -> list[bytes]:
        nonlocal answered
        seen = vm.guest.seen()
        asked = [frame for frame in seen if frames6.icmp_kind(frame) == frames6.NS]
        for frame in asked[answered:]:
            mac, ip = frame[6:12].hex(":"), str(ip_address(frame[22:38]))
            vm.guest.send(frames6.advertise(vm.mac, link_local(vm), link_local(vm), vm.mac, mac, ip))
        answered = len(asked)
        return [frame for frame in seen if frames6.icmp_kind(frame) == frames6.RA]

    wait_until(lambda: bool(heard()), "an advertisement comes")
    return frames6.advertisement(heard()[0])


def test_b_sub_01_b_sub_07_b_net_20_slaac_over_hosts_and_no_discovery_between_them(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host, tmp_path: Path
) -> None:
    network = scene.network()
    subnet(cloud, network, "fd00:1::/64")
    path = tmp_path / "underlay.pcap"
    with cloud.lab.capture("underlay", "udp port 4789", write=path):
        vms = [scene.vm(network, host) for host in (h1, h2, h1)]
        for vm in vms:
            vm.workload.speak6()
        formed = [vm.workload.slaac() for vm in vms]
        assert formed == [[ip6(vm)] for vm in vms], "as the API has predicted"
        assert [ip6(vm) for vm in vms] == [eui64(prefix("fd00:1::/64"), vm.mac) for vm in vms]
        first, far, near = vms
        room = network.mtu - 48  # headers of IPv6 and of the echo request
        for other in (far, near):
            for address in (ip6(other), f"{link_local(other)}%eth0"):
                assert first.workload.ping(address, count=3, interval=0.05).received == 3
            assert first.workload.ping(ip6(other), count=2, size=room).received == 2, "a packet that fills the MTU"
            assert first.workload.ping(ip6(other), count=1, size=room + 1).received == 0, "and one that does not fit"
            assert first.workload.ping(other.ip, count=2, interval=0.05).received == 2, "IPv4 beside it"
        last = os.urandom(16)
        first.guest.send(frames6.silent(first.mac, far.mac, ip6(first), ip6(far), last))
        wait_until(lambda: any(last in found.inner for found in frames.tunnelled(path)), "it is captured")
    assert frames6.discovery_across(path) == []
    assert "default" not in first.workload.run("ip -6 route"), "nobody routes, so nobody says that he does"


def test_b_sub_07_a_subnet_that_comes_later_reaches_guests_that_run_and_goes_again(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host
) -> None:
    network = scene.network()
    one, two = (scene.vm(network, host) for host in (h1, h2))
    assert one.sees(two)
    later = subnet(cloud, network, "fd00:1::/64")
    cloud.admin.wait(later.revision)
    for vm in (one, two):
        vm.port = cloud.admin.get(vm.port)
        vm.workload.speak6()
    assert [vm.workload.slaac() for vm in (one, two)] == [[ip6(vm)] for vm in (one, two)]
    assert one.workload.ping(ip6(two), count=3, interval=0.05).received == 3
    cloud.admin.delete(later)
    assert [len(cloud.admin.get(vm.port).fixed_ips) for vm in (one, two)] == [1, 1]
    assert one.sees(two), "IPv4 is as it was"


def test_b_sub_10_an_advertisement_within_3_s_of_port_up(scene: Scene, cloud: Cloud, h1: Host) -> None:
    network = scene.network(mtu=1400)
    subnet(cloud, network, "fd00:1::/64", dns_nameservers=["fd00:53::1"])
    vm = scene.vm(network, h1, plug=False)
    vm.workload.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.all.disable_ipv6=0")
    began = time.monotonic()
    vm.plug()
    wait_until(lambda: "fd00:1::/64" in vm.workload.run("ip -6 route"), "the kernel has heard one")
    assert time.monotonic() - began < 3, "the first port of a network on its host, its kernel's own second of waiting included"
    vm.active()
    assert solicited(vm) == frames6.Advertisement(False, False, 0, 1400, {"fd00:1::/64": (True, True)}, ("fd00:53::1",))


def test_b_sub_08_dhcpv6_gives_addresses_or_options_alone(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host, tmp_path: Path
) -> None:
    told = {"dns_nameservers": ["fd00:53::1", "fd00:53::2"]}
    stateful, stateless = (scene.network(dns_domain="lab.example") for _ in range(2))
    subnet(cloud, stateful, "fd00:2::/80", pb.IPV6_MODE_DHCPV6_STATEFUL, **told)
    subnet(cloud, stateless, "fd00:3::/64", pb.IPV6_MODE_DHCPV6_STATELESS, **told)
    path = tmp_path / "underlay.pcap"
    with cloud.lab.capture("underlay", "udp port 4789", write=path):
        vm, far = scene.vm(stateful, h1), scene.vm(stateful, h2)
        says = solicited(vm)
        assert (says.managed, says.other, says.mtu) == (True, True, 1550)
        assert says.prefixes == {"fd00:2::/80": (True, False)}
        for each in (vm, far):
            each.workload.speak6()
        for each in (vm, far):
            lease = each.workload.dhcp6()
            assert lease["ip6_address"] == ip6(each)
            assert lease["dhcp6_name_servers"] == "fd00:53::1 fd00:53::2"
            assert lease["dhcp6_domain_search"] == "lab.example."
        assert vm.workload.ping(ip6(far), count=3, interval=0.05).received == 3
        own = {"name": "sntp-server", "value": "fd00:53::3", "ip_version": pb.IP_VERSION_IPV6}
        other = scene.vm(stateless, h1, extra_dhcp_opts=[own])
        says = solicited(other)
        assert (says.managed, says.other, says.prefixes) == (False, True, {"fd00:3::/64": (True, True)})
        assert other.workload.slaac() == [ip6(other)]
        options = other.workload.dhcp6(information=True)
        assert options["dhcp6_name_servers"] == "fd00:53::1 fd00:53::2"
        assert options["dhcp6_sntp_servers"] == "fd00:53::3", "B-SUB-05: its own"
        assert "ip6_address" not in options
        assert "dhcp6_sntp_servers" not in vm.workload.dhcp6()
    assert len(frames.tunnelled(path)) > 3
    assert frames6.discovery_across(path) == []
    # Deleted and made again with another MAC: the address is its own at once.
    wanted = ip6(vm)
    scene.remove(vm)
    fixed = [{"ip_address": "10.0.0.50"}, {"ip_address": wanted}]
    new = scene.vm(stateful, h1, fixed_ips=fixed)
    assert new.mac != vm.mac
    assert new.workload.dhcp6()["ip6_address"] == wanted


def test_b_net_01_equal_prefixes_in_two_projects_never_meet(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    """The same addresses and MACs on the same hosts: unicast, multicast, discovery and advertisements stay inside."""
    networks = {api: scene.network(api) for api in (cloud.alice, cloud.bob)}
    for network, server in zip(networks.values(), ("fd00:53::a", "fd00:53::b"), strict=True):
        subnet(cloud, network, "fd00:1::/64", dns_nameservers=[server])
    groups = {
        api: [scene.vm(network, host, mac_address=MAC.format(number)) for number, host in enumerate((h1, h2, h1), 1)]
        for api, network in networks.items()
    }
    alice, bob = groups[cloud.alice], groups[cloud.bob]
    assert [ip6(vm) for vm in alice] == [ip6(vm) for vm in bob]
    assert [solicited(vms[0]).servers for vms in (alice, bob)] == [("fd00:53::a",), ("fd00:53::b",)]
    for vms, others in ((alice, bob), (bob, alice)):
        for vm in (*alice, *bob):
            vm.guest.clear()
        first = vms[0]
        unicast, local, multicast = (os.urandom(16) for _ in range(3))
        group = "ff02::1234"
        first.guest.send(
            *(
                frames6.silent(first.mac, to.mac, ip6(first), ip6(to), marker)
                for to, marker in ((vms[1], unicast), (vms[2], local))
            ),
            frames6.silent(first.mac, frames6.group_mac(group), ip6(first), group, multicast),
            frames6.solicit(first.mac, ip6(first), "fd00:1::77", first.mac),
        )
        vms[1].guest.wait_for(unicast)
        vms[2].guest.wait_for(local)
        for vm in vms[1:]:
            vm.guest.wait_for(multicast)
        own = frames.mac_bytes(service_mac(cloud.admin.get(networks[others[0].api]).key))
        assert [frame.hex() for vm in others for frame in vm.guest.seen() if frame[6:12] != own] == []
    scene.remove(bob[1])
    asked = frames6.solicit(MAC.format(1), ip6(bob[0]), ip6(alice[1]), MAC.format(1))
    owner = alice[1]
    for vms, known in ((alice, True), (bob, False)):
        owner.guest.clear()
        vms[0].guest.send(asked)
        last = os.urandom(16)
        alice[0].guest.send(frames6.silent(alice[0].mac, owner.mac, ip6(alice[0]), ip6(owner), last))
        owner.guest.wait_for(last)
        assert (asked[14:] in [frame[14:] for frame in owner.guest.seen()]) == known, "each asks in its own network"
