"""`kumi trace` and `kumi port explain`: why one cannot talk to the other. The sentence comes first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import click

from cli import options, render
from cli.errors import NOT_ACTIVE
from cli.kinds import Kind, kind_named
from cli.nouns import ObjectName
from kumihimo.v1 import operations_pb2 as pb

_PORT = kind_named("port")


def is_address(text: str) -> bool:
    """Whether it is an IP address, and so no name of a port."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


@click.command(
    epilog="\b\nExample:\n  kumi trace --from web1 --to db1 --proto tcp --dport 5432\n"
    "  kumi trace --from web1 --to 10.0.0.9\n\n"
    "Exit code 0: it passes, and so does the answer; 3: it does not. Nothing is sent, unless --probe is given."
)
@click.option("--from", "sender", metavar="PORT", required=True, type=ObjectName(_PORT), help="The port that sends.")
@click.option("--to", "receiver", metavar="PORT|ADDRESS", required=True, type=ObjectName(_PORT), help="Where to.")
@click.option("--proto", default="", metavar="NAME|NUMBER", help="An IP protocol.  [default: an echo request]")
@click.option("--dport", type=click.IntRange(0, 65535), default=0, help="Port at the receiver.")
@click.option("--sport", type=click.IntRange(0, 65535), help="Port at the sender.  [default: 49152]")
@click.option("--icmp-type", type=click.IntRange(0, 255), help="Type of ICMP.  [default: that of an echo request]")
@click.option("--icmp-code", type=click.IntRange(0, 255), default=0, help="Code of ICMP.")
@click.option("--source-ip", default="", metavar="ADDRESS", help="Sent from this address.  [default: the port's]")
@click.option("--source-mac", default="", metavar="MAC", help="Sent from this MAC.  [default: the port's]")
@click.option("--vlan", type=click.IntRange(0, 4094), help="Tagged with this VLAN.")
@click.option("--size", type=click.IntRange(0, 65535), default=0, help="Bytes of the IP packet.")
@click.option("--probe", is_flag=True, help="Also send such a packet, and tell what has become of it.")
@click.option("--verbose", "-v", is_flag=True, help="Also each flow, for operators.")
@options.output
@click.pass_context
def trace(ctx: click.Context, /, sender: str, receiver: str, verbose: bool, output: str, **described: Any) -> None:
    """Say what becomes of a packet from a port to another or to an address, and of its answer, and why."""
    from cli import client

    assert _PORT is not None
    request = pb.TraceRequest(
        protocol=described["proto"],
        destination_port=described["dport"],
        source_port=described["sport"],
        icmp_type=described["icmp_type"],
        icmp_code=described["icmp_code"],
        source_address=described["source_ip"],
        source_mac=described["source_mac"],
        vlan_id=described["vlan"],
        size=described["size"],
        probe=described["probe"],
    )
    with client.connect(ctx.obj) as api:
        request.from_port_id = api.id_of(_PORT, sender)
        if is_address(receiver):
            request.to_address = receiver
        else:
            request.to_port_id = api.id_of(_PORT, receiver)
        reply = api.call("Operations", "Trace", request)
    if output != "table":
        click.echo(render.structured(render.plain(reply), output))
    else:
        click.echo("\n".join(told(reply, verbose)))
    if not reply.passes:
        ctx.exit(NOT_ACTIVE)


def told(reply: Any, verbose: bool) -> Iterator[str]:
    """The lines of an answer."""
    yield from _sentences(reply)
    ways = [("there", reply.forward)] + ([("back", reply.back)] if reply.HasField("back") else [])
    for name, way in ways:
        if way.hops:
            yield f"\n{name}:"
            rows = [(hop.node, hop.stage, _named(hop.object), hop.text) for hop in way.hops]
            yield _table(("node", "stage", "resource", "what"), rows)
    if verbose:
        for name, way in ways:
            for node in way.nodes:
                yield f"\n{name}, flows on node {node.node}:"
                yield from _flows(node)


def _sentences(reply: Any) -> Iterator[str]:
    reason = getattr(reply, "reason", "")
    yield reply.summary.rstrip(".") + (f" [{reason}]." if reason and f"({reason})" not in reply.summary else ".")
    if probe := getattr(reply, "probe", ""):
        yield f"Probe: {probe}."
    yield from (f"Also: {note.rstrip('.')}." for note in reply.notes)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the columns in which nothing stands."""
    kept = [number for number in range(len(header)) if any(row[number] for row in rows)]
    return render.grid([header[number] for number in kept], [[row[number] for number in kept] for row in rows])


def _named(ref: Any) -> str:
    return f"{ref.kind} {ref.name or ref.id}".strip()


def _flows(node: Any) -> Iterator[str]:
    for walk in node.walks:
        if walk.connection:
            yield f"  connection: {walk.connection}"
        for step in walk.steps:
            indent = "  " * (step.depth + 1)
            flow = f"priority {step.priority} {step.match}".rstrip() if step.priority >= 0 else "no flow"
            yield f"{indent}{step.bridge + ' ' if step.bridge else ''}{step.table}: {flow}"
            yield from (f"{indent}    {action}" for action in step.actions)
            yield from (f"{indent}    -> {note}" for note in step.notes)
        if walk.HasField("disagreement"):
            yield f"  desired: {walk.disagreement.wanted_flow}"
            yield f"  found:   {walk.disagreement.found_flow}"


def explain(kind: Kind, target: click.Argument) -> click.Command:
    """The command `kumi port explain`."""

    def callback(ctx: click.Context, target: str, verbose: bool, output: str) -> None:
        from cli import client

        with client.connect(ctx.obj) as api:
            request = kind.request("Explain")
            request.id = api.id_of(kind, target)
            reply = api.call(kind.service.full_name, "Explain", request)
        if output != "table":
            click.echo(render.structured(render.plain(reply), output))
        else:
            click.echo("\n".join(explained(reply, verbose)))

    flows = click.option("--verbose", "-v", is_flag=True, help="Also each flow, for operators.")
    shared = options.decorate(callback, [flows, options.output])
    return click.Command(
        "explain",
        callback=click.pass_context(shared),
        params=[target, *reversed(getattr(shared, "__click_params__", ()))],
        help="Say whether anything is wrong with a port, what it may send and receive, and what was dropped.",
        epilog="\b\nExample:\n  kumi port explain web1",
    )


def explained(reply: Any, verbose: bool) -> Iterator[str]:
    """The lines of an answer."""
    yield from _sentences(reply)
    if reply.drops:
        yield "\ndropped so far:"
        rows = [(drop.reason, str(drop.packets), drop.message) for drop in reply.drops]
        yield _table(("reason", "packets", "what it means"), rows)
    if reply.recent:
        yield "\nrecent drops:"
        yield _table(("time", "reason", "was", "packet", "from", "to", "bytes"), [_dropped(each) for each in reply.recent])
    if reply.filters:
        yield "\nfilters:"
        yield _table(("stage", "packets that", "are", "resource", "so far"), [_filter(each) for each in reply.filters])
    if reply.defaults:
        yield "\nfor every port:"
        yield from (f"- {line}" for line in reply.defaults)
    if verbose:
        yield "\nflows:"
        yield from (each.flow for each in reply.filters if each.flow)


def _filter(each: Any) -> tuple[str, ...]:
    fate = "passed on" if each.passes else f"dropped {each.reason}".rstrip()
    return each.stage, each.text, fate, _named(each.object), str(each.packets)


_VERSIONS = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6"}
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}
_WITH_PORTS = (6, 17, 132)


def _dropped(each: Any) -> tuple[str, ...]:
    """A row of the packets that were dropped last."""
    packet = each.packet
    kind = _VERSIONS.get(packet.eth_type, f"{packet.eth_type:#06x}")
    if packet.protocol:
        kind = _PROTOCOLS.get(packet.protocol, f"{kind} protocol {packet.protocol}")
    if packet.protocol in (1, 58):
        kind += f" type {packet.icmp_type}"
    ports = packet.protocol in _WITH_PORTS
    sides = (packet.eth_src, packet.ip_src, packet.source_port), (packet.eth_dst, packet.ip_dst, packet.destination_port)
    ends = [f"{mac} {ip}{f' port {port}' if ports else ''}".rstrip() for mac, ip, port in sides]
    was = "received" if each.received else "sent"
    return each.time.ToJsonString(), each.reason, was, kind, *ends, str(each.length)
