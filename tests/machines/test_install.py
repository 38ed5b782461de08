"""docs/install.md carried out as it stands on two machines, and then traffic: systemd and the kernel's datapath are real here.

What the data plane does is tested in `tests/system`; what is asked here is what differs on a real host.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from deploy.lab.place import Pings
from deploy.lab.process import run
from tests.machines.machine import Machine, machines

ROOT = Path(__file__).resolve().parents[2]
IMAGE = Path(os.environ.get("KUMI_MACHINES", "/var/tmp/kumi-machines"))
TYPES = ("vxlan", "geneve", "gre", "vlan")
PATIENCE = "--timeout 300"  # machines are emulated

pytestmark = pytest.mark.timeout(3600)


def blocks() -> list[tuple[str, str]]:
    """(where, script) of each block of the page that is carried out."""
    return re.findall(r"^```sh (every|h1)\n(.*?)^```$", (ROOT / "docs/install.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Machine]]:
    with tempfile.TemporaryDirectory(prefix="kumi-machines-") as folder, machines(2, IMAGE, Path(folder)) as found:
        h1, h2 = found
        wheels = Path(folder, "wheels")
        run([sys.executable, "-m", "pip", "wheel", "-q", "--wheel-dir", str(wheels), str(ROOT)], timeout=600)
        for host in found:
            host.put(wheels, "/root/wheels")
            host.run("cp wheels/kumihimo-*.whl . && ip link set eth1 up")
        for where, script in blocks():
            if "node join" in script:
                h1.run("cp bundles/h1.bundle .")
                h1.carry("bundles/h2.bundle", h2)
            with ThreadPoolExecutor() as pool:
                list(pool.map(partial(Machine.run, script=script), found if where == "every" else [h1]))
        # The operator's `kumi` on the other host too.
        h1.carry("admin.token", h2)
        h2.run(next(line for _, script in blocks() for line in script.splitlines() if line.startswith("kumi profile set")))
        yield found


@dataclass(frozen=True, slots=True)
class Guest:
    """A namespace of a machine with a port."""

    host: Machine
    name: str
    four: str
    six: str

    def ping(self, to: str, options: str = "", count: int = 3) -> int:
        """How many of so many echo requests were answered."""
        said = self.host.run(f"ip netns exec {self.name} ping -n -c {count} -i 0.2 -W 5 {options} {to} || true")
        return Pings.parse(said, 0.2).received


def attached(host: Machine, name: str) -> Guest:
    """The port of that name in a namespace of its own, with its IPv4 address from DHCP and its IPv6 address by hand."""
    fixed = [each["ip_address"] for each in json.loads(host.run(f"kumi port show {name} -o json"))["fixed_ips"]]
    four, six = sorted(fixed, key=lambda ip: ip_address(ip).version)
    host.run(f"""
        ip netns add {name}
        ip -n {name} link set lo up
        kumi attach {name} --netns {name} {PATIENCE}
        ip netns exec {name} udhcpc -i eth0 -n -q -t 20 -T 3 -s /bin/true
        ip -n {name} address add {four}/24 dev eth0
        ip -n {name} address replace {six}/64 dev eth0 nodad
    """)
    return Guest(host, name, four, six)


@pytest.fixture(scope="module")
def guests(hosts: list[Machine]) -> dict[str, tuple[Guest, Guest, Guest]]:
    """For each type of network two workloads on h1 and one on h2; their security group lets everything in."""
    h1, h2 = hosts
    h1.run("""
        kumi security-group create open
        for family in ipv4 ipv6; do kumi security-group-rule create open --direction ingress --ethertype $family; done
    """)
    found: dict[str, tuple[Guest, Guest, Guest]] = {}
    for number, kind in enumerate(TYPES):
        segment = " --physical-network physnet1 --segment 77" if kind == "vlan" else ""
        h1.run(f"""
            kumi network create n-{kind} --type {kind}{segment}
            kumi subnet create n-{kind} 10.{number}.0.0/24 --name n-{kind}-4
            kumi subnet create n-{kind} fd00:{number}::/64 --name n-{kind}-6
            for name in near same far; do kumi port create n-{kind} --name {kind}-$name --security-group open; done
        """)
        near, same, far = (f"{kind}-{name}" for name in ("near", "same", "far"))
        found[kind] = (attached(h1, near), attached(h1, same), attached(h2, far))
    return found


def test_a_80_units_start_and_nothing_is_wrong(hosts: list[Machine]) -> None:
    h1, h2 = hosts
    for host, units in ((h1, ("etcd", "kumihimo-api", "kumihimo-agent")), (h2, ("kumihimo-agent",))):
        for unit in units:
            assert host.run(f"systemctl is-active {unit}").strip() == "active"
            assert host.run(f"systemctl is-enabled {unit}").strip() == "enabled"
            assert host.run(f"systemctl show -p NRestarts --value {unit}").strip() == "0"
        assert host.run("systemctl --failed --no-legend").strip() == ""
        assert "datapath_type: system" in host.run("ovs-vsctl show")
        assert "Applied" not in h1.run(f"kumi node show {host.name} -o json | grep -A6 '\"conditions\"'"), "all is applied"
    assert "nothing was found" in h1.run("kumi doctor")
    able = {each["name"]: each["on"] for each in json.loads(h1.run("kumi capabilities h1 -o json"))}
    assert {name for name, on in able.items() if not on} == {"mtu_1500"}


@pytest.mark.parametrize("kind", TYPES)
def test_a_64_what_should_pass_passes(guests: dict[str, tuple[Guest, Guest, Guest]], kind: str) -> None:
    near, same, far = guests[kind]
    room = int(near.host.run(f"ip netns exec {near.name} cat /sys/class/net/eth0/mtu")) - 28  # headers of IPv4 and ICMP
    for to in (same, far):
        assert near.ping(to.four) == near.ping(to.six, "-6") == 3
        assert near.ping(to.four, f"-M do -s {room}") == 3, "what fills the MTU"
        assert near.ping(to.four, f"-M do -s {room + 1}", count=1) == 0, "one byte more"
        assert near.ping(to.four, "-s 4000") == near.ping(to.six, "-6 -s 4000") == 3, "fragments"
    assert "passes, and so does the answer" in near.host.run(f"kumi trace --from {near.name} --to {far.name}")


def test_b_net_01_networks_do_not_meet(guests: dict[str, tuple[Guest, Guest, Guest]]) -> None:
    near = guests["vxlan"][0]
    foreign = guests["geneve"][2]
    near.host.run(f"ip -n {near.name} route add {foreign.four}/32 dev eth0")
    assert near.ping(foreign.four, count=1) == 0
    near.host.run(f"ip -n {near.name} route delete {foreign.four}/32 dev eth0")


def test_b_sg_01_rules_open_and_close_and_a_forged_address_is_told(guests: dict[str, tuple[Guest, Guest, Guest]]) -> None:
    near, _, far = guests["vxlan"]
    near.host.run(f"kumi security-group create shut && kumi port update {far.name} --security-group shut --wait {PATIENCE}")
    assert near.ping(far.four, count=1) == near.ping(far.six, "-6", count=1) == 0
    assert far.ping(near.four) == far.ping(near.six, "-6") == 3, "it may ask, and is answered"
    rule = "kumi security-group-rule create shut --direction ingress --ethertype ipv4 --protocol icmp -o json"
    made = json.loads(near.host.run(f"{rule} --wait {PATIENCE}"))["id"]
    assert near.ping(far.four) == 3
    near.host.run(f"kumi security-group-rule delete {made} --wait {PATIENCE}")
    assert near.ping(far.four, count=1) == 0
    near.host.run(f"kumi port update {far.name} --security-group open --wait {PATIENCE}")
    near.host.run(f"ip -n {near.name} address add 10.0.0.250/24 dev eth0")
    assert near.ping(far.four, "-I 10.0.0.250", count=1) == 0
    near.host.run(f"ip -n {near.name} address delete 10.0.0.250/24 dev eth0")
    near.host.until(f"kumi port explain {near.name} | grep -E 'SPOOFED_(ARP|IP)'", "the drop is counted")


def test_a_57_traffic_goes_on_without_control(hosts: list[Machine], guests: dict[str, tuple[Guest, Guest, Guest]]) -> None:
    """Restarted, killed and started again by systemd, and stopped: no ping is lost, and leases are still given."""
    h1, h2 = hosts
    near, _, far = guests["vxlan"]
    h1.run(f"ip netns exec {near.name} ping -n -i 0.2 {far.four} >ping.log 2>&1 & echo $! >ping.pid")
    for host in hosts:
        before = host.run("ovs-ofctl -O OpenFlow15 dump-flows br-int | grep -c cookie")
        host.run("systemctl restart kumihimo-agent")
        host.run("systemctl kill -s KILL kumihimo-agent")
        host.until("systemctl is-active kumihimo-agent && pgrep -x dnsmasq", "systemd starts the agent again")
        h1.until(f"kumi node list | grep {host.name} | grep active", "the agent is heard of")
        assert host.run("ovs-ofctl -O OpenFlow15 dump-flows br-int | grep -c cookie") == before
    h1.run("systemctl stop kumihimo-agent kumihimo-api etcd")
    h2.run("systemctl stop kumihimo-agent")
    h2.run(f"ip netns exec {far.name} udhcpc -i eth0 -n -q -t 20 -T 3 -s /bin/true")
    assert near.ping(far.four, count=10) == 10
    h1.run("kill -INT $(cat ping.pid); sleep 1; tail -3 ping.log")
    said = h1.run("tail -3 ping.log")
    assert " 0% packet loss" in said, said


def test_b_ops_13_a_host_boots_while_etcd_is_away(hosts: list[Machine], guests: dict[str, tuple[Guest, Guest, Guest]]) -> None:
    """Its power is cut; what a hypervisor makes anew at boot, the interfaces of its guests, is made by hand."""
    h1, h2 = hosts
    near, _, far = guests["vxlan"]
    h1.run("systemctl stop etcd")
    mac = h2.run(f"ip netns exec {far.name} cat /sys/class/net/eth0/address").strip()
    mtu = h2.run(f"ip netns exec {far.name} cat /sys/class/net/eth0/mtu").strip()
    tap = h2.run(f"ovs-vsctl --bare --columns=name find interface 'external_ids:attached-mac=\"{mac}\"'").strip()
    h2.run("sync")
    h2.off()
    h2.start()
    h2.until("systemctl is-active kumihimo-agent && ovs-vsctl br-exists br-int", "the agent is started")
    h2.run(f"""
        ip netns add {far.name}
        ip link add {tap} mtu {mtu} type veth peer name eth0 mtu {mtu} address {mac} netns {far.name}
        ip link set {tap} up
        ip -n {far.name} link set eth0 up
        ip -n {far.name} address add {far.four}/24 dev eth0
        ip -n {far.name} address add {far.six}/64 dev eth0 nodad
    """)
    h2.until(f"ip netns exec {far.name} ping -n -c 1 -W 5 {near.four}", "its workload talks again")
    assert far.ping(near.six, "-6") == 3
    h1.run("systemctl start etcd kumihimo-api kumihimo-agent")
    h1.until("kumi node list | grep h2 | grep active", "the node is heard of")


def test_a_59_the_switch_is_restarted(hosts: list[Machine], guests: dict[str, tuple[Guest, Guest, Guest]]) -> None:
    near, same, _ = guests["geneve"]
    hosts[0].run("systemctl restart openvswitch-switch")
    hosts[0].until(f"ip netns exec {near.name} ping -n -c 1 -W 5 {same.four}", "traffic flows again")
    hosts[0].until("kumi doctor", "all is well")


def test_a_62_nothing_is_left(hosts: list[Machine], guests: dict[str, tuple[Guest, Guest, Guest]]) -> None:
    """What was made is deleted; on the hosts only what every host has remains."""
    for kind, group in guests.items():
        for each in group:
            each.host.run(f"kumi detach {each.name}; ip netns delete {each.name} || true")  # gone with a power-off
        names = " ".join(each.name for each in group)
        hosts[0].run(f"""
            for name in {names}; do kumi port delete $name; done
            kumi subnet delete n-{kind}-4
            kumi subnet delete n-{kind}-6
            kumi network delete n-{kind} --wait {PATIENCE}
        """)
    hosts[0].run(f"""
        kumi detach web1
        for name in web1 web2; do kumi port delete $name; done
        kumi network delete net1 --wait {PATIENCE}
    """)
    for host in hosts:
        host.until("! pgrep -x dnsmasq && ! ip netns list | grep kumi- && ! ip -br link | grep -E '^(kd|tap)'", "all is gone")
        assert set(host.run("ovs-vsctl list-ports br-int").split()) <= {"int-br-ex", "kumi-vxlan", "kumi-geneve", "kumi-gre"}
