"""What is said of a node in its Node object acts at once, without a restart (A-73, A-75)."""

from __future__ import annotations

import re
from typing import Any

from cli.kinds import kinds
from deploy.lab import Host, wait_until
from kumihimo.v1 import node_pb2
from tests.system.cloud import PATIENCE, Cloud, Scene, dump

OTHER = "192.168.50.101"


def test_a_73_a_75_another_tunnel_ip_converges_all_peers(cloud: Cloud, scene: Scene, h1: Host, h2: Host, h3: Host) -> None:
    network = scene.network()
    here, there, third = (scene.vm(network, host) for host in (h1, h2, h3))
    pids = [host.agent_pid for host in cloud.hosts]
    h1.run(f"ip address add {OTHER}/24 dev br-phy")
    ping = there.workload.start_ping(here.ip, 0.005)
    wait_until(lambda: ping.received > 40, "pings are answered", PATIENCE)
    try:
        changed = cloud.admin.update(node_pb2.Node(id="h1", tunnel_ip=OTHER), "tunnel_ip")
        cloud.admin.wait(changed.revision)
        answered = ping.received
        wait_until(lambda: ping.received > answered + 40, "pings are answered again", PATIENCE)
        # All that has been acknowledged goes the new way: nothing from or to the old address.
        with cloud.lab.capture("underlay", "udp port 4789") as capture:
            assert here.sees(there)
            assert third.sees(here)
            capture.wait_packets(8)
            outer = set(re.findall(r"192\.168\.50\.\d+", capture.text()))
        assert OTHER in outer
        assert h1.underlay not in outer
        for host in (h2, h3):
            assert any(f"{OTHER}->tun_dst" in flow for flow in dump(host, "flows")), host.name
            assert not any(f"{h1.underlay}->tun_dst" in flow for flow in dump(host, "flows")), host.name
        back = cloud.admin.update(node_pb2.Node(id="h1", tunnel_ip=h1.underlay), "tunnel_ip")
        cloud.admin.wait(back.revision)
        assert here.sees(there)
        assert [host.agent_pid for host in cloud.hosts] == pids
    finally:
        cloud.admin.update(node_pb2.Node(id="h1", tunnel_ip=h1.underlay), "tunnel_ip")
        result = ping.result()
        h1.run(f"ip address del {OTHER}/24 dev br-phy")
    print(f"\ntwo changes of tunnel_ip: {result.lost} of {result.sent} pings lost, the longest gap {result.gap * 1000:.0f} ms")
    assert result.gap < 1.0


def test_b_net_12_a_tunnel_ip_that_the_host_does_not_have_is_told_and_so_is_what_bears_it(
    cloud: Cloud, scene: Scene, h1: Host
) -> None:
    network = scene.network()
    scene.vm(network, h1)

    def told(reason: str, message: Any) -> str:
        return "; ".join(item.message for item in cloud.admin.get(message).conditions if item.reason == reason)

    node = node_pb2.Node(id="h1")
    assert not told("TUNNEL_IP_NOT_HERE", node)
    try:
        cloud.admin.update(node_pb2.Node(id="h1", tunnel_ip=OTHER), "tunnel_ip")
        wait_until(lambda: "no interface of this host has it" in told("TUNNEL_IP_NOT_HERE", node), "it is missed", PATIENCE)
        assert h1.underlay in told("TUNNEL_IP_NOT_HERE", node), "what could be used"
        h1.run(f"ip link add plain0 mtu 1400 type veth peer name plain1; ip address add {OTHER}/32 dev plain0")
        wait_until(lambda: "plain0 has it, which is no bridge" in told("TUNNEL_IP_NOT_HERE", node), "it is found", PATIENCE)
        wait_until(lambda: "bytes on plain0, which carries 1400" in told("UNDERLAY_MTU", network), "its MTU too", PATIENCE)
        h1.run(f"ip link del plain0; ip address add {OTHER}/24 dev br-phy")
        wait_until(lambda: not told("TUNNEL_IP_NOT_HERE", node) + told("UNDERLAY_MTU", network), "all is well", PATIENCE)
    finally:
        cloud.admin.update(node_pb2.Node(id="h1", tunnel_ip=h1.underlay), "tunnel_ip")
        h1.run(f"ip link del plain0 || true; ip address del {OTHER}/24 dev br-phy || true")


def test_a_74_roles_and_the_rest_are_told_at_once(cloud: Cloud, h1: Host) -> None:
    before = cloud.admin.get(node_pb2.Node(id="h1"))
    pid = h1.agent_pid
    roles = [node_pb2.NODE_ROLE_COMPUTE, node_pb2.NODE_ROLE_GATEWAY]
    wanted = node_pb2.Node(id="h1", roles=roles, weight=7, tags=["rack=r1"], admin_state_up=False)
    changed = cloud.admin.update(wanted, "roles", "weight", "tags", "admin_state_up")
    cloud.admin.wait(changed.revision)
    found = list(cloud.admin.client.pages(kinds()["node"], filter='tags:"rack=r1" AND roles:GATEWAY'))
    assert [node.id for node in found] == ["h1"]
    before.etag = ""
    cloud.admin.update(before, "roles", "weight", "tags", "admin_state_up")
    assert h1.agent_pid == pid
