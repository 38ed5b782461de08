"""What came of the desired state: fills the output fields of a reply from the status the nodes have written.

Output fields are made at each read and never stored, so an agent cannot overwrite what a user wants, nor the reverse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane import names, redaction
from controlplane.identity import Caller
from controlplane.progress import Lag, Progress
from controlplane.registry import KINDS
from controlplane.services import quota, segment
from controlplane.services.defaults import Installation
from controlplane.services.rule import normalized_cidr
from controlplane.store import keys
from controlplane.store.cache import Cache
from kumihimo.v1 import network_pb2, port_pb2, resource_pb2, store_pb2

LAGGING_SHOWN = 100
# Reasons whose messages name no host, so that everybody may read them.
WITHOUT_HOSTS = ("NOT_ATTACHED", "ADMIN_DOWN")


class Output:
    """Fills output fields; one for the process."""

    def __init__(self, cache: Cache, progress: Progress, installation: Installation) -> None:
        self._cache = cache
        self._progress = progress
        self._installation = installation
        self._makers: dict[str, Callable[[Any], None]] = {
            "Network": self._network,
            "Subnet": self._subnet,
            "Port": self._port,
            "Node": self._node,
            "Quota": self._quota,
            "PhysicalNetwork": self._physical_network,
            "NetworkSegmentRange": self._range,
            "Settings": self._settings,
            "SubnetPool": _settled,
            "AddressScope": _settled,
            "SecurityGroup": self._security_group,
            "SecurityGroupRule": self._security_group_rule,
            "AddressGroup": self._address_group,
            "DefaultSecurityGroupRule": _settled,
        }

    def fill(self, message: Any, caller: Caller, named: Container[str] = ()) -> Any:
        """The message with its output fields; revision and etag must be set. named: fields that are made for who names them."""
        if message.DESCRIPTOR.name == "SecurityGroup" and ("rules" in named or "*" in named):
            message.rules.extend(self._rules_of(message.id))
        make = self._makers.get(message.DESCRIPTOR.name)
        if make is not None:
            make(message)
        if not caller.is_operator:
            hide(message, caller)
        return redaction.without_secrets(message) if redaction.holds_secrets(message.DESCRIPTOR) else message

    def past(self, message: Any, caller: Caller) -> Any:
        """A message as it was: what was made at read then is not known."""
        shown = redaction.without_secrets(message)
        if not caller.is_operator:
            hide(shown, caller)
        return shown

    def _network(self, message: Any) -> None:
        message.subnets.extend(sorted(key.rsplit("/", 1)[1] for key in self._cache.folder(keys.subnets(message.id))))
        scope = keys.scope(message.id)
        nodes = (self._cache.message(KINDS["Node"], keys.node(node)) for node in self._progress.applied(scope))
        message.availability_zones.extend(sorted({node.availability_zone for node in nodes if node is not None} - {""}))
        self._whole(message, scope, message.admin_state_up)

    def _whole(self, message: Any, scope: str, up: bool) -> None:
        """State of the object that a scope is that of, with what nodes failed to bring about in it."""
        self._scope(message, scope, up)
        said = [(node, error) for node, applied in self._progress.applied(scope).items() for error in applied.errors]
        for node, error in sorted(said, key=lambda pair: pair[0])[:LAGGING_SHOWN]:
            _condition(message, "Applied", False, error.reason, f"node {node}: {error.object}: {error.message}")
        if said and message.state == resource_pb2.STATE_ACTIVE:
            message.state = resource_pb2.STATE_DEGRADED

    def _subnet(self, message: Any) -> None:
        self._scope(message, keys.scope(message.network_id), True)

    def _scope(self, message: Any, scope: str, up: bool) -> None:
        """State of what lives on every node concerned with a scope."""
        # What was written just now may be ahead of what the cache has heard.
        revision = max(self._progress.revision_of(scope), message.revision)
        lagging, dead = self._progress.behind(scope, revision)
        self._realize(message, revision, lagging, dead)
        failed = [lag for lag in lagging if lag.reason not in ("NOT_YET_APPLIED", "NOT_YET_REMOVED")]
        if not up:
            message.state = resource_pb2.STATE_DOWN
        elif failed:
            message.state = resource_pb2.STATE_DEGRADED
        else:
            message.state = resource_pb2.STATE_PENDING if lagging else resource_pb2.STATE_ACTIVE

    def _realize(self, message: Any, revision: int, lagging: list[Lag], dead: list[Lag]) -> None:
        message.realization.desired_revision = revision
        message.realization.realized_revision = min((lag.revision for lag in lagging), default=revision)
        message.realization.lagging.extend(lag.message_of() for lag in (lagging + dead)[:LAGGING_SHOWN])

    def _port(self, message: Any) -> None:
        network = self._cache.message(KINDS["Network"], keys.network(message.network_id))
        message.dns_assignments.extend(names.assignments(message, network.dns_domain if network else ""))
        self._scope(message, keys.scope(message.network_id), message.admin_state_up)
        entry = self._cache.get(keys.bindings(message.network_id) + message.id)
        seen = self._progress.seen(message.id)
        asked = self._asked(message)
        if entry is None:
            message.state = resource_pb2.STATE_DOWN
            self._places(message, asked, None, network)
            if seen and asked:
                nodes = ", ".join(sorted(seen))
                text = f"seen on {nodes}, and it shall be on {asked}; plug it there, or kumi port unbind {message.id}"
                _condition(message, "Attached", False, "ASKED_ELSEWHERE", text)
            elif seen:
                nodes = ", ".join(sorted(seen))
                _condition(message, "Attached", False, "NOT_YET_BOUND", f"seen on {nodes}, and not yet bound to it")
            else:
                text = f"no node has an interface with external_ids:iface-id={message.id} on its br-int"
                _condition(message, "Attached", False, "NOT_ATTACHED", text)
            return
        binding = port_pb2.Binding.FromString(entry.value)
        self._places(message, asked, binding, network)
        counters = self._progress.counters(binding.node, message.id)
        if counters is not None:
            message.counters.CopyFrom(counters)
        status = seen.get(binding.node)
        here = f"interface {binding.interface} of node {binding.node}"
        _condition(message, "Attached", True, "ATTACHED", f"attached to {here}", binding.attach_time)
        alive = self._progress.is_alive(binding.node)
        if not alive:
            text = f"the agent of node {binding.node} has not been heard of; traffic goes on, changes wait for it"
            _condition(message, "AgentAlive", False, "NODE_DEAD", text)
        self._wired(message, status, binding.node, max(message.revision, entry.mod_revision))
        for other in sorted(set(seen) - {binding.node}):
            text = f"an interface on node {other} names this port too; it is bound to {binding.node} and not wired there"
            _condition(message, "Unique", False, "PLUGGED_TWICE", text)

    def _asked(self, message: Any) -> str:
        """The node that a port shall be on; "" when none was asked for, or it is deleted."""
        entry = self._cache.get(keys.placements(message.network_id) + message.id)
        node = store_pb2.Placement.FromString(entry.value).node if entry else ""
        return node if node and self._cache.get(keys.node(node)) is not None else ""

    def _places(self, message: Any, asked: str, bound: port_pb2.Binding | None, network: Any) -> None:
        """Where it is, then where it shall be, with what an interface needs that stands for it there."""
        if bound is not None:
            message.binding.add(active=True).MergeFrom(bound)
        if asked and (bound is None or asked != bound.node):
            message.binding.add(node=asked)
        for place in message.binding:
            place.vif_type = "ovs"
            details = {"bridge": "br-int", "iface-id": message.id, "mac_address": message.mac_address}
            place.vif_details.update(details, mtu=str(network.mtu if network else 0))

    def _wired(self, message: Any, status: store_pb2.PortStatus | None, node: str, revision: int) -> None:
        applied = self._progress.applied(keys.scope(message.network_id)).get(node)
        if not message.admin_state_up:
            message.state = resource_pb2.STATE_DOWN
            since = status.since if status is not None and not status.wired else None  # its node may yet have it wired
            _condition(message, "Wired", False, "ADMIN_DOWN", "admin_state_up is false", since)
        elif status is None or not status.wired:
            failed = status is not None and status.reason not in ("", "NOT_YET_APPLIED")
            message.state = resource_pb2.STATE_ERROR if failed else resource_pb2.STATE_PENDING
            reason = status.reason if status is not None and status.reason else "NOT_YET_APPLIED"
            text = status.message if status is not None and status.message else f"node {node} is wiring it"
            _condition(message, "Wired", False, reason, text, status.since if status is not None else None)
        elif applied is None or applied.revision < revision:
            message.state = resource_pb2.STATE_PENDING
            have = applied.revision if applied else 0
            text = f"node {node} has applied revision {have} of {revision}"
            _condition(message, "Wired", True, "NOT_YET_APPLIED", text, status.since)
        elif late := self._late_group(message, node):
            message.state = resource_pb2.STATE_PENDING
            _condition(message, "Filtered", False, "NOT_YET_APPLIED", f"node {node} has not yet applied SecurityGroup {late}")
        else:
            message.state = resource_pb2.STATE_ACTIVE
            text = f"wired on node {node} at revision {applied.revision}"
            _condition(message, "Wired", True, "WIRED", text, status.since)

    def _late_group(self, message: Any, node: str) -> str:
        """A security group of a port that its node has not applied as of the port's last change; "" when there is none."""
        for group in message.security_group_ids:
            scope = keys.scope(group, keys.SECURITY)
            applied = self._progress.applied(scope).get(node)
            # A node that concerns itself with none of them is of an earlier release. Not every change of a port is one of its
            # groups.
            if applied is not None and applied.revision < min(message.revision, self._progress.revision_of(scope)):
                return str(group)
        return ""

    def _security_group(self, message: Any) -> None:
        message.member_count = len(self._cache.folder(keys.members(message.id)))
        self._whole(message, keys.scope(message.id, keys.SECURITY), True)
        for rule in message.rules:
            rule.revision = rule.revision or message.revision
            rule.etag = format(rule.revision, "x")
            self._say(rule)

    def _rules_of(self, group_id: str) -> list[Any]:
        """The rules of a security group, oldest first."""
        kind = KINDS["SecurityGroupRule"]
        found = [self._cache.parsed(kind, key, entry) for key, entry in self._cache.folder(keys.rules(group_id)).items()]
        return sorted(found, key=lambda item: (item.create_time.ToNanoseconds(), item.id))

    def _security_group_rule(self, message: Any) -> None:
        self._scope(message, keys.scope(message.security_group_id, keys.SECURITY), True)
        self._say(message)

    def _say(self, rule: Any) -> None:
        """What a rule means, and what it has let through."""
        rule.normalized_cidr = normalized_cidr(rule)
        rule.counters.CopyFrom(self._progress.rule_counters(rule.id))

    def _address_group(self, message: Any) -> None:
        self._whole(message, keys.scope(message.id, keys.ADDRESSES), True)

    def _quota(self, message: Any) -> None:
        message.usage.update(quota.usage(self._cache, message.id))
        message.effective_limits.update(quota.effective(message.limits, self._default_quotas()))
        _settled(message)

    def _default_quotas(self) -> Mapping[str, int]:
        stored = self._cache.message(KINDS["Settings"], keys.SETTINGS)
        return stored.quotas if stored is not None else {}

    def _physical_network(self, message: Any) -> None:
        message.nodes.extend(segment.nodes_on(self._cache, message.id))
        _settled(message)

    def _range(self, message: Any) -> None:
        for field, spans in zip((message.used, message.available), segment.numbers(self._cache, message), strict=True):
            for low, high in spans:
                field.add(minimum=low, maximum=high)
        _settled(message)

    def _settings(self, message: Any) -> None:
        """What is in force; of Settings that are not the stored ones (a dry run) too."""
        now = self._installation.over_file(message)
        named = {field.name: getattr(now, field.name) for field in dataclasses.fields(now) if field.name != "network_type"}
        message.in_force.MergeFrom(type(message.in_force)(**named))
        message.in_force.network_type = network_pb2.NetworkType.Value(f"NETWORK_TYPE_{now.network_type.upper()}")
        message.in_force.quotas.update(quota.effective({}, message.quotas))
        _settled(message)

    def _node(self, message: Any) -> None:
        alive = self._progress.is_alive(message.id)
        entry = self._cache.get(keys.agent_status(message.id))
        if entry is not None:
            status = store_pb2.AgentStatus.FromString(entry.value)
            message.agent.version = status.version
            message.agent.start_time.CopyFrom(status.start_time)
            message.agent.features.update(status.features)
            message.agent.capabilities.extend(status.capabilities)
            message.agent.address = status.address
        applied = self._progress.applied("").get(message.id)
        message.agent.applied_revision = applied.revision if applied else 0
        message.agent.alive = alive
        message.state = resource_pb2.STATE_ACTIVE if alive else resource_pb2.STATE_DOWN
        if not alive:
            text = "its agent has not been heard of; what is configured keeps forwarding"
            reason, since = ("NODE_DEAD", None) if entry else ("NEVER_SEEN", message.create_time)
            _condition(message, "AgentAlive", False, reason, text, since)
        if not message.tunnel_ip:
            text = "it has no tunnel_ip, and its agent has reported no underlay address; set one"
            _condition(message, "Reachable", False, "NO_TUNNEL_IP", text)
        for item in self._cache.folder(keys.port_status(message.id)).values():
            seen = store_pb2.PortStatus.FromString(item.value)
            if seen.reason == "PORT_UNKNOWN":
                _condition(message, "PortsKnown", False, seen.reason, seen.message)
        for error in applied.errors if applied else ():
            _condition(message, "Applied", False, error.reason, f"{error.object}: {error.message}")


def _settled(message: Any) -> None:
    """Of what no node has to apply."""
    message.state = resource_pb2.STATE_ACTIVE


def _condition(message: Any, kind: str, status: bool, reason: str, text: str, since: Timestamp | None = None) -> None:
    condition = message.conditions.add(type=kind, status=status, reason=reason, message=text[:1024])
    if since is not None and since.seconds:  # who is of an earlier release does not say it
        condition.last_transition_time.CopyFrom(since)


def hide(message: Any, caller: Caller) -> None:
    """Tenants see what became of their objects, not the names of hosts and of other projects."""
    match message.DESCRIPTOR.name:
        case "PhysicalNetwork":
            del message.nodes[:]
        case "NetworkSegmentRange":
            message.projects[:] = [project for project in message.projects if caller.sees(project)]
            del message.used[:], message.available[:]
    if "binding" in message.DESCRIPTOR.fields_by_name:
        for binding in message.binding:
            binding.node = binding.interface = binding.vif_type = ""
            binding.vif_details.clear()
    for lag in message.realization.lagging:
        lag.node = lag.message = ""
    for condition in message.conditions:
        if condition.reason not in WITHOUT_HOSTS:
            condition.message = ""
