"""Connections as `dpctl/dump-conntrack` of Open vSwitch lists them, and which of them a packet belongs to. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from agent.model.evaluate import Connection
from agent.model.flow import CT_ESTABLISHED, CT_REPLY, CT_TRACKED
from agent.model.wire import ICMP, ICMPV6, WITH_PORTS

_TUPLE = re.compile(r"(orig|reply)=\(([^)]*)\)")
_MARK = re.compile(r"\bmark=(0x[0-9a-f]+|\d+)")
_STATE = re.compile(r"state=(\w+)")
_PROTOCOLS = {"icmp": ICMP, "icmpv6": ICMPV6} | {name: number for number, name in WITH_PORTS.items()}


@dataclass(frozen=True, slots=True)
class Tracked:
    """A connection, and the packet's place in it."""

    state: str
    connection: Connection


def find(listed: str, packet: Mapping[str, int], any_source_port: bool) -> Tracked | None:
    """The connection of a packet; the first, where several would do."""
    for line in listed.splitlines():
        protocol = _PROTOCOLS.get(line.partition(",")[0])
        if protocol is None or protocol != packet.get("ip_proto"):
            continue
        tuples = {name: _fields(protocol, text) for name, text in _TUPLE.findall(line)}
        original = tuples.get("orig", {})
        mark, state = _MARK.search(line), _STATE.search(line)
        for way, reply in (("orig", 0), ("reply", CT_REPLY)):
            # The port of whoever began is free.
            free = f"{WITH_PORTS.get(protocol)}_{'dst' if reply else 'src'}" if any_source_port else ""
            theirs = tuples.get(way, {})
            if theirs and all(packet.get(name) == value for name, value in theirs.items() if name != free):
                known = Connection(CT_TRACKED | CT_ESTABLISHED | reply, int(mark[1], 0) if mark else 0, original)
                return Tracked(state[1] if state else "known", known)
    return None


def _fields(protocol: int, text: str) -> dict[str, int]:
    """The fields of a packet that has this tuple. The identifier of ICMP is none of a packet that is described."""
    return dict(_parsed(protocol, dict(part.partition("=")[::2] for part in text.split(","))))


def _parsed(protocol: int, given: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    yield "ip_proto", protocol
    if protocol in (ICMP, ICMPV6):
        name = "icmp" if protocol == ICMP else "icmpv6"
        yield f"{name}_type", int(given["type"])
        yield f"{name}_code", int(given["code"])
    for end in ("src", "dst"):
        address = ip_address(given[end])
        yield f"{'ip' if address.version == 4 else 'ipv6'}_{end}", int(address)
        # SCTP has none in user space.
        if protocol in WITH_PORTS and (number := int(given[f"{end[0]}port"])):
            yield f"{WITH_PORTS[protocol]}_{end}", number
