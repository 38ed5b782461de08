"""What must hold for all keys of the store together: objects, claims, index and bindings follow from each other.

Two tables state it. `FAMILIES`: the keys that may be, the message that each holds, and what else must be so for it to be there.
`CALLS_FOR`: the keys that an object of a kind must have beside its own; a claim of them is owned by that object. What is
neither an object nor called for is a leak; what is called for and missing lets two have the same value.

Pure: a snapshot in, findings out. `kumi doctor` shows them, and every test of the control plane ends with none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from google.protobuf.message import DecodeError, Message

from controlplane.registry import KINDS, Kind, rules
from controlplane.services import membership, network, node, prefixes, rule, security
from controlplane.services.segment import segment_of
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.values import prefix, service_mac
from kumihimo.v1 import port_pb2, store_pb2

_PREFIXES = ("prefix", "scope")
LEAK = "nothing uses it: `etcdctl del KEY` frees it; please report how it came to be"
CLASH = "delete one of the two objects and make it anew"
REPAIR = "delete the object and make it anew, or restore a backup"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that should not be so: what, at which key, of which object ("Port 0192…", or nothing), and what to do."""

    what: str
    key: str
    object: str
    todo: str

    def __str__(self) -> str:
        return f"{self.key}: {self.what}"


@dataclass(slots=True)
class Snapshot:
    """The store taken apart: values by key, objects by (kind, id), and what the objects call for."""

    entries: Mapping[str, Entry]
    values: dict[str, Any] = field(default_factory=dict)
    objects: dict[tuple[str, str], Any] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)  # ids of objects that cannot be read
    called_for: dict[str, tuple[str, str]] = field(default_factory=dict)  # key → (kind, id)


Fault = tuple[str, str]  # what is wrong, what to do
# snapshot, key, its elements that the pattern leaves open, its value
Rule = Callable[[Snapshot, str, list[str], Any], Iterator[Fault]]


@dataclass(frozen=True, slots=True)
class Family:
    """Keys of one pattern: "*" is any element, "**" any rest. kind: they hold the objects of that kind, by last element."""

    pattern: str
    message: type[Message] | None
    rule: Rule | None = None
    kind: str = ""


# -- what an object calls for -----------------------------------------------------------------------------------------


def _network(item: Any) -> Iterator[str]:
    segment = segment_of(item)
    if segment is not None:
        yield keys.claim(*segment)
    yield keys.claim(network.KEY_POOL, item.key)
    yield keys.claim(keys.mac_pool(item.id), service_mac(item.key))


def _subnet(item: Any) -> Iterator[str]:
    if item.dhcp_server_ip:
        yield keys.claim(keys.ip_pool(item.network_id, item.id), item.dhcp_server_ip)
    if item.subnet_pool_id:
        yield keys.claim(keys.prefix_pool(item.subnet_pool_id), prefixes.value_of(prefix(item.cidr)))


def _subnet_pool(item: Any) -> Iterator[str]:
    if item.is_default:
        yield keys.claim("default-subnet-pool", item.ip_version)
    for text in item.prefixes if item.address_scope_id else ():
        yield keys.claim(keys.scope_pool(item.address_scope_id), prefixes.value_of(prefix(text)))


def _port(item: Any) -> Iterator[str]:
    yield keys.claim(keys.mac_pool(item.network_id), item.mac_address)
    for fixed in item.fixed_ips:
        yield keys.claim(keys.ip_pool(item.network_id, fixed.subnet_id), fixed.ip_address)
    if item.dns_name:
        yield keys.claim(keys.dns_pool(item.network_id), item.dns_name)
    for group in item.security_group_ids:
        yield keys.members(group) + item.id


def _security_group(item: Any) -> Iterator[str]:
    yield keys.claim(security.KEY_POOL, item.key)


def _security_group_rule(item: Any) -> Iterator[str]:
    yield keys.claim(*rule.claimed(item))


def _node(item: Any) -> Iterator[str]:
    yield keys.claim(node.KEY_POOL, item.key)
    if item.tunnel_ip:
        yield keys.claim(node.TUNNEL_POOL, item.tunnel_ip)


CALLS_FOR: dict[str, Callable[[Any], Iterator[str]]] = {
    "Network": _network,
    "Subnet": _subnet,
    "SubnetPool": _subnet_pool,
    "Port": _port,
    "Node": _node,
    "SecurityGroup": _security_group,
    "SecurityGroupRule": _security_group_rule,
    "AddressGroup": _security_group,
}


# -- what must be so for a key to be there ----------------------------------------------------------------------------


def _object(snapshot: Snapshot, key: str, open_: list[str], value: Any) -> Iterator[Fault]:
    if value.id != open_[-1]:
        yield f"its id is {value.id}", REPAIR
    own = KINDS[type(value).DESCRIPTOR.name]
    if own.parent and own.parent_of(value) != open_[0]:
        yield f"its {own.parent} is {own.parent_of(value)}", REPAIR
    for name, kind, object_id in references(value):
        if kind in KINDS and (kind, object_id) not in snapshot.objects and object_id not in snapshot.broken:
            yield f"{name} names {kind} {object_id}, which is gone", REPAIR


def references(message: Any) -> Iterator[tuple[str, str, str]]:
    """(field, kind, id) of everything that a message refers to."""
    for item, value in message.ListFields():
        kind = rules(item).reference
        for each in value if item.is_repeated else [value]:
            if kind:
                yield item.name, kind, each
            elif isinstance(each, Message):
                yield from references(each)


def _called_for(snapshot: Snapshot, key: str, open_: list[str], value: Any) -> Iterator[Fault]:
    if key not in snapshot.called_for and not set(open_) & snapshot.broken:
        yield "nothing calls for it", LEAK


def _index(snapshot: Snapshot, key: str, open_: list[str], value: Any) -> Iterator[Fault]:
    yield from _called_for(snapshot, key, open_, value)
    if key not in snapshot.called_for:
        return
    kind = KINDS[snapshot.called_for[key][0]]
    if value.parent_id != kind.parent_of(snapshot.objects[snapshot.called_for[key]]):
        yield f"it says {kind.parent_kind.lower() or 'parent'} {value.parent_id}", REPAIR


def _claim(snapshot: Snapshot, key: str, open_: list[str], value: Any) -> Iterator[Fault]:
    wanted = snapshot.called_for.get(key)
    if wanted is None:
        if not value.releasing and value.owner not in snapshot.broken:
            yield f"nothing that {value.owner} is calls for it", LEAK
    elif value.releasing or value.owner != wanted[1]:
        yield f"owned by {value.owner}, releasing {value.releasing}, wanted by {wanted[1]}", CLASH


def _binding(snapshot: Snapshot, key: str, open_: list[str], value: Any) -> Iterator[Fault]:
    network_id, port = open_
    if not {network_id, port} & snapshot.broken:
        found = snapshot.objects.get(("Port", port))
        if found is None or found.network_id != network_id:
            yield "its port is gone", LEAK
    if ("Node", value.node) not in snapshot.objects and value.node not in snapshot.broken:
        yield f"its node {value.node} is gone", LEAK
    if keys.bound_to(value.node, port) not in snapshot.entries:
        yield f"node {value.node} does not list the port", LEAK


def _placement(snapshot: Snapshot, key: str, open_: list[str], value: Any) -> Iterator[Fault]:
    network_id, port = open_
    found = snapshot.objects.get(("Port", port))
    if not {network_id, port} & snapshot.broken and (found is None or found.network_id != network_id):
        yield "its port is gone", LEAK


def _member(snapshot: Snapshot, key: str, open_: list[str], value: Any) -> Iterator[Fault]:
    yield from _called_for(snapshot, key, open_, value)
    port = snapshot.objects.get(("Port", open_[-1]))
    if key in snapshot.called_for and port is not None and list(value.addresses) != membership.sends_from(port):
        yield "it is not what the port sends from", "update the port, for example its description"


def _cut(snapshot: Snapshot, key: str, open_: list[str], value: Any) -> Iterator[Fault]:
    scope = keys.folder(key)
    if keys.head(scope) not in snapshot.entries:
        yield "its group is gone", LEAK


def _bound(snapshot: Snapshot, key: str, open_: list[str], value: Any) -> Iterator[Fault]:
    node_id, port = open_
    if value.node != node_id:
        yield f"it names node {value.node}", LEAK
    found = snapshot.objects.get(("Port", port))
    if found is None:
        if port not in snapshot.broken:
            yield "its port is gone", LEAK
    elif snapshot.values.get(keys.bindings(found.network_id) + port) != value:
        yield "the binding says otherwise", LEAK


FAMILIES: tuple[Family, ...] = (
    Family("net/*/bind/*", port_pb2.Binding, _binding),
    Family("net/*/place/*", store_pb2.Placement, _placement),
    *(Family(f"{kind.scope}/*/change", store_pb2.ChangeRecord, _called_for) for kind in KINDS.values() if kind.scope),
    Family("secgroup/*/member/*", store_pb2.Member, _member),
    *(Family(f"{folder}/*/cut", store_pb2.Cut, _cut) for folder in (keys.SECURITY, keys.ADDRESSES)),
    Family("node/.change", store_pb2.ChangeRecord),
    Family("index/bind/*/*", port_pb2.Binding, _bound),
    Family("index/*/*", store_pb2.Index, _index),
    Family("claim/**", store_pb2.Claim, _claim),
    # What nodes say is theirs; whether there is such a node is looked at by `kumi doctor`.
    Family("status/*/agent", store_pb2.AgentStatus),
    Family("status/*/port/*", store_pb2.PortStatus),
    *(Family(f"status/*/{kind.scope}/*", store_pb2.Applied) for kind in KINDS.values() if kind.scope),
    Family("status/*/nodes", store_pb2.Applied),
    Family("status/*/drift", store_pb2.DriftReport),
    Family("status/*/counters", store_pb2.NodeCounters),
    Family("status/*/rules", store_pb2.NodeRuleCounters),
    Family("alive/*", None),
    Family("controller/*", None),
    Family("request/**", store_pb2.RequestRecord),
    Family("apply/*", store_pb2.Index),
    Family("forming/*", store_pb2.Index),
    Family("change/**", store_pb2.ChangeRecord),
    Family("meta/format", store_pb2.StoreFormat),
    Family("meta/cluster", store_pb2.StoreCluster),
    Family("meta/restored", store_pb2.StoreCluster),
    Family("meta/compaction", store_pb2.CompactionNotes),
    *(Family(keys.place(kind, "*", "*").removeprefix(keys.ROOT), kind.message, _object, kind.name) for kind in KINDS.values()),
)


# -- the audit --------------------------------------------------------------------------------------------------------


def audit(entries: Mapping[str, Entry]) -> list[Finding]:
    """Everything that is wrong with the keys of one snapshot, by key."""
    snapshot = Snapshot(entries)
    findings: list[Finding] = []
    placed: dict[str, tuple[Family, list[str]]] = {}
    for key, entry in entries.items():
        found = family_of(key)
        if found is None:
            findings.append(Finding("no key of this release looks like it", key, "", LEAK))
            continue
        family, open_ = placed[key] = found
        label = f"{family.kind} {open_[-1]}" if family.kind else ""
        try:
            value = family.message.FromString(entry.value) if family.message else None
        except DecodeError as error:
            what = f"its value cannot be parsed as {family.message.__name__ if family.message else ''}: {error}"
            findings.append(Finding(what, key, label, REPAIR if label else LEAK))
            snapshot.broken.update(open_[-1:] if family.kind else ())
            continue
        snapshot.values[key] = value
        if family.kind:
            snapshot.objects[family.kind, open_[-1]] = value
    findings += _call(snapshot)
    findings += _overlaps(snapshot)
    for key, value in snapshot.values.items():
        family, open_ = placed[key]
        if family.rule is not None:
            about = _label(family, open_, snapshot.called_for.get(key), value)
            findings += [
                Finding(what, key, about, todo.replace("KEY", key)) for what, todo in family.rule(snapshot, key, open_, value)
            ]
    return sorted(findings, key=lambda finding: (finding.key, finding.what))


def _call(snapshot: Snapshot) -> Iterator[Finding]:
    """Note what the objects call for; what of that is missing, or wanted twice."""
    for (kind, object_id), item in snapshot.objects.items():
        for key in (*_of_every_kind(snapshot, KINDS[kind], item), *CALLS_FOR.get(kind, _nothing)(item)):
            before = snapshot.called_for.setdefault(key, (kind, object_id))
            if before != (kind, object_id):
                yield Finding(f"wanted by {' '.join(before)} and by {kind} {object_id}", key, f"{kind} {object_id}", CLASH)
            if key not in snapshot.entries:
                yield Finding("missing", key, f"{kind} {object_id}", REPAIR)


def _overlaps(snapshot: Snapshot) -> Iterator[Finding]:
    """Prefixes of one pool or scope that overlap: one's key begins with the other's."""
    taken = sorted(key for key in snapshot.called_for if keys.split(key)[0] == "claim" and keys.split(key)[1] in _PREFIXES)
    for earlier, later in pairwise(taken):
        if later.startswith(earlier):
            yield Finding(f"it lies in {earlier}", later, " ".join(snapshot.called_for[later]), CLASH)


def _of_every_kind(snapshot: Snapshot, kind: Kind, item: Any) -> Iterator[str]:
    """What the kernel keeps of any object: its scope's change, its index, and the slot in a quota that the index names."""
    if kind.scope:
        yield keys.change_of(keys.scope(item.id, kind.scope))
    if kind.indexed:
        yield keys.index(kind.name, item.id)
        index = snapshot.values.get(keys.index(kind.name, item.id))
        if index is not None and index.quota_slot:
            yield keys.claim(keys.quota_pool(index.project_id, kind), index.quota_slot)


def _nothing(item: Any) -> Iterator[str]:
    yield from ()


def _label(family: Family, open_: list[str], wanted: tuple[str, str] | None, value: Any) -> str:
    if family.kind:
        return f"{family.kind} {open_[-1]}"
    return " ".join(wanted) if wanted else str(getattr(value, "owner", ""))


def family_of(key: str) -> tuple[Family, list[str]] | None:
    """The family that a key belongs to, and its elements that the pattern leaves open."""
    elements = keys.split(key)
    for pattern, family in _BY_FIRST[elements[0]]:
        rest = pattern[-1] == "**"
        if len(elements) < len(pattern) or (len(elements) > len(pattern) and not rest):
            continue
        pairs = list(zip(pattern, elements, strict=False))
        if all(expected in ("*", "**", element) for expected, element in pairs):
            open_ = [element for expected, element in pairs if expected == "*"]
            return family, [*open_, *(elements[len(pattern) - 1 :] if rest else ())]
    return None


def _by_first(families: Iterable[Family]) -> dict[str, list[tuple[list[str], Family]]]:
    found: dict[str, list[tuple[list[str], Family]]] = defaultdict(list)
    for family in families:
        pattern = family.pattern.split("/")
        found[pattern[0]].append((pattern, family))
    return found


_BY_FIRST = _by_first(FAMILIES)
