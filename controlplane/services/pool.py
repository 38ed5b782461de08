"""Subnet pools and address scopes: which prefixes subnets may take, and where no two may be the same.

Prefixes of pools are claimed in their scope, those of subnets in their pool; since a subnet's lies in one of its pool's,
no two subnets of a scope overlap either.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from controlplane.errors import (
    ApiError,
    Code,
    Violation,
    fault,
    precondition,
    reference_not_found,
    taken,
)
from controlplane.registry import KINDS
from controlplane.services import kernel, prefixes
from controlplane.services.base import Context, Rules, claim, in_use, label, subnets_of
from controlplane.store import keys
from controlplane.store.txn import Transaction
from controlplane.values import Invalid, Network, prefix
from kumihimo.v1 import store_pb2

LEAST = {4: 8, 6: 64}  # min_prefix_length where nobody says
DEFAULT_POOLS = "default-subnet-pool"


class AddressScopeRules(Rules):
    """See the module."""

    kind = "AddressScope"

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        claims = keys.scope_pool(old.id)
        transaction.require_unchanged(keys.claim(claims))
        holders = {item.owner: item for _, item in prefixes.held(transaction, claims)}
        if holders:
            raise in_use(self.kind, old.id, old.name, _shown(transaction, "SubnetPool", holders, context))


class SubnetPoolRules(Rules):
    """See the module."""

    kind = "SubnetPool"

    def __init__(self) -> None:
        self.changes = {"AddPrefixes": _add, "RemovePrefixes": _remove, "Onboard": _onboard}

    def complete(self, new: Any, context: Context) -> None:
        networks = _networks(new)
        if networks and not new.ip_version:
            new.ip_version = networks[0].version
        if new.ip_version in prefixes.LIMITS:
            new.min_prefix_length = new.min_prefix_length or LEAST[new.ip_version]
            new.max_prefix_length = new.max_prefix_length or prefixes.LIMITS[new.ip_version][1]
            new.default_prefix_length = new.default_prefix_length or new.min_prefix_length

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        networks = _networks(new)
        if len(networks) < len(new.prefixes) or not networks:
            return  # the descriptor's rules have said so
        for number, network in enumerate(networks):
            place = f"prefixes[{number}]"
            if network.version != new.ip_version:
                text = f"{place} {network} is not of IPv{new.ip_version} as the others; a pool has one family"
                yield Violation(place, "IP_FAMILY_MISMATCH", text)
            if not prefixes.for_hosts(network):
                text = f"{place} {network} is multicast, link-local or loopback; one that hosts may have is accepted"
                yield Violation(place, "CIDR_INVALID", text)
        for one, other in combinations(networks, 2):
            if prefixes.overlap(one, other):
                text = f"prefixes holds {one} and {other}, which overlap; prefixes that are disjoint are accepted"
                yield Violation("prefixes", "CIDR_OVERLAP", text, Code.ALREADY_EXISTS)
                break
        yield from self._check_lengths(new)

    def _check_lengths(self, new: Any) -> Iterator[Violation]:
        low, high = prefixes.LIMITS[new.ip_version]
        least, most = new.min_prefix_length, new.max_prefix_length
        for field, bottom, top in (
            ("min_prefix_length", low, min(most, high)),
            ("max_prefix_length", low, high),
            ("default_prefix_length", least, most),
        ):
            length = getattr(new, field)
            if not bottom <= length <= top:
                yield Violation(field, "VALUE_OUT_OF_RANGE", f"{field} is {length}; {bottom} to {top} is accepted here")

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        self._join_scope(transaction, new, set(), context)
        if new.is_default:
            self._claim_default(transaction, new)

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        if old.prefixes != new.prefixes:
            self._refuse_lost(transaction, old, new, context)
        stay = set(new.prefixes) if old.address_scope_id == new.address_scope_id else set()
        self._leave_scope(transaction, old, stay)
        self._join_scope(transaction, new, stay & set(old.prefixes), context)
        if old.is_default and not new.is_default:
            transaction.delete(keys.claim(DEFAULT_POOLS, old.ip_version))
        if new.is_default and not old.is_default:
            self._claim_default(transaction, new)

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        claims = keys.prefix_pool(old.id)
        transaction.require_unchanged(keys.claim(claims))
        holders = {item.owner: item for _, item in prefixes.held(transaction, claims)}
        if holders:
            raise in_use(self.kind, old.id, old.name, _shown(transaction, "Subnet", holders, context))
        self._leave_scope(transaction, old, set())
        if old.is_default:
            transaction.delete(keys.claim(DEFAULT_POOLS, old.ip_version))

    def _refuse_lost(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        """Refuse to take prefixes away that subnets have. Who takes one meanwhile has read the pool as it was."""
        claims, networks = keys.prefix_pool(new.id), _networks(new)
        for text in old.prefixes:
            if text not in new.prefixes:
                transaction.require_unchanged(keys.claim(claims, prefixes.value_of(prefix(text))))
        lost = {
            item.owner: item
            for network, item in prefixes.held(transaction, claims)
            if not any(prefixes.contains(outer, network) for outer in networks)
        }
        if lost:
            raise in_use(self.kind, old.id, old.name, _shown(transaction, "Subnet", lost, context))

    def _leave_scope(self, transaction: Transaction, old: Any, stay: set[str]) -> None:
        for text in old.prefixes if old.address_scope_id else ():
            if text not in stay:
                prefixes.give_back(transaction, keys.scope_pool(old.address_scope_id), prefix(text))

    def _join_scope(self, transaction: Transaction, new: Any, there: set[str], context: Context) -> None:
        if not new.address_scope_id:
            return
        scope = transaction.object(KINDS["AddressScope"], new.address_scope_id)
        if scope is not None and scope.ip_version != new.ip_version:
            text = f"address_scope_id names AddressScope {label(scope.id, scope.name)}, which is of IPv{scope.ip_version}"
            raise fault("address_scope_id", "IP_FAMILY_MISMATCH", f"{text}; one of IPv{new.ip_version} is accepted")
        for text in new.prefixes:
            if text in there:
                continue
            claims = keys.scope_pool(new.address_scope_id)
            other = prefixes.take(transaction, claims, prefix(text), owner=new.id, project=new.project_id)
            if other is not None:
                holder = prefixes.holder_of(transaction, self.kind, other[1], context.caller)
                said = f"prefixes holds {text}, which overlaps {other[0]} of {holder} in the same address scope"
                raise taken("CIDR_OVERLAP", said, holder)

    def _claim_default(self, transaction: Transaction, new: Any) -> None:
        holder = claim(transaction, DEFAULT_POOLS, new.ip_version, owner=new.id, project=new.project_id)
        if holder is not None:
            other = transaction.object(KINDS[self.kind], holder.owner)
            name = label(holder.owner, other.name if other is not None else "")
            text = f"is_default: SubnetPool {name} is the default of IPv{new.ip_version}; unset it there first"
            raise taken("DEFAULT_TAKEN", text, name)


def _networks(pool: Any) -> list[Network]:
    """The prefixes of a pool that are any."""
    found = []
    for text in pool.prefixes:
        try:
            found.append(prefix(text))
        except Invalid:
            continue
    return found


def _shown(transaction: Transaction, kind: str, holders: dict[str, store_pb2.Claim], context: Context) -> list[str]:
    return sorted(prefixes.holder_of(transaction, kind, item, context.caller) for item in holders.values())


# -- methods beside the standard ones ---------------------------------------------------------------------------------


def _with_prefixes(transaction: Transaction, pool: Any, texts: list[str], context: Context) -> Any:
    kind = KINDS["SubnetPool"]
    return kernel.update(transaction, kind, kind.message(id=pool.id, prefixes=texts), ["prefixes"], context)


def _add(transaction: Transaction, request: Any, context: Context) -> Any:
    """What the pool has already stays."""
    _, pool = kernel.find(transaction, KINDS["SubnetPool"], request.id, context)
    return _with_prefixes(transaction, pool, sorted({*pool.prefixes, *request.prefixes}), context)


def _remove(transaction: Transaction, request: Any, context: Context) -> Any:
    _, pool = kernel.find(transaction, KINDS["SubnetPool"], request.id, context)
    name = f"SubnetPool {label(pool.id, pool.name)}"
    for number, text in enumerate(request.prefixes):
        if text not in pool.prefixes:
            accepted = ", ".join(pool.prefixes[:8])
            place = f"prefixes[{number}]"
            raise ApiError(
                Code.NOT_FOUND,
                "REFERENCE_NOT_FOUND",
                f"{place}: {name} has no prefix {text}; of {accepted} each may be removed",
                {"field": place},
            )
    left = [text for text in pool.prefixes if text not in request.prefixes]
    if not left:
        raise precondition("INCOMPATIBLE_STATE", f"{name} keeps one prefix at least; delete the pool to remove the last")
    return _with_prefixes(transaction, pool, left, context)


def _onboard(transaction: Transaction, request: Any, context: Context) -> Any:
    """Take the subnets of a network into a pool, with their prefixes where the pool does not have them."""
    _, pool = kernel.find(transaction, KINDS["SubnetPool"], request.id, context)
    networks = KINDS["Network"]
    key = transaction.locate(networks, request.network_id)
    network = transaction.message(networks, key) if key and transaction.require(key) else None
    if network is None or not kernel.visible(networks, network, context.caller):
        raise reference_not_found("network_id", "Network", request.network_id)
    transaction.require_unchanged(keys.subnets(network.id))
    new = [item for item in subnets_of(transaction, network.id) if item.ip_version == pool.ip_version]
    new = [item for item in new if item.subnet_pool_id != pool.id]
    for subnet in new:
        if subnet.subnet_pool_id:
            text = f"Subnet {label(subnet.id, subnet.name)} of Network {label(network.id, network.name)} is of SubnetPool"
            raise precondition("INCOMPATIBLE_STATE", f"{text} {subnet.subnet_pool_id}; subnets of no pool can be taken in")
    held = [prefix(text) for text in pool.prefixes]
    more = [item.cidr for item in new if not any(prefixes.contains(outer, prefix(item.cidr)) for outer in held)]
    changed = _with_prefixes(transaction, pool, sorted({*pool.prefixes, *more}), context)
    for subnet in new:
        prefixes.take_for(transaction, changed, subnet, context.caller)
        kernel.amend(transaction, KINDS["Subnet"], subnet, subnet_pool_id=pool.id)
    return changed
