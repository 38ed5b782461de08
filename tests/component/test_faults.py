"""A-58: an agent that dies between any two steps, of any kind of object, is followed by one that comes to the same end.

Points are found by themselves: in the source, and by a run that is watched. Each is then let to kill a process, as often as it
is passed; the next process finishes the work, and the host must look as if nothing had happened, what is not ours included.
"""

from __future__ import annotations

import ast
import asyncio
import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent import faults
from agent.mirror.snapshot import Recorder, load
from agent.model.host import Bridge, OvsPort
from agent.model.item import Item
from controlplane.store.client import Entry
from controlplane.store.feed import Listed
from tests.component import private_host
from tests.component.node import NAMESPACE, UNDERLAY, changed, everything, running_node
from tests.component.private_host import on_private_host, processes, sh
from tests.waiting import running

# A library of a library warns of forks; the processes made here have nothing to do with it.
pytestmark = pytest.mark.filterwarnings("ignore:Using fork")
ROOT = Path(__file__).resolve().parents[2]
OFCTL = "ovs-ofctl -O OpenFlow15"
FULL = bool(os.environ.get("KUMI_FULL"))
SLICE = 8  # cases in the plain run


def points() -> set[str]:
    """Every point in the agent's source."""
    found = set()
    for file in (ROOT / "agent").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "point":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{file}: a point's name is a literal"
                found.add(str(name.value))
    return found


class Passed(str):
    """Armed with this nobody dies; which points are passed is written down."""

    def __eq__(self, name: object) -> bool:
        with Path(str.__str__(self)).open("a") as file:
            file.write(f"{name}\n")
        return False

    __hash__ = str.__hash__


class Nth(str):
    """Armed with this a process dies when it passes the point for the nth time."""

    left: int

    def __new__(cls, name: str, nth: int) -> Nth:
        made = super().__new__(cls, name)
        made.left = nth
        return made

    def __eq__(self, name: object) -> bool:
        if str.__eq__(self, name):
            self.left -= 1
        return str.__eq__(self, name) and self.left == 0

    __hash__ = str.__hash__


def process(work: Callable[[], None], armed: str = "") -> int:
    """Do some work in a process of its own; its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            faults.armed = armed
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hold(*steps: list[Item]) -> Callable[[], None]:
    async def work() -> None:
        async with running_node() as node:
            for items in steps:
                await node.held(items)

    return lambda: asyncio.run(work())


BARE: list[Item] = [Bridge("br-int", "netdev")]
TWO: list[Item] = [*BARE, Bridge("br-two", "netdev")]
ON_ONE = OvsPort("br-int", "vx9", "vxlan", (("key", "9"), ("remote_ip", "192.0.2.2")), (("kumihimo", "tunnel"),))
# name → what is there before, and what shall be.
SCENARIOS: dict[str, tuple[list[Item], list[Item]]] = {
    "make": (BARE, everything()),
    "change": (everything(), changed()),
    "remove": (everything(), BARE),
    "move a port": ([*TWO, ON_ONE], [*TWO, replace(ON_ONE, bridge="br-two")]),
}


def dump() -> dict[str, str]:
    """The host as its own tools show it, without what counts or is numbered anew."""
    # What the kernel finds out by itself and tells later is nobody's doing: carrier, operational state, link-local addresses,
    # what a neighbour answered.
    carrier = "sed -E 's/NO-CARRIER,//; s/,M-DOWN//; s/,LOWER_UP//; s/ state [A-Z]+//'"
    answered = "sed -E '/managed/ s/ lladdr [^ ]+//; s/(REACHABLE|STALE|DELAY|PROBE|INCOMPLETE|FAILED).*//'"
    link_local = "awk '{$2 = \"\"; print}' | sed -E 's/@if[0-9]+//; s/fe80:[^ ]+ *//'"
    commands = {
        "flows": f"{OFCTL} --no-stats --no-names dump-flows br-int | sort",
        "groups": f"{OFCTL} dump-groups br-int | tail -n +2 | sort",
        "bridges": "ovs-vsctl --columns=name,fail_mode,protocols,external_ids,other_config list bridge | sort",
        "ports": "for b in $(ovs-vsctl list-br | sort); do echo $b $(ovs-vsctl list-ports $b | sort); done",
        "interfaces": "ovs-vsctl --columns=name,type,options,external_ids,error list interface | sort",
        "namespaces": "ls /run/netns",
        "links": "ip -o link | sed -E 's/^[0-9]+: //; s/@if[0-9]+//; s/link-netns.*//; s/link.ether [^ ]+//'"
        f" | {carrier} | sort",
        "inside": f"[ ! -e /run/netns/{NAMESPACE} ] || ip -n {NAMESPACE} -br address | {link_local} | sort",
        "files": "cd /var/lib/kumihimo && find . -type f ! -name leases -exec sha256sum {} + | sort -k2; ls /run/kumihimo/dhcp",
        "neighbours": f"ip neigh show | grep -E 'managed|PERM' | {answered} | sort",
    }
    found = {name: sh(command, check=False) for name, command in commands.items()}
    return {**found, "dnsmasq": "\n".join(processes("dnsmasq"))}


TWINS = f"""
ovs-vsctl --may-exist add-br br-foreign -- set bridge br-foreign datapath_type=netdev fail_mode=standalone
{OFCTL} add-flow br-int cookie=0x5,table=80,priority=7,reg15=7,actions=drop
{OFCTL} add-group br-int group_id=0x1000005,type=all,bucket=actions=output:1
ip link add strange0 type veth peer name strange1
ovs-vsctl add-port br-int strange0
ip link add kd000006 type veth peer name twin0
ip link set kd000006 alias mine
ip netns add kumihimo-twin
ip neigh replace 192.0.2.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent
mkdir -p /var/lib/kumihimo/twin /run/twin
echo keep >/var/lib/kumihimo/twin/file
ip netns exec other ip link set lo up
ip netns exec other dnsmasq --conf-file=/dev/null --port=0 --no-resolv --bind-dynamic --interface=v1 \
    --dhcp-range=192.0.2.100,192.0.2.101 --pid-file=/run/twin/pid --dhcp-leasefile=/run/twin/leases
"""


def watched(name: str, file: Path) -> tuple[dict[str, str], list[tuple[str, str, int]]]:
    """What a clean run of a scenario comes to, and (scenario, point, time) of all that it passes."""
    before, after = SCENARIOS[name]
    assert process(hold(before)) == 0
    assert process(hold(after), Passed(str(file))) == 0
    passed = Counter(file.read_text().splitlines())
    return dump(), [(name, point, nth) for point, times in passed.items() for nth in range(1, times + 1)]


@pytest.mark.timeout(private_host.SECONDS)
@on_private_host
def test_a_58_whoever_dies_between_two_steps_is_followed_by_one_that_finishes() -> None:
    sh(UNDERLAY)
    assert process(hold(BARE)) == 0
    sh(TWINS)
    twin = sh("cat /run/twin/pid")
    references: dict[str, dict[str, str]] = {}
    cases: list[tuple[str, str, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in SCENARIOS:
            references[name], passed = watched(name, Path(folder, name))
            cases += passed
    unreached = points() - {point for _, point, _ in cases}
    assert all(point.startswith("snapshot: ") for point in unreached), f"{unreached}: a new kind of object needs a scenario"
    seed = os.environ.get("KUMI_SEED", "1507")
    chosen = cases if FULL else random.Random(seed).sample(cases, SLICE)
    print(f"{len(chosen)} of {len(cases)} cases, seed {seed}")
    for scenario, point, nth in chosen:
        before, after = SCENARIOS[scenario]
        case = f"{scenario}, {point}, {nth}"
        assert process(hold(before)) == 0, case
        # How often a point is passed may differ from run to run: lanes work side by side.
        assert process(hold(after), Nth(point, nth)) in (-signal.SIGKILL, 0), case
        assert process(hold(after)) == 0, case
        now = dump()
        assert now == references[scenario], f"{case}: {[name for name in now if now[name] != references[scenario][name]]}"
    assert sh("cat /run/twin/pid") == twin
    assert sh(f"cat /proc/{twin}/comm") == "dnsmasq"


@on_private_host
def test_b_ops_13_whoever_dies_while_it_writes_the_snapshot_leaves_the_old_one_or_the_new_one() -> None:
    path = Path("/var/lib/kumihimo/agent/mirror")

    def record(value: bytes) -> Callable[[], None]:
        async def work() -> None:
            recorder = Recorder(path, "h1", ["etcd:2379"])
            recorder.take(Listed("/kumihimo/node/", 1, {"/kumihimo/node/h1": Entry(value, 1, 1)}))
            async with running(recorder.run()):
                pass  # at its end it writes what there is to write

        return lambda: asyncio.run(work())

    def known() -> bytes:
        return load(path, "h1", ["etcd:2379"])["/kumihimo/node/"].entries["/kumihimo/node/h1"].value

    assert process(record(b"first")) == 0
    for point in sorted(point for point in points() if point.startswith("snapshot: ")):
        assert process(record(b"second"), Nth(point, 1)) == -signal.SIGKILL, point
        assert known() == b"first"
    assert process(record(b"second")) == 0
    assert known() == b"second"
    assert [file.name for file in path.parent.iterdir()] == ["mirror"]
