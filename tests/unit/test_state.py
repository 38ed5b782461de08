"""The mirror's state: interest grows and shrinks, and a value that is no message hurts nobody else."""

from __future__ import annotations

from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.feed import Changed
from kumihimo.v1 import port_pb2
from tests.unit.test_compile import small
from tests.unit.test_engine import NETWORKS, PORTS


def test_interest_is_the_ports_plugged_here_their_networks_and_all_nodes() -> None:
    machine = small()
    assert machine.cloud.state.interest() == {
        keys.NODES,
        keys.scope(NETWORKS[0]),
        keys.index("Port", PORTS[1]),
        keys.index("Port", PORTS[2]),
    }
    machine.unplug(1)
    machine.unplug(2)
    machine.cloud.settle()
    assert machine.cloud.state.interest() == {keys.NODES}
    assert machine.cloud.state.networks == {}


def test_a_value_that_cannot_be_parsed_is_reported_and_everything_else_goes_on() -> None:
    machine = small()
    scope = keys.scope(NETWORKS[0])
    broken = keys.ports(NETWORKS[0]) + PORTS[3]
    before = machine.cloud.state.networks[NETWORKS[0]].ports[PORTS[3]]
    changed = port_pb2.Port(id=PORTS[4], network_id=NETWORKS[0], name="renamed").SerializeToString()
    other = keys.ports(NETWORKS[0]) + PORTS[4]
    notice = Changed(scope, 900, [(broken, Entry(b"\xff\xff\xff", 1, 900)), (other, Entry(changed, 1, 900))])
    assert machine.cloud.state.take(notice) == {("port", NETWORKS[0], PORTS[4])}
    assert set(machine.cloud.state.unreadable) == {broken}
    assert machine.cloud.state.networks[NETWORKS[0]].ports[PORTS[3]] == before, "what was known stays"
    assert machine.cloud.state.networks[NETWORKS[0]].port(PORTS[4]).name == "renamed"
    machine.cloud.state.take(Changed(scope, 901, [(broken, Entry(before, 1, 901))]))
    assert machine.cloud.state.unreadable == {}
