"""Processes die under traffic: what a hand-made flow does not lose, ours does not lose."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable

import pytest

from deploy.lab import Host, wait_until
from kumihimo.v1 import port_pb2
from tests.system.cloud import DUMP, PATIENCE, Cloud, Scene, Vm, dump
from tests.system.control import ControlFlow, Watch

LONG = 300  # answers, 1.5 s, for which something stays dead


@pytest.fixture
def pair(scene: Scene, h1: Host, h2: Host) -> tuple[Vm, Vm]:
    network = scene.network()
    return scene.vm(network, h1), scene.vm(network, h2)


def kill_agents(cloud: Cloud) -> None:
    for host in cloud.hosts:
        host.kill_agent()


def kill_all(cloud: Cloud) -> None:
    kill_agents(cloud)
    cloud.lab.kill_api()
    cloud.lab.kill_etcd()


KILLS: dict[str, Callable[[Cloud], None]] = {
    "agent": kill_agents,
    "api": lambda cloud: cloud.lab.kill_api(),
    "etcd": lambda cloud: cloud.lab.kill_etcd(),
    "all": kill_all,
}


@pytest.mark.parametrize("what", KILLS)
def test_a_27_c_07_kill_9_loses_nothing_and_changes_go_on_after_the_restart(
    what: str, scene: Scene, cloud: Cloud, control: ControlFlow, pair: tuple[Vm, Vm], h2: Host
) -> None:
    with Watch(control, *pair) as watch:
        KILLS[what](cloud)
        watch.more(LONG)
        # A flow that nobody has used before is new to the data plane's caches.
        assert pair[1].sees(pair[0])
        cloud.ensure()
        # who was away catches up while traffic goes on.
        touched = cloud.admin.update(port_pb2.Port(id=pair[0].id, description="touched"), "description")
        cloud.admin.wait(touched.revision, pair[0].id, active=True)
        watch.more()
    assert watch.lost.ours <= watch.lost.control, watch.lost
    third = scene.vm(scene.networks[0][1], h2)
    assert third.workload.ping(pair[0].ip, count=3, interval=0.02).received == 3
    assert pair[0].sees(third)


def test_c_07_a_port_of_a_known_network_is_wired_while_etcd_is_away(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network, elsewhere = scene.network(), scene.network()
    near = scene.vm(network, h1)
    scene.vm(elsewhere, h2)
    first, second = (scene.vm(network, h1, plug=False) for _ in range(2))
    unknown = scene.vm(elsewhere, h1, plug=False)
    cloud.admin.wait(0)
    wait_until(lambda: second.id in snapshot(h1), "the host has it in its snapshot", PATIENCE)
    cloud.lab.kill_etcd()
    first.plug()
    assert first.workload.dhcp()["ip"] == first.ip
    assert first.sees(near)
    # The same from the snapshot.
    h1.kill_agent()
    h1.start_agent()
    second.plug()
    unknown.plug()
    assert second.workload.dhcp()["ip"] == second.ip
    assert second.sees(first)
    cloud.ensure()
    for vm in (first, second, unknown):
        assert vm.active().binding[0].node == "h1"
    assert unknown.workload.dhcp()["ip"] == unknown.ip


def snapshot(host: Host) -> str:
    """What the agent has on its disk, as text."""
    return host.run("tr -cd '[:print:]' </var/lib/kumihimo/agent/mirror")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_c_07_a_restarted_agent_finds_everything_as_it_should_be(
    number: int, scene: Scene, cloud: Cloud, control: ControlFlow, pair: tuple[Vm, Vm], h1: Host, h2: Host
) -> None:
    scene.vm(scene.networks[0][1], h1)
    cloud.admin.wait(0)
    hosts = (h1, h2)
    before = {host.name: state(host) for host in hosts}
    ages = {host.name: durations(host) for host in hosts}
    began = time.monotonic()
    with Watch(control, *pair) as watch:
        for host in hosts:
            written = host.agent.log.stat().st_size
            host.agent.kill(number)
            watch.more()
            host.start_agent()
            wait_compiled(host, written)
        for host in hosts:
            cloud.wait_alive(host)
        # Something changes on both, so that every lane has made a pass since.
        settled = cloud.admin.update(port_pb2.Port(id=pair[0].id, description="seen"), "description")
        cloud.admin.wait(settled.revision, pair[0].id)
        passed = time.monotonic() - began
    assert watch.lost.ours <= watch.lost.control, watch.lost
    assert {host.name: state(host) for host in hosts} == before
    for host in hosts:
        now = durations(host)
        younger = [flow for flow, age in ages[host.name].items() if now[flow] < age + passed - 0.5]
        assert younger == [], "no flow was replaced by an equal one"


def state(host: Host) -> dict[str, list[str]]:
    """All that must be the same before and after."""
    return {
        "flows": dump(host, "flows"),
        "groups": dump(host, "groups"),
        "dnsmasq": host.run("pgrep dnsmasq").split(),
        "namespaces": sorted(host.workloads),
        "links": sorted(re.findall(r"(?m)^\d+: (\S+?)[:@].* qdisc", host.run("ip -o link"))),
        "interfaces": host.run("ovs-vsctl --columns=name,ofport,_uuid list interface").split(),
        "peers": sorted(line.split()[0] for line in host.run("ip neigh show proto 75").splitlines()),
    }


def durations(host: Host) -> dict[str, float]:
    """How long each flow of br-int has been there, in seconds."""
    found = {}
    for line in host.run(f"{DUMP} --no-names dump-flows br-int").splitlines():
        hit = re.match(
            r"\s*(cookie=\S+) duration=([\d.]+)s, (table=\d+), n_packets=\d+, n_bytes=\d+,(?: idle_age=\d+,)? (.*)", line
        )
        if hit and hit[3] != "table=253":
            found[f"{hit[1]} {hit[3]} {hit[4]}"] = float(hit[2])
    assert len(found) > 40, "the dump is read"
    return found


def wait_compiled(host: Host, start: int) -> None:
    """Wait until the agent has said so, from byte `start` of its log on."""
    wait_until(lambda: b"compiled" in host.agent.log.read_bytes()[start:], "the agent has compiled", PATIENCE)


def test_c_07_ovsdb_server_restarts_and_nothing_is_lost(
    scene: Scene, cloud: Cloud, control: ControlFlow, pair: tuple[Vm, Vm], h1: Host, h2: Host
) -> None:
    flows = {host.name: dump(host, "flows") for host in (h1, h2)}
    with Watch(control, *pair) as watch:
        for host in (h1, h2):
            restart_ovsdb(host)
            watch.more(LONG)
    assert watch.lost.ours <= watch.lost.control, watch.lost
    assert {host.name: dump(host, "flows") for host in (h1, h2)} == flows
    third = scene.vm(scene.networks[0][1], h1)
    assert third.sees(pair[1])
    assert pair[1].sees(third)


def restart_ovsdb(host: Host) -> None:
    host.run("""
        kill -KILL $(cat /run/openvswitch/ovsdb-server.pid)
        ovsdb-server /etc/openvswitch/conf.db --remote=punix:/run/openvswitch/db.sock \
            --remote=db:Open_vSwitch,Open_vSwitch,manager_options --pidfile --detach --log-file -vconsole:off
    """)


@pytest.mark.parametrize("number", ["KILL", "TERM"])
def test_a_21_ovs_vswitchd_restarts_and_flows_come_back_without_help(
    number: str, scene: Scene, cloud: Cloud, pair: tuple[Vm, Vm], h1: Host
) -> None:
    flows, groups, agent = dump(h1, "flows"), dump(h1, "groups"), h1.agent_pid
    with pair[0].workload.start_ping(pair[1].ip, 0.005) as ping:
        wait_until(lambda: ping.received > 20, "pings are answered")
        h1.run(f"""
            pid=$(cat /run/openvswitch/ovs-vswitchd.pid)
            kill -{number} $pid
            tail --pid=$pid --sleep-interval=0.01 --follow /dev/null
            ovs-vswitchd --pidfile --detach --log-file -vconsole:off
        """)
        answered = ping.received
        wait_until(lambda: ping.received > answered + 40, "pings are answered again", PATIENCE)
        result = ping.result()
    print(f"\na restart of ovs-vswitchd: a gap of {result.gap * 1000:.0f} ms")
    wait_until(lambda: (dump(h1, "flows"), dump(h1, "groups")) == (flows, groups), "every flow is back", PATIENCE)
    assert h1.agent_pid == agent
    third = scene.vm(scene.networks[0][1], h1)
    assert third.sees(pair[1])
    assert pair[0].workload.dhcp()["ip"] == pair[0].ip
