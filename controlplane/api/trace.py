"""`Operations.Trace`: follows a packet, and its answer, from host to host, and says first in one sentence what becomes of it.

What hosts do their agents say (agent/inspection/trace.py); which hosts to ask, whose the flows are, and what the store knows
beside it is put together here. A silent agent makes the answer partial, and it says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from controlplane.api import packets
from controlplane.api.agents import Agents
from controlplane.api.crud import current
from controlplane.api.expired import Expired
from controlplane.api.follow import Follow, Side
from controlplane.api.probe import probe
from controlplane.api.standing import Finding, Names, Standing, title
from controlplane.errors import fault, refuse
from controlplane.identity import Caller, authorize
from controlplane.registry import KINDS
from controlplane.services.base import Context
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.txn import Origin
from controlplane.validate import check
from controlplane.values import LINK_LOCAL, eui64
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import network_pb2, operations_pb2, store_pb2

NO_ADDRESS = "0.0.0.0"  # noqa: S104 - what nobody has
_PHYSICAL = (network_pb2.NETWORK_TYPE_VLAN, network_pb2.NETWORK_TYPE_FLAT)


class Trace:
    """The method."""

    def __init__(self, cache: Cache, standing: Standing, agents: Agents, expired: Expired) -> None:
        self._cache = cache
        self._expired = expired
        self._standing = standing
        self._agents = agents

    async def trace(
        self, request: operations_pb2.TraceRequest, context: Context, origin: Origin
    ) -> operations_pb2.TraceResponse:
        """What becomes of the packet that a request describes."""
        caller = context.caller
        refuse(check(request, operator=caller.is_operator))
        if not request.to_port_id and not request.to_address:
            raise fault("to_port_id", "MISSING_FIELD", "to_port_id or to_address is needed: where the packet goes")
        if request.probe:
            authorize(caller, "Port", "Update")  # it is as if the workload had sent it
        await current(self._cache)
        sender = self._standing.port(request.from_port_id, caller)
        receiver = self._standing.port(request.to_port_id, caller) if request.to_port_id else None
        findings = self._standing.of(sender, caller)
        network = self._standing.network(sender.network_id)
        source, target = self._sides(request, network, sender, receiver, caller, findings)
        if target.port is not None and not target.foreign:
            findings += self._standing.of(target.port, caller)
        packet = packets.sent(request, (source.mac, source.ip), (target.mac, target.ip))
        follow = Follow(self._agents, self._expired, Names(self._cache, caller), caller)
        ways = [follow.direction(source, target, packet, any_source_port=not request.HasField("source_port"))]
        if target.port is not None and target.mac and not target.foreign and packets.is_answered(packet):
            ways.append(follow.direction(target, source, packets.answer(packet), answer=True))
        directions = await asyncio.gather(*ways)
        reply = operations_pb2.TraceResponse(forward=directions[0], partial=follow.partial)
        if len(directions) > 1:
            reply.back.CopyFrom(directions[1])
        if request.probe:
            seen = Side(target.ip) if target.foreign else target  # what others' ports count is theirs
            reply.probe = await probe(self._agents, source, seen, packet) if source.node else "nothing was sent"
        conclude(reply, findings, list(follow.notes(source, target)), packet, source, target)
        return reply

    def _sides(
        self, request: Any, network: Any, sender: Any, receiver: Any, caller: Caller, findings: list[Finding]
    ) -> tuple[Side, Side]:
        """Both ends of the packet; what is wrong with them is added to the findings."""
        ip = request.to_address or _address_for(receiver, sender, request.source_address)
        if not ip or (receiver is not None and not _has(receiver, ip)):
            findings.append(Finding("ADDRESS_UNKNOWN", f"{title(receiver)} has no address {ip}".rstrip()))
        ip = ip or NO_ADDRESS
        family = packets.version(ip)
        own = request.source_address or _address_of(sender, family, ip)
        if not own:
            findings.append(Finding("ADDRESS_UNKNOWN", f"{title(sender)} has no IPv{family} address"))
            own = NO_ADDRESS
        if packets.version(own) != family:
            raise fault("source_address", "IP_FAMILY_MISMATCH", f"{own} and {ip} are of two families")
        if request.size > network.mtu:
            text = f"a packet of {request.size} bytes is larger than the mtu of {_named(network)}, {network.mtu}"
            findings.append(Finding("PACKET_TOO_LARGE", text))
        source = Side(own, request.source_mac or sender.mac_address, sender, self._standing.node_of(sender))
        return source, self._target(network, ip, source, receiver or self._owner(network.id, ip), caller, findings)

    def _target(self, network: Any, ip: str, source: Side, receiver: Any, caller: Caller, findings: list[Finding]) -> Side:
        """The end that receives."""
        if receiver is None:
            findings += self._unknown(network, ip)
            return Side(ip)
        if receiver.network_id != network.id:
            other = _named(self._standing.network(receiver.network_id))
            text = f"{title(source.port)} is on {_named(network)} and {title(receiver)} on {other}, and no router connects them"
            findings.append(Finding("DIFFERENT_NETWORKS", text))
            return Side(ip, port=receiver)
        node = self._standing.node_of(receiver)
        if network.network_type == network_pb2.NETWORK_TYPE_LOCAL and source.node and node not in ("", source.node):
            text = f"{_named(network)} does not leave a host (its type is local), and the ports are on two"
            findings.append(Finding("LOCAL_NETWORK", text))
        return Side(ip, receiver.mac_address, receiver, node, foreign=not caller.sees(receiver.project_id))

    def _owner(self, network_id: str, ip: str) -> Any:
        """The port of a network that has an address, as its own or as a pair."""
        for key in self._cache.folder(keys.subnets(network_id)):
            entry = self._cache.get(keys.claim(keys.ip_pool(network_id, key.rsplit("/", 1)[1]), ip))
            owner = store_pb2.Claim.FromString(entry.value).owner if entry is not None else ""
            if owner and (port := self._cache.message(KINDS["Port"], keys.ports(network_id) + owner)) is not None:
                return port
        ports = (self._cache.message(KINDS["Port"], key) for key in self._cache.folder(keys.ports(network_id)))
        return next((port for port in ports if port is not None and _has(port, ip)), None)

    def _unknown(self, network: Any, ip: str) -> Iterator[Finding]:
        """What is to be said of an address that no port has."""
        subnets = [
            subnet
            for key in self._cache.folder(keys.subnets(network.id))
            if (subnet := self._cache.message(KINDS["Subnet"], key)) is not None
        ]
        if any(subnet.dhcp_server_ip == ip for subnet in subnets):
            return
        if any(ip_address(ip) in ip_network(subnet.cidr) for subnet in subnets):
            if network.network_type not in _PHYSICAL:
                yield Finding("ADDRESS_UNKNOWN", f"no port of {_named(network)} has the address {ip}")
            return
        ranges = ", ".join(sorted(subnet.cidr for subnet in subnets)) or "none"
        yield Finding("ADDRESS_OUTSIDE", f"{ip} lies in no subnet of {_named(network)} ({ranges}), and no router leads there")


def conclude(
    reply: operations_pb2.TraceResponse,
    findings: Sequence[Finding],
    notes: list[str],
    packet: pb.Packet,
    source: Side,
    target: Side,
) -> None:
    """The sentence: what the store knows goes before what nodes say, since it is why they say so. The rest are notes."""
    what = f"{packets.called(packet)} from {source.text} to {target.text}"
    fatal = [finding for finding in findings if finding.fatal]
    forward, back = reply.forward, reply.back if reply.HasField("back") else None
    if fatal:
        reply.reason, said = fatal[0].reason, fatal[0].text[:1].upper() + fatal[0].text[1:]
        if forward.summary and not forward.passes:
            notes = [f"{what}: {forward.summary}", *notes]
    elif not forward.passes:
        reply.reason, said = forward.reason, f"{what}: {forward.summary}"
    elif back is not None and not back.passes:
        reply.reason, said = back.reason, f"{what} arrives, but not the answer: {back.summary}"
    else:
        reply.passes, said = True, f"{what} passes" + (", and so does the answer" if back is not None else "")
    rest = [*fatal[1:], *(finding for finding in findings if not finding.fatal)]
    told = [*(finding.note for finding in rest), *notes]
    told = list(dict.fromkeys(told))
    if reply.passes and told:
        said += f"; but {told.pop(0)}"
    reply.summary = said
    reply.notes.extend(told)


def _named(network: Any) -> str:
    """A network as sentences call it."""
    return f"network {network.name or network.id}"


def _has(port: Any, ip: str) -> bool:
    """Whether an address is a port's own or one that it may send from."""
    if any(fixed.ip_address == ip for fixed in port.fixed_ips) or ip == eui64(LINK_LOCAL, port.mac_address):
        return True
    return any(ip_address(ip) in ip_network(pair.ip_address, strict=False) for pair in port.allowed_address_pairs)


def _address_for(receiver: Any, sender: Any, given: str) -> str:
    """The address of a receiver that a sender would use; "" when it has none."""
    own = [given] if given else [fixed.ip_address for fixed in sender.fixed_ips]
    families = [packets.version(ip) for ip in own]
    theirs = [fixed.ip_address for fixed in receiver.fixed_ips]
    return next((ip for family in families for ip in theirs if packets.version(ip) == family), theirs[0] if theirs else "")


def _address_of(sender: Any, family: int, towards: str) -> str:
    """The address that a sender would use: one of the receiver's subnet before others; "" when it has none."""
    if family == 6 and ip_address(towards) in LINK_LOCAL:
        return eui64(LINK_LOCAL, sender.mac_address)
    own = [fixed.ip_address for fixed in sender.fixed_ips if packets.version(fixed.ip_address) == family]
    if not own:
        return eui64(LINK_LOCAL, sender.mac_address) if family == 6 else ""
    return str(max(own, key=lambda ip: _common(ip, towards)))


def _common(one: str, other: str) -> int:
    """How many bits two addresses have in common, from the first on."""
    first, second = ip_address(one), ip_address(other)
    return int(first.max_prefixlen - (int(first) ^ int(second)).bit_length())
