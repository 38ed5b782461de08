"""C-08: what others change of what is ours is found, told and put right; what is not ours is told and left."""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from kumihimo.v1 import node_pb2
from tests.component.node import NAMESPACE, NETWORK, PORT_A, UNDERLAY, UNSEEN, Node, everything, running_node
from tests.component.private_host import on_private_host, sh
from tests.seeds import FULL
from tests.waiting import DEADLINE, until

FOLDER = f"/var/lib/kumihimo/dhcp/{NETWORK}"
PID = f"/run/kumihimo/dhcp/{NETWORK}.pid"
OFCTL = "ovs-ofctl -O OpenFlow15"
REPAIRED, REPORTED, FOREIGN = (
    node_pb2.DRIFT_OUTCOME_REPAIRED,
    node_pb2.DRIFT_OUTCOME_REPORTED,
    node_pb2.DRIFT_OUTCOME_FOREIGN,
)


@dataclass(frozen=True)
class Damage:
    """What somebody does, and what of it is told: kind and a part of the difference."""

    command: str
    kind: str
    told: str


DAMAGES = {
    "flow deleted": Damage(f"{OFCTL} del-flows br-int table=80", "flow", "missing"),
    "flow altered": Damage(f"{OFCTL} mod-flows br-int table=80,actions=drop", "flow", "actions was drop, must be output:7"),
    "flow replaced": Damage(
        f"{OFCTL} add-flow br-int cookie=0x9,table=80,priority=100,reg15=7,actions=NORMAL",
        "flow",
        "actions was output:4294967290",
    ),
    "flow added with our cookie": Damage(
        f"{OFCTL} add-flow br-int cookie=0x4d00000000000001,table=5,actions=drop", "flow", "nothing here asks"
    ),
    "group altered": Damage(
        f"{OFCTL} mod-group br-int group_id=5,type=all,bucket=actions=output:1", "group", "buckets was output:1"
    ),
    "group deleted": Damage(f"{OFCTL} del-groups br-int group_id=5", "group", "missing"),
    "meter altered": Damage(
        f"{OFCTL} mod-meter br-int meter=7,pktps,burst,band=type=drop,rate=9,burst_size=16", "meter", "rate"
    ),
    "meter deleted": Damage(f"{OFCTL} del-meter br-int meter=7", "meter", "missing"),
    "bridge's fail mode": Damage("ovs-vsctl set bridge br-int fail_mode=standalone", "bridge", "fail_mode was standalone"),
    "bridge's protocols": Damage("ovs-vsctl set bridge br-int protocols=OpenFlow15", "bridge", "protocols were OpenFlow15"),
    "port deleted": Damage("ovs-vsctl del-port kd000005", "ovs-port", "missing"),
    "port's options": Damage(
        "ovs-vsctl set interface kumi-vxlan options:local_ip=192.0.2.99", "ovs-port", "local_ip=192.0.2.99"
    ),
    "port's VLAN": Damage("ovs-vsctl set port kd000005 tag=5 vlan_mode=access", "ovs-port", "tag was 5, vlan_mode was access"),
    "veth deleted": Damage("ip link del kd000005", "namespace", "no veth leads to it"),
    "inner end down": Damage(f"ip -n {NAMESPACE} link set dhcp0 down", "namespace", "dhcp0 is down"),
    "outer end down": Damage("ip link set kd000005 down", "namespace", "kd000005 is down"),
    "MTU": Damage(
        f"ip link set kd000005 mtu 1300; ip -n {NAMESPACE} link set dhcp0 mtu 1300", "namespace", "mtu was 1300, must be 1450"
    ),
    "address removed": Damage(f"ip -n {NAMESPACE} address flush dev dhcp0 scope global", "namespace", "addresses was none"),
    "address added": Damage(f"ip -n {NAMESPACE} address add 10.9.9.9/24 dev dhcp0", "namespace", "10.9.9.9/24"),
    "sysctl": Damage(
        f"ip netns exec {NAMESPACE} sysctl -w net.ipv6.conf.dhcp0.accept_ra=2", "namespace", "dhcp0 has accept_ra 2"
    ),
    "IPv6 switched off": Damage(
        f"ip netns exec {NAMESPACE} sysctl -w net.ipv6.conf.dhcp0.disable_ipv6=1", "namespace", "dhcp0 has disable_ipv6 1"
    ),
    "outer offload": Damage("ethtool -K kd000005 tx on", "namespace", "kd000005 leaves checksums to hardware"),
    "inner offload": Damage(f"ip netns exec {NAMESPACE} ethtool -K dhcp0 tx on", "namespace", "dhcp0 leaves checksums"),
    "namespace deleted": Damage(f"ip netns del {NAMESPACE}", "namespace", "missing"),
    "uplink down": Damage("ip link set nic0 down", "uplink", "it was down"),
    "neighbour deleted": Damage("ip neigh del 192.0.2.2 dev v0", "peer", "missing"),
    "dnsmasq killed": Damage(f"kill -9 $(cat {PID})", "dhcp", "not running"),
    "dnsmasq's configuration": Damage(f"echo dhcp-option=3,9.9.9.9 >>{FOLDER}/dnsmasq.conf", "dhcp", "config was"),
    "dnsmasq's lease file line": Damage(f"sed -i s/leasefile=.*/leasefile=x/ {FOLDER}/dnsmasq.conf", "dhcp", "own lines"),
    "dnsmasq's host altered": Damage(f"echo fa:16:3e:00:01:0a,10.0.0.9 >{FOLDER}/hosts/{PORT_A}", "dhcp", "10.0.0.9"),
    "dnsmasq's host deleted": Damage(f"rm {FOLDER}/hosts/{PORT_A}", "dhcp", "hosts was none"),
    "names altered": Damage(f"echo 10.9.9.9 evil >{FOLDER}/names/{PORT_A[-2:]}", "name", "missing"),
    "names deleted": Damage(f"rm {FOLDER}/names/{PORT_A[-2:]}", "name", "missing"),
    # At once: what is half deleted is told as what it lacks.
    "dnsmasq's folder deleted": Damage(
        f"mv {FOLDER} /var/lib/kumihimo/gone && rm -r /var/lib/kumihimo/gone", "dhcp", "missing"
    ),
}


# Done at once after something was put, before it can have been looked at.
AT_ONCE = ["uplink down", "names deleted", "dnsmasq's folder deleted", "namespace deleted", "neighbour deleted"]

KINDS = sorted({done.kind for done in DAMAGES.values()})


@pytest.fixture(scope="module")
async def node() -> AsyncIterator[Node]:
    sh(UNDERLAY)
    async with running_node() as node:
        await node.held(everything())
        yield node


def drifts(node: Node) -> dict[tuple[str, str], node_pb2.Drift]:
    return {(drift.kind, drift.object): drift for drift in node.drifts.report().items}


async def damage(node: Node, done: Damage) -> float:
    """Do it; seconds until it is told of and all is as it should be again."""
    before = {place: drift.count for place, drift in drifts(node).items()}
    began = time.monotonic()
    sh(done.command)

    def told() -> bool:
        return any(
            place[0] == done.kind and drift.count > before.get(place, 0) and done.told in drift.difference
            for place, drift in drifts(node).items()
        )

    await until(told, f"{done.kind}: {done.told!r}; told is {list(drifts(node).values())[:3]}", 3 * DEADLINE)

    wanted = {item.key: item for item in everything() if item.key[0] not in UNSEEN}
    wrong: list[object] = []

    async def whole() -> bool:
        try:
            there = await node.there()
        except OSError as error:  # the switch hangs up on everybody when its bridge changes
            wrong[:] = [error]
            return False
        wrong[:] = node.failures()
        wrong.extend(key for key in wanted.keys() | there.keys() if wanted.get(key) != there.get(key))
        if "managed" not in sh("ip neigh show to 192.0.2.2"):
            wrong.append("neighbour")
        if not sh("ip -o link show nic0 up"):
            wrong.append("nic0")
        return not wrong

    try:
        await until(whole, timeout=3 * DEADLINE)
    except AssertionError:
        raise AssertionError(f"{done}: not as it should be: {wrong}") from None
    return time.monotonic() - began


@on_private_host
async def test_c_08_b_ops_14_whatever_somebody_changes_is_told_and_put_right_within_10_s(node: Node) -> None:
    names = list(DAMAGES)
    if not FULL:
        # Of each kind one, and a few more.
        some = random.Random(os.environ.get("KUMI_SEED", "1507"))
        by_kind = {kind: [name for name in names if DAMAGES[name].kind == kind] for kind in KINDS}
        names = [*map(some.choice, by_kind.values()), *some.sample(names, 3)]
    took = {}
    # A bridge's come last: the switch may hang up, and what is changed before the lane is back is put right and not told.
    names = ["flow deleted", "flow altered", "flow replaced", *names]
    for name in sorted(names, key=lambda name: DAMAGES[name].kind == "bridge"):
        took[name] = await damage(node, DAMAGES[name])
    print({name: round(seconds, 2) for name, seconds in took.items()})
    assert max(took.values()) < 10, took
    told = drifts(node)
    assert all(drift.outcome == REPAIRED for drift in told.values() if drift.outcome != FOREIGN)
    flow = told["flow", "table=80,priority=100,reg15=0x7"]
    assert flow.owner == f"Network {NETWORK}"
    assert flow.count >= 3
    assert flow.first_time.ToNanoseconds() < flow.last_time.ToNanoseconds()


@on_private_host
async def test_c_08_what_is_put_back_and_taken_away_again_at_once_is_noticed(node: Node) -> None:
    for _ in range(2):
        for name in AT_ONCE:
            await damage(node, DAMAGES[name])


@on_private_host
async def test_c_08_a_61_what_is_not_ours_is_told_and_stays(node: Node) -> None:
    sh(f"{OFCTL} add-flow br-int cookie=0x5,table=0,priority=7,in_port=3,actions=drop")
    sh(f"{OFCTL} add-group br-int group_id=0x1000005,type=all,bucket=actions=output:1")
    sh("ip link add strange0 type veth peer name strange1; ovs-vsctl add-port br-int strange0")
    sh("ip link add tap9 type veth peer name tap9g")
    sh(f"ovs-vsctl add-port br-int tap9 -- set interface tap9 external_ids:iface-id={PORT_A}")
    expected = {
        ("flow", "table=0,priority=7,in_port=3"),
        ("group", f"group_id={0x1000005}"),
        ("ovs-port", "br-int strange0"),
    }

    def foreign() -> set[tuple[str, str]]:
        return {place for place, drift in drifts(node).items() if drift.outcome == FOREIGN}

    await until(lambda: foreign() == expected, f"foreign objects are told: {foreign()}")
    await damage(node, DAMAGES["flow deleted"])
    await damage(node, DAMAGES["port's options"])
    assert foreign() == expected
    assert "cookie=0x5" in sh(f"{OFCTL} dump-flows br-int table=0")
    assert "group_id=16777221" in sh(f"{OFCTL} dump-groups br-int")
    assert sh("ovs-vsctl port-to-br strange0") == sh("ovs-vsctl port-to-br tap9") == "br-int"
    sh(f"{OFCTL} --strict del-flows br-int table=0,priority=7,in_port=3; {OFCTL} del-groups br-int group_id=0x1000005")
    sh("ovs-vsctl del-port strange0 -- del-port tap9; ip link del strange0; ip link del tap9")
    await until(lambda: not foreign(), "what is gone is told of no longer")


@on_private_host
async def test_c_08_a_node_that_only_reports_leaves_what_it_finds(node: Node) -> None:
    before = drifts(node)
    node.drifts.repairs = False
    try:
        sh(DAMAGES["flow altered"].command)
        sh(f"ip -n {NAMESPACE} address add 10.9.9.7/24 dev dhcp0")
        sh(f"{OFCTL} add-flow br-int cookie=0x4d00000000000002,table=6,actions=drop")

        def told() -> list[node_pb2.Drift]:
            return [drift for drift in drifts(node).values() if drift.outcome == REPORTED]

        await until(lambda: len(told()) == 3, "all three are told")
        counts = sorted(drift.count for drift in told())
        sh(f"ip -n {NAMESPACE} address add 10.9.9.8/24 dev dhcp0")
        await until(lambda: any("10.9.9.8" in drift.difference for drift in told()), "the next is told as well")
        assert "drop" in sh(f"{OFCTL} dump-flows br-int table=80")
        assert "table=6" in sh(f"{OFCTL} dump-flows br-int table=6")
        assert "10.9.9.7" in sh(f"ip -n {NAMESPACE} address show dev dhcp0")
        assert sum(counts) <= sum(drift.count for drift in told()) <= sum(counts) + 1, "what stays is told of once"
    finally:
        node.drifts.repairs = True
    for lane in node.lanes:
        lane.unsettle()
    await until(lambda: "drop" not in sh(f"{OFCTL} dump-flows br-int table=80"), "a node that repairs does so")
    await until(lambda: "10.9.9" not in sh(f"ip -n {NAMESPACE} address show dev dhcp0"))
    assert len(before) <= len(drifts(node))
