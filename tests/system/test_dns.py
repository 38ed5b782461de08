"""Names of ports, as guests resolve them: at the service address, on every host, for the ports of all hosts."""

from __future__ import annotations

import json
import os
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from controlplane.values import service_mac
from deploy.lab import Host, wait_until
from kumihimo.v1 import network_pb2, port_pb2
from tests.system import frames
from tests.system.cloud import Cloud, Scene, Vm

RESOLVER = Path(__file__).parents[1] / "resolver.py"


def ask(vm: Vm, server: str, name: str, *options: str) -> dict[str, Any]:
    argv = [sys.executable, "-I", "-S", str(RESOLVER), server, name, *options]
    answer: dict[str, Any] = json.loads(vm.workload.run(argv))
    return answer


def test_b_prt_09_b_net_19_b_ops_02_names_of_all_ports_resolve_on_every_host(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host
) -> None:
    network = scene.network(dns_domain="shop.example")
    six = cloud.admin.create(network_pb2.Subnet(network_id=network.id, cidr="fd00:5::/64"))
    web = scene.vm(network, h1, dns_name="web")
    db = scene.vm(network, h2, dns_name="db", dns_domain="data.example")
    plain = scene.vm(network, h2)
    idle = scene.vm(network, h1, plug=False)  # plugged nowhere
    subnets = [cloud.admin.client.find("Subnet", each) for each in cloud.admin.get(network).subnets]
    server = next(each.dhcp_server_ip for each in subnets if each.id != six.id)
    default = "host-" + plain.ip.replace(".", "-")
    names = {
        "web.shop.example": web.ip,
        "web": web.ip,
        "db.data.example": db.ip,
        f"{default}.shop.example": plain.ip,
        f"host-{idle.ip.replace('.', '-')}": idle.ip,
    }
    cloud.admin.wait(0, network.id)
    daemons = [host.run("pgrep dnsmasq") for host in (h1, h2)]
    for vm in (web, db):
        for name, ip in names.items():
            wait_until(lambda vm=vm, name=name, ip=ip: ask(vm, server, name).get("answers") == [ip], f"{name} is {ip}")
        back = ".".join(reversed(plain.ip.split("."))) + ".in-addr.arpa"
        assert ask(vm, server, back, "PTR")["answers"] == [f"{default}.shop.example"]
        formed = web.port.fixed_ips[1].ip_address
        assert ask(vm, server, "web", "AAAA")["answers"] == [formed]
        assert ask(vm, server, ip_address(formed).reverse_pointer, "PTR")["answers"] == ["web.shop.example"]
        for options in (["--tcp"], ["--edns"], ["--tcp", "--edns"]):
            said = ask(vm, server, "web.shop.example", "A", *options)
            assert (said["code"], said["answers"], said["edns"]) == ("NOERROR", [web.ip], "--edns" in options)
        for name, code in (("no.shop.example", "NXDOMAIN"), ("no.data.example", "NXDOMAIN"), ("www.example.org", "REFUSED")):
            said = ask(vm, server, name)
            assert said["code"] == code, name
            assert said["seconds"] < 1
    # The same at the IPv6 service address.
    web.workload.run("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0")
    wait_until(lambda: formed in web.workload.run("ip -6 address show dev eth0 scope global -tentative"), "it has its address")
    for options in ([], ["--tcp"]):
        assert ask(web, six.dhcp_server_ip, "db.data.example", "A", *options)["answers"] == [db.ip]
    # A port elsewhere is renamed and one is deleted: both hosts know, by the same processes.
    changed = cloud.admin.update(port_pb2.Port(id=web.id, dns_name="www"), "dns_name")
    cloud.admin.wait(changed.revision, network.id)
    cloud.admin.wait(cloud.admin.delete(idle.port), network.id)
    wait_until(lambda: ask(db, server, "www.shop.example")["answers"] == [web.ip], "the new name is known")
    wait_until(lambda: ask(db, server, "web.shop.example")["code"] == "NXDOMAIN", "the old one is not")
    wait_until(lambda: ask(db, server, f"host-{idle.ip.replace('.', '-')}")["code"] == "NXDOMAIN", "nor the deleted one's")
    assert h2.run("pgrep dnsmasq") == daemons[1]
    # Of the service namespace nothing else is reached.
    assert web.workload.ping(server, count=2, interval=0.05).received == 2
    where = f"ip netns exec kumi-{network.id}"
    listen = "import signal, socket; s = socket.create_server(('', 8080)); signal.pause()"
    with h1.popen(["ip", "netns", "exec", f"kumi-{network.id}", sys.executable, "-I", "-S", "-c", listen]):
        wait_until(lambda: ":8080" in h1.run(f"{where} ss -Hltn"), "something else listens there")
        marker, fence = os.urandom(16), os.urandom(16)
        mac = service_mac(cloud.admin.get(network).key)
        web.guest.send(
            frames.udp(web.mac, mac, web.ip, server, (4242, 8080), marker),
            frames.echo(web.mac, mac, web.ip, server, fence),
        )
        web.guest.wait_for(fence)
        assert not web.guest.has(marker), "not even an error comes back"
        refused = f"import socket; s = socket.socket(); s.settimeout(0.5); print(s.connect_ex(('{server}', 8080)))"
        assert web.workload.run([sys.executable, "-I", "-S", "-c", refused]).strip() == "11", "EAGAIN: no answer at all"
        h1.run(f"{where} python3 -I -S -c 'import socket; socket.create_connection((\"{server}\", 8080))'")
