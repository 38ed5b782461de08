"""Names of ports as the driver writes them and the real dnsmasq answers them, without a restart or a signal."""

import asyncio
import itertools
import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from agent.drivers.dnsmasq import DnsmasqDriver
from agent.drivers.names import NamesDriver
from agent.drivers.netlink import NetlinkDriver
from agent.model.host import DhcpServer, PortName, ServiceNamespace
from tests.component.private_host import on_private_host, sh
from tests.waiting import DEADLINE, until

RESOLVER = Path(__file__).parents[1] / "resolver.py"
STATE = Path("/var/lib/kumihimo/dhcp")
CONFIG = """\
no-hosts
no-resolv
bind-dynamic
interface=dhcp0
except-interface=lo
dhcp-range=set:s1,10.0.0.0,static,255.255.255.0,86400s
domain=cloud.example
local=/cloud.example/
domain-needed
bogus-priv
"""
SERVICE = ServiceNamespace("kumi-n1", "kumi1", "dhcp0", "fa:16:3e:00:00:01", ("10.0.0.2/24",), 1450)
SERVER = DhcpServer("n1", "kumi-n1", CONFIG, ())
_ids = itertools.count(1)


def port(number: int, *lines: str) -> PortName:
    return PortName("n1", f"00000000-0000-7000-8000-{number:012x}", lines)


def ask(name: str, kind: str = "A", *flags: str) -> dict:
    return json.loads(sh(f"ip netns exec kumi-n1 {sys.executable} -I -S {RESOLVER} 10.0.0.2 {name} {kind} {' '.join(flags)}"))


async def answers(name: str, *expected: str, kind: str = "A", seconds: float = DEADLINE) -> None:
    """Wait until that is the answer: dnsmasq is told by the kernel, a moment after the driver is done."""
    await until(lambda: ask(name, kind).get("answers") == sorted(expected), f"{name} is {expected}", seconds)


def pid() -> int:
    return int(Path("/run/kumihimo/dhcp/n1.pid").read_text())


@pytest.fixture
async def names():
    netlink, servers, names = NetlinkDriver(), DnsmasqDriver(), NamesDriver()
    assert not await netlink.apply([SERVICE], [])
    sh("ip link set kumi1 up")
    assert not await servers.apply([SERVER], [])
    yield names
    assert not await servers.apply([], [SERVER])
    assert not await names.apply([], list((await names.read_owned()).values()))
    assert not list(STATE.glob("*")), "the folder went with the last thing in it"
    assert not await netlink.apply([], [SERVICE])


@on_private_host
async def test_b_prt_09_b_ops_02_names_come_change_and_go_without_a_restart(names):
    first = pid()
    web = port(1, "10.0.0.5 web.cloud.example web", "10.0.1.5 web.cloud.example web")
    other = port(2, "10.0.0.6 db.other.example db")
    assert not await names.apply([web, other], [])
    await answers("web.cloud.example", "10.0.0.5", "10.0.1.5")
    assert ask("WEB")["answers"] == ["10.0.0.5", "10.0.1.5"], "a short name, in whatever letters"
    assert ask("db.other.example")["answers"] == ["10.0.0.6"]
    assert ask("5.0.0.10.in-addr.arpa", "PTR")["answers"] == ["web.cloud.example"]
    for flags in (["--tcp"], ["--edns"], ["--tcp", "--edns"]):
        said = ask("web.cloud.example", "A", *flags)
        assert (said["code"], len(said["answers"]), said["edns"]) == ("NOERROR", 2, "--edns" in flags)
    assert not await names.apply([port(1, "10.0.0.7 www.cloud.example www")], [other])
    await answers("www.cloud.example", "10.0.0.7")
    await answers("db.other.example")
    assert ask("web.cloud.example")["code"] == "NXDOMAIN"
    assert ask("7.0.0.10.in-addr.arpa", "PTR")["answers"] == ["www.cloud.example"]
    assert ask("5.0.0.10.in-addr.arpa", "PTR")["code"] == "NXDOMAIN"
    assert not await names.apply([], [port(1)])
    await answers("www.cloud.example")
    assert not await names.apply([web], [])
    await answers("web", "10.0.0.5", "10.0.1.5")
    assert pid() == first


@on_private_host
async def test_b_ops_02_what_is_not_ours_is_refused_at_once(names):
    assert not await names.apply([port(1, "10.0.0.5 web.cloud.example web")], [])
    await answers("web", "10.0.0.5")
    expected = {
        ("nobody.cloud.example", "A"): "NXDOMAIN",
        ("nobody", "A"): "NXDOMAIN",
        ("web.cloud.example", "AAAA"): "NOERROR",
        ("www.example.org", "A"): "REFUSED",
        ("1.2.0.192.in-addr.arpa", "PTR"): "NXDOMAIN",
        ("8.8.8.8.in-addr.arpa", "PTR"): "REFUSED",
    }
    said = {question: ask(*question) for question in expected}
    assert {question: each["code"] for question, each in said.items()} == expected
    assert not any(each["answers"] for each in said.values())
    assert all(min(ask(*question)["seconds"] for _ in range(5)) < 0.5 for question in expected)


@on_private_host
async def test_a_later_agent_reads_back_what_is_there(names):
    items = [port(number, f"10.0.0.{number} n{number}.cloud.example n{number}") for number in range(1, 40)]
    items.append(port(0x101, "10.0.0.40 n40.cloud.example n40"))
    assert not await names.apply(items, [])
    assert await NamesDriver().read_owned() == {item.key: item for item in items}
    files = list((STATE / "n1/names").glob("*"))
    assert len(files) == 39, "one for all that end alike"
    assert all(file.stat().st_mode & stat.S_IROTH for file in files), "dnsmasq reads them as nobody"
    before = {file: file.stat().st_mtime_ns for file in files}
    assert not await names.apply(items, [])
    assert {file: file.stat().st_mtime_ns for file in files} == before, "what is there is not written again"
    assert not await names.apply([], items[:-1])
    assert await NamesDriver().read_owned() == {items[-1].key: items[-1]}


@on_private_host
async def test_names_and_server_go_in_any_order(names):
    item = port(1, "10.0.0.5 web.cloud.example web")
    servers = DnsmasqDriver()
    for last in ("server", "names"):
        assert not await names.apply([item], [])
        await answers("web", "10.0.0.5")
        if last == "server":
            assert not await names.apply([], [item])
            assert not await servers.apply([], [SERVER])
        else:
            assert not await servers.apply([], [SERVER])
            assert await servers.read_owned() == {}, "names alone are no server"
            assert not await names.apply([], [item])
        assert not list(STATE.glob("*"))
        assert not await names.apply([item], []), "and come in any order"
        assert not await servers.apply([SERVER], [])
        await answers("web", "10.0.0.5")
        assert not await names.apply([], [item])
        await answers("web")


@on_private_host
async def test_a_file_that_cannot_be_written_fails_alone(names):
    bad, good = port(1, "10.0.0.5 web web"), port(2, "10.0.0.6 db db")
    (STATE / "n1/names/01").mkdir()
    failures = await names.apply([bad, good], [])
    assert set(failures) == {bad.key}
    await answers("db", "10.0.0.6")
    (STATE / "n1/names/01").rmdir()
    assert not await names.apply([bad], [])


@on_private_host
async def test_an_address_that_moves_is_answered_by_its_new_name_at_once(names):
    """dnsmasq takes up nothing that another file says, and forgets both when that one does not say it any more."""
    first, second = "10.0.0.5 a.cloud.example a", "10.0.0.6 b.cloud.example b"
    assert not await names.apply([port(1, first), port(2, second)], [])
    for turn in (2, 1):
        one, two = port(turn, first), port(3 - turn, second)
        assert not await names.apply([one, two], [])
        assert await names.read_owned() == {one.key: one, two.key: two}
    # In another order each is written beside the other while that still says it.
    one, two = port(1, second, "10.0.0.7 c.cloud.example c"), port(2, first)
    assert not await names.apply([one, two], [])
    await answers("c.cloud.example", "10.0.0.7")
    await answers("a.cloud.example", "10.0.0.5")
    await answers("b.cloud.example", "10.0.0.6")
    await answers("5.0.0.10.in-addr.arpa", "a.cloud.example", kind="PTR")
    await answers("6.0.0.10.in-addr.arpa", "b.cloud.example", kind="PTR")
    # The same name or not, the reverse one follows the address.
    assert not await names.apply([port(3, "10.0.0.5 new.cloud.example new")], [port(2)])
    await answers("5.0.0.10.in-addr.arpa", "new.cloud.example", kind="PTR")
    assert ask("a.cloud.example")["code"] == "NXDOMAIN"


def seconds(server: int) -> float:
    """What a process has had of processors."""
    return int(Path(f"/proc/{server}/schedstat").read_text().split()[0]) / 1e9


@on_private_host
async def test_ten_thousand_names_of_which_one_changes(names):
    """It costs dnsmasq less than a twentieth of what it costs to take all of them up; with sixteen files it was an eighth."""
    items = [port(n, f"10.{n >> 16}.{n >> 8 & 255}.{n & 255} n{n}.cloud.example n{n}") for n in range(10_000)]
    first = pid()
    began = seconds(first)
    assert not await names.apply(items, [])
    await until(lambda: ask("n9983").get("answers"), "the last file is taken up", 10 * DEADLINE)
    all_of_them, began = seconds(first) - began, seconds(first)
    written = sum(file.stat().st_size for file in (STATE / "n1/names").glob("*"))
    assert written < 100 * len(items), "a line for each"
    changing = range(9980, 10_000)
    for n in changing:
        assert not await names.apply([port(n, f"10.0.{n >> 8}.{n & 255} new{n}.cloud.example new{n}")], [])
    await answers("new9999", "10.0.39.15")
    one = (seconds(first) - began) / len(changing)
    assert one < all_of_them / 20, f"all {all_of_them:.2f} s, one {one * 1000:.1f} ms"
    await answers("n9999")
    assert ask("new9980")["answers"] == ["10.0.38.252"]
    assert pid() == first
    assert os.path.exists(f"/proc/{first}")


@on_private_host
async def test_what_is_taken_away_right_after_it_was_written_is_missed(names: NamesDriver) -> None:
    """What is there then is what was there when it was read last: nothing."""
    assert not await names.read_owned()
    assert not await names.apply([port(1, "10.0.0.5 a.cloud.example")], [])
    shutil.rmtree(STATE / "n1" / "names")
    async with asyncio.timeout(60):
        await names.changed()
    assert not await names.read_owned()
