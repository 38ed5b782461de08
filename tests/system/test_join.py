"""A host that was no node becomes one by two commands, with what its bundle holds and nothing else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab import Host, wait_until
from deploy.lab.network import LINKS
from kumihimo.v1 import node_pb2
from tests.system.cloud import PATIENCE, Cloud, Scene

KUMI = str(Path(sys.prefix) / "bin" / "kumi")
# Says what it was asked, and that the unit is as the file says.
SYSTEMCTL = """#!/bin/sh
echo "$@" >>/run/systemctl.log
case $1 in is-*) [ -e /run/$1 ] || exit 3;; enable) touch /run/is-enabled;; restart) touch /run/is-active;; esac
"""


@pytest.fixture
def h4(cloud: Cloud, scene: Scene) -> Iterator[Host]:
    """A host with Open vSwitch and an underlay, and no file of ours."""
    host = Host(cloud.lab, "h4", 4, list(LINKS))
    host.power_on()
    yield host
    for vm in [vm for vm in scene.vms if vm.host is host]:
        scene.remove(vm)
        scene.vms.remove(vm)
    host.stop_agent()
    wait_until(lambda: not cloud.is_alive(host), "it is not heard of", PATIENCE)
    cloud.admin.delete(node_pb2.Node(id="h4"), force=True)
    host.power_off()
    shutil.rmtree(host.directory)


def join(host: Host, bundle: Path, *options: str) -> str:
    return host.run([KUMI, "node", "join", "-", *options], input=bundle.read_text())


def test_a_72_a_74_a_75_a_fourth_host_joins_and_carries_traffic(
    cloud: Cloud, scene: Scene, h1: Host, h4: Host, tmp_path: Path
) -> None:
    inventory = tmp_path / "nodes.yaml"
    inventory.write_text(f"- {{kind: node, id: h4, roles: [compute, gateway], tunnel_ip: {h4.underlay}}}\n")
    words = ["--pki", str(cloud.lab.files.ca.parent), "--etcd", f"{cloud.lab.control}:2379", "--to", str(tmp_path / "bundles")]
    assert "created node h4" in cloud.lab.kumi("node", "invite", "-f", str(inventory), *words)
    bundle = tmp_path / "bundles" / "h4.bundle"
    assert bundle.stat().st_mode & 0o777 == 0o600
    made, before = bundle.read_bytes(), cloud.admin.get(node_pb2.Node(id="h4"))
    again = cloud.lab.kumi("node", "invite", "-f", str(inventory), *words)
    assert "0 created, 0 updated, 0 deleted, 1 unchanged" in again
    assert f"{bundle} is as it was" in again
    assert (bundle.read_bytes(), cloud.admin.get(node_pb2.Node(id="h4")).revision) == (made, before.revision)

    # One line for each precondition; none of them holds for half.
    h4.run("kill $(cat /run/openvswitch/ovs-vswitchd.pid)")
    said = refusal(h4, bundle)
    assert "FAILED  Open vSwitch: ovs-vswitchd does not answer" in said
    assert list(h4.etc.iterdir()) == []
    h4.run("ovs-vswitchd --pidfile --detach --log-file -vconsole:off; ip address del 192.168.50.4/24 dev br-phy")
    assert f"FAILED  underlay: tunnel_ip {h4.underlay} is on no bridge" in refusal(h4, bundle)
    h4.run("ip address add 192.168.50.4/24 dev br-phy")

    said = join(h4, bundle)
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("ok ")] == [
        f"ok      {what}"
        for what in ("certificate", "Open vSwitch", "dnsmasq", "iproute2, ethtool", "etcd", "underlay", "this host")
    ]
    assert f"there is no systemd here; start the agent: {' '.join(h4.agent.unit.argv)}" in said
    files = {path.name: path.stat().st_mode & 0o777 for path in h4.etc.iterdir()}
    assert files == {"agent.toml": 0o644, "ca.crt": 0o644, "h4.crt": 0o644, "h4.key": 0o600}
    stamps = {path: path.stat().st_mtime_ns for path in h4.etc.iterdir()}
    assert "written" not in join(h4, bundle)
    assert {path: path.stat().st_mtime_ns for path in h4.etc.iterdir()} == stamps

    h4.start_agent()
    cloud.wait_alive(h4)
    network = scene.network()
    here, there = scene.vm(network, h4), scene.vm(network, h1)
    assert here.sees(there)
    assert here.workload.dhcp()["ip"] == here.ip
    assert list(cloud.admin.get(node_pb2.Node(id="h4")).roles) == [node_pb2.NODE_ROLE_COMPUTE, node_pb2.NODE_ROLE_GATEWAY]

    # Where systemd runs, the unit is enabled and started; a second time nothing is.
    h4.run(f"mkdir -p /run/systemd/system /run/bin; printf '%s' '{SYSTEMCTL}' >/run/bin/systemctl; chmod +x /run/bin/systemctl")
    h4.run("mount -t tmpfs tmpfs /etc/systemd; mkdir /etc/systemd/system")
    managed = ["env", "PATH=/run/bin:/usr/sbin:/usr/bin:/sbin:/bin", KUMI, "node", "join", "-"]
    said = h4.run(managed, input=bundle.read_text())
    assert "started, and is at each boot" in said
    assert "ok      agent: node h4 is heard of" in said
    unit = "/etc/systemd/system/kumihimo-agent.service"
    assert changes(h4) == ["daemon-reload", f"enable --quiet {unit}", "restart kumihimo-agent.service"]
    assert f"ExecStart={' '.join(h4.agent.unit.argv)}" in h4.run(["cat", unit])
    assert "runs already" in h4.run(managed, input=bundle.read_text())
    assert len(changes(h4)) == 3


def changes(host: Host) -> list[str]:
    """What systemctl was told to do."""
    return [line for line in host.run("cat /run/systemctl.log").splitlines() if not line.startswith("is-")]


def refusal(host: Host, bundle: Path) -> str:
    """All that a refused join says."""
    said = host.run(f"! {KUMI} node join - 2>&1", input=bundle.read_text())
    assert said.splitlines()[-1].endswith("of what a node needs is missing; nothing was changed")
    return said
