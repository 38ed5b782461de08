"""Parts of the cloud are away for a while: said, not waited for, and caught up without help."""

from __future__ import annotations

import time

from cli.status import sentences
from deploy.lab import Host, wait_until
from kumihimo.v1 import port_pb2
from tests.system.cloud import PATIENCE, Cloud, Scene, refused

LEASE = 10  # seconds after which a silent node counts as dead (agent/reconcile/alive.py)


def test_c_06_a_node_cut_off_is_reported_and_catches_up(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = scene.network()
    near, far = scene.vm(network, h1), scene.vm(network, h2)
    pid = h2.agent_pid
    with near.workload.start_ping(far.ip, 0.02) as ping:
        wait_until(lambda: ping.received > 5, "pings are answered")
        h2.cut("management")
        added = scene.vm(network, h1, plug=False)
        added.plug()
        error = refused(cloud.admin.wait, added.port.revision, added.id, timeout=2)
        assert error.reason == "NOT_YET_APPLIED"
        assert "node h2 has applied revision" in str(error)
        # Its lease runs out: from then on nobody waits for it.
        began = time.monotonic()
        reply = cloud.admin.wait(added.port.revision, added.id, active=True)
        assert time.monotonic() - began < LEASE + 5
        assert [(lag.node, lag.reason) for lag in reply.dead] == [("h2", "NODE_DEAD")]
        assert not cloud.is_alive(h2)
        assert "AgentAlive" in [condition.type for condition in cloud.admin.get(far.port).conditions]
        seen = ping.received
        wait_until(lambda: ping.received > seen + 10, "pings are answered all the while", PATIENCE)
        assert near.sees(far), "it keeps forwarding"
        added.set_address()
        changed = cloud.admin.update(
            port_pb2.Port(id=far.id, fixed_ips=[port_pb2.FixedIp(ip_address="10.0.0.99")]), "fixed_ips"
        )
        h2.plug("management")
        cloud.wait_alive(h2)
        cloud.admin.wait(changed.revision, far.id, active=True)
        far.port = changed
        far.workload.run("ip address flush dev eth0")
        far.set_address()
        assert added.sees(far)
        assert near.sees(far)
    assert h2.agent_pid == pid, "it caught up without a restart"


def test_a_dead_node_is_not_waited_for_and_comes_back(scene: Scene, cloud: Cloud, h1: Host, h2: Host, h3: Host) -> None:
    network = scene.network()
    near, far, lost = (scene.vm(network, host) for host in (h1, h3, h2))
    names = h2.run("ovs-vsctl list-ports br-int").split()
    lost.stop()
    h2.power_off()
    changed = cloud.admin.update(port_pb2.Port(id=far.id, admin_state_up=False), "admin_state_up")
    began = time.monotonic()
    reply = cloud.admin.wait(changed.revision, network.id)
    assert time.monotonic() - began < LEASE + 5
    assert [(lag.node, lag.reason) for lag in reply.dead] == [("h2", "NODE_DEAD")]
    began = time.monotonic()
    changed = cloud.admin.update(port_pb2.Port(id=far.id, admin_state_up=True), "admin_state_up")
    cloud.admin.wait(changed.revision, network.id)
    assert time.monotonic() - began < 3, "a node that is known to be dead holds up nothing"
    assert near.sees(far)
    report = " ".join(sentences(cloud.admin.get(lost.port)))
    assert any(condition.reason == "NODE_DEAD" for condition in cloud.admin.get(lost.port).conditions), report

    h2.power_on()
    h2.start_agent()
    assert sorted(h2.run("ovs-vsctl list-ports br-int").split()) == sorted(names), "conf.db is the old one"
    cloud.wait_alive(h2)

    def says_why() -> bool:
        return any(condition.reason == "INTERFACE_ERROR" for condition in cloud.admin.get(lost.port).conditions)

    wait_until(says_why, "an interface without a device is reported", PATIENCE)
    # The hypervisor starts its guests again, and with them their links.
    lost.workload = h2.add_workload(lost.workload.name)
    h2.run(f"ovs-vsctl --if-exists del-port br-int {lost.tap}")
    lost.plug()
    lost.active()
    assert lost.workload.dhcp()["ip"] == lost.ip
    assert lost.workload.ping(near.ip, count=3, interval=0.05).received == 3
    assert near.sees(lost)
    assert far.sees(lost)
