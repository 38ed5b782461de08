"""dnsmasq as the DHCP driver runs it for IPv6: leases by DHCPv6 and advertisements, beside IPv4, asked by real clients."""

import sys
from ipaddress import ip_address
from itertools import product
from pathlib import Path

import pytest

from agent.model.host import DhcpServer, ServiceNamespace
from controlplane.dhcpoptions import V6
from tests.component.private_host import on_private_host, processes, sh
from tests.component.segment import A, B, ask4, segment
from tests.waiting import DEADLINE, until

CONFIG = """\
port=0
no-hosts
no-resolv
no-ping
bind-dynamic
interface=dhcp0
dhcp-authoritative
enable-ra
ra-param=dhcp0,mtu:1400,200,0
dhcp-range=set:s6,fd00:2::,static,64,86400s
dhcp-range=set:s4,10.0.0.0,static,255.255.255.0,86400s
"""
SERVICE = ServiceNamespace("kumi-n1", "kumi1", "dhcp0", "fa:16:3f:00:00:01", ("10.0.0.2/24", "fd00:2::ffff/64"), 1450)
LEASES = Path("/var/lib/kumihimo/dhcp/n1/leases")


def server(**hosts: str) -> DhcpServer:
    """hosts: file name to the rest of the line."""
    return DhcpServer("n1", "kumi-n1", CONFIG, tuple(sorted(hosts.items())))


@pytest.fixture
async def driver():
    async with segment(SERVICE) as driver:
        yield driver


async def ask6(client: str, duid: str = "LL", seconds: float = DEADLINE) -> str:
    """The address that a client gets by DHCPv6, or ""."""
    await until(lambda: "fe80" in sh(f"ip -n {client} -6 -o address show dev eth0 scope link -tentative"))
    leases, pid = Path(f"/run/{client}.leases"), Path(f"/run/{client}.pid")
    leases.unlink(missing_ok=True)
    options = f"-6 -D {duid} -lf {leases} -pf {pid} -cf /dev/null -sf /bin/true"
    sh(f"ip netns exec {client} timeout {seconds} dhclient -1 -d {options} eth0 >/dev/null 2>&1 &")

    def given() -> str:
        return leases.read_text().partition("iaaddr ")[2].partition(" ")[0] if leases.exists() else ""

    try:
        return str(await until(given, timeout=seconds))
    except AssertionError:
        return ""
    finally:
        sh(f"kill $(cat {pid}) || true", check=False)


@on_private_host
async def test_b_sub_08_one_mac_has_addresses_of_both_families(driver):
    """dnsmasq reads the files of a port in either order: that of their making, and that of their names at a start."""
    for first, second in (("p", "p.6"), ("p.6", "p")):
        lines = {"p": f"{A},set:s4,10.0.0.5,host-10-0-0-5", "p.6": f"{A},[fd00:2::5]"}
        assert not await driver.apply([server(**{first: lines[first]})], [])
        item = server(**lines)
        assert not await driver.apply([item], [])
        assert (await driver.read_owned())[item.key] == item
        assert (ask4("a"), await ask6("a")) == ("10.0.0.5", "fd00:2::5"), second
        assert not await driver.apply([], [item])
    item = server(p=f"{A},10.0.0.5", **{"p.6": f"{A},[fd00:2::5]"})
    assert not await driver.apply([item], [])
    assert (ask4("a"), await ask6("a")) == ("10.0.0.5", "fd00:2::5"), "both read at the start"
    assert await ask6("b", seconds=2) == "", "nobody else is served"


@on_private_host
async def test_b_sub_08_an_address_is_free_at_once_for_another_mac(driver):
    assert not await driver.apply([server(a=f"{A},[fd00:2::5]", c=f"{A},10.0.0.5")], [])
    assert (ask4("a"), await ask6("a")) == ("10.0.0.5", "fd00:2::5")
    await until(lambda: " fd00:2::5 " in LEASES.read_text(), "the lease is written down, which is after it is given")
    duid = LEASES.read_text().partition("duid ")[2].splitlines()[0]
    assert not await driver.apply([server(b=f"{B},[fd00:2::5]", c=f"{A},10.0.0.5")], [])
    assert " 10.0.0.5 " in LEASES.read_text(), "the other family's lease is kept"
    assert await ask6("b") == "fd00:2::5"
    assert LEASES.read_text().partition("duid ")[2].splitlines()[0] == duid, "clients know the server by it"


GIVEN = {
    "dns-server": "fd00::53,2001:db8::53",
    "domain-search": "a.org,b.example",
    "information-refresh-time": "600",
    "bootfile-url": "tftp://[fd00::3]/x, #1",
    "224": "01:02:ff",
    "31": "fd00::3",
    "ntp-server": "fd00::4",
}
OPTIONS = "".join(f"dhcp-option-force=tag:p1,{V6.written(*option)}\n" for option in GIVEN.items())
OF_SUBNET = "dhcp-option=tag:s6,option6:dns-server,[fd00::1]\n"
STATELESS = CONFIG.replace("fd00:2::,static,64", "fd00:2::,ra-stateless,64")


async def told6(client: str, mac: str, *, stateful: bool) -> dict[int, bytes]:
    """The options, by code, of the answer to a question by DHCPv6: a solicitation, or one for options alone."""
    await until(lambda: "fe80" in sh(f"ip -n {client} -6 -o address show dev eth0 scope link -tentative"))
    asked = sh(f"ip netns exec {client} {sys.executable} {Path(__file__).with_name('ask6.py')} {mac} {int(stateful)}")
    return {int(code): bytes.fromhex(value) for code, value in (line.split(" ") for line in asked.splitlines())}


@on_private_host
async def test_b_sub_05_options_of_dhcpv6_are_told_to_their_port_alone(driver):
    """With a file of IPv4 beside it, made before and after: whichever dnsmasq takes has the tag."""
    for own, stateful in product(("a", "z"), (True, False)):
        lines = {f"{own}.6": f"{A},set:p1,[fd00:2::5]", "m": f"{A},set:p1,10.0.0.5", "n.6": f"{B},[fd00:2::6]"}
        config = CONFIG if stateful else STATELESS
        item = DhcpServer("n1", "kumi-n1", config + OPTIONS + OF_SUBNET, tuple(sorted(lines.items())))
        assert not await driver.apply([item], [])
        assert ask4("a") == "10.0.0.5"
        told = await told6("a", A, stateful=stateful)
        assert told[23] == b"".join(ip_address(ip).packed for ip in ("fd00::53", "2001:db8::53"))
        assert told[59] == b"tftp://[fd00::3]/x, #1"
        assert told[24] == b"\1a\3org\0\1b\7example\0"
        assert told[32] == (600).to_bytes(4, "big")
        assert (told[224], told[31]) == (b"\1\2\xff", ip_address("fd00::3").packed)
        assert ip_address("fd00::4").packed in told[56], "within an option of its own (RFC 5908)"
        others = await told6("b", B, stateful=stateful)
        assert others[23] == ip_address("fd00::1").packed, "what the subnet says"
        assert not others.keys() & {24, 31, 56, 59, 224}, "nobody else is told"
        assert not await driver.apply([], [item])


@on_private_host
async def test_b_sub_10_what_an_advertisement_says(driver):
    assert not await driver.apply([server()], [])
    client = "ip netns exec a"
    sh(f"{client} sysctl -qw net.ipv6.conf.eth0.accept_ra=1")
    await until(lambda: "fd00:2::/64" in sh("ip -n a -6 route"), "the prefix is on the link")
    await until(lambda: sh(f"{client} sysctl -n net.ipv6.conf.eth0.mtu") == "1400", "the MTU is that of the link")
    assert "default" not in sh("ip -n a -6 route"), "nobody routes"
    assert "fd00" not in sh("ip -n a -6 address"), "addresses come by DHCPv6"


@on_private_host
async def test_an_address_is_kept_for_the_duid_that_has_it_until_its_port_is_unplugged(driver):
    """A limit of dnsmasq (agent/DESIGN.md): when this fails, a release without it has come."""
    item = server(a=f"{A},[fd00:2::5]")
    assert not await driver.apply([item], [])
    assert await ask6("a") == "fd00:2::5"
    await until(lambda: not processes("dhclient"))
    assert await ask6("a", "LLT", 4) == ""
    assert not await driver.apply([server()], [])
    assert not await driver.apply([item], [])
    assert await ask6("a", "LLT") == "fd00:2::5"
