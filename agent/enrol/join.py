"""`kumi node join`: on a host, from its bundle to an agent that runs. A line for each precondition; twice changes nothing.

Nothing is written before all preconditions hold, and nothing of the data plane is touched: that is the agent's work.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from agent import settings
from agent.drivers import unixctl
from agent.drivers.exec import ExecError, run
from agent.enrol import unit
from agent.enrol.bundle import Bundle, BundleError, put, read
from controlplane.errors import BadConfig, StoreRefused, StoreUnavailable
from controlplane.store import keys
from controlplane.tls import Tls, load, node_user
from kumihimo.v1 import node_pb2

if TYPE_CHECKING:
    from agent.facts.model import HostFacts
    from controlplane.store.client import Store

ETC = Path("/etc/kumihimo")
CONFIG = ETC / "agent.toml"
RUNDIR = Path("/var/run/openvswitch")
PATIENCE = 15.0  # seconds in which etcd admits a node that was just made
STARTED = 60.0  # seconds in which an agent that was started is heard of
PAUSE = 0.2


class Unmet(Exception):
    """A precondition that does not hold: what is so, and what to do."""


@dataclass(slots=True)
class _Host:
    """What the checks have learned of this host, for those that come later."""

    bundle: Bundle
    files: Tls
    facts: HostFacts | None = None
    node: Any = None
    failed: list[str] = field(default_factory=list)


@click.command(epilog="\b\nExample:\n  kumi node join h4.bundle\n  ssh operator cat bundles/h4.bundle | kumi node join -")
@click.argument("bundle", type=click.File("r"), metavar="BUNDLE")
@click.option("--check", is_flag=True, help="Look at the preconditions only.")
@click.option("--replace", is_flag=True, help="Also where this host is another node, or knows another authority.")
@click.option("--start/--no-start", default=True, show_default=True, help="Have systemd start the agent, now and at boot.")
def join(bundle: TextIO, check: bool, replace: bool, start: bool) -> None:
    """Make this host the node of a BUNDLE (`kumi node invite` makes one); - is standard input.

    Checks what the agent needs, writes /etc/kumihimo/agent.toml and the node's credentials, and starts the agent.
    """
    if os.geteuid() != 0:
        raise click.ClickException("this changes the host: run it as root")
    try:
        given = read(bundle.read())
    except (BundleError, UnicodeDecodeError) as error:
        raise click.ClickException(str(error)) from None
    asyncio.run(_join(given, check=check, replace=replace, start=start))


async def _join(bundle: Bundle, *, check: bool, replace: bool, start: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="kumi-join-") as folder:
        files = _credentials(Path(folder))
        for path, content, _ in _held(bundle, files):
            put(path, content, 0o600)
        host = _Host(bundle, files)
        for what, look in CHECKS:
            await _tell(host, what, look)
    if not replace:
        await _tell(host, "this host", _is_free)
    if host.failed:
        raise click.ClickException(f"{len(host.failed)} of what a node needs is missing; nothing was changed")
    if check:
        return
    try:
        changed = _write(bundle)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None
    if not start:
        return
    try:
        done = await unit.start(changed)
    except (ExecError, OSError) as error:
        raise click.ClickException(f"the agent is not started: {error}") from None
    click.echo(done)
    if unit.is_managed():
        await _tell(host, "agent", _is_heard_of)
        if host.failed:
            raise click.ClickException("the agent does not come up; `journalctl -u kumihimo-agent` says why")


async def _tell(host: _Host, what: str, look: Callable[[_Host], Awaitable[str]]) -> None:
    try:
        click.echo(f"ok      {what}: {await look(host)}")
    except Unmet as error:
        host.failed.append(what)
        click.echo(f"FAILED  {what}: {error}")


# -- preconditions ----------------------------------------------------------------------------------------------------


async def _certificate(host: _Host) -> str:
    """The bundle's certificate can be used, which a wrong clock prevents too."""
    try:
        found = load(host.files)
    except BadConfig as error:
        raise Unmet(f"{error.args[0].replace(str(host.files.certificate.parent), 'bundle')}") from None
    if found.user != node_user(host.bundle.node):
        raise Unmet(f"the bundle's certificate is that of {found.user}, not of {node_user(host.bundle.node)}")
    return f"{found.user}, and this host's clock is within its dates"


async def _switch(host: _Host) -> str:
    from agent.facts.ovsdb import Ovsdb, OvsdbError

    ovsdb = Ovsdb()
    try:
        await ovsdb.start()
        try:
            host.facts = await ovsdb.host_facts()
        finally:
            await ovsdb.stop()
        async with unixctl.connect(RUNDIR) as control:
            await control.call("version")
    except OvsdbError as error:
        raise Unmet(f"{error}; install and start openvswitch-switch") from None
    except OSError as error:
        raise Unmet(f"ovs-vswitchd does not answer ({error}); start openvswitch-switch") from None
    return f"version {host.facts.ovs_version}, datapaths {', '.join(host.facts.datapath_types)}"


async def _dnsmasq(host: _Host) -> str:
    try:
        said = await run(["dnsmasq", "--version"])
    except ExecError as error:
        raise Unmet(f"{error}; install dnsmasq-base") from None
    return f"version {said.split()[2]}"


async def _iproute(host: _Host) -> str:
    for program in ("ip", "ethtool"):
        try:
            said = await run([program, "-V" if program == "ip" else "--version"])
        except ExecError as error:
            raise Unmet(f"{error}; install iproute2 and ethtool") from None
    return said.strip()


async def _store(host: _Host) -> str:
    """etcd answers, takes this host for the node, and has the Node."""
    from controlplane.store.client import Store

    try:
        store = Store(host.bundle.etcd, host.files)
    except BadConfig:
        raise Unmet("without the certificate it is not asked") from None
    try:
        entry = await _soon(store, lambda: store.get(keys.node(host.bundle.node)), lambda found: found is not None)
    except StoreRefused as error:
        raise Unmet(f"{error}; is there a Node {host.bundle.node}? `kumi node create {host.bundle.node}`") from None
    except StoreUnavailable as error:
        raise Unmet(f"{await store.fault() or error}") from None
    finally:
        await store.close()
    if entry is None:
        raise Unmet(f"there is no Node {host.bundle.node}; `kumi node create {host.bundle.node}` makes it")
    host.node = node_pb2.Node.FromString(entry.value)
    return f"{', '.join(host.bundle.etcd)} knows Node {host.bundle.node}"


async def _underlay(host: _Host) -> str:
    """The address that tunnels start from is here: on a bridge, unless the kernel forwards."""
    if host.facts is None:
        raise Unmet("without Open vSwitch it is not known")
    wanted = host.node.tunnel_ip if host.node is not None else ""
    offered = list(host.facts.underlay_ips)
    if "system" in host.facts.datapath_types:
        offered += await _addresses()
    if wanted and wanted not in offered:
        there = ", ".join(offered) or "none"
        raise Unmet(f"tunnel_ip {wanted} is on no bridge of Open vSwitch but br-int; there is {there}")
    if not host.facts.underlay_ips and not wanted:
        raise Unmet("no bridge but br-int has an address; give one an address, or the Node a tunnel_ip")
    return wanted or f"{host.facts.underlay_ips[0]}, the first that a bridge has"


async def _addresses() -> list[str]:
    links = json.loads(await run(["ip", "-json", "address"]))
    return [address["local"] for link in links for address in link["addr_info"] if address.get("scope") == "global"]


CHECKS: tuple[tuple[str, Callable[[_Host], Awaitable[str]]], ...] = (
    ("certificate", _certificate),
    ("Open vSwitch", _switch),
    ("dnsmasq", _dnsmasq),
    ("iproute2, ethtool", _iproute),
    ("etcd", _store),
    ("underlay", _underlay),
)


async def _is_free(host: _Host) -> str:
    """It is no other node, and knows no other authority."""
    if CONFIG.exists():
        try:
            node = settings.load(CONFIG).node
        except BadConfig as error:
            raise Unmet(f"{error}; --replace writes it anew") from None
        if node != host.bundle.node:
            raise Unmet(f"it is node {node}; --replace makes it {host.bundle.node}")
    ca = ETC / "ca.crt"
    if ca.exists() and ca.read_text() != host.bundle.ca:
        raise Unmet(f"{ca} is another authority's, and may be in use by others; --replace replaces it")
    return "free, or this node already"


async def _is_heard_of(host: _Host) -> str:
    from controlplane.store.client import Store

    store = Store(host.bundle.etcd, _credentials(ETC, host.bundle.node))
    try:
        found = await _soon(store, lambda: store.get(keys.alive(host.bundle.node)), lambda found: found is not None, STARTED)
    except StoreUnavailable as error:
        raise Unmet(str(error)) from None
    finally:
        await store.close()
    if found is None:
        raise Unmet(f"it is not heard of after {STARTED:g} s")
    return f"node {host.bundle.node} is heard of"


async def _soon(
    store: Store, ask: Callable[[], Awaitable[Any]], good: Callable[[Any], bool], patience: float = PATIENCE
) -> Any:
    """The answer, once it is good, or the last one after a while: what was just made may not be known everywhere yet."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while True:
        last = loop.time() > deadline
        try:
            found = await ask()
            if good(found) or last:
                return found
        except StoreRefused:
            if last:
                raise
        except StoreUnavailable:
            if last or await store.fault():
                raise
        await asyncio.sleep(PAUSE)


# -- files ------------------------------------------------------------------------------------------------------------


def _credentials(folder: Path, name: str = "node") -> Tls:
    return Tls(folder / "ca.crt", folder / f"{name}.crt", folder / f"{name}.key")


def _held(bundle: Bundle, files: Tls) -> list[tuple[Path, str, int]]:
    """(file, content, mode). The key first: a reader never finds a certificate without its key."""
    assert files.ca is not None
    return [
        (files.key, bundle.key, 0o600),
        (files.certificate, bundle.certificate, 0o644),
        (files.ca, bundle.ca, 0o644),
    ]


def _write(bundle: Bundle) -> bool:
    """The node's files. Whether anything was changed."""
    ETC.mkdir(mode=0o755, parents=True, exist_ok=True)
    files = _credentials(ETC, bundle.node)
    changed = False
    for path, content, mode in _held(bundle, files):
        changed |= _told(path, put(path, content, mode))
    return _told(CONFIG, not _says_so(bundle, files) and put(CONFIG, _config(bundle, files), 0o644)) or changed


def _told(path: Path, changed: bool) -> bool:
    click.echo(f"{'written' if changed else 'as it was'}: {path}")
    return changed


def _says_so(bundle: Bundle, files: Tls) -> bool:
    """Whether the file says this already, whatever else stands in it."""
    try:
        found = settings.load(CONFIG)
    except BadConfig:
        return False
    return (found.node, found.etcd, found.etcd_tls) == (bundle.node, bundle.etcd, files)


def _config(bundle: Bundle, files: Tls) -> str:
    lines = [
        "# Made by `kumi node join`. All else about this node is its Node object: `kumi node update`.",
        f"node = {json.dumps(bundle.node)}",
        f"etcd = {json.dumps(bundle.etcd)}",
        f"etcd_ca = {json.dumps(str(files.ca))}",
        f"etcd_certificate = {json.dumps(str(files.certificate))}",
        f"etcd_key = {json.dumps(str(files.key))}",
    ]
    return "\n".join(lines) + "\n"
