"""The lab itself, with flows made by hand: what demo, tests and benchmarks take for granted."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab import Host, Lab, LabError, Workload, labs, lease, wait_until
from deploy.lab.host import running
from deploy.lab.network import namespaces
from deploy.lab.place import Pings
from deploy.lab.preflight import BASE
from deploy.lab.process import processes
from deploy.lab.service import Service, Unit

VNI = 100


def wire(host: Host, peer: Host, name: str, address: str | None) -> Workload:
    """A workload on `host` with one flow to the peer's over VXLAN and one back: the least that connects two."""
    workload = host.add_workload(name)
    host.run(f"""
        ip link add tap0 type veth peer name eth0 netns {name}
        ip link set tap0 up
        ip -n {name} link set eth0 up
        ip netns exec {name} ethtool -K eth0 tx off >/dev/null
        ovs-vsctl -- add-br br-int -- set bridge br-int datapath_type=netdev fail_mode=secure -- add-port br-int tap0 \
            -- add-port br-int vx -- set interface vx type=vxlan options:key=flow \
               options:local_ip={host.underlay} options:remote_ip={peer.underlay}
    """)
    flow(host)
    if address:
        workload.run(["ip", "address", "add", address, "dev", "eth0"])
    return workload


def flow(host: Host) -> None:
    host.run(f"""
        ovs-ofctl add-flow br-int in_port=tap0,actions=set_field:{VNI}-\\>tun_id,output:vx
        ovs-ofctl add-flow br-int in_port=vx,tun_id={VNI},actions=output:tap0
    """)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.anew("ktlab") as lab:
        yield lab


@pytest.fixture(scope="module")
def pair(lab: Lab) -> tuple[Workload, Workload]:
    h1, h2 = lab.hosts.values()
    return wire(h1, h2, "a", "10.0.0.1/24"), wire(h2, h1, "b", "10.0.0.2/24")


def test_workloads_of_two_hosts_ping_over_vxlan(lab: Lab, pair: tuple[Workload, Workload]) -> None:
    a, _ = pair
    assert a.reaches("10.0.0.2")
    with lab.capture("underlay", "udp port 4789") as capture:
        pings = a.ping("10.0.0.2", count=20, interval=0.01)
        assert (pings.sent, pings.received, pings.lost) == (20, 20, 0)
        assert len(pings.times) == 20
        capture.wait_packets(40)
        assert f"vni {VNI}" in capture.text()
    assert a.ping("10.0.0.2", count=1, size=1472).received == 1, "an inner packet of 1500 bytes fits the underlay"


def test_capture_can_write_a_file(lab: Lab, pair: tuple[Workload, Workload], tmp_path: Path) -> None:
    a, _ = pair
    path = tmp_path / "frames.pcap"
    with lab.capture("underlay", "udp port 4789", write=path):
        a.ping("10.0.0.2", count=1)
        wait_until(lambda: path.exists() and path.stat().st_size > 150, "frames are in the file")
    assert path.read_bytes()[:4] == b"\xd4\xc3\xb2\xa1"


def test_every_host_has_its_own_disk_names_and_processes(lab: Lab) -> None:
    h1, h2 = lab.hosts.values()
    h1.run("ip netns add same; echo h1 >/var/lib/kumihimo/mine; echo h1 >/run/volatile")
    h2.run("ip netns add same")
    assert h2.run("ls /var/lib/kumihimo /run") != h1.run("ls /var/lib/kumihimo /run")
    assert "same" not in namespaces()
    assert h1.run("hostname") == "h1"
    assert h1.run("ovs-vsctl get Open_vSwitch . external_ids:system-id") == "h1"
    assert h1.run("cat /proc/1/cmdline | tr '\\0' ' '").endswith("h1 ")
    h1.run("ip netns delete same")
    h2.run("ip netns delete same")


def test_dhcp_sets_address_routes_and_mtu(lab: Lab) -> None:
    host = lab.hosts["h1"]
    server, client = host.add_workload("server"), host.add_workload("client")
    host.run("ip -n server link add eth0 type veth peer name eth0 netns client; ip -n server link set eth0 up")
    host.run("ip -n client link set eth0 up; ip -n server address add 10.9.0.1/24 dev eth0")
    options = ["--dhcp-range=10.9.0.5,10.9.0.5,1h", "--dhcp-option=26,1400", "--dhcp-option=3,10.9.0.9"]
    options += ["--dhcp-option=121,169.254.169.254/32,10.9.0.2,0.0.0.0/0,10.9.0.1"]
    with server.popen(
        ["dnsmasq", "-k", "--port=0", "--no-ping", "--conf-file=/dev/null", "--user=root", "--log-facility=-", *options]
    ) as dnsmasq:
        dnsmasq.wait_for("IP range")
        given = client.dhcp()
        assert (given["ip"], given["mask"], given["mtu"], given["lease"]) == ("10.9.0.5", "24", "1400", "3600")
        routes = client.run("ip route")
        assert "169.254.169.254 via 10.9.0.2" in routes
        assert "default via 10.9.0.1 dev eth0" in routes, "option 121 goes before option 3"
        assert "mtu 1400" in client.run("ip link show eth0")
        assert client.ping("10.9.0.1").received == 3
        with client.start_dhcp() as running_client:
            running_client.wait_for("event=bound")
            running_client.signal(signal.SIGUSR1)
            running_client.wait_for("event=renew")
            wait_until(lambda: lease(running_client.text()).get("serverid") == "10.9.0.1", "the renewed lease is told")
    with pytest.raises(LabError, match="no lease"):
        client.dhcp(tries=1)
    host.remove_workload("server")
    host.remove_workload("client")


def test_a_cut_underlay_stops_tunnels_and_nothing_else(lab: Lab, pair: tuple[Workload, Workload]) -> None:
    a, _ = pair
    h1 = lab.hosts["h1"]
    with a.start_ping("10.0.0.2", 0.01) as ping:
        wait_until(lambda: ping.received > 5, "pings are answered")
        h1.cut("underlay")
        assert a.ping("10.0.0.2", count=2, interval=0.1).received == 0
        assert h1.ping(lab.ctl.management, count=1).received == 1
        h1.plug("underlay")
        before = ping.received
        wait_until(lambda: ping.received > before, "pings are answered again")
        result = ping.result()
    assert result.lost > 5
    assert result.gap >= 0.1


def test_a_cut_management_link_leaves_tunnels_alone(lab: Lab, pair: tuple[Workload, Workload]) -> None:
    h1 = lab.hosts["h1"]
    h1.cut("management")
    assert h1.ping(lab.ctl.management, count=1).received == 0
    assert pair[0].reaches("10.0.0.2")
    h1.plug("management")
    assert h1.reaches(lab.ctl.management)


def test_a_frozen_data_plane_is_silent_until_it_is_thawed(lab: Lab, pair: tuple[Workload, Workload]) -> None:
    h2 = lab.hosts["h2"]
    h2.freeze()
    assert pair[0].ping("10.0.0.2", count=2, interval=0.1).received == 0
    h2.thaw()
    assert pair[0].reaches("10.0.0.2")


def test_the_outside_network_is_reached_by_the_provider_nic(lab: Lab) -> None:
    host = lab.hosts["h2"]
    host.run("ip address add 203.0.113.7/24 dev phy1")
    assert lab.outside.reaches("203.0.113.7")
    host.cut("provider")
    assert lab.outside.ping("203.0.113.7", count=1).received == 0
    host.plug("provider")
    host.run("ip address flush dev phy1")


def test_power_off_ends_everything_and_the_disk_survives_it(lab: Lab, pair: tuple[Workload, Workload]) -> None:
    a, _ = pair
    h1 = lab.hosts["h1"]
    h1.run("echo kept >/var/lib/kumihimo/state; echo gone >/run/state")
    uuid = h1.run("ovs-vsctl get bridge br-int _uuid")
    old = h1.pid
    h1.cut("management")
    h1.power_off()
    assert not h1.is_on
    assert "h1" not in running(lab.directory)
    with pytest.raises(LabError, match="host h1 is off"):
        h1.run("true")

    h1.power_on()
    assert h1.pid != old
    assert h1.run("cat /var/lib/kumihimo/state; ls /run").startswith("kept\n")
    assert "state" not in h1.run("ls /run").split()
    assert h1.run("ovs-vsctl get bridge br-int _uuid") == uuid, "conf.db is the old one"
    assert "a" not in h1.workloads
    assert h1.pulled == {"management"}, "a pulled cable stays pulled"
    assert h1.ping(lab.ctl.management, count=1).received == 0
    h1.plug("management")
    assert h1.reaches(lab.ctl.management)
    assert h1.reaches(lab.hosts["h2"].underlay)

    h1.run("ovs-vsctl del-br br-int")
    a = wire(h1, lab.hosts["h2"], "a", "10.0.0.1/24")
    assert a.reaches("10.0.0.2")


def test_etcd_survives_kill_9_and_keeps_its_limits(lab: Lab) -> None:
    ctl = lab.etcdctl
    lab.start_etcd()
    lab.ctl.run([*ctl, "put", "key", "value"])
    first = lab.etcd.pid
    lab.start_etcd()
    assert lab.etcd.pid == first, "what runs is left alone"
    lab.kill_etcd()
    assert lab.etcd.pid is None
    lab.start_etcd()
    assert lab.etcd.pid not in (None, first)
    assert lab.hosts["h1"].run([*ctl, "get", "key", "--print-value-only"]) == "value"
    many = "\n".join(["", *(f"put k{n} v" for n in range(9000)), "", "", ""])
    assert "SUCCESS" in lab.ctl.run([*ctl, "txn"], input=many)


def test_a_service_that_does_not_start_says_why(lab: Lab) -> None:
    log = lab.directory / "log" / "odd.log"
    odd = Service(lab.ctl, "odd", Unit(("sh", "-c", "echo no such option; exit 3")), log)
    with pytest.raises(LabError, match=r"odd on ctl did not start: it ended; its log is .*\nno such option"):
        odd.start()
    with pytest.raises(LabError, match=r"odd: there is no /none/odd; \./deploy/setup installs it"):
        Service(lab.ctl, "odd", Unit(("/none/odd",)), log).start()
    sleeper = Service(lab.ctl, "sleeper", Unit(("sleep", "3600")), log)
    sleeper.start()
    pid = sleeper.pid
    assert pid is not None
    sleeper.kill()
    assert sleeper.pid is None
    assert not Path(f"/proc/{pid}").exists(), "process 1 of the host has reaped it"


def test_units_start_what_is_installed() -> None:
    agent, api = Unit.read("kumihimo-agent"), Unit.read("kumihimo-api")
    assert agent.argv[0].endswith("/bin/kumi-agent")
    assert Path(agent.argv[0]).is_absolute()
    assert not agent.argv[0].startswith("/opt/")
    assert agent.argv[1:] == ("--config", "/etc/kumihimo/agent.toml")
    assert {"/run/kumihimo", "/var/lib/kumihimo"} <= set(agent.folders)
    assert api.argv[1:] == ("--config", "/etc/kumihimo/api.toml")


def test_secrets_are_readable_by_their_owner_only(lab: Lab) -> None:
    secret = [*lab.directory.glob("tokens/*"), *lab.directory.glob("tls/*.key"), lab.directory / "tokens.toml"]
    secret += [host.etc / f"{name}.key" for name, host in lab.hosts.items()]
    # Tokens; the keys of the authority, etcd, the API, root and the hosts, theirs at both places.
    assert len(secret) == 3 + 4 + 2 * len(lab.hosts) + 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_another_process_finds_the_lab_as_it_is(lab: Lab) -> None:
    said: list[str] = []
    again = Lab("ktlab", hosts=5)
    again.up(said.append)
    assert said == ["the lab ktlab is up already"]
    assert {name: host.pid for name, host in again.hosts.items()} == {n: h.pid for n, h in lab.hosts.items()}
    assert "ktlab" in labs("kt")
    assert "h2: on, management 192.168.49.2" in again.status()


def test_down_leaves_nothing(lab: Lab) -> None:
    before = mounts(" /run/netns ")
    gone = Lab("ktgone", hosts=1)
    gone.up()
    gone.start_etcd()
    h1 = gone.hosts["h1"]
    workload = h1.add_workload("left")
    spaces = {space_of(pid, kind) for pid in running(gone.directory).values() for kind in ("net", "pid")}
    spaces |= {f"net:[{os.stat(f'/run/netns/{name}').st_ino}]" for name in ("ktgone-net", "ktgone-out")}
    with workload.popen(["sleep", "3600"]), gone.outside.popen(["sleep", "3600"]), h1.popen(["sleep", "3600"]):
        inside = [pid for pid, _ in processes() if spaces & {space_of(pid, "net"), space_of(pid, "pid")}]
        assert len(inside) > 3
        Lab("ktgone").down()  # as another process would, which did not start it
    assert not [name for name in namespaces() if name.startswith("ktgone")]
    assert (mounts("ktgone"), mounts(" /run/netns ")) == ([], before)
    assert not (BASE / "ktgone").exists()
    # By their numbers: those of namespaces are given out again at once, to whoever makes the next one on this machine.
    assert {pid for pid, _ in processes()}.isdisjoint(inside)
    assert [argv for _, argv in processes() if str(gone.directory) in argv] == []
    assert lab.is_up, "the other lab is as it was"
    gone.down()


def test_down_ends_half_a_lab() -> None:
    half = Lab("kthalf", hosts=1)
    half.up()
    (half.directory / "tokens.toml").unlink()
    half.network.down()
    assert not half.is_up
    half.down()
    assert "kthalf" not in labs()
    assert running(half.directory) == {}


def test_a_run_that_was_killed_leaves_nothing_to_the_next() -> None:
    killed = Lab("ktkilled", hosts=2)
    killed.up()
    killed.start_etcd()
    killed.ctl.run([*killed.etcdctl, "put", "old", "of the one before"])
    with Lab.anew("ktkilled", hosts=1) as lab:
        lab.start_etcd()
        assert lab.ctl.run([*lab.etcdctl, "get", "old"]) == ""
        assert list(lab.hosts) == ["h1"]
    assert not (BASE / "ktkilled").exists()


def test_up_refuses_what_it_cannot_have(lab: Lab) -> None:
    with pytest.raises(LabError, match="lab name"):
        Lab("No-good").up()
    taken = Lab("kttaken")
    lab.outside.run("true")  # a namespace by that name is someone else's
    os.close(os.open("/run/netns/kttaken-net", os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with pytest.raises(LabError, match="kttaken-net is there already"):
            taken.up()
    finally:
        os.unlink("/run/netns/kttaken-net")
    with pytest.raises(LabError, match="no host 'h9'"):
        lab.place("h9")
    with pytest.raises(LabError, match="no link 'wan'"):
        lab.capture("wan")


def test_ping_output_is_read_as_it_is_printed() -> None:
    reply = "64 bytes from 10.0.0.2: icmp_seq={} ttl=64 time=0.5 ms\n"
    text = "".join(reply.format(n) for n in (1, 2, 6)) + "7 packets transmitted, 3 received, 57% packet loss\n"
    pings = Pings.parse(text, 0.01)
    assert (pings.sent, pings.received, pings.lost, pings.answered) == (7, 3, 4, (1, 2, 6))
    assert pings.gap == pytest.approx(0.04)
    assert Pings.parse("connect: Network is unreachable", 1).received == 0
    # A long ping runs out of numbers and begins anew; an answer from before that may come late.
    numbers = (1, 30000, 60000, 65534, 1, 65535, 2, 30000)
    many = "".join(reply.format(n) for n in numbers) + "95536 packets transmitted, 8 received, 99% packet loss\n"
    assert Pings.parse(many, 1).answered == (1, 30000, 60000, 65534, 65537, 65535, 65538, 95536)


def space_of(pid: int, kind: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return None


def mounts(word: str) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if word in line]
