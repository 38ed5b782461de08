"""Physical networks, and the numbers by which the wire tells networks apart: of which ranges, for which projects.

A network draws its number from the ranges that are open to its project. It compares what it has read of the ranges, so a
range that is shrunk, closed or deleted meanwhile makes it draw again; and who shrinks a range compares the claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from controlplane.errors import Violation, exhausted, reference_not_found, taken
from controlplane.registry import KINDS
from controlplane.services.base import Context, Rules, first_free, in_use, label, messages
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.txn import Transaction
from kumihimo.v1 import network_pb2 as pb
from kumihimo.v1 import store_pb2

SEGMENTS = {
    pb.NETWORK_TYPE_VLAN: (1, 4094),
    pb.NETWORK_TYPE_VXLAN: (1, (1 << 24) - 1),
    pb.NETWORK_TYPE_GENEVE: (1, (1 << 24) - 1),
    pb.NETWORK_TYPE_GRE: (1, (1 << 32) - 1),
}
TUNNELLED = (pb.NETWORK_TYPE_VXLAN, pb.NETWORK_TYPE_GRE, pb.NETWORK_TYPE_GENEVE)
DEFAULT_MTU = 1500
RANGES = keys.place(KINDS["NetworkSegmentRange"], "")


def type_name(network_type: int) -> str:
    """VXLAN for NETWORK_TYPE_VXLAN; the number itself when it means nothing."""
    if network_type not in pb.NetworkType.values():
        return str(network_type)
    return pb.NetworkType.Name(network_type).removeprefix("NETWORK_TYPE_")


def pool_of(item: Any) -> str:
    """The claims of the numbers of a network's, or a range's, type and physical network."""
    name = type_name(item.network_type).lower()
    return f"{name}/{item.physical_network}" if item.network_type == pb.NETWORK_TYPE_VLAN else name


def segment_of(network: Any) -> tuple[str, object] | None:
    """(claims, value): what no other network may have of the underlay; None for a LOCAL network."""
    if network.network_type in SEGMENTS:
        return pool_of(network), network.segmentation_id
    if network.network_type == pb.NETWORK_TYPE_FLAT:
        return pool_of(network), network.physical_network
    return None


def serves(item: Any, project: str) -> bool:
    """Whether networks of a project draw from a range."""
    return not item.projects or project in item.projects


def draw(transaction: Transaction, network: Any, context: Context) -> None:
    """Choose the network's number, and its physical network where it has none and needs one. Raises NO_FREE_SEGMENT."""
    kind = type_name(network.network_type)
    transaction.require_unchanged(RANGES)
    ranges = [
        item
        for item in messages(transaction, "NetworkSegmentRange", RANGES)
        if item.network_type == network.network_type and network.physical_network in ("", item.physical_network)
    ]
    spans = [item for item in ranges if serves(item, network.project_id)]
    for item in spans:
        transaction.read(RANGES + item.id)
    if not ranges and network.network_type != pb.NETWORK_TYPE_VLAN:
        low, high = SEGMENTS[network.network_type]
        spans = [KINDS["NetworkSegmentRange"].message(network_type=network.network_type, minimum=low, maximum=high)]
    for item in spans:
        number = first_free(transaction, pool_of(item), item.minimum, item.maximum, context)
        if number is not None:
            network.segmentation_id, network.physical_network = number, item.physical_network
            return
    shown = ", ".join(f"{item.minimum} to {item.maximum}" for item in spans)
    raise exhausted(
        "NO_FREE_SEGMENT",
        f"every number of {shown} is in use for {kind}; delete networks, or ask an operator for a larger range"
        if spans
        else f"no range of {kind} numbers is open to project {network.project_id}; ask an operator for one",
        pool=kind.lower(),
    )


def holders(transaction: Transaction, item: Any) -> list[Any]:
    """The networks that hold numbers of a range; the commit happens only if no others do."""
    folder = keys.claim(pool_of(item))
    transaction.require_unchanged(folder)
    found = []
    for key, entry in transaction.folder(folder).items():
        claim = store_pb2.Claim.FromString(entry.value)
        if not claim.releasing and item.minimum <= int(key[len(folder) :]) <= item.maximum:
            network = transaction.object(KINDS["Network"], claim.owner)
            if network is not None:
                found.append(network)
    return sorted(found, key=lambda network: int(network.segmentation_id))


def numbers(cache: Cache, item: Any) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(held, free) of a range, as spans."""
    folder = keys.claim(pool_of(item))
    held = sorted(int(key[len(folder) :]) for key in cache.folder(folder))
    used: list[tuple[int, int]] = []
    free: list[tuple[int, int]] = []
    at = item.minimum
    for number in held:
        if not item.minimum <= number <= item.maximum:
            continue
        if used and number == used[-1][1] + 1:
            used[-1] = used[-1][0], number
        else:
            used.append((number, number))
        if number > at:
            free.append((at, number - 1))
        at = number + 1
    if at <= item.maximum:
        free.append((at, item.maximum))
    return used, free


class PhysicalNetworkRules(Rules):
    """See the module."""

    kind = "PhysicalNetwork"

    def complete(self, new: Any, context: Context) -> None:
        if not new.HasField("mtu"):
            new.mtu = DEFAULT_MTU

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        transaction.require_unchanged(keys.NODES)
        transaction.require_unchanged(RANGES)
        referrers = [f"Node {node}" for node in nodes_on(transaction.cache, old.id)]
        for item in messages(transaction, "NetworkSegmentRange", RANGES):
            if item.physical_network == old.id:
                referrers.append(f"NetworkSegmentRange {label(item.id, item.name)}")
        flat, vlans = keys.claim("flat", old.id), keys.claim(f"vlan/{old.id}")
        transaction.require_unchanged(vlans)
        entries = [transaction.read(flat), *transaction.folder(vlans).values()]
        for entry in entries:
            claim = store_pb2.Claim.FromString(entry.value) if entry else None
            if claim is not None and not claim.releasing:
                referrers.append(f"Network {claim.owner}")
        if referrers:
            raise in_use(self.kind, old.id, old.name, sorted(referrers))


def nodes_on(cache: Cache, physical_network: str) -> list[str]:
    """The nodes that are attached to a physical network."""
    kind = KINDS["Node"]
    found = []
    for node_id in cache.ids(kind):
        node = cache.message(kind, keys.node(node_id))
        if node is not None and physical_network in node.bridge_mappings:
            found.append(node_id)
    return found


class NetworkSegmentRangeRules(Rules):
    """See the module."""

    kind = "NetworkSegmentRange"

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        if new.network_type not in SEGMENTS:
            if new.network_type in pb.NetworkType.values() and new.network_type:
                names = ", ".join(type_name(number) for number in SEGMENTS)
                text = f"network_type {type_name(new.network_type)} has no numbers; one of {names} is accepted"
                yield Violation("network_type", "ENUM_INVALID", text)
            return
        kind = type_name(new.network_type)
        if new.network_type == pb.NETWORK_TYPE_VLAN and not new.physical_network:
            yield Violation("physical_network", "MISSING_FIELD", "physical_network is missing; a range of VLAN needs one")
        if new.network_type != pb.NETWORK_TYPE_VLAN and new.physical_network:
            text = f"physical_network is for VLAN; a range of {kind} has none"
            yield Violation("physical_network", "FIELDS_EXCLUSIVE", text)
        low, high = SEGMENTS[new.network_type]
        for field in ("minimum", "maximum"):
            number = getattr(new, field)
            if number and not low <= number <= high:
                text = f"{field} is {number}; {low} to {high} is accepted for {kind}"
                yield Violation(field, "VALUE_OUT_OF_RANGE", text)
        if new.minimum and new.maximum and new.minimum > new.maximum:
            text = f"minimum is {new.minimum}; at most maximum, which is {new.maximum}, is accepted"
            yield Violation("minimum", "VALUE_OUT_OF_RANGE", text)

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        self._refuse_overlap(transaction, new)

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        if (old.minimum, old.maximum, old.projects) == (new.minimum, new.maximum, new.projects):
            return
        self._refuse_overlap(transaction, new)
        self._refuse_held(transaction, old, new)

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        self._refuse_held(transaction, old, None)

    def _refuse_overlap(self, transaction: Transaction, new: Any) -> None:
        transaction.require_unchanged(RANGES)
        for other in messages(transaction, self.kind, RANGES):
            if other.id == new.id or pool_of(other) != pool_of(new):
                continue
            if other.minimum > new.maximum or new.minimum > other.maximum or not _common(new.projects, other.projects):
                continue
            name = label(other.id, other.name)
            text = f"minimum {new.minimum} to maximum {new.maximum} overlaps {other.minimum} to {other.maximum} of"
            raise taken("SEGMENT_TAKEN", f"{text} NetworkSegmentRange {name}, which serves the same projects", name)

    def _refuse_held(self, transaction: Transaction, old: Any, new: Any | None) -> None:
        """Refuse while networks hold numbers that the range has given them and no longer would."""
        lost = [
            network
            for network in holders(transaction, old)
            if serves(old, network.project_id)
            and not (
                new is not None and new.minimum <= network.segmentation_id <= new.maximum and serves(new, network.project_id)
            )
        ]
        if lost:
            shown = [f"Network {label(item.id, item.name)} with {item.segmentation_id}" for item in lost]
            raise in_use(self.kind, old.id, old.name, shown)


def _common(one: Iterable[str], other: Iterable[str]) -> bool:
    mine, theirs = set(one), set(other)
    return not mine or not theirs or not mine.isdisjoint(theirs)


def require_physical_networks(transaction: Transaction, names: Iterable[str]) -> None:
    """The keys of a node's bridge_mappings exist, and stay until the commit. Raises REFERENCE_NOT_FOUND."""
    kind = KINDS["PhysicalNetwork"]
    for name in names:
        if (kind.name, name) not in transaction.promised and transaction.require(keys.place(kind, name)) is None:
            raise reference_not_found("bridge_mappings", kind.name, name)
