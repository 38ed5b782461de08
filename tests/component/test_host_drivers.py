"""Open vSwitch's database and network namespaces: the drivers and facts against the real things."""

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute

from agent import rtnetlink
from agent.drivers.exec import ExecError, run
from agent.drivers.netlink import NetlinkDriver
from agent.drivers.ovsdb import OvsdbDriver
from agent.facts.links import Links
from agent.facts.model import Interface, Link
from agent.facts.ovsdb import Ovsdb, OvsdbError
from agent.model.host import Bridge, OvsPort, ServiceNamespace
from tests.component.private_host import on_private_host, sh, start_ovsdb
from tests.waiting import DEADLINE, until

INT = Bridge("br-int", "netdev")


@pytest.fixture
async def ovsdb():
    ovsdb = Ovsdb()
    await ovsdb.start()
    yield ovsdb
    await ovsdb.stop()


@pytest.fixture
async def driver(ovsdb):
    driver = OvsdbDriver(ovsdb)
    yield driver
    sh("ovs-vsctl $(ovs-vsctl list-br | sed 's/^/-- del-br /')", check=False)


def vxlan(number: int, bridge: str = "br-int", **options: str) -> OvsPort:
    pairs = {"key": "flow", "remote_ip": f"192.0.2.{number}", **options}
    return OvsPort(bridge, f"vx-{number}", "vxlan", tuple(sorted(pairs.items())), (("kumihimo", "tunnel"),))


def process(name: str) -> int:
    return int(Path(f"/run/openvswitch/{name}.pid").read_text())


@on_private_host
async def test_facts_follow_the_database(ovsdb, driver):
    await driver.apply([INT], [])
    calls = []
    ovsdb.on_change(lambda: calls.append(ovsdb.facts()))
    sh("ip link add tap1 type veth peer name peer1")
    sh("ovs-vsctl add-port br-int tap1 -- set interface tap1 external_ids:iface-id=port-1")
    tap = Interface("tap1", "br-int", int(sh("ovs-vsctl get interface tap1 ofport")), "port-1", "", "")
    await until(lambda: bool(calls) and calls[-1].get("tap1") == tap)
    assert ovsdb.facts() == calls[-1]
    sh("ovs-vsctl del-port tap1")
    await until(lambda: "tap1" not in calls[-1])
    sh("ovs-vsctl set open_vswitch . ovs_version=3.1.0")
    await until(lambda: bool(ovsdb._view.ovs_version))
    facts = await ovsdb.host_facts()
    assert facts.ovs_version == "3.1.0"
    assert "netdev" in facts.datapath_types
    assert ovsdb.bridges == ("br-int",)
    sh("ip link del tap1")


@on_private_host
async def test_statistics_wake_nobody(ovsdb, driver):
    await driver.apply([INT], [])
    calls = []
    ovsdb.on_change(lambda: calls.append(1))
    sh("ovs-vsctl set interface br-int external_ids:unrelated=1")
    await until(lambda: ovsdb._view.cur_cfg == int(sh("ovs-vsctl get open_vswitch . cur_cfg")))
    assert not calls


@on_private_host
async def test_no_server_is_one_clear_line():
    with pytest.raises(OvsdbError, match=r"^no ovsdb-server on /run/none\.sock: No such file or directory$"):
        await Ovsdb("/run/none.sock").start()


@on_private_host
async def test_silent_server_meets_the_deadline():
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("/run/silent.sock")
        server.listen()
        with pytest.raises(OvsdbError, match=r"^ovsdb-server on /run/silent\.sock does not answer$"):
            await Ovsdb("/run/silent.sock", timeout=0.3).start()


@on_private_host
async def test_server_restart_goes_on_by_itself(ovsdb, driver):
    assert not await driver.apply([INT, vxlan(1)], [])
    states = []
    ovsdb.on_change(lambda: states.append(ovsdb.connected))
    sh(f"kill -9 {process('ovsdb-server')}")
    await until(lambda: states == [False])
    assert "vx-1" in ovsdb.facts(), "the last view stays while the server is away"
    with pytest.raises(OvsdbError, match="not connected"):
        await driver.read_owned()
    assert (await driver.apply([vxlan(2)], []))[vxlan(2).key].reason == "OVSDB"
    start_ovsdb()
    await until(lambda: bool(states[-1]))
    assert set(await driver.read_owned()) == {INT.key, vxlan(1).key}
    await until(lambda: sh("ovs-appctl -t ovs-vswitchd version").startswith("ovs-vswitchd"))
    assert not await driver.apply([vxlan(2)], [])
    assert "vx-2" in ovsdb.facts()


@on_private_host
async def test_frozen_switch_is_reported_and_then_repaired(driver):
    await driver.apply([INT], [])
    ovsdb = Ovsdb(timeout=1)
    await ovsdb.start()
    hasty = OvsdbDriver(ovsdb)
    sh(f"kill -STOP {process('ovs-vswitchd')}")
    try:
        failures = await hasty.apply([vxlan(1)], [])
    finally:
        sh(f"kill -CONT {process('ovs-vswitchd')}")
    assert failures[vxlan(1).key].message == "ovs-vswitchd did not act within 1 s"
    assert not await hasty.apply([vxlan(1)], [])
    await ovsdb.stop()


@on_private_host
async def test_bridge_is_made_and_adopted(driver):
    sh("ovs-vsctl add-br br-int -- set bridge br-int datapath_type=netdev fail_mode=secure external_ids:other=1")
    sh("ip link add tap1 type veth peer name peer1; ovs-vsctl add-port br-int tap1")
    sh("ovs-ofctl add-flow br-int cookie=0x5,priority=7,actions=drop")
    ofport = sh("ovs-vsctl get interface tap1 ofport")
    assert await driver.read_owned() == {}
    assert not await driver.apply([INT, Bridge("br-new", "netdev")], [])
    assert await driver.read_owned() == {item.key: item for item in (INT, Bridge("br-new", "netdev"))}
    for bridge in ("br-int", "br-new"):
        assert sh(f"ovs-vsctl get bridge {bridge} fail_mode") == "secure"
        assert sh(f"ovs-vsctl get bridge {bridge} other_config:disable-in-band") == '"true"'
        assert "OFPST_PORT_DESC reply (OF1.5)" in sh(f"ovs-ofctl -O OpenFlow15 dump-ports-desc {bridge}")
    assert sh("ovs-vsctl get bridge br-int external_ids:other") == '"1"'
    assert "cookie=0x5" in sh("ovs-ofctl -O OpenFlow15 dump-flows br-int"), "adopting keeps flows"
    assert sh("ovs-vsctl get interface tap1 ofport") == ofport
    assert sh("ovs-ofctl -O OpenFlow15 dump-flows br-new").count("actions") == 0, "fail closed: no NORMAL flow"

    sh("ovs-vsctl set bridge br-new fail_mode=standalone")
    await _read_until(driver, lambda owned: owned[("bridge", "br-new")] != Bridge("br-new", "netdev"))
    assert not await driver.apply([Bridge("br-new", "netdev")], [])
    assert (await driver.read_owned())[("bridge", "br-new")] == Bridge("br-new", "netdev")

    assert not await driver.apply([], [INT, Bridge("br-new", "netdev")])
    assert sh("ovs-vsctl list-br") == "br-int", "a bridge with others' ports stays"
    assert await driver.read_owned() == {}
    sh("ip link del tap1")


async def _read_until(driver, condition):
    async def so():
        return condition(await driver.read_owned())

    await until(so)


@on_private_host
async def test_ports_in_one_transaction(driver):
    ports = [vxlan(number) for number in range(1, 101)]
    assert not await driver.apply([*ports, INT], [])
    assert await driver.read_owned() == {item.key: item for item in (INT, *ports)}
    for table in ("port", "interface"):
        assert sh(f"ovs-vsctl get {table} vx-9 external_ids") == "{kumihimo=tunnel}"
    assert not await driver.apply([vxlan(101)], [])

    changed = vxlan(1, local_ip="192.0.2.200")
    generation = sh("ovs-vsctl get open_vswitch . next_cfg")
    assert not await driver.apply([changed], ports[1:])
    assert int(sh("ovs-vsctl get open_vswitch . next_cfg")) == int(generation) + 1
    assert await driver.read_owned() == {item.key: item for item in (INT, changed, vxlan(101))}
    assert not await driver.apply([changed], ports[1:]), "again changes nothing and succeeds"
    assert set(sh("ovs-vsctl list-ports br-int").split()) == {"vx-1", "vx-101"}

    sh("ovs-vsctl set interface vx-1 external_ids:kumihimo=bent")
    await _read_until(driver, lambda owned: owned[changed.key] != changed)
    assert not await driver.apply([changed], [])
    assert (await driver.read_owned())[changed.key] == changed


@on_private_host
async def test_foreign_port_is_never_touched(driver):
    await driver.apply([INT, Bridge("br-two", "netdev")], [])
    sh("ovs-vsctl add-port br-int vx-1 -- set interface vx-1 type=vxlan options:remote_ip=198.51.100.1 options:key=1")
    for bridge in ("br-int", "br-two"):
        failures = await driver.apply([vxlan(1, bridge), vxlan(2)], [])
        assert {key: failure.reason for key, failure in failures.items()} == {vxlan(1, bridge).key: "FOREIGN_OBJECT"}
    assert not await driver.apply([], [vxlan(1)])
    assert sh("ovs-vsctl get interface vx-1 options:remote_ip") == '"198.51.100.1"'
    assert sh("ovs-vsctl list-ports br-int").split() == ["vx-1", "vx-2"]
    failures = await driver.apply([vxlan(3, "br-none")], [])
    assert failures[vxlan(3, "br-none").key].reason == "NO_BRIDGE"


@on_private_host
async def test_our_port_moves_between_bridges(driver):
    assert not await driver.apply([INT, Bridge("br-two", "netdev"), vxlan(1)], [])
    assert not await driver.apply([vxlan(1, "br-two")], [vxlan(1)])
    assert sh("ovs-vsctl port-to-br vx-1") == "br-two"


@on_private_host
async def test_refused_transaction_fails_only_what_is_at_fault(driver):
    await driver.apply([INT], [])
    twin = OvsPort("br-int", "br-two", "internal", (), (("kumihimo", "test"),))
    failures = await driver.apply([twin, vxlan(1), Bridge("br-two", "netdev")], [])
    assert list(failures) == [twin.key]
    assert {vxlan(1).key, ("bridge", "br-two")} <= set(await driver.read_owned())


@on_private_host
async def test_interface_error_is_reported(driver):
    missing = OvsPort("br-int", "missing0", "", (), (("kumihimo", "test"),))
    failures = await driver.apply([INT, missing, vxlan(1)], [])
    assert list(failures) == [missing.key]
    assert "No such device" in failures[missing.key].message
    sh("ip link add missing0 type veth peer name missing1")
    assert not await driver.apply([missing], [])
    sh("ip link del missing0")


@on_private_host
async def test_underlay_addresses(ovsdb, driver):
    await driver.apply([INT, Bridge("br-b", "netdev"), Bridge("br-a", "netdev")], [])
    for bridge, address in (("br-b", "192.0.2.2/24"), ("br-a", "2001:db8::1/64"), ("br-int", "192.0.2.3/24")):
        sh(f"ip addr add {address} dev {bridge}; ip link set {bridge} up")
    sh("ip addr add 192.0.2.4/32 dev lo")

    async def found():
        facts = await ovsdb.host_facts()
        return list(facts.underlay_bridges.items()), sorted(facts.addresses)

    bridges = [("2001:db8::1", "br-a"), ("192.0.2.2", "br-b")]
    addresses = ["192.0.2.2", "192.0.2.3", "192.0.2.4", "2001:db8::1"]

    async def all_found():
        return await found() == (bridges, addresses)

    await until(all_found, "all addresses but those of the links' own are known")


@on_private_host
async def test_b_net_12_addresses_and_what_bears_them_are_told_as_they_change(ovsdb):
    told = []
    ovsdb.on_change(lambda: told.append(1))

    async def borne(address, link):
        async def known():
            return (await ovsdb.host_facts()).addresses.get(address) == link

        await until(known, f"{address} is on {link}")

    sh("ip link add eth5 mtu 1400 type veth peer name wire5; ip addr add 198.51.100.1/24 dev eth5")
    await borne("198.51.100.1", Link("eth5", 1400))
    sh("ip link set eth5 mtu 1300")
    await borne("198.51.100.1", Link("eth5", 1300))
    sh("ip link set eth5 name eth6; ip addr add 2001:db8:5::1/64 dev eth6 nodad")
    await borne("2001:db8:5::1", Link("eth6", 1300))
    await borne("198.51.100.1", Link("eth6", 1300))
    sh("ip addr del 198.51.100.1/24 dev eth6")
    await borne("198.51.100.1", None)
    assert told
    told.clear()
    sh("ip link add m1 type veth peer name m2; ip link set m1 up; ip link del m1; ip link del eth6")
    await borne("2001:db8:5::1", None)
    assert len(told) == 1, "links without an address are nobody's matter"


@on_private_host
async def test_addresses_are_asked_for_anew_when_the_kernel_had_more_to_say_than_there_was_room_for(monkeypatch):
    monkeypatch.setattr(rtnetlink, "_BUFFER", 1)  # the kernel makes the least of it: a message or two
    asked = []
    monkeypatch.setattr(Links, "_begin", lambda self, begin=Links._begin: (asked.append(1), begin(self)))
    known = Links(lambda: None)
    await known.start()
    sh("ip link add eth5 type veth peer name wire5; for n in $(seq 40); do ip addr add 198.51.100.$n/32 dev eth5; done")
    sh("for n in $(seq 20 40); do ip addr del 198.51.100.$n/32 dev eth5; done")
    wanted = {f"198.51.100.{n}": Link("eth5", 1500) for n in range(1, 20)}
    try:
        await until(
            lambda: {at: link for at, link in known.addresses.items() if link.name == "eth5"} == wanted, "all are known"
        )
        assert len(asked) > 1
    finally:
        known.close()
        sh("ip link del eth5")


@on_private_host
async def test_b_net_02_a_provider_bridge_is_made_and_a_foreign_one_is_used_and_left_alone(ovsdb, driver):
    foreign, owner = "br-foreign-long", (("kumihimo", "provider"),)
    sh("ip link add eth1 mtu 1400 type veth peer name wire1; ip link add eth2 type veth peer name wire2")
    sh(f"ovs-vsctl add-br {foreign} -- set bridge {foreign} datapath_type=netdev -- add-port {foreign} eth2")
    before = sh(f"ovs-vsctl --columns=fail_mode,protocols,external_ids,other_config list bridge {foreign}")
    items = [INT, Bridge("br-phys", "netdev", "standalone"), OvsPort("br-phys", "eth1", "", (), owner)]
    for bridge in ("br-phys", foreign):
        ends = f"int-{bridge}", f"phy-{bridge}"
        for place, name, peer in (("br-int", *ends), (bridge, *reversed(ends))):
            items.append(OvsPort(place, name, "patch", (("peer", peer),), owner))
    assert not await driver.apply(items, [])
    assert await driver.read_owned() == {item.key: item for item in items}
    assert sh("ovs-vsctl get bridge br-phys fail_mode") == "standalone"
    assert "actions=NORMAL" in sh("ovs-ofctl dump-flows br-phys"), "it forwards like a switch"
    facts = await ovsdb.host_facts()
    assert facts.foreign_bridges == {foreign}
    assert facts.interfaces["eth1"].mtu == 1400
    sh("ip link set eth1 mtu 1300")
    await until(lambda: ovsdb.facts()["eth1"].mtu == 1300)
    assert not await driver.apply([], items)
    assert sh("ovs-vsctl list-br") == foreign
    assert sh(f"ovs-vsctl list-ports {foreign}") == "eth2"
    assert sh(f"ovs-vsctl --columns=fail_mode,protocols,external_ids,other_config list bridge {foreign}") == before
    sh("ip link del eth1; ip link del eth2")


SERVICE = ServiceNamespace(
    "kumi-n1", "kumi1", "dhcp0", "fa:16:3e:00:00:01", ("10.0.0.2/24", "169.254.169.254/32", "fd00::2/64"), 1450
)


@asynccontextmanager
async def clean_namespaces():
    yield NetlinkDriver()
    sh(
        "for n in $(ip netns list | cut -d' ' -f1); do ip netns del $n; done; ip link del kumi1; ip link del kumi2",
        check=False,
    )


@on_private_host
async def test_namespace_is_made_changed_and_removed():
    async with clean_namespaces() as driver:
        assert not await driver.apply([SERVICE], [])
        assert await driver.read_owned() == {SERVICE.key: SERVICE}
        assert not await driver.apply([SERVICE], [])
        inside = "ip netns exec kumi-n1"
        for shown in (sh("ethtool -k kumi1"), sh(f"{inside} ethtool -k dhcp0")):
            assert "tx-checksumming: off" in shown
            assert "tx-tcp-segmentation: off" in shown
        assert sh(f"{inside} sysctl -n net.ipv6.conf.dhcp0.accept_ra net.ipv6.conf.dhcp0.autoconf").split() == [
            "0",
            "0",
        ]
        assert "tentative" not in sh(f"{inside} ip -6 addr show dev dhcp0")
        assert "fe80::" in sh(f"{inside} ip -6 addr show dev dhcp0")
        assert sh("ip -n kumi-n1 -o link show up").count("\n") == 1

        index = sh("cat /sys/class/net/kumi1/ifindex")
        sh("ip -n kumi-n1 addr add 10.9.9.9/24 dev dhcp0")
        assert await driver.read_owned() != {SERVICE.key: SERVICE}
        for item in (
            replace(SERVICE, mac="fa:16:3e:00:00:02", mtu=1400, addresses=("10.0.0.3/24",)),
            replace(SERVICE, mtu=1300, addresses=("10.0.0.3/24", "fd00::2/64", "fe80::f816:3eff:fe00:1/64")),
        ):
            assert not await driver.apply([item], [])
            assert await driver.read_owned() == {item.key: item}
        assert sh("cat /sys/class/net/kumi1/ifindex") == index, "a change keeps the veth"
        renamed = replace(SERVICE, outer="kumi2", inner="ra0")
        assert not await driver.apply([renamed], [])
        assert await driver.read_owned() == {renamed.key: renamed}
        assert not Path("/sys/class/net/kumi1").exists()

        assert not await driver.apply([], [renamed])
        assert not await driver.apply([], [renamed])
        assert await driver.read_owned() == {}
        assert not Path("/sys/class/net/kumi2").exists()


@on_private_host
async def test_namespace_survives_death_at_every_step(monkeypatch):
    """Stop before each netlink request in turn; the next apply must finish the work, and a removal too."""

    class Died(BaseException):
        pass

    requests = [0]

    def bomb(name):
        original = getattr(AsyncIPRoute, name)

        async def request(self, command, *args, **kwargs):
            requests[0] -= 1
            if requests[0] == 0:
                raise Died
            return await original(self, command, *args, **kwargs)

        return request

    async def apply(fuse, put, delete):
        """Returns whether the work was finished."""
        with monkeypatch.context() as patch:
            for name in ("link", "addr"):
                patch.setattr(AsyncIPRoute, name, bomb(name))
            requests[0] = fuse
            try:
                assert not await driver.apply(put, delete)
            except Died:
                return False
            return True

    async with clean_namespaces() as driver:
        other = replace(SERVICE, mac="fa:16:3e:00:00:09", inner="other0")
        for fuse in range(1, 30):
            done = await apply(fuse, [SERVICE], [])
            owned = await driver.read_owned()
            assert done == (owned == {SERVICE.key: SERVICE}), "unfinished work must read back as different"
            assert not await driver.apply([SERVICE], [])
            assert await driver.read_owned() == {SERVICE.key: SERVICE}
            done = await apply(fuse, [other], []) and done
            assert not await driver.apply([other], [])
            assert await driver.read_owned() == {other.key: other}
            done = await apply(fuse, [], [other]) and done
            assert not await driver.apply([], [other])
            assert await driver.read_owned() == {}
            assert "kumi" not in sh("ip -o link")
            if done:
                break
        assert fuse > 8, "the fuse was long enough only because few requests were counted"
        Path("/run/netns/kumi-n1").touch()
        assert await driver.read_owned() != {}
        assert not await driver.apply([SERVICE], [])
        assert await driver.read_owned() == {SERVICE.key: SERVICE}


@on_private_host
async def test_namespace_taken_away_by_hand_is_made_again():
    async with clean_namespaces() as driver:
        assert not await driver.apply([SERVICE], [])
        holder = await asyncio.create_subprocess_exec("ip", "netns", "exec", "kumi-n1", "sleep", "60")
        await until(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n")
        sh("ip netns del kumi-n1")
        assert Path("/sys/class/net/kumi1").exists(), "the process keeps the veth alive"
        assert await driver.read_owned() == {}
        assert not await driver.apply([SERVICE], [])
        assert await driver.read_owned() == {SERVICE.key: SERVICE}
        sh("ip netns del kumi-n1")
        assert not await driver.apply([], [SERVICE])
        holder.kill()
        await holder.wait()


@on_private_host
async def test_foreign_link_and_namespace_stay():
    async with clean_namespaces() as driver:
        sh("ip link add kumi1 type veth peer name kumi2; ip netns add other")
        failures = await driver.apply([SERVICE, replace(SERVICE, name="kumi-n2", outer="kumi3")], [])
        assert {key: failure.reason for key, failure in failures.items()} == {SERVICE.key: "FOREIGN_OBJECT"}
        failures = await driver.apply([], [replace(SERVICE, name="other")])
        assert [failure.reason for failure in failures.values()] == ["FOREIGN_OBJECT"]
        assert "other" in sh("ip netns list")
        assert "kumi2@kumi1" in sh("ip -o link")


@on_private_host
async def test_exec_reports_failure_and_deadline():
    assert await run(["cat"], input="text") == "text"
    with pytest.raises(ExecError, match=r"^sh: exit code 3: last$"):
        await run(["sh", "-c", "echo first >&2; echo last >&2; exit 3"])
    with pytest.raises(ExecError, match=r"^no-such-program: No such file or directory$"):
        await run(["no-such-program"])
    with pytest.raises(ExecError, match=r"^sleep: not done after 0\.2 s$"):
        async with asyncio.timeout(DEADLINE):
            await run(["sleep", "3600"], timeout=0.2)
    task = asyncio.create_task(run(["sleep", "31"]))
    await until(lambda: "sleep 31" in sh("ps -eo args"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "sleep 31" not in sh("ps -eo args")
