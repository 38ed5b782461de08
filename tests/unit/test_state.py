"""The mirror's state: interest grows and shrinks, and a value that is no message hurts nobody else."""

from __future__ import annotations

from agent.model.pipeline import CookieKind, Table, cookie
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


def test_c_07_a_port_of_a_known_network_is_wired_before_the_store_has_said_where_it_is() -> None:
    machine = small()
    machine.plug(4, True)
    machine.cloud.facts()
    machine.cloud.engine.run()
    state = machine.cloud.state
    assert state.located[PORTS[4]] == NETWORKS[0]
    assert keys.index("Port", PORTS[4]) in state.interest(), "it is asked for all the same"
    to_it = [item for item in machine.cloud.engine.items().values() if getattr(item, "cookie", 0) == mine(PORTS[4])]
    assert any(item.table == Table.LOCAL for item in to_it)
    assert machine.cloud.engine.items() == machine.cloud.engine.full()
    before = dict(machine.cloud.engine.items())
    machine.cloud.settle()
    machine.cloud.engine.run()
    assert machine.cloud.engine.items() == before, "the index changes nothing"
    # A port that the network does not have is looked for as ever.
    machine.plug(7, True)
    machine.cloud.facts()
    assert state.located[PORTS[7]] is None


def test_c_07_so_is_one_that_was_there_before_its_network_was_known() -> None:
    machine = small()
    for number in (1, 2):
        machine.unplug(number)
    machine.cloud.settle()
    machine.plug(1, True)
    machine.plug(4, True)
    machine.cloud.facts()
    machine.cloud.deliver(keys.index("Port", PORTS[1]))
    machine.cloud.deliver(keys.scope(NETWORKS[0]))
    assert machine.cloud.state.located == {PORTS[1]: NETWORKS[0], PORTS[4]: NETWORKS[0]}
    machine.cloud.engine.run()
    assert machine.cloud.engine.items() == machine.cloud.engine.full()


def mine(port: str) -> int:
    return cookie(CookieKind.PORT, port)


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
