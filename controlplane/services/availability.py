"""How many addresses the subnets of a network have, and how many are left (`Networks.GetIpAvailability`)."""

from __future__ import annotations

from typing import Any

from controlplane.registry import KINDS
from controlplane.services import kernel
from controlplane.services.base import Context, subnets_of
from controlplane.services.subnet import ranges, usable
from controlplane.store import keys
from controlplane.store.txn import Transaction
from controlplane.values import address, prefix
from kumihimo.v1 import network_pb2 as pb
from kumihimo.v1 import store_pb2


def availability(transaction: Transaction, request: Any, context: Context) -> Any:
    _, network = kernel.find(transaction, KINDS["Network"], request.id, context)
    return pb.GetIpAvailabilityResponse(
        subnets=[_of_subnet(transaction, subnet) for subnet in subnets_of(transaction, network.id)]
    )


def _of_subnet(transaction: Transaction, subnet: Any) -> Any:
    first, last = usable(prefix(subnet.cidr))
    pools = ranges(subnet)
    free = sum(high - low + 1 for low, high in pools)
    used = 0
    folder = keys.claim(keys.ip_pool(subnet.network_id, subnet.id))
    for key, entry in transaction.folder(folder).items():
        number = int(address(key[len(folder) :]))
        free -= any(low <= number <= high for low, high in pools)
        claim = store_pb2.Claim.FromString(entry.value)
        used += not claim.releasing and claim.owner != subnet.id
    total = last - first + 1
    return pb.SubnetAvailability(
        subnet_id=subnet.id,
        cidr=subnet.cidr,
        total=str(total),
        used=str(used),
        free=str(free),
        reserved=str(total - used - free),
    )
