"""`kumi attach` and `kumi detach` on a host with Open vSwitch; only the API is a stand-in."""

import asyncio
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import agent.attach
import cli.client
from agent.drivers.exec import ExecError, run
from cli.client import CliError
from kumihimo.v1.port_pb2 import Port
from tests.component.private_host import on_private_host, sh
from tests.waiting import until

ID = "6a1f0c52-93f1-4a5e-8a5c-0123456789ab"
TAP = "tap123456789ab"
MAC = "fa:16:3e:00:00:01"


class Api:
    """The calls of the client that the commands make."""

    def __init__(self):
        self.port = Port(id=ID, name="web", mac_address=MAC, network_id="n", revision=7, admin_state_up=True)
        self.waited = []

    def find(self, kind, name):
        assert kind == "Port"
        if name not in (ID, "web"):
            raise CliError(f"no port has the id or name '{name}'")
        return self.port

    def call(self, service, name, request):
        assert (service, name, request.id) == ("Networks", "Get", "n")
        return SimpleNamespace(mtu=1450)

    def wait(self, *args, **kwargs):
        self.waited.append((args, kwargs))


@pytest.fixture
def api(monkeypatch):
    """An API, bridges br-int and br-two, namespaces a and b."""
    api = Api()

    @contextmanager
    def connect(_settings):
        yield api

    monkeypatch.setattr(cli.client, "connect", connect)
    sh("for b in br-int br-two; do ovs-vsctl add-br $b -- set bridge $b datapath_type=netdev fail_mode=secure; done")
    sh("ip netns add a; ip netns add b")
    yield api
    sh("ovs-vsctl del-br br-int; ovs-vsctl del-br br-two; ip netns del a; ip netns del b")
    sh(f"ip link del {TAP}", check=False)


def kumi(command, *args):
    """Exit code and what was said."""
    result = CliRunner().invoke(command, args, obj=SimpleNamespace())
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output.strip()


def attach(*args):
    # The command runs a loop of its own, which needs a thread that has none.
    return asyncio.to_thread(kumi, agent.attach.attach, *args)


def detach(*args):
    return asyncio.to_thread(kumi, agent.attach.detach, *args)


def state():
    return sh(f"ovs-vsctl --bare --columns=name find interface external_ids:iface-id={ID}"), TAP in sh("ip -o link")


@on_private_host
async def test_attach_twice_and_detach_twice(api):
    said = f"{TAP} on br-int is eth0 in a, MAC {MAC}"
    assert await attach("web", "--netns", "a", "--timeout", "5") == (0, said)
    assert api.waited == [((7, [ID]), {"active": True, "timeout": 5.0})]
    assert sh(f"ovs-vsctl get interface {TAP} external_ids:attached-mac external_ids:iface-status").split() == [
        f'"{MAC}"',
        "active",
    ]
    assert sh(f"ovs-vsctl port-to-br {TAP}") == "br-int"
    assert int(sh(f"ovs-vsctl get interface {TAP} ofport")) > 0
    inner = sh("ip -n a link show eth0")
    assert MAC in inner
    assert "mtu 1450" in inner
    await until(lambda: "state UP" in sh("ip -n a link show eth0"), "the link is up, as the kernel finds later")
    assert "mtu 1450" in sh(f"ip link show {TAP}")
    for shown in (sh(f"ethtool -k {TAP}"), sh("ip netns exec a ethtool -k eth0")):
        assert "tx-checksumming: off" in shown
    ofport = sh(f"ovs-vsctl get interface {TAP} ofport")
    api.port.binding.add(node="elsewhere-named", interface=TAP)
    assert await attach(ID, "--netns", "a", "--no-wait") == (0, said)
    assert sh(f"ovs-vsctl get interface {TAP} ofport") == ofport
    assert len(api.waited) == 1

    assert await detach(ID) == (0, f"{TAP} removed")
    assert state() == ("", False)
    assert await detach("web") == (0, f"port {ID} is not attached on this host")


@on_private_host
async def test_checks_come_before_any_change(api):
    async def refused(*args):
        code, said = await attach("web", "--no-wait", *args)
        assert (code, state()) == (1, ("", False))
        return said

    assert "there is no network namespace none" in await refused("--netns", "none")
    assert "there is no bridge br-none" in await refused("--netns", "a", "--bridge", "br-none")
    assert "has a link lo already" in await refused("--netns", "a", "--interface", "lo")
    api.port.binding.add(node="other-node", interface="tap")
    assert "attached to node other-node" in await refused("--netns", "a")
    api.port.binding[0].node = "hdct"
    assert (await attach("web", "--netns", "a", "--no-wait"))[0] == 0, "a binding of this host is only not withdrawn yet"
    code, said = await attach("web", "--netns", "b", "--no-wait")
    assert code == 1
    assert "attached to another namespace" in said
    assert state() == (TAP, True)


@on_private_host
async def test_port_of_another_program_stays(api):
    sh("ip link add vnet0 type veth peer name vnet1")
    sh(f"ovs-vsctl add-port br-int vnet0 -- set interface vnet0 external_ids:iface-id={ID}")
    for command in (attach("web", "--netns", "a", "--no-wait"), detach("web")):
        code, said = await command
        assert code == 1
        assert "as vnet0, by another program" in said
    assert sh("ovs-vsctl list-ports br-int") == "vnet0"
    sh("ip link del vnet0")


@on_private_host
async def test_failure_at_any_step_undoes_the_run(api, monkeypatch):
    count = [0]

    async def failing(argv, **kwargs):
        count[0] -= 1
        if count[0] == 0:
            raise ExecError(argv[0], 1, "as told")
        return await run(argv, **kwargs)

    monkeypatch.setattr(agent.attach, "run", failing)
    for fuse in range(1, 40):
        count[0] = fuse
        code, said = await attach("web", "--netns", "a", "--no-wait")
        if code == 0:
            break
        assert "exit code 1: as told" in said
        assert state() == ("", False)
        assert "eth0" not in sh("ip -n a -o link")
    assert fuse > 12
    assert state() == (TAP, True)


@on_private_host
async def test_rest_of_a_killed_run_is_no_obstacle(api):
    sh(f"ip link add {TAP} type veth peer name gone0")
    assert (await attach("web", "--netns", "a", "--no-wait"))[0] == 0
    sh(f"ovs-vsctl del-port {TAP}; ip -n a link set eth0 down")
    assert (await attach("web", "--netns", "a", "--no-wait"))[0] == 0
    await until(lambda: "state UP" in sh("ip -n a link show eth0"), "it is up again")
    sh(f"ip link del {TAP}")
    assert (await attach("web", "--netns", "b", "--no-wait"))[0] == 0
    assert state() == (TAP, True)


@on_private_host
async def test_unknown_port(api):
    code, said = await attach("nothing", "--netns", "a")
    assert code == 1
    assert "no port has the id or name 'nothing'" in said
