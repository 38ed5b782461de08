"""A node that looks after itself: what others change is put right and told, and a boot without etcd is a boot."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.lab import Host, wait_until
from kumihimo.v1 import operations_pb2, port_pb2
from tests.system.cloud import DUMP, PATIENCE, Cloud, Scene, dump
from tests.system.control import ControlFlow, Watch

IN_TIME = 10.0  # seconds in which what somebody changes is as it was


def found(cloud: Cloud, host: Host) -> list[Any]:
    request = operations_pb2.ListDriftRequest(node=host.name)
    return list(cloud.admin.client.call("Operations", "ListDrift", request).items)


def kumi(*words: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("kumi"), *words], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return done.stdout


@pytest.fixture
def strangers(h1: Host) -> Iterator[None]:
    """What nobody here knows: a flow and a port on br-int."""
    yield
    h1.run(f"""
        {DUMP} --strict del-flows br-int table=2,priority=5
        ovs-vsctl --if-exists del-port strange0
        ip link del strange0 2>/dev/null || true
    """)


def test_c_08_drift_is_put_right_and_told_and_disturbs_nobody(
    scene: Scene, cloud: Cloud, control: ControlFlow, strangers: None, h1: Host, h2: Host
) -> None:
    quiet, hurt = scene.network(), scene.network()
    near, far = scene.vm(quiet, h1), scene.vm(quiet, h2)
    victim = scene.vm(hurt, h1)
    scene.vm(hurt, h2)
    namespace = f"kumi-{hurt.id}"
    service = f"kd{hurt.key:06x}"
    pid = f"/run/kumihimo/dhcp/{hurt.id}.pid"

    def seen_there() -> dict[str, Any]:
        return {
            "flows": [line for line in dump(h1, "flows") if "cookie=0x77" not in line],
            "groups": dump(h1, "groups"),
            "inside": "UP" in h1.run(f"ip -n {namespace} -br address show dev dhcp0"),
            "dnsmasq": bool(h1.run(f"readlink /proc/$(cat {pid})/exe || true")),
            "port": h1.run(f"ovs-vsctl --bare --columns=name find interface name={service}").strip(),
        }

    before = seen_there()
    assert before["inside"], before
    assert before["dnsmasq"], before

    def whole() -> bool:
        # The service's port has another number when it is made again.
        now = seen_there()
        return now == before or {**now, "flows": len(now["flows"])} == {**before, "flows": len(before["flows"])}

    assert whole()
    took = []

    def damage(script: str) -> None:
        h1.run(script)
        began = time.monotonic()
        wait_until(whole, "everything is as it was", IN_TIME)
        took.append(time.monotonic() - began)

    with Watch(control, near, far) as watch:
        h1.run(f"{DUMP} add-flow br-int cookie=0x77,table=2,priority=5,actions=drop")
        damage(f"""
            {DUMP} del-flows br-int cookie={mark(victim.id)}/-1
            {DUMP} del-groups br-int group_id={hurt.key}
            ip netns exec {namespace} ip link set dhcp0 down
            kill -9 $(cat {pid})
        """)
        watch.more()
    assert watch.lost.ours <= watch.lost.control, watch.lost
    # Apart: whenever a port comes or goes the userspace datapath pauses, and may lose a packet of anybody's.
    h1.run("ip link add strange0 type veth peer name strange1; ovs-vsctl add-port br-int strange0")
    damage(f"ovs-vsctl del-port {service}")
    print(f"\nput right after {took} s; of the others was lost: {watch.lost}")
    assert victim.workload.dhcp()["ip"] == victim.ip

    kinds = {"flow", "group", "namespace", "dhcp", "ovs-port"}
    wait_until(lambda: {item.kind for item in found(cloud, h1)} >= kinds, "all of it is told", PATIENCE)
    told = found(cloud, h1)
    assert {item.node for item in told} == {"h1"}
    owners = {item.owner for item in told if item.outcome == 1}
    assert {f"Network {hurt.id}", f"Port {victim.id}"} <= owners
    assert not any(quiet.id in item.owner for item in told), "what was right was not touched"
    foreign = {(item.kind, item.object) for item in told if item.outcome == 3}
    assert foreign == {("flow", "table=2,priority=5"), ("ovs-port", "br-int strange0")}
    assert "cookie=0x77" in h1.run(f"{DUMP} dump-flows br-int table=2")
    assert h1.run("ovs-vsctl port-to-br strange0").strip() == "br-int"
    lines = kumi("drift", "h1").splitlines()
    assert lines[0].split() == ["node", "outcome", "kind", "object", "owner", "difference", "count", "last", "time"]
    assert any("strange0" in line and "foreign" in line for line in lines)
    assert {item["node"] for item in json.loads(kumi("drift", "-o", "json"))} >= {"h1"}
    h1.run(f"{DUMP} --strict del-flows br-int table=2,priority=5\novs-vsctl del-port strange0")
    wait_until(lambda: not any(item.outcome == 3 for item in found(cloud, h1)), "what is gone is not told any more", PATIENCE)


def test_capabilities_are_told_with_the_reason(cloud: Cloud, h1: Host) -> None:
    cloud.ensure()
    wait_until(lambda: "not known yet" not in kumi("capabilities", "h1"), "the datapath has been asked", PATIENCE)
    told = {line["name"]: line for line in json.loads(kumi("capabilities", "h1", "-o", "json"))}
    assert told["datapath_netdev"]["on"]
    assert told["conntrack"]["on"]
    assert told["dhcp"]["reason"].startswith("dnsmasq ")
    assert all(line["reason"] for line in told.values())
    off = [line for line in told.values() if not line["on"]]
    assert all(len(line["reason"].split()) > 3 for line in off)
    assert "mtu_1500" in kumi("capabilities")


def test_b_ops_13_a_host_boots_while_etcd_is_away_and_its_workloads_talk_again(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host
) -> None:
    network = scene.network()
    near, far, ghost = scene.vm(network, h1), scene.vm(network, h2), scene.vm(network, h1)
    wait_until(lambda: ghost.id.encode() in snapshot(h1), "the snapshot holds the last of them", PATIENCE)
    assert h1.run("stat -c %a /var/lib/kumihimo/agent/mirror").strip() == "600"
    cloud.lab.kill_etcd()
    for vm in (near, ghost):
        vm.stop()
    h1.power_off()
    h1.power_on()
    h1.start_agent()
    began = time.monotonic()
    near.workload = h1.add_workload(near.workload.name)
    h1.run(f"ovs-vsctl --if-exists del-port br-int {near.tap}")
    near.plug()
    wait_until(lambda: h1.run(f"ip netns list | grep -c kumi-{network.id} || true").strip() == "1", "DHCP is back", PATIENCE)
    wait_until(lambda: near.workload.dhcp()["ip"] == near.ip, "the workload has its address again", PATIENCE)
    wait_until(lambda: near.workload.ping(far.ip, count=3, interval=0.05).received == 3, "it talks across hosts", PATIENCE)
    print(f"\nfrom the start of the agent to pings across hosts, etcd away: {time.monotonic() - began:.1f} s")
    assert near.sees(far)
    assert far.sees(near)

    # Meanwhile, for the host, a port goes: it learns of it when the store is back, and loses nothing that stays.
    with near.workload.start_ping(far.ip, 0.01) as ping:
        wait_until(lambda: ping.received > 5, "pings are answered")
        pid = h1.agent_pid
        flow = h1.run(f"{DUMP} dump-flows br-int table=60").splitlines()
        cloud.lab.start_etcd()
        cloud.lab.start_api()
        cloud.wait_alive(h1)
        ghost.api.delete(ghost.port, force=True)
        changed = cloud.admin.update(port_pb2.Port(id=near.id, description="booted"), "description")
        cloud.admin.wait(changed.revision, near.id, active=True)
        seen = ping.received
        wait_until(lambda: ping.received > seen + 20, "pings are answered", PATIENCE)
        result = ping.result()
    assert flow
    assert result.lost == 0, result
    assert h1.agent_pid == pid, "it caught up without a restart"
    ghosts = mark(ghost.id)
    wait_until(lambda: ghosts not in h1.run(f"{DUMP} dump-flows br-int"), "nothing is left of the other", PATIENCE)


def snapshot(host: Host) -> bytes:
    return (host.directory / "lib-kumihimo/agent/mirror").read_bytes()


def mark(port_id: str) -> str:
    """The cookie of a port's flows."""
    return f"0x{0x4E << 56 | int(port_id.replace('-', '')[-14:], 16):x}"
