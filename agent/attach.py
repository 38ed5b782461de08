"""`kumi attach` and `kumi detach`: wire a namespace of this host to a port, as a hypervisor would wire a guest.

An interface on the integration bridge whose external_ids:iface-id is a port's id is all that the control plane needs;
libvirt and os-vif make the same one. The host's end of the veth is called `tap` and the last 11 digits of the id.

Like `kumi node invite` it may import from `cli`, and only when a command runs: loading a command for its help must not load
gRPC.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

import click

from agent.drivers.exec import ExecError, run
from agent.model.host import INTEGRATION_BRIDGE

if TYPE_CHECKING:
    from kumihimo.v1.port_pb2 import Port

VSCTL = ["ovs-vsctl", "--timeout=10"]


@dataclass(frozen=True, slots=True)
class Wiring:
    """What is to be there: a veth from `interface` in `netns` to `tap` on `bridge`. mtu in bytes."""

    port_id: str
    mac: str
    mtu: int
    bridge: str
    netns: str
    interface: str

    @property
    def tap(self) -> str:
        return tap_name(self.port_id)


def tap_name(port_id: str) -> str:
    """The name of the host's end: the last 11 digits of the id, for its first ones are the time of its making."""
    return "tap" + port_id.replace("-", "")[-11:]


@click.command()
@click.argument("port")
@click.option("--netns", required=True, help="The network namespace to wire; it must exist.")
@click.option("--bridge", default=INTEGRATION_BRIDGE, show_default=True, help="The integration bridge.")
@click.option("--interface", default="eth0", show_default=True, help="Name of the link inside the namespace.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return when the port is ACTIVE.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait.")
@click.pass_obj
def attach(settings: Any, port: str, netns: str, bridge: str, interface: str, wait: bool, timeout: float) -> None:
    """Give a network namespace of this host the port PORT (id or name).

    Makes a veth with the port's MAC and the network's MTU. The namespace gets its addresses by DHCP, or from you.
    Running it again repairs what is missing; when it fails, what it made is removed.
    """
    from cli.client import connect
    from kumihimo.v1.resource_pb2 import GetRequest

    _need_root()
    with connect(settings) as client:
        found: Port = client.find("Port", port)
        network = client.call("Networks", "Get", GetRequest(id=found.network_id))
        wiring = Wiring(found.id, found.mac_address, network.mtu, bridge, netns, interface)
        elsewhere = [binding.node for binding in found.binding if binding.node and binding.interface]
        _act(_wire(wiring, elsewhere))
        if wait and found.admin_state_up:
            client.wait(found.revision, [found.id], active=True, timeout=timeout)
    click.echo(f"{wiring.tap} on {bridge} is {interface} in {netns}, MAC {wiring.mac}")


@click.command()
@click.argument("port")
@click.pass_obj
def detach(settings: Any, port: str) -> None:
    """Remove what `kumi attach` made for PORT (id or name) on this host.

    With an id it asks no API server, so it also works for a port that is deleted.
    """
    _need_root()
    try:
        port_id = str(UUID(port))
    except ValueError:
        from cli.client import connect

        with connect(settings) as client:
            port_id = client.find("Port", port).id
    removed = _act(_unwire(port_id))
    click.echo(f"{tap_name(port_id)} removed" if removed else f"port {port_id} is not attached on this host")


async def _wire(wiring: Wiring, bound_to: list[str]) -> None:
    """Make the veth and the bridge's port, or what is missing of them. All or nothing: a failure undoes this run."""
    tap, netns, interface = wiring.tap, wiring.netns, wiring.interface
    if not (Path("/run/netns") / netns).exists():
        _fail(f"there is no network namespace {netns}; `ip netns add {netns}` makes one")
    if wiring.bridge not in (await run([*VSCTL, "list-br"])).split():
        _fail(f"there is no bridge {wiring.bridge} on this host")
    present = await _interfaces(wiring.port_id)
    if set(present) - {tap}:
        _fail(f"port {wiring.port_id} is attached on this host as {', '.join(present)}, by another program")
    if not present and set(bound_to) - await _own_names():
        _fail(f"port {wiring.port_id} is attached to node {', '.join(bound_to)}; detach it there first")
    outer, inner = await _link(tap), await _link(interface, netns)
    paired = bool(outer and inner) and (outer["ifindex"], inner["ifindex"]) == (
        inner.get("link_index"),
        outer.get("link_index"),
    )
    if present and outer and not paired:
        _fail(f"port {wiring.port_id} is attached to another namespace or interface; detach it first")
    if inner and not paired:
        _fail(f"namespace {netns} has a link {interface} already; name another with --interface")
    async with AsyncExitStack() as undo:
        if not paired:
            if outer:  # left by a run that was killed
                await run(["ip", "link", "del", tap])
            undo.push_async_callback(_try, "ip", "link", "del", tap)
            mtu = ["mtu", str(wiring.mtu)]
            peer = ["peer", "name", interface, *mtu, "address", wiring.mac, "netns", netns]
            await run(["ip", "link", "add", tap, *mtu, "type", "veth", *peer])
        for link, inside in ((tap, []), (interface, ["-n", netns])):
            await run(["ip", *inside, "link", "set", link, "mtu", str(wiring.mtu)])
        # The userspace datapath passes frames on as they are: checksums must be finished before.
        await run(["ethtool", "-K", tap, "tx", "off"])
        await run(["ip", "netns", "exec", netns, "ethtool", "-K", interface, "tx", "off"])
        await run(["ip", "-n", netns, "link", "set", interface, "address", wiring.mac, "up"])
        # The host's end is a cable, not a host: no address and no router solicitation of its own.
        Path(f"/proc/sys/net/ipv6/conf/{tap}/disable_ipv6").write_text("1")
        await run(["ip", "link", "set", tap, "up"])
        if not present:
            undo.push_async_callback(_try, *VSCTL, "--if-exists", "del-port", wiring.bridge, tap)
        ids = [f"external_ids:iface-id={wiring.port_id}", f'external_ids:attached-mac="{wiring.mac}"']
        add = ["--may-exist", "add-port", wiring.bridge, tap]
        await run([*VSCTL, *add, "--", "set", "Interface", tap, *ids, "external_ids:iface-status=active"])
        if not (await run([*VSCTL, "get", "Interface", tap, "ofport"])).strip().isdigit():
            why = await run([*VSCTL, "get", "Interface", tap, "error"])
            _fail(f"{wiring.bridge} does not take {tap}: {why.strip()}")
        undo.pop_all()


async def _unwire(port_id: str) -> bool:
    """Remove the bridge's port and the veth; False when there was neither."""
    tap = tap_name(port_id)
    present = await _interfaces(port_id)
    if set(present) - {tap}:
        _fail(f"port {port_id} is attached on this host as {', '.join(present)}, by another program")
    if present:
        await run([*VSCTL, "--if-exists", "del-port", tap])
    link = await _link(tap)
    if link:
        await run(["ip", "link", "del", tap])
    return bool(present or link)


async def _interfaces(port_id: str) -> list[str]:
    """Names of the interfaces that stand for the port in this host's switch."""
    query = ["--bare", "--columns=name", "find", "Interface", f"external_ids:iface-id={port_id}"]
    return (await run([*VSCTL, *query])).split()


async def _own_names() -> set[str]:
    """What this host may be called in a binding that is not withdrawn yet."""
    system_id = await run([*VSCTL, "--if-exists", "get", "Open_vSwitch", ".", "external_ids:system-id"])
    return {system_id.strip().strip('"'), socket.gethostname()}


async def _link(name: str, netns: str | None = None) -> dict[str, Any]:
    """The link as `ip` describes it; empty when there is none."""
    inside = ["-n", netns] if netns else []
    links: list[dict[str, Any]] = json.loads(await run(["ip", *inside, "-json", "link", "show"]))
    return next((link for link in links if link["ifname"] == name), {})


async def _try(*argv: str) -> None:
    """Undo a step that may not have been taken."""
    try:
        await run(argv)
    except ExecError:
        return


def _need_root() -> None:
    if os.geteuid() != 0:
        _fail("this changes the host's network: run it as root")


def _act(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return asyncio.run(work)
    except ExecError as error:
        _fail(str(error))


def _fail(sentence: str) -> NoReturn:
    """Raise what the command line shows as one line."""
    from cli.client import CliError

    raise CliError(sentence)
