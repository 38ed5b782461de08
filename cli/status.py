"""`kumi status` and `kumi wait`: whether what was asked for has become so."""

from __future__ import annotations

from typing import Any

import click

from cli import client, options, values
from cli.errors import NOT_ACTIVE, NOT_FOUND, CliError
from cli.kinds import kind_named, kinds
from cli.nouns import ObjectName
from kumihimo.v1 import resource_pb2


@click.command(epilog="\b\nExample:\n  kumi status my-port\n\nExit code 0: active; 3: not active.")
@click.argument("port", type=ObjectName(kind_named("port")))
@click.pass_context
def status(ctx: click.Context, port: str) -> None:
    """Say where a port is, whether it is wired, and if not, why."""
    with client.connect(ctx.obj) as api:
        found = api.find("Port", port)
    for sentence in sentences(found):
        click.echo(sentence)
    if found.state != resource_pb2.STATE_ACTIVE:
        ctx.exit(NOT_ACTIVE)


def sentences(port: Any) -> list[str]:
    """What is known of a port, one sentence each: what it is, where, whether it works, and each reason why not."""
    fields = port.DESCRIPTOR.fields_by_name
    title = f"Port {port.name} ({port.id})" if port.name else f"Port {port.id}"
    addresses = values.text(fields["fixed_ips"], port.fixed_ips) or "no address"
    said = [f"{title} has {addresses} and MAC {port.mac_address} on network {port.network_id}."]
    asked = [place for place in port.binding if not place.active and not place.interface]
    places = [
        f"node {place.node}" + (f" as {place.interface}" if place.interface else "")
        for place in port.binding
        if place not in asked
    ]
    said.append(f"It is on {' and '.join(places)}." if places else "It is on no node: no interface carries its id.")
    said += [f"It shall be on node {place.node}, and is not plugged there." for place in asked]
    faults = [
        _sentence(f"{condition.type} is false", condition.message, condition.reason)
        for condition in port.conditions
        if not condition.status
    ]
    drops = ", ".join(f"{port.counters.drops[reason]} {reason}" for reason in sorted(port.counters.drops))
    if drops:
        faults.append(f"Of what its workload sent, packets were dropped: {drops}.")
    if port.state == resource_pb2.STATE_ACTIVE:
        return [*said, f"It is wired: applied at revision {port.realization.realized_revision}.", *faults]
    said.append(f"It is not wired: its state is {values.text(fields['state'], port.state) or 'unknown'}.")
    if port.HasField("admin_state_up") and not port.admin_state_up:
        said.append(f"It is switched off; `kumi port update {port.id} --admin-state-up` switches it on.")
    if not places:
        said.append(f"`kumi attach {port.id} --netns NAME` on a node attaches it.")
    said += faults
    goal = port.realization.desired_revision
    for lag in port.realization.lagging:
        reached = f"Node {lag.node} has applied revision {lag.realized_revision} of {goal}"
        said.append(_sentence(reached, lag.message, lag.reason))
    return said


def _sentence(fact: str, message: str, reason: str) -> str:
    told = f"{fact}: {message.rstrip('.')}" if message else fact
    return f"{told} [{reason}]." if reason else f"{told}."


@click.command(epilog="\b\nExample:\n  kumi wait 0192f0c4-7a3e-7c1d-8f2a-5b6c7d8e9f00 --active --timeout 1m")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--revision", type=click.IntRange(min=1), help="Store revision to wait for. Default: the objects' own.")
@click.option("--active", is_flag=True, help="Also wait until each port named is active.")
@options.timeout
@click.pass_context
def wait(ctx: click.Context, ids: tuple[str, ...], revision: int | None, active: bool, timeout: float) -> None:
    """Wait until the nodes of objects have applied a revision; of all nodes when no object is named."""
    if not ids and (active or revision is None):
        raise click.UsageError("give the ids of objects, or --revision for all nodes", ctx)
    ids = tuple(given.lower() if client.is_uuid(given) else given for given in ids)
    with client.connect(ctx.obj) as api:
        goal = revision or max(_revision(api, object_id) for object_id in ids)
        reply = api.wait(goal, ids, active, timeout)
    click.echo(f"applied at revision {reply.revision}")
    for dead in reply.dead:
        click.echo(_sentence(f"not waited for: node {dead.node} is dead", dead.message, dead.reason), err=True)


def _revision(api: client.Client, object_id: str) -> int:
    """The revision of the last change of an object of any kind."""
    for kind in kinds().values():
        try:
            return int(api.get(kind, object_id).revision)
        except CliError as error:
            if error.exit_code != NOT_FOUND and error.reason != "ID_INVALID":
                raise
    raise CliError(f"no object has the id '{object_id}'", NOT_FOUND)
