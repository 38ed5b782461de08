"""More networks on two hosts than a wire has VLANs (A-64), with packets: none hears anything of another.

All have one subnet, the same addresses and MACs; what keeps them apart is their number alone, on the wire and in the switch.
Number n and n + 4,096 are alike in the 12 bits of a VLAN. A sample of the networks has workloads; of all others one port is
plugged on each host, a patch port, which costs the switch no device.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from deploy.lab import Host, wait_until
from kumihimo.v1 import inspect_pb2, network_pb2, operations_pb2, port_pb2
from tests.system.cloud import Cloud, Scene, Vm, dump
from tests.system.test_network_types import MACS, assert_crossed, exchange, workloads

FULL = bool(os.environ.get("KUMI_FULL"))
ALIKE = 1 << 12  # two numbers so far apart are the same VLAN
NUMBERS = list(range(1, 4201)) if FULL else [*range(1, 21), *range(ALIKE + 1, ALIKE + 21)]
KINDS = ("vxlan", "geneve")  # in turn: numbers that are alike are of one type
# How many pairs of alike numbers the sample has, beside those of the first and the last; and how many others.
SOME = 6 if FULL else 0
STEP = 500  # objects of one request
PATIENCE = 600.0
NAME = "many"  # what all that is made is called, with a number
BRIDGE = "br-many"
CIDR = "10.5.0.0/24"

T = TypeVar("T")


@pytest.mark.timeout(1800)
def test_a_64_more_networks_than_vlans_on_two_hosts_with_packets(
    networks: dict[int, Any], scene: Scene, cloud: Cloud, h1: Host, h2: Host, tmp_path: Path
) -> None:
    hosts = (h1, h2)
    seed = random.randrange(1 << 32) if FULL else 4095
    sample = sample_of(seed)
    print(f"{len(networks)} networks, {len(sample)} of them with workloads, seed {seed}")
    others = [networks[n] for n in NUMBERS if n not in sample]
    ports = {
        host: make_ports(cloud, others, mac, place) for place, (host, mac) in enumerate(zip(hosts, MACS, strict=False), 11)
    }

    def wire() -> None:
        for host, plugged in ports.items():
            plug(host, plugged)
        wait_active(cloud, [port for plugged in ports.values() for port in plugged])

    timed("wired", wire)
    groups = {str(n): workloads(scene, networks[n], hosts) for n in sample}
    assert_apart(cloud, groups, networks, tmp_path)
    for host in hosts:
        print(f"{host.name}: {len(dump(host, 'flows'))} flows, agent {resident(host):.0f} MB")

    # An agent that finds all of this there changes nothing.
    before = dump(h1, "flows"), dump(h1, "groups"), dump(h1, "meters")
    h1.kill_agent()
    touched = cloud.admin.update(port_pb2.Port(id=groups[str(sample[0])][0].id, description="seen"), "description")
    h1.start_agent()
    timed("agent started", lambda: cloud.admin.wait(touched.revision, timeout=PATIENCE))
    print(f"{h1.name}: agent {resident(h1):.0f} MB")
    assert (dump(h1, "flows"), dump(h1, "groups"), dump(h1, "meters")) == before
    assert_apart(cloud, groups, networks, tmp_path)

    request = inspect_pb2.InspectNodeRequest(id=h1.name)
    shown = timed("shown", lambda: cloud.admin.client.call("Nodes", "Inspect", request))
    assert (shown.live, list(shown.notes)) == (True, [])
    assert [peer.shared for peer in shown.peers if peer.node == h2.name] == [len(NUMBERS)]


@pytest.fixture
def networks(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> Iterator[dict[int, Any]]:
    """The networks by number; what a test has plugged is taken away before they go."""
    yield timed("made", lambda: make_networks(scene))
    for host in (h1, h2):
        unplug(host)

    def bound() -> bool:
        return any(port.binding for port in cloud.admin.list(port_pb2.Port) if port.name.startswith(NAME))

    timed("unbound", lambda: wait_until(lambda: not bound(), "none is bound", PATIENCE, interval=1))
    timed("deleted", scene.close)


def timed(what: str, work: Callable[[], T]) -> T:
    """What work gives; how long it took is printed."""
    began = time.monotonic()
    found = work()
    print(f"{what} in {time.monotonic() - began:.1f} s")
    return found


def sample_of(seed: int) -> list[int]:
    """Numbers of the networks that have workloads: the first, the last, and some that are alike in the bits of a VLAN."""
    chance = random.Random(seed)
    high = [n for n in NUMBERS if n > ALIKE]
    twins = {n for high in (high[0], *chance.sample(high[1:-1], SOME), high[-1]) for n in (high, high - ALIKE)}
    return sorted(twins | set(chance.sample(NUMBERS, SOME)))


def make_networks(scene: Scene) -> dict[int, Any]:
    """The networks by number, with their subnets."""
    admin = scene.cloud.admin
    wanted = [
        network_pb2.Network(
            name=f"{NAME}{n}",
            network_type=f"NETWORK_TYPE_{KINDS[n % 2].upper()}",
            segmentation_id=n,
        )
        for n in NUMBERS
    ]
    ids = apply(scene.cloud, wanted)
    apply(scene.cloud, [network_pb2.Subnet(name=each, network_id=each, cidr=CIDR, enable_dhcp=False) for each in ids])
    made = {each.id: each for each in admin.list(network_pb2.Network)}
    networks = {n: made[each] for n, each in zip(NUMBERS, ids, strict=True)}
    scene.networks += [(admin, each) for each in networks.values()]
    return networks


def make_ports(cloud: Cloud, networks: list[Any], mac: str, place: int) -> list[str]:
    """A port of each network, all with one MAC and one address; their ids."""
    fields = {"name": f"{NAME}{place}", "mac_address": mac, "fixed_ips": [port_pb2.FixedIp(ip_address=f"10.5.0.{place}")]}
    return apply(cloud, [port_pb2.Port(network_id=made.id, **fields) for made in networks])


def chunks(items: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), STEP):
        yield items[start : start + STEP]


def apply(cloud: Cloud, wanted: list[Any]) -> list[str]:
    """Make objects; their ids."""
    ids: list[str] = []
    for some in chunks(wanted):
        request = operations_pb2.ApplyRequest(request_id=os.urandom(8).hex())
        for message in some:
            request.objects.add().resource.Pack(message)
        reply = cloud.admin.client.call("kumihimo.v1.Operations", "Apply", request, timeout=60)
        ids += [made.id for made in reply.objects]
    return ids


def plug(host: Host, ports: list[str]) -> None:
    """An interface on br-int for each: a patch port that leads to a bridge where nobody is. One that led nowhere would seem
    another whenever the switch looks at its ports."""
    host.run(f"ovs-vsctl add-br {BRIDGE} -- set bridge {BRIDGE} datapath_type=netdev fail_mode=secure")
    for some in chunks(list(enumerate(ports))):
        words = ["ovs-vsctl", "--no-wait"]
        for n, port in some:  # add-port would look through all that are there, once for each
            ends = ((f"{NAME}{n}", f"end{n}", [f"external_ids:iface-id={port}"]), (f"end{n}", f"{NAME}{n}", []))
            for name, peer, ids in ends:
                words += [
                    "--",
                    f"--id=@i{name}",
                    "create",
                    "Interface",
                    f"name={name}",
                    "type=patch",
                    f"options:peer={peer}",
                    *ids,
                ]
                words += ["--", f"--id=@p{name}", "create", "Port", f"name={name}", f"interfaces=@i{name}"]
        for bridge, name in (("br-int", NAME), (BRIDGE, "end")):
            words += ["--", "add", "Bridge", bridge, "ports", *(f"@p{name}{n}" for n, _ in some)]
        host.run(words, timeout=PATIENCE)


def unplug(host: Host) -> None:
    """Take all of these interfaces away."""
    names = [name for name in host.run("ovs-vsctl list-ports br-int").split() if name.startswith(NAME)]
    for some in chunks(names):  # del-port would look through all that are there, once for each
        words = [word for n, name in enumerate(some) for word in (f"--id=@p{n}", "get", "Port", name, "--")]
        removed = ["remove", "Bridge", "br-int", "ports", *(f"@p{n}" for n, _ in enumerate(some))]
        host.run(["ovs-vsctl", "--no-wait", "--", *words, *removed], timeout=PATIENCE)
    host.run(f"ovs-vsctl --no-wait --if-exists del-br {BRIDGE}", timeout=PATIENCE)


def wait_active(cloud: Cloud, ports: list[str]) -> None:
    for some in chunks(ports):
        cloud.admin.wait(0, *some, active=True, timeout=PATIENCE)


def assert_apart(cloud: Cloud, groups: dict[str, list[Vm]], networks: dict[int, Any], folder: Path) -> None:
    """In both directions: each workload is reached by its peer, with its network's number on the wire, and by nobody else."""
    kinds = {name: KINDS[int(name) % 2] for name in groups}
    for turned in (groups, {name: vms[::-1] for name, vms in groups.items()}):
        found = exchange(cloud, turned, folder, kinds)
        for name, vms in turned.items():
            assert_crossed(kinds[name], int(name), vms, found[name], 4)
            assert vms[0].sees(vms[1])


def resident(host: Host) -> float:
    """Megabytes that the agent holds."""
    lines = Path(f"/proc/{host.agent.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
