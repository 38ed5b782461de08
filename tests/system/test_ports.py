"""Ports with more than one address, addresses that move, and ports that move from host to host."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from deploy.lab import Host, wait_until
from kumihimo.v1 import network_pb2, port_pb2
from tests.system import frames
from tests.system.cloud import PATIENCE, Cloud, Scene, Vm

VIP = "10.0.0.100"
VIRTUAL_MAC = "00:00:5e:00:01:07"  # RFC 5798: of VRRP, router 7


def fixed(*addresses: str) -> list[port_pb2.FixedIp]:
    return [port_pb2.FixedIp(ip_address=address) for address in addresses]


def test_b_prt_03_several_addresses_of_several_subnets(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = scene.network()
    cloud.admin.create(network_pb2.Subnet(network_id=network.id, cidr="10.0.1.0/24", disable_gateway=True))
    mine = ("10.0.1.5", "10.0.0.5", "10.0.0.6", "10.0.1.6")
    vm = scene.vm(network, h1, fixed_ips=fixed(*mine))
    other = scene.vm(network, h2)
    watchers = [other, scene.vm(network, h1)]
    assert [each.ip_address for each in vm.port.fixed_ips] == list(mine), "in the order in which they were given"
    # DHCP gives the first; the guest sets the others.
    vm.workload.run("ip address flush dev eth0")
    given = vm.workload.dhcp()
    assert (given["ip"], given["mask"]) == ("10.0.1.5", "24")
    for ip in mine[1:]:
        vm.workload.run(f"ip address add {ip}/24 dev eth0")
    for watcher in watchers:
        for ip in mine:
            # Every one is answered for, and may send.
            marker = os.urandom(16)
            sent = [frames.echo(watcher.mac, vm.mac, watcher.ip, ip, marker), frames.arp(watcher.mac, watcher.ip, ip)]
            expect = {"echo": frames.expect_echo(marker), "arp": frames.expect_arp(ip)}
            watcher.workload.run(f"ip route replace {ip} dev eth0")
            if ip.startswith("10.0.1."):
                vm.workload.run(f"ip route replace {watcher.ip} dev eth0")
            assert watcher.guest.probe(sent, expect) == {"echo": True, "arp": True}, ip
    # Beside them it may send from none.
    for forged in ("10.0.0.7", "10.0.1.7"):
        marker, fence = os.urandom(16), os.urandom(16)
        vm.guest.send(
            frames.udp(vm.mac, other.mac, forged, other.ip, (7, 7), marker),
            frames.udp(vm.mac, other.mac, "10.0.0.6", other.ip, (7, 7), fence),
        )
        other.guest.wait_for(fence)
        assert not other.guest.has(marker)
    # One is taken away, and another given, while it runs.
    changed = cloud.admin.update(port_pb2.Port(id=vm.id, fixed_ips=fixed("10.0.0.6", "10.0.0.8")), "fixed_ips")
    cloud.admin.wait(changed.revision, vm.id)
    asked = {ip: frames.arp(other.mac, other.ip, ip) for ip in ("10.0.0.5", "10.0.1.5", "10.0.0.6", "10.0.0.8")}
    found = other.guest.probe(
        list(asked.values()), {ip: frames.expect_arp(ip) for ip in asked}, until=["10.0.0.6", "10.0.0.8"], grace=0.1
    )
    assert found == {"10.0.0.5": False, "10.0.1.5": False, "10.0.0.6": True, "10.0.0.8": True}
    assert vm.workload.dhcp(tries=3)["ip"] == "10.0.0.6"


def test_b_prt_03_a_taken_address_names_its_holder(scene: Scene, cloud: Cloud, h1: Host) -> None:
    network = scene.network()
    holder = scene.vm(network, h1, ip="10.0.0.5", plug=False, name="holder")
    from tests.system.cloud import refused

    error = refused(cloud.admin.create, port_pb2.Port(network_id=network.id, fixed_ips=fixed("10.0.0.5")))
    assert f"Port holder ({holder.id})" in str(error)


@pytest.mark.parametrize("mac", ["", VIRTUAL_MAC])
def test_b_prt_04_an_address_moves_between_two_ports(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host, h3: Host, mac: str
) -> None:
    """As VRRP does it: with the ports' own MACs, or with one that goes along."""
    network = scene.network()
    # A guest that has the virtual MAC for ARP may send with its own all the same.
    pairs = [port_pb2.AddressPair(ip_address=f"{VIP}/32", mac_address=each) for each in dict.fromkeys(["", mac])]
    first, second = (scene.vm(network, host, allowed_address_pairs=pairs) for host in (h1, h2))
    watchers = [scene.vm(network, host) for host in (h1, h3)]
    cloud.admin.wait(0, network.id)

    def take(vm: Vm) -> None:
        if mac:
            vm.workload.run(f"""
                ip link add vrrp link eth0 address {mac} type macvlan mode private
                sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.vrrp.rp_filter=0
                sysctl -qw net.ipv4.conf.vrrp.accept_local=1
                ip address add {VIP}/32 dev vrrp
                ip link set vrrp up
            """)
        else:
            vm.workload.run(f"ip address add {VIP}/32 dev eth0")
        vm.guest.send(*[frames.arp(mac or vm.mac, VIP, VIP)] * 2)

    def drop(vm: Vm) -> None:
        vm.workload.run("ip link delete vrrp" if mac else f"ip address delete {VIP}/32 dev eth0")

    take(first)
    pings = [watcher.workload.start_ping(VIP, interval=0.02) for watcher in watchers]
    try:
        for ping in pings:
            wait_until(lambda ping=ping: ping.received > 3, "the address answers")
        for old, new in ((first, second), (second, first)):
            drop(old)
            take(new)
            for ping in pings:
                now = ping.received
                wait_until(lambda ping=ping, now=now: ping.received > now + 5, "it answers from its new place", PATIENCE)
        # Its owner's host loses it without a word, and the other takes over.
        first.unplug()
        take(second)
        for ping in pings:
            now = ping.received
            wait_until(lambda ping=ping, now=now: ping.received > now + 5, "it answers from the survivor", PATIENCE)
    finally:
        results = [ping.result() for ping in pings]
    gaps = [result.gap for result in results]
    print(f"VIP with {mac or 'own MAC'}: longest gaps {gaps}")
    assert max(gaps) <= 3.0


def test_b_prt_06_b_prt_07_rebind_moves_traffic_and_the_old_host_drops(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host, h3: Host
) -> None:
    """The same port plugged on two hosts, as during a live migration; it is where it was asked to be, and nowhere else."""
    network = scene.network()
    watcher, source = scene.vm(network, h3), scene.vm(network, h1)
    etag = cloud.admin.get(source.port).etag
    target = scene.move(source, h2)
    target.plug()
    target.set_address()
    wait_until(lambda: "PLUGGED_TWICE" in reasons(cloud, source), "it is plugged twice, and that is told", PATIENCE)
    assert watcher.sees(source)
    ping = watcher.workload.start_ping(source.ip, interval=0.005)
    wait_until(lambda: ping.received > 20, "the ping runs")
    begun = time.monotonic()
    bind(cloud, source, "h2")
    wait_until(lambda: active(cloud, source) == ["h2"], "it is bound to h2", PATIENCE)
    target.active()
    cloud.admin.wait(0, network.id)
    took = time.monotonic() - begun
    now = ping.received
    wait_until(lambda: ping.received > now + 20, "the ping goes on")
    result = ping.result()
    print(f"rebind: {took * 1000:.0f} ms to applied everywhere, longest gap {result.gap * 1000:.0f} ms, {result.lost} lost")
    assert result.gap < 1.0
    assert cloud.admin.get(source.port).etag == etag
    texts = [each.message for each in cloud.admin.get(source.port).conditions if each.reason == "PLUGGED_TWICE"]
    assert texts == ["an interface on node h1 names this port too; it is bound to h2 and not wired there"]
    # What answers is the target, and what the old one sends is dropped on its host.
    marker = b"from the one that is left"
    source.guest.send(source.echo(watcher, marker))
    assert watcher.sees(target)
    assert not watcher.guest.has(marker)
    flows = h1.run(f"ovs-ofctl -O OpenFlow15 --no-names dump-flows br-int table=0,in_port={source.ofport}")
    assert "in_port" not in flows, "the old host has no flow for it"
    source.unplug()
    wait_until(lambda: "PLUGGED_TWICE" not in reasons(cloud, source), "nothing is left to tell", PATIENCE)
    assert watcher.sees(target)
    # Asked for elsewhere, and plugged where it was: it is wired nowhere until it is where it shall be.
    bind(cloud, source, "h3")
    target.unplug()
    wait_until(lambda: active(cloud, source) == [], "it is bound to nothing", PATIENCE)
    target.plug()
    target.set_address()
    wait_until(lambda: "ASKED_ELSEWHERE" in reasons(cloud, source), "it is told", PATIENCE)
    bind(cloud, source, "")
    target.active()
    cloud.admin.wait(0, network.id)
    assert watcher.sees(target)


def bind(cloud: Cloud, vm: Vm, node: str) -> None:
    """Bind the port to a node, or Unbind it when there is none."""
    if node:
        cloud.admin.client.call("Ports", "Bind", port_pb2.BindPortRequest(id=vm.id, node_id=node))
    else:
        cloud.admin.client.call("Ports", "Unbind", port_pb2.UnbindPortRequest(id=vm.id))


def active(cloud: Cloud, vm: Vm) -> list[str]:
    return [place.node for place in cloud.admin.get(vm.port).binding if place.active]


def reasons(cloud: Cloud, vm: Vm) -> set[Any]:
    return {condition.reason for condition in cloud.admin.get(vm.port).conditions}
