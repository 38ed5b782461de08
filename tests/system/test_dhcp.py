"""Addresses by DHCP, from each node's own dnsmasq."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from deploy.lab import Background, Host, lease, wait_until
from kumihimo.v1 import network_pb2, port_pb2
from tests.system import frames
from tests.system.cloud import Cloud, Scene, Vm

REQUEST, ACK = 3, 5


def test_b_sub_03_b_net_12_all_that_a_lease_says(scene: Scene, cloud: Cloud, h1: Host) -> None:
    routes = [
        network_pb2.HostRoute(destination="192.0.2.0/24", nexthop="10.0.0.7"),
        network_pb2.HostRoute(destination="198.51.100.5/32", nexthop="10.0.0.8"),
    ]
    told = {"dns_nameservers": ["10.9.9.9", "10.9.9.8"], "host_routes": routes, "gateway_ip": "10.0.0.254"}
    network = scene.network(subnet={**told, "dhcp_lease_duration": {"seconds": 7200}}, dns_domain="lab.example", mtu=1400)
    vm = scene.vm(network, h1)
    vm.workload.run("ip address flush dev eth0")
    given = vm.workload.dhcp()
    subnet = cloud.admin.client.find("Subnet", cloud.admin.get(network).subnets[0])
    expected = {
        "ip": vm.ip,
        "mask": "24",
        "router": "10.0.0.254",
        "mtu": "1400",
        "lease": "7200",
        "dns": "10.9.9.9 10.9.9.8",
        "domain": "lab.example",
        "serverid": subnet.dhcp_server_ip,
        "staticroutes": "192.0.2.0/24 10.0.0.7 198.51.100.5/32 10.0.0.8 0.0.0.0/0 10.0.0.254",
    }
    assert {name: given.get(name) for name in expected} == expected
    table = vm.workload.run("ip route")
    for route in ("default via 10.0.0.254", "192.0.2.0/24 via 10.0.0.7", "198.51.100.5 via 10.0.0.8"):
        assert route in table
    assert "mtu 1400" in vm.workload.run("ip link show eth0")


def test_b_sub_02_a_lease_without_options_names_no_router_and_the_service_as_resolver(
    scene: Scene, cloud: Cloud, h1: Host
) -> None:
    network = scene.network(subnet={"disable_gateway": True})
    vm = scene.vm(network, h1)
    subnet = cloud.admin.client.find("Subnet", cloud.admin.get(network).subnets[0])
    given = vm.workload.dhcp()
    assert (given["ip"], given["lease"]) == (vm.ip, "86400")
    assert given["mtu"] == str(network.mtu) == "1550", "B-NET-12: an underlay of 1600 less VXLAN's 50"
    assert given["dns"] == subnet.dhcp_server_ip
    assert (given["domain"], given["search"]) == (network.dns_domain, network.dns_domain)
    assert [name for name in ("router", "staticroutes") if given.get(name)] == []


def test_b_sub_05_an_option_of_a_port_is_in_its_lease_and_in_no_other(scene: Scene, cloud: Cloud, h1: Host) -> None:
    network = scene.network(subnet={"dhcp_lease_duration": {"seconds": -1}})
    options = {
        "ntp-server": "10.0.0.3,10.0.0.4",
        "router": "10.0.0.77",
        "mtu": "1300",
        "classless-static-route": "192.0.2.0/24,10.0.0.7",
        "tftp-server": "10.0.0.9",
        "bootfile-name": "boot\\x64, #1.com",
        "224": 'say "hello"',
    }
    told = [port_pb2.DhcpOption(name=name, value=value) for name, value in options.items()]
    vm = scene.vm(network, h1, extra_dhcp_opts=told, dns_name="web", dns_domain="other.example")
    plain = scene.vm(network, h1)
    expected = {
        "ntpsrv": "10.0.0.3 10.0.0.4",
        "router": "10.0.0.77",
        "mtu": "1300",
        "staticroutes": "192.0.2.0/24 10.0.0.7",
        "tftp": "10.0.0.9",
        "bootfile": options["bootfile-name"],
        "opt224": options["224"].encode().hex(),
        "hostname": "web",
        "domain": "other.example",
        "search": "other.example",
        "lease": "4294967295",
    }
    given = vm.workload.dhcp()
    assert {name: given.get(name) for name in expected} == expected
    given = plain.workload.dhcp()
    assert given["router"] == "10.0.0.1"
    assert given["hostname"] == "host-" + plain.ip.replace(".", "-")
    assert [name for name in ("ntpsrv", "opt224", "bootfile", "staticroutes") if given.get(name)] == []
    # Withdrawn, it is told no more; without a value, not even what the subnet says.
    changed = cloud.admin.update(
        port_pb2.Port(id=vm.id, extra_dhcp_opts=[port_pb2.DhcpOption(name="router")]), "extra_dhcp_opts"
    )
    cloud.admin.wait(changed.revision, vm.id)
    given = vm.workload.dhcp()
    assert given["mtu"] == "1550"
    assert [name for name in ("router", "ntpsrv", "opt224") if given.get(name)] == []


def test_b_sub_15_a_subnet_that_is_enlarged_keeps_its_leases(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = scene.network(cidr="10.0.1.0/24")
    vm, other = scene.vm(network, h1), scene.vm(network, h2)
    vm.workload.run("ip address flush dev eth0")
    subnet = cloud.admin.client.find("Subnet", cloud.admin.get(network).subnets[0])
    with vm.workload.start_dhcp() as client:
        client.wait_for("event=bound")
        held = h1.run("cat /var/lib/kumihimo/dhcp/*/leases")
        assert vm.ip in held
        wider = network_pb2.Subnet(
            id=subnet.id, cidr="10.0.0.0/22", allocation_pools=[network_pb2.IpRange(start="10.0.2.0", end="10.0.2.9")]
        )
        changed = cloud.admin.update(wider, "cidr", "allocation_pools")
        cloud.admin.wait(changed.revision, network.id)
        assert h1.run("cat /var/lib/kumihimo/dhcp/*/leases") == held
        assert vm.sees(other)
        assert other.sees(vm)
        client.signal(signal.SIGUSR1)
        wait_until(lambda: lease(client.text()).get("mask") == "22", "the new length is told at the next renewal")
        assert lease(client.text())["ip"] == vm.ip
    more = scene.vm(network, h2)
    assert more.ip == "10.0.2.0"
    assert more.workload.dhcp()["mask"] == "22"
    assert vm.sees(more)


def test_a_changed_option_is_told_at_the_next_renewal(scene: Scene, cloud: Cloud, h1: Host) -> None:
    network = scene.network()
    vm = scene.vm(network, h1)
    subnet = cloud.admin.client.find("Subnet", cloud.admin.get(network).subnets[0])
    with vm.workload.start_dhcp() as client:
        client.wait_for("event=bound")
        changed = cloud.admin.update(network_pb2.Subnet(id=subnet.id, dns_nameservers=["10.9.9.9"]), "dns_nameservers")
        cloud.admin.wait(changed.revision, network.id)
        client.signal(signal.SIGUSR1)
        wait_until(lambda: lease(client.text()).get("dns") == "10.9.9.9", "the new option is told")


@pytest.fixture
def headless(cloud: Cloud) -> Iterator[None]:
    """While in use, whoever could answer for the control plane may be dead; all are back afterwards."""
    yield
    cloud.ensure()


@pytest.mark.usefixtures("headless")
def test_a_27_a_57_b_sub_04_leases_go_on_with_everything_dead(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = scene.network()
    vms = [scene.vm(network, host) for host in (h1, h2)]
    for vm in vms:
        vm.workload.run("ip address flush dev eth0")
    clients = [vm.workload.start_dhcp() for vm in vms]
    try:
        for client in clients:
            client.wait_for("event=bound")
        kill_everything(cloud)
        for vm, client in zip(vms, clients, strict=True):
            renews_by_unicast(vm, client)
        for client in clients:
            client.stop()
        for vm in vms:
            vm.workload.run("ip address flush dev eth0")
            assert vm.workload.dhcp()["ip"] == vm.ip, "a guest that boots now gets its address too"
        assert vms[0].workload.ping(vms[1].ip, count=5, interval=0.05).received == 5
    finally:
        for client in clients:
            client.stop()


def kill_everything(cloud: Cloud) -> None:
    for host in cloud.hosts:
        host.kill_agent()
    cloud.lab.kill_api()
    cloud.lab.kill_etcd()
    assert [host.agent_pid for host in cloud.hosts] == [None, None, None]
    assert (cloud.lab.api.pid, cloud.lab.etcd.pid) == (None, None)


def renews_by_unicast(vm: Vm, client: Background) -> None:
    """Have the client renew: it asks the server's own address, and gets an acknowledgement from there.

    On a busy machine udhcpc misses an answer that comes while the socket it asked by is still open; it then asks again, all.
    """
    vm.guest.clear()
    client.signal(signal.SIGUSR1)
    client.wait_for("event=renew")
    wait_until(lambda: lease(client.text()).get("ip") == vm.ip, "the lease is told")
    wait_until(lambda: any(frames.dhcp_kind(frame) == ACK for frame in vm.guest.seen()), "the answer is seen")
    requests = [frame for frame in vm.guest.sent() if frames.dhcp_kind(frame)]
    answers = [frame for frame in vm.guest.seen() if frames.dhcp_kind(frame)]
    assert {frames.dhcp_kind(frame) for frame in requests} == {REQUEST}
    assert {frames.dhcp_kind(frame) for frame in answers} == {ACK}
    server = requests[0][:6]
    assert server != frames.mac_bytes(frames.BROADCAST)
    assert {frame[6:12] for frame in answers} == {server}
    assert len(answers) == len(requests)


def test_a_new_port_with_a_deleted_ports_address_gets_it_at_once(scene: Scene, cloud: Cloud, h1: Host) -> None:
    network = scene.network()
    old = scene.vm(network, h1, ip="10.0.0.50")
    assert old.workload.dhcp()["ip"] == "10.0.0.50"
    for _ in range(2):
        scene.remove(old)
        new = scene.vm(network, h1, ip="10.0.0.50")
        new.workload.run("ip address flush dev eth0")
        assert new.mac != old.mac
        assert new.workload.dhcp()["ip"] == "10.0.0.50"
        old = new
    other = port_pb2.Port(id=old.id, fixed_ips=[port_pb2.FixedIp(ip_address="10.0.0.51")])
    changed = cloud.admin.update(other, "fixed_ips")
    cloud.admin.wait(changed.revision, old.id)
    assert old.workload.dhcp()["ip"] == "10.0.0.51", "a changed address is given to the same MAC"


def test_a_57_dnsmasq_outlives_its_agent(scene: Scene, h1: Host) -> None:
    vm = scene.vm(scene.network(), h1)
    pids = h1.run("pgrep dnsmasq").split()
    assert len(pids) == 1
    h1.kill_agent()
    assert h1.run("pgrep dnsmasq").split() == pids
    h1.start_agent()
    second = scene.vm(scene.networks[0][1], h1)
    assert h1.run("pgrep dnsmasq").split() == pids, "a new host is served by the same process"
    for each in (vm, second):
        assert each.workload.dhcp()["ip"] == each.ip
