"""dnsmasq as the DHCP driver runs it, asked by real clients over a bridge."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from agent.drivers.dnsmasq import DnsmasqDriver
from agent.drivers.netlink import NetlinkDriver
from agent.model.host import DhcpServer, ServiceNamespace
from tests.component.private_host import on_private_host, processes, sh
from tests.component.segment import A, B, ask4, segment
from tests.waiting import DEADLINE, until

CONFIG = """\
port=0
no-hosts
no-resolv
bind-dynamic
interface=dhcp0
dhcp-authoritative
dhcp-range=set:s1,10.0.0.0,static,255.255.255.0,86400s
dhcp-option=tag:s1,option:router,10.0.0.1
dhcp-option=tag:s1,option:mtu,1450
"""
SERVICE = ServiceNamespace("kumi-n1", "kumi1", "dhcp0", "fa:16:3e:00:00:01", ("10.0.0.2/24",), 1450)
STATE = Path("/var/lib/kumihimo/dhcp")


def server(config: str = CONFIG, **hosts: str) -> DhcpServer:
    """hosts: port id to "MAC,address"."""
    return DhcpServer("n1", "kumi-n1", config, tuple(sorted(hosts.items())))


@pytest.fixture
async def driver():
    async with segment(SERVICE) as driver:
        yield driver
    assert not list(STATE.glob("*"))
    assert not list(Path("/run/kumihimo/dhcp").glob("*"))


def pid() -> int:
    return int(Path("/run/kumihimo/dhcp/n1.pid").read_text())


@on_private_host
async def test_hosts_are_served_and_others_are_not(driver):
    item = server(a=f"{A},10.0.0.5")
    assert not await driver.apply([item], [])
    assert await driver.read_owned() == {item.key: item}
    assert ask4("a") == "10.0.0.5"
    assert ask4("b", tries=1) == ""
    first = pid()
    more = server(a=f"{A},10.0.0.5", b=f"{B},10.0.0.6")
    assert not await driver.apply([more], [])
    assert ask4("b") == "10.0.0.6"
    assert pid() == first, "a new host needs no restart"
    assert await driver.read_owned() == {more.key: more}
    secret = Path(f"/proc/{first}/cmdline").read_bytes().split(b"\0")
    assert secret[1:] == [b"--conf-file=/var/lib/kumihimo/dhcp/n1/dnsmasq.conf", b""]


@on_private_host
async def test_address_is_free_at_once_for_another_mac(driver):
    assert not await driver.apply([server(a=f"{A},10.0.0.5")], [])
    assert ask4("a") == "10.0.0.5"
    assert not await driver.apply([server()], [])
    assert "10.0.0.5" not in (STATE / "n1/leases").read_text()
    assert not await driver.apply([server(b=f"{B},10.0.0.5")], [])
    assert ask4("b") == "10.0.0.5"
    assert ask4("a", tries=1) == ""


@on_private_host
async def test_port_made_again_with_the_same_id_and_another_mac(driver):
    assert not await driver.apply([server(a=f"{A},10.0.0.5")], [])
    assert ask4("a") == "10.0.0.5"
    assert not await driver.apply([server(a=f"{B},10.0.0.5")], [])
    assert ask4("b") == "10.0.0.5"


@on_private_host
async def test_addresses_move_and_swap(driver):
    assert not await driver.apply([server(a=f"{A},10.0.0.5", b=f"{B},10.0.0.6")], [])
    assert (ask4("a"), ask4("b")) == ("10.0.0.5", "10.0.0.6")
    assert not await driver.apply([server(a=f"{A},10.0.0.6", b=f"{B},10.0.0.5")], [])
    assert (ask4("a"), ask4("b")) == ("10.0.0.6", "10.0.0.5")
    assert not await driver.apply([server(b=f"{B},10.0.0.6")], [])
    assert ask4("b") == "10.0.0.6"


@on_private_host
async def test_later_agent_adopts_and_config_change_keeps_leases(driver):
    item = server(a=f"{A},10.0.0.5")
    assert not await driver.apply([item], [])
    assert ask4("a") == "10.0.0.5"
    first = pid()
    later = DnsmasqDriver()
    assert await later.read_owned() == {item.key: item}
    assert not await later.apply([item], [])
    assert pid() == first
    changed = replace(item, config=CONFIG.replace("1450", "1400"))
    assert not await later.apply([changed], [])
    assert pid() != first
    assert f" {A} 10.0.0.5 " in (STATE / "n1/leases").read_text()
    assert await later.read_owned() == {item.key: changed}
    assert ask4("a") == "10.0.0.5"


@on_private_host
async def test_dead_server_is_seen_and_started_again(driver):
    item = server(a=f"{A},10.0.0.5")
    assert not await driver.apply([item], [])
    assert ask4("a") == "10.0.0.5"
    dead = pid()
    os.kill(dead, signal.SIGKILL)
    await until(lambda: not Path(f"/proc/{dead}").exists())
    assert await driver.read_owned() != {item.key: item}
    assert not await driver.apply([item], [])
    assert await driver.read_owned() == {item.key: item}
    assert ask4("a") == "10.0.0.5"

    # A power-off: the process and /run are gone; somebody else has the number now.
    os.kill(pid(), signal.SIGKILL)
    Path("/run/kumihimo/dhcp/n1.pid").write_text(f"{os.getpid()}\n")
    assert await driver.read_owned() != {item.key: item}
    assert not await driver.apply([item], [])
    assert pid() != os.getpid()
    assert f" {A} 10.0.0.5 " in (STATE / "n1/leases").read_text()


@on_private_host
async def test_namespace_made_again_is_noticed(driver):
    item = server(a=f"{A},10.0.0.5")
    assert not await driver.apply([item], [])
    netlink = NetlinkDriver()
    await netlink.apply([], [SERVICE])
    await netlink.apply([SERVICE], [])
    sh("ip link set kumi1 master br0")
    assert await driver.read_owned() != {item.key: item}
    assert not await driver.apply([item], [])
    assert len(processes("dnsmasq")) == 1
    assert ask4("a") == "10.0.0.5"


@on_private_host
async def test_death_of_the_agent_at_every_step(driver, monkeypatch):
    """Whatever was done when the agent dies, the state reads back as unfinished, and the next apply finishes it."""

    class Died(BaseException):
        pass

    import agent.drivers.dnsmasq as module

    before = server(a=f"{A},10.0.0.5")
    after = server(config=CONFIG.replace("1450", "1400"), b=f"{B},10.0.0.5")

    async def dying(*_args):
        raise Died

    for step in ("_free", "write", "run"):
        assert not await driver.apply([before], [])
        assert ask4("a") == "10.0.0.5"
        with monkeypatch.context() as patch:
            patch.setattr(module, step, dying if step == "run" else lambda *_: (_ for _ in ()).throw(Died))
            with pytest.raises(Died):
                await driver.apply([after], [])
        later = DnsmasqDriver()
        assert await later.read_owned() != {after.key: after}
        assert not await later.apply([after], [])
        assert await later.read_owned() == {after.key: after}
        assert ask4("b") == "10.0.0.5"
        assert not await later.apply([], [after])


@on_private_host
async def test_bad_configuration_fails_alone(driver):
    bad = DhcpServer("n2", "kumi-n1", "no-such-option\n", ())
    nowhere = DhcpServer("n3", "kumi-none", CONFIG, ())
    item = server(a=f"{A},10.0.0.5")
    failures = await driver.apply([bad, nowhere, item], [])
    assert set(failures) == {bad.key, nowhere.key}
    assert "bad option at line" in failures[bad.key].message
    assert "kumi-none" in failures[nowhere.key].message
    assert ask4("a") == "10.0.0.5"


@on_private_host
async def test_stopped_process_is_ended_by_force(driver, monkeypatch):
    item = server(a=f"{A},10.0.0.5")
    assert not await driver.apply([item], [])
    monkeypatch.setattr("agent.drivers.dnsmasq.STOP_SECONDS", 0.2)
    os.kill(pid(), signal.SIGSTOP)
    assert not await asyncio.wait_for(driver.apply([], [item]), DEADLINE)
    assert not processes("dnsmasq")


@on_private_host
async def test_thousand_hosts(driver):
    hosts = {f"p{n}": f"fa:16:3e:01:{n // 256:02x}:{n % 256:02x},10.0.{n // 250}.{n % 250 + 1}" for n in range(1000)}
    wide = CONFIG.replace("255.255.255.0", "255.255.0.0")
    for item in (
        server(wide, **hosts),
        server(wide, a=f"{A},10.0.9.5", **hosts),
        server(wide, a=f"{A},10.0.9.5", **dict(list(hosts.items())[1:])),
    ):
        assert not await driver.apply([item], [])
        assert await driver.read_owned() == {item.key: item}
    assert ask4("a") == "10.0.9.5"
