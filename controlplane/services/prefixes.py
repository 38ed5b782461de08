"""Prefixes taken out of a pool, no two of which overlap: exact under any concurrency, without a lock that all would share.

A prefix is claimed by its family and its bits: 10.0.0.0/8 as `400001010`. What contains a prefix is then a beginning of its
claim, and what lies in it begins with it. So who takes one compares that a few keys are not there and that nothing begins
with his; two who take prefixes apart from each other do not meet. Only where a pool limits what a project may take, its
whole folder is compared.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from controlplane.errors import exhausted, fault, taken
from controlplane.identity import Caller
from controlplane.registry import KINDS
from controlplane.services.base import Context, label
from controlplane.store import keys
from controlplane.store.txn import Transaction
from controlplane.values import Network, prefix
from kumihimo.v1 import store_pb2

# Shortest and longest prefix of a subnet, by family.
LIMITS = {4: (8, 32), 6: (3, 128)}
BLOCK = {4: 32, 6: 64}  # what default_quota counts: addresses, /64s


def overlap(one: Network, other: Network) -> bool:
    if one.version != other.version:
        return False
    first = max(int(one.network_address), int(other.network_address))
    return first <= min(int(one.broadcast_address), int(other.broadcast_address))


def contains(outer: Network, inner: Network) -> bool:
    return overlap(outer, inner) and outer.prefixlen <= inner.prefixlen


def for_hosts(network: Network) -> bool:
    """Whether hosts may have its addresses."""
    return not (network.is_multicast or network.is_link_local or network.is_loopback)


# -- claims -----------------------------------------------------------------------------------------------------------


def value_of(network: Network) -> str:
    """The value that a prefix is claimed by."""
    bits = f"{int(network.network_address):0{network.max_prefixlen}b}"
    return f"{network.version}{bits[: network.prefixlen]}"


def claimed_by(value: str) -> Network:
    """The prefix that a value claims."""
    bits = value[1:]
    if value[0] == "4":
        return IPv4Network((int(bits.ljust(32, "0"), 2), len(bits)))
    return IPv6Network((int(bits.ljust(128, "0"), 2), len(bits)))


def held(transaction: Transaction, pool: str) -> list[tuple[Network, store_pb2.Claim]]:
    """The prefixes taken out of a pool and who has them, in order."""
    folder = keys.claim(pool)
    found = [
        (claimed_by(key[len(folder) :]), store_pb2.Claim.FromString(entry.value))
        for key, entry in transaction.folder(folder).items()
    ]
    return sorted(found, key=lambda item: int(item[0].network_address))


def take(
    transaction: Transaction, pool: str, network: Network, *, owner: str, project: str, within: int = 0, of: str = ""
) -> tuple[Network, store_pb2.Claim] | None:
    """Take a prefix out of a pool. None: it is taken for `owner`; else the one that overlaps it and who has that.

    within: the length of the shortest prefix that the pool can give out here. of: the network of a subnet.
    """
    folder, mine = keys.claim(pool), value_of(network)
    for length in range(1 + within, len(mine)):
        entry = transaction.read(folder + mine[:length])
        if entry is not None:
            return claimed_by(mine[:length]), store_pb2.Claim.FromString(entry.value)
    transaction.require_unchanged(folder + mine)
    for key, entry in transaction.folder(folder).items():
        if key.startswith(folder + mine):
            return claimed_by(key[len(folder) :]), store_pb2.Claim.FromString(entry.value)
    transaction.put(folder + mine, store_pb2.Claim(owner=owner, project_id=project, network_id=of))
    return None


def give_back(transaction: Transaction, pool: str, network: Network) -> None:
    transaction.delete(keys.claim(pool, value_of(network)))


# -- subnets of a pool ------------------------------------------------------------------------------------------------


def pool_of(transaction: Transaction, pool_id: str) -> Any:
    """The pool of a subnet; the commit happens only if it is as it was read. The kernel has seen that it exists."""
    kind = KINDS["SubnetPool"]
    transaction.read(keys.place(kind, pool_id))
    return transaction.message(kind, keys.place(kind, pool_id))


def allocate(transaction: Transaction, subnet: Any, context: Context) -> None:
    """Give a subnet the prefix that it asks for, or the next free one. Writes its cidr."""
    pool = pool_of(transaction, subnet.subnet_pool_id)
    name = f"SubnetPool {label(pool.id, pool.name)}"
    if subnet.ip_version and subnet.ip_version != pool.ip_version:
        raise fault("ip_version", "IP_FAMILY_MISMATCH", f"ip_version is not that of {name}; leave it out")
    length = prefix(subnet.cidr).prefixlen if subnet.cidr else subnet.prefix_length or pool.default_prefix_length
    if not pool.min_prefix_length <= length <= pool.max_prefix_length:
        field = "cidr" if subnet.cidr else "prefix_length"
        accepted = f"/{pool.min_prefix_length} to /{pool.max_prefix_length}"
        raise fault(field, "VALUE_OUT_OF_RANGE", f"{field} asks for a /{length}; {name} gives {accepted}")
    if not subnet.cidr:
        spans = [prefix(text) for text in pool.prefixes]
        free = _next_free(transaction, keys.prefix_pool(pool.id), spans, length, context)
        if free is None:
            raise exhausted("NO_FREE_PREFIX", f"{name} has no free /{length} left in {', '.join(pool.prefixes)}", pool=pool.id)
        subnet.cidr = str(free)
    take_for(transaction, pool, subnet, context.caller)


def take_for(transaction: Transaction, pool: Any, subnet: Any, caller: Caller) -> None:
    """Take the prefix of a subnet out of a pool. Raises CIDR_INVALID, CIDR_OVERLAP, QUOTA_EXCEEDED."""
    name = f"SubnetPool {label(pool.id, pool.name)}"
    network, claims = prefix(subnet.cidr), keys.prefix_pool(pool.id)
    around = next((outer for outer in map(prefix, pool.prefixes) if contains(outer, network)), None)
    if around is None:
        accepted = ", ".join(pool.prefixes[:8])
        raise fault("cidr", "CIDR_INVALID", f"cidr {network} is in no prefix of {name}; one inside {accepted} is accepted")
    if pool.HasField("default_quota"):
        _check_quota(transaction, pool, subnet, network)
    other = take(
        transaction,
        claims,
        network,
        owner=subnet.id,
        project=subnet.project_id,
        within=around.prefixlen,
        of=subnet.network_id,
    )
    if other is not None:
        holder = holder_of(transaction, "Subnet", other[1], caller)
        raise taken("CIDR_OVERLAP", f"cidr {network} overlaps {other[0]} of {holder} in {name}", holder)


def holder_of(transaction: Transaction, kind: str, claim: store_pb2.Claim, caller: Caller) -> str:
    """How messages name who has a prefix to a caller who may not see it."""
    item = transaction.object(KINDS[kind], claim.owner) if caller.sees(claim.project_id) else None
    return f"{kind} {label(item.id, item.name)}" if item is not None else f"a {kind} of another project"


def _check_quota(transaction: Transaction, pool: Any, subnet: Any, network: Network) -> None:
    claims = keys.prefix_pool(pool.id)
    transaction.require_unchanged(keys.claim(claims))
    used = sum(_blocks(item) for item, claim in held(transaction, claims) if claim.project_id == subnet.project_id)
    if used + _blocks(network) > pool.default_quota:
        what = "addresses" if network.version == 4 else "/64s"
        raise exhausted(
            "QUOTA_EXCEEDED",
            f"project {subnet.project_id} may have {pool.default_quota} {what} of SubnetPool {label(pool.id, pool.name)}, has"
            f" {used} and asks for {_blocks(network)}; delete subnets, or ask the pool's owner for a higher default_quota",
            quota=pool.id,
            limit=str(pool.default_quota),
            used=str(used),
        )


def _blocks(network: Network) -> int:
    return 1 << max(0, BLOCK[network.version] - network.prefixlen)


def _next_free(
    transaction: Transaction, pool: str, prefixes: Iterable[Network], length: int, context: Context
) -> Network | None:
    """The first free prefix of a length that lies in one of `prefixes`."""
    spans = sorted(
        (int(item.network_address), int(item.broadcast_address), item) for item in prefixes if item.prefixlen <= length
    )
    if not spans:
        return None
    size = 1 << (spans[0][2].max_prefixlen - length)
    used = [(int(item.network_address), int(item.broadcast_address)) for item, _ in held(transaction, pool)]
    # The first, but where others are faster and it is tried again: then those who take from one pool should not meet again.
    start = context.hints.start(pool, spans[0][0], spans[-1][1])
    for low, high in [(max(low, start), high) for low, high, _ in spans] + [(low, high) for low, high, _ in spans]:
        while (found := _gap(low, high, size, used)) is not None:
            network = type(spans[0][2])((found, length))
            if not transaction.holds(keys.claim(pool, value_of(network))):
                context.hints.took(pool, spans[0][0] - 1)  # the next begins with the first again
                return network
            low = found + size  # another of the batch takes it
    return None


def _gap(low: int, high: int, size: int, used: list[tuple[int, int]]) -> int | None:
    """The first number of [low, high] that begins a block of `size` aligned numbers of which none is used."""
    firsts = [first for first, _ in used]
    at = -(-low // size) * size
    while at + size - 1 <= high:
        before = bisect_right(firsts, at + size - 1) - 1
        if before < 0 or used[before][1] < at:
            return at
        at = -(-(used[before][1] + 1) // size) * size
    return None
