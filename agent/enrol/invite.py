"""`kumi node invite`: on the operator's machine, the Node objects and one bundle for each.

The key of the authority stays where `kumi pki` has it, and the host gets no token: a bundle holds that node's own credentials.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.enrol.bundle import SUFFIX, Bundle, put
from controlplane import config
from controlplane.errors import BadConfig

if TYPE_CHECKING:
    from controlplane.admin.authority import Authority, Issued

SOON = timedelta(days=30)
API_CONFIG = Path("/etc/kumihimo/api.toml")


@click.command(
    epilog="\b\nExample:\n"
    "  kumi node invite h4 --pki /root/kumihimo-ca --etcd 192.0.2.10:2379\n"
    "  kumi node invite -f nodes.yaml --pki /root/kumihimo-ca --to /root/bundles\n"
    "  scp /root/bundles/h4.bundle h4: && ssh h4 kumi node join h4.bundle\n\n"
    "\b\nnodes.yaml, as for `kumi apply`:\n"
    "  - {kind: node, id: h4, tunnel_ip: 192.0.2.24, roles: [compute, gateway], bridge_mappings: {physnet1: eth1}}\n"
    "  - {kind: node, id: h5, tunnel_ip: 192.0.2.25}"
)
@click.argument("nodes", nargs=-1, metavar="[ID]...")
@click.option("-f", "--file", "inventory", metavar="FILE", help="Nodes as for `kumi apply`; they are made so first.")
@click.option("--pki", "folder", metavar="DIR", required=True, type=click.Path(path_type=Path), help="The authority's folder.")
@click.option("--etcd", multiple=True, metavar="HOST:PORT", help="Where nodes find etcd.  [default: as the API's file says]")
@click.option(
    "--to", "target", default=".", metavar="DIR", show_default=True, type=click.Path(path_type=Path), help="Where bundles go."
)
@click.pass_context
def invite(
    ctx: click.Context, nodes: tuple[str, ...], inventory: str | None, folder: Path, etcd: tuple[str, ...], target: Path
) -> None:
    """Make nodes, and for each a bundle by which its host joins: `kumi node join`.

    A bundle holds the node's private key: bring it to its host by a way that nobody else reads, and remove it. Run again
    with the same file this changes nothing.
    """
    from controlplane.admin.authority import Authority, AuthorityError

    if inventory == "-":
        raise click.UsageError("standard input cannot be read twice: name a file", ctx)
    wanted = list(dict.fromkeys([*nodes, *_listed(inventory)]))
    if not wanted:
        raise click.UsageError("name nodes, or a file that does", ctx)
    members = etcd or _members()
    try:
        authority = Authority(folder)
        # Before anything is made: a folder that is no authority, an id that fits into no certificate.
        ca = authority.certificate().read_text() if authority.list() else ""
        certified = {node: _certified(authority, node) for node in wanted}
    except AuthorityError as error:
        raise click.ClickException(str(error)) from None
    _make(ctx, nodes, inventory)
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for node, issued in certified.items():
            bundle = Bundle(node, tuple(members), ca, issued.certificate.read_text(), issued.key.read_text())
            path = target / f"{node}{SUFFIX}"
            changed = put(path, bundle.text(), 0o600)
            click.echo(f"{path} {'written' if changed else 'is as it was'}, certificate until {issued.not_after:%Y-%m-%d}")
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None


def _certified(authority: Authority, node: str) -> Issued:
    """The node's certificate: that which is there, with new dates when it runs out soon, else a new one."""
    from controlplane.admin.authority import AuthorityError, Use
    from controlplane.tls import node_name

    found = authority.find(node)
    if found is None:
        return authority.issue(node, Use.NODE)
    if found.use != Use.NODE:
        raise AuthorityError(
            f"{found.certificate} is for {found.use}, not for a node; a node of that name needs another folder"
        )
    lasting = found.not_after > datetime.now(UTC) + SOON and node_name(node) in found.names
    return found if lasting else authority.renew(node)


def _members() -> Sequence[str]:
    try:
        return config.strings(API_CONFIG, config.read_toml(API_CONFIG), "etcd")
    except BadConfig:
        raise click.UsageError(f"say where nodes find etcd: --etcd HOST:PORT (there is no {API_CONFIG} that says it)") from None


def _listed(inventory: str | None) -> list[str]:
    """Ids of the nodes that a file holds."""
    from cli import manifest

    if inventory is None:
        return []
    found = manifest.read([inventory])
    faults = found.told(
        (entry.place, f"{entry.label} is no node; nodes are accepted") for entry in found.entries if entry.kind.noun != "node"
    )
    if faults:
        from cli.errors import CliError

        raise CliError("\n".join(faults))
    return [entry.message.id for entry in found.entries]


def _make(ctx: click.Context, nodes: Sequence[str], inventory: str | None) -> None:
    """Make the nodes of the file as it says, and those named that are not there."""
    from cli.apply import apply
    from cli.client import CliError, connect
    from cli.errors import NOT_FOUND
    from cli.kinds import kind_named

    if inventory is not None:
        arguments: dict[str, Any] = {"dry_run": False, "prune": "", "yes": False, "wait": False, "timeout": 30.0}
        ctx.invoke(apply, files=(inventory,), request_id="", output="table", **arguments)
    kind = kind_named("node")
    assert kind is not None, "the API has nodes"
    with connect(ctx.obj) as api:
        for node in nodes:
            try:
                api.get(kind, node)
            except CliError as error:
                if error.exit_code != NOT_FOUND:
                    raise
                request = kind.request("Create")
                request.resource.id = node
                request.request_id = str(uuid.uuid4())
                api.call(kind.service.full_name, "Create", request)
                click.echo(f"created node {node}")
