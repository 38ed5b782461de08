"""Addresses that guests form by themselves (SLAAC, stateless DHCPv6), of ports that are there when such a subnet comes or goes.

A guest forms one of every prefix that it is told, whether its port has it or not: so the subnet gives its address to every port
of the network, and takes it away again. Let alone are ports of services and those with `no_fixed_ips`.

A few ports are written together with the subnet. For many it leaves a note (`keys.forming`) that the controller `addresses`
works off: what was made before the note gets its address, what comes later chooses for itself.
"""

from __future__ import annotations

from typing import Any

from controlplane.errors import ApiError
from controlplane.registry import KINDS
from controlplane.services import kernel, membership
from controlplane.services.base import Context, claim, hold, in_use, label, messages
from controlplane.store import keys
from controlplane.store.txn import Transaction
from controlplane.values import eui64, prefix
from kumihimo.v1 import store_pb2

FEW = 100  # ports that are written with the subnet: some 500 operations, 30 ms
MOST = 1000  # ports that a subnet can be taken from at once: some 5,000 operations of a transaction
MOST_ADDRESSES = 16  # of a port (port.proto)


def come(transaction: Transaction, subnet: Any, context: Context) -> None:
    """A subnet is made: its network's ports get their addresses, now or soon."""
    folder = keys.ports(subnet.network_id)
    if transaction.count(folder) > FEW:
        transaction.put(keys.forming(subnet.id), store_pb2.Index(parent_id=subnet.network_id))
        return
    hold(transaction, folder)
    for port in messages(transaction, "Port", folder):
        give(transaction, subnet, port, context)


def give(transaction: Transaction, subnet: Any, port: Any, context: Context) -> bool:
    """Give a port its address of a subnet; whether it has got one now."""
    alone = membership.is_of_service(port) or port.no_fixed_ips or len(port.fixed_ips) >= MOST_ADDRESSES
    if alone or any(fixed.subnet_id == subnet.id for fixed in port.fixed_ips):
        return False
    formed = eui64(prefix(subnet.cidr), port.mac_address)
    pool, owner, project = keys.ip_pool(subnet.network_id, subnet.id), port.id, port.project_id
    if claim(transaction, pool, formed, owner=owner, project=project, network=subnet.network_id) is not None:
        return False
    new = kernel.copy(port)
    new.fixed_ips.add(subnet_id=subnet.id, ip_address=formed)
    membership.settle(transaction, new, port, context)
    kernel.restate(transaction, KINDS["Port"], new)
    return True


def go(transaction: Transaction, subnet: Any, holders: set[str], context: Context) -> None:
    """A subnet is deleted, with all claims of its addresses: the ports that hold them lose them. RESOURCE_IN_USE when they are
    too many, or have nothing else that the groups which were chosen for them could filter."""
    found = [port for port in (transaction.object(KINDS["Port"], holder) for holder in sorted(holders)) if port is not None]
    held = [port for port in found if len(found) > MOST or _needs(port)]
    if held:
        raise used_by(subnet, held)
    for port in found:
        new = kernel.copy(port)
        new.ClearField("fixed_ips")
        new.fixed_ips.extend(fixed for fixed in port.fixed_ips if fixed.subnet_id != subnet.id)
        membership.settle(transaction, new, port, context)
        kernel.restate(transaction, KINDS["Port"], new)
    if transaction.get(keys.forming(subnet.id)) is not None:
        transaction.delete(keys.forming(subnet.id))


def used_by(subnet: Any, ports: list[Any]) -> ApiError:
    """Ports hold addresses of the subnet."""
    return in_use("Subnet", subnet.id, subnet.name, [f"Port {label(port.id, port.name)}" for port in ports])


def _needs(port: Any) -> bool:
    return len(port.fixed_ips) == 1 and bool(port.security_group_ids) and not membership.has_default_only(port)
