"""What the store knows of a port that keeps it from sending and receiving, or may: findings, the gravest first.

The store knows what was asked for and what nodes have said. What they do with a packet only they can say (api/trace.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from controlplane.api.output import WITHOUT_HOSTS, Output
from controlplane.errors import not_found
from controlplane.identity import Caller, Role
from controlplane.progress import Progress
from controlplane.registry import KINDS
from controlplane.services import kernel
from controlplane.store import keys
from controlplane.store.cache import Cache
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import network_pb2, port_pb2, security_pb2

_EVERYTHING = Caller("", "", Role.OPERATOR)

# For those who may not know of hosts, in place of the message.
_UNNAMED = {
    "ASKED_ELSEWHERE": "it is plugged on another host than it shall be on",
    "INTERFACE_ERROR": "its interface has an error",
    "NODE_DEAD": "its host has not been heard of; traffic goes on, changes wait for it",
    "NOT_YET_APPLIED": "its host is yet to apply the last change",
    "NOT_YET_BOUND": "it was plugged just now",
    "PLUGGED_TWICE": "a second interface names it",
    "SEGMENT_NOT_ON_NODE": "its host is not where the network is",
    "UNDERLAY_MTU": "the mtu of the network is larger than what lies below it carries: large packets are lost",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """reason for a program, text a clause. fatal: nothing passes."""

    reason: str
    text: str
    fatal: bool = True

    @property
    def note(self) -> str:
        """As something that is to be said beside the sentence."""
        return f"{self.text} ({self.reason})"


class Standing:
    """Findings about ports, in the words that a caller may read."""

    def __init__(self, cache: Cache, progress: Progress, output: Output) -> None:
        self._cache = cache
        self._progress = progress
        self._output = output

    def network(self, network_id: str) -> Any:
        """A network; an empty one where there is none any more."""
        return self._cache.message(KINDS["Network"], keys.network(network_id)) or KINDS["Network"].new()

    def port(self, port_id: str, caller: Caller) -> Any:
        """A port that the caller may ask about; NOT_FOUND of any other."""
        place = self._cache.locate(KINDS["Port"], port_id)
        found = self._cache.message(KINDS["Port"], place) if place else None
        if found is None or not caller.sees(found.project_id):
            raise not_found("Port", port_id or '""')
        return found

    def node_of(self, port: Any) -> str:
        """Where a port is bound; "" when nowhere."""
        entry = self._cache.get(keys.bindings(port.network_id) + port.id)
        return port_pb2.Binding.FromString(entry.value).node if entry else ""

    def of(self, port: Any, caller: Caller) -> list[Finding]:
        """What is to be said of a port, what is fatal first."""
        return sorted(self._findings(port, caller), key=lambda finding: not finding.fatal)

    def _findings(self, port: Any, caller: Caller) -> Iterator[Finding]:
        told = title(port)
        network = self.network(port.network_id)
        if network.HasField("admin_state_up") and not network.admin_state_up:
            yield Finding("ADMIN_DOWN", f"network {network.name or network.id} is switched off (admin_state_up is false)")
        if port.HasField("admin_state_up") and not port.admin_state_up:
            yield Finding("ADMIN_DOWN", f"{told} is switched off (admin_state_up is false)")
        filled = self._output.fill(kernel.copy(port), _EVERYTHING)
        for condition in filled.conditions:
            text = words(condition.reason, condition.message, caller)
            match condition.type, condition.status:
                case "Attached", False:
                    yield Finding(condition.reason, f"{told} is not attached: {text}")
                case "Wired", False if condition.reason != "ADMIN_DOWN":
                    yield Finding(condition.reason, f"{told} is not wired: {text}")
                case "Wired", True if condition.reason == "NOT_YET_APPLIED":
                    yield Finding(condition.reason, f"{told}: {text}", fatal=False)
                case "AgentAlive" | "Unique", False:
                    yield Finding(condition.reason, f"{told}: {text}", fatal=False)
        bound = self.node_of(port)
        for place in filled.binding:
            if bound and not place.active:
                text = words("ASKED_ELSEWHERE", f"it is on node {bound}, and shall be on {place.node}", caller)
                yield Finding("ASKED_ELSEWHERE", f"{told}: {text}", fatal=False)
        applied = self._progress.applied(keys.scope(port.network_id)).get(bound)
        for error in applied.errors if applied else ():
            text = words(error.reason, f"node {bound}: {error.message}", caller)
            yield Finding(error.reason, f"network {network.name or network.id}: {text}", fatal=False)


def title(port: Any) -> str:
    """A port as sentences call it."""
    return f"port {port.name or port.id}"


def words(reason: str, message: str, caller: Caller) -> str:
    """A message as far as the caller may read it."""
    if caller.is_operator or reason in WITHOUT_HOSTS:
        return message.rstrip(".")
    return _UNNAMED.get(reason, reason.lower().replace("_", " "))


class Names:
    """Objects as a caller may know them."""

    def __init__(self, cache: Cache, caller: Caller) -> None:
        self._cache = cache
        self._caller = caller

    def host(self, node: str, whose: str) -> str:
        """A node, or whose host it is."""
        return f"node {node}" if self._caller.is_operator else f"the host of {whose}"

    def clear(self, ref: pb.ObjectRef) -> None:
        """Give it its name; of what the caller may not see only the kind stays."""
        kind = KINDS.get(ref.kind)
        if ref.kind == "Node":
            if not self._caller.is_operator:
                ref.Clear()
            return
        place = self._cache.locate(kind, ref.id) if kind and ref.id else None
        found = self._cache.message(kind, place) if kind and place else None
        if kind is not None and found is not None and kernel.visible(kind, found, self._caller):
            ref.name = found.name
        elif ref.kind and not self._caller.is_operator:
            ref.id, ref.name = "", "other project"

    def allowed(self, ref: pb.ObjectRef) -> str:
        """What a rule of a security group allows, in words; "" of what is none, or not to be seen."""
        kind = KINDS["SecurityGroupRule"]
        place = self._cache.locate(kind, ref.id) if ref.kind == kind.name and ref.id else None
        rule = self._cache.message(kind, place) if place else None
        return self._allowed(rule) if rule is not None and kernel.visible(kind, rule, self._caller) else ""

    def _allowed(self, rule: Any) -> str:
        ingress = rule.direction == security_pb2.DIRECTION_INGRESS
        version = "IPv6" if rule.ethertype == network_pb2.IP_VERSION_IPV6 else "IPv4"
        numbers = ""
        if rule.HasField("port_range_min"):
            last = rule.port_range_max if rule.HasField("port_range_max") else rule.port_range_min
            numbers = f" {rule.port_range_min}" + (f"-{last}" if last != rule.port_range_min else "")
        other = rule.remote_ip_prefix or "anybody"
        for kind, group in (("SecurityGroup", rule.remote_group_id), ("AddressGroup", rule.remote_address_group_id)):
            if group:
                other = self._titled(kind, group)
        what = f"{'ingress' if ingress else 'egress'} {rule.protocol or 'any protocol'}{numbers} over {version}"
        return f"{what} {'from' if ingress else 'to'} {other}, of {self._titled('SecurityGroup', rule.security_group_id)}"

    def _titled(self, kind: str, object_id: str) -> str:
        ref = pb.ObjectRef(kind=kind, id=object_id)
        self.clear(ref)
        return f"{ref.kind} {ref.name or ref.id}"
