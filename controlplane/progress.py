"""How far the nodes have come: an observer of the cache that keeps `status/` and `alive/` by what is asked of them.

A node *concerns itself* with a scope from the moment it has written `status/{node}/net/{net}` (with revision 0, before
it reads the network for the first time) until it has removed everything of it and then that key. So for every scope the
nodes concerned are known at once, and none wires a port before it counts. With the scope of all nodes, "", all are concerned.

After a restoration from a backup the store holds statements about another past, and lacks those of nodes that came to a network
since. A statement is believed when it names the etcd cluster it was made from, and a revision before its own. And until
`meta/restored` has gone (by then a node that lives has been heard of) every node is waited for that has not spoken since.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.client import Entry
from kumihimo.v1 import port_pb2, resource_pb2, security_pb2, store_pb2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lag:
    """A node that has not applied what was asked for."""

    node: str
    revision: int
    reason: str
    message: str

    def message_of(self) -> resource_pb2.NodeLag:
        return resource_pb2.NodeLag(node=self.node, realized_revision=self.revision, reason=self.reason, message=self.message)


class Progress:
    """See the module. Reads are plain look-ups in what the cache has told."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._applied: dict[str, dict[str, store_pb2.Applied]] = defaultdict(dict)  # scope → node → how far it is
        self._ports: dict[str, dict[str, store_pb2.PortStatus]] = defaultdict(dict)
        self._counters: dict[str, dict[bytes, port_pb2.PortCounters]] = {}  # node → port's id in 16 bytes
        self._rules: dict[str, dict[bytes, security_pb2.RuleCounters]] = {}  # node → rule's id in 16 bytes
        self._alive: set[str] = set()
        self._spoken: set[str] = set()  # nodes that have spoken of the cluster that is
        self._taken_over = 0
        self._grace = False
        cache.observe(self._changed)

    def _changed(self, key: str, old: Entry | None, new: Entry | None) -> None:
        match keys.split(key):
            case ["alive", node]:
                (self._alive.add if new else self._alive.discard)(node)
            case ["status", node, "port", port]:
                _set(self._ports, port, node, store_pb2.PortStatus.FromString(new.value) if new else None)
            case ["status", node, "counters"]:
                ports = store_pb2.NodeCounters.FromString(new.value).ports if new else ()
                self._counters[node] = {port.port: port.counters for port in ports}
            case ["status", node, "rules"]:
                rules = store_pb2.NodeRuleCounters.FromString(new.value).rules if new else ()
                self._rules[node] = {rule.rule: rule.counters for rule in rules}
            case ["status", node, "nodes"]:
                said = self._believed(new) if new else None
                _set(self._applied, "", node, said)
                spoken = said is not None and said.cluster and said.cluster == self._cache.cluster
                (self._spoken.add if spoken else self._spoken.discard)(node)
            case ["status", node, _, _] if scope := keys.scope_of_status(key):
                _set(self._applied, scope, node, self._believed(new) if new else None)
            case ["meta", "cluster"]:
                self._taken_over = store_pb2.StoreCluster.FromString(new.value).id if new else 0
            case ["meta", "restored"]:
                self._grace = new is not None

    def _believed(self, entry: Entry) -> store_pb2.Applied:
        """What a node says; revision 0 when it speaks of another life of the store."""
        applied = store_pb2.Applied.FromString(entry.value)
        foreign = applied.cluster and applied.cluster != self._cache.cluster
        if foreign or applied.revision >= entry.mod_revision:
            applied.revision = 0
        return applied

    def _silent(self) -> list[Lag]:
        """Nodes that have not spoken since the store was restored, while that is new."""
        if not self._grace and self._taken_over in (0, self._cache.cluster):
            return []
        nodes = {key.rsplit("/", 1)[1] for key in self._cache.folder(keys.NODES) if key != keys.NODES_CHANGE}
        text = "has not reported since the store was restored"
        return [Lag(node, 0, "NOT_YET_APPLIED", f"node {node} {text}") for node in sorted(nodes - self._spoken)]

    def is_alive(self, node: str) -> bool:
        return node in self._alive

    def seen(self, port: str) -> dict[str, store_pb2.PortStatus]:
        """Where a port is plugged, by node: more than one while it moves, or by mistake."""
        return self._ports.get(port, {})

    def counters(self, node: str, port: str) -> port_pb2.PortCounters | None:
        """What a node last told of a port's traffic."""
        return self._counters.get(node, {}).get(UUID(port).bytes)

    def rule_counters(self, rule: str) -> security_pb2.RuleCounters:
        """What all nodes together last told that a security group rule has let through."""
        total, known = security_pb2.RuleCounters(), UUID(rule).bytes
        for told in self._rules.values():
            counters = told.get(known)
            if counters is not None:
                total.packets += counters.packets
                total.bytes += counters.bytes
                if _later(counters.last_hit_time, total.last_hit_time):
                    total.last_hit_time.CopyFrom(counters.last_hit_time)
        return total

    def applied(self, scope: str) -> dict[str, store_pb2.Applied]:
        """How far the nodes that concern themselves with a scope have applied it, dead ones included."""
        return self._applied.get(scope, {})

    def scopes(self) -> Iterator[str]:
        """Every scope that some node concerns itself with, and that of all nodes."""
        yield from self._applied.keys() | {""}

    def revision_of(self, scope: str) -> int:
        """Store revision of the last change of a scope; 0 when its object is gone."""
        entry = self._cache.get(keys.change_of(scope))
        return entry.mod_revision if entry else 0

    def behind(self, scope: str, revision: int) -> tuple[list[Lag], list[Lag]]:
        """(live nodes that have not applied a revision of a scope, dead nodes), by name.

        A scope that is gone is applied when the node no longer concerns itself with it.
        """
        gone = bool(scope) and self._cache.get(keys.head(scope)) is None
        wanted = revision if gone else min(revision, self.revision_of(scope))
        lagging, dead = self._silent(), []
        silent = {lag.node for lag in lagging}
        for node, applied in sorted(self.applied(scope).items()):
            if node in silent:
                continue
            if not self.is_alive(node):
                dead.append(Lag(node, applied.revision, "NODE_DEAD", f"node {node} has not been heard of; not waited for"))
            elif gone or applied.revision < wanted:
                lagging.append(Lag(node, applied.revision, *self._why(node, applied, wanted, gone)))
        return lagging, dead

    def _why(self, node: str, applied: store_pb2.Applied, wanted: int, gone: bool) -> tuple[str, str]:
        if applied.errors:
            error = applied.errors[0]
            return error.reason, f"node {node}: {error.object}: {error.message}"
        if gone:
            return "NOT_YET_REMOVED", f"node {node} has not yet removed it"
        return "NOT_YET_APPLIED", f"node {node} has applied revision {applied.revision} of {wanted}"


def _later(one: Any, other: Any) -> bool:
    return bool((one.seconds, one.nanos) > (other.seconds, other.nanos))


def _set(table: dict[str, dict[str, T]], outer: str, inner: str, value: T | None) -> None:
    if value is not None:
        table[outer][inner] = value
        return
    table[outer].pop(inner, None)
    if not table[outer]:
        del table[outer]
