"""Which security groups a port has, and how the groups know of it.

A port that can be filtered (port security on, an address, of no service) has at least its project's default group unless
somebody has taken it away. Each group of a port holds what the port sends from, at `keys.members`, written in the port's own
transaction: a key for each pair, so that ports of one group never wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.errors import precondition
from controlplane.registry import KINDS
from controlplane.services import kernel
from controlplane.services.base import Context
from controlplane.services.security import default_group, default_id
from controlplane.store import keys
from controlplane.store.txn import Transaction
from controlplane.values import LINK_LOCAL, addresses, eui64
from kumihimo.v1 import store_pb2

SERVICE = "network:"  # begins the device_owner of a port that a service made for itself


def is_of_service(port: Any) -> bool:
    return bool(port.device_owner.startswith(SERVICE))


def can_have_groups(port: Any) -> bool:
    """Whether groups have any effect on a port."""
    off = port.HasField("port_security_enabled") and not port.port_security_enabled
    return bool(port.fixed_ips) and not off


def has_default_only(port: Any) -> bool:
    """Whether the groups of a port are what it got because nobody named any."""
    return list(port.security_group_ids) == [default_id(port.project_id)]


def sends_from(port: Any) -> list[str]:
    """The addresses and prefixes that a port may send from, in order of text; link-local ones too where it speaks IPv6."""
    given = [(port.mac_address, fixed.ip_address) for fixed in port.fixed_ips]
    given += [(pair.mac_address or port.mac_address, addresses(pair.ip_address)[0]) for pair in port.allowed_address_pairs]
    found = {ip for _, ip in given}
    senders = {mac for mac, ip in given if ":" in ip}
    return sorted(found | {eui64(LINK_LOCAL, mac) for mac in (senders | {port.mac_address} if senders else senders)})


def settle(transaction: Transaction, new: Any, old: Any | None, context: Context) -> None:
    """Give a port, new or changed, the groups that it shall have, and tell these of it."""
    groups = new.security_group_ids
    service = is_of_service(new)
    could = old is not None and old.filtered and can_have_groups(old) and not is_of_service(old)
    if can_have_groups(new):
        if not groups and not service and not could and "security_group_ids" not in context.stated:
            groups.append(default_group(transaction, new.project_id, context))
    elif are_chosen(new, old):
        raise precondition(
            "INCOMPATIBLE_STATE",
            "security_group_ids has no effect on a port without port_security_enabled or without an address; leave it empty",
        )
    else:
        del groups[:]
    # Ports of services are let alone until somebody names groups for them.
    new.filtered = bool(groups) or not service
    _tell(transaction, new, old)


def _tell(transaction: Transaction, new: Any, old: Any | None) -> None:
    """Write what a port's groups hold of it."""
    before = set(sends_from(old)) if old is not None else set()
    now = sends_from(new)
    former = set(old.security_group_ids) if old is not None else set()
    for group in new.security_group_ids:
        if group not in former or before != set(now):
            transaction.put(keys.members(group) + new.id, store_pb2.Member(addresses=now))
        if group in former and not before <= set(now):
            transaction.cut(keys.scope(group, keys.SECURITY), f"addresses of port {new.id}")
    if old is not None:
        leave(transaction, old, former - set(new.security_group_ids))


def leave(transaction: Transaction, port: Any, groups: set[str]) -> None:
    """Have groups forget a port."""
    for group in sorted(groups):
        transaction.delete(keys.members(group) + port.id)
        transaction.cut(keys.scope(group, keys.SECURITY), f"port {port.id}")


def are_chosen(new: Any, old: Any | None) -> bool:
    """Whether somebody has named groups for a port; that it keeps the default group, an update need not say."""
    kept = old is not None and has_default_only(new) and new.security_group_ids == old.security_group_ids
    return bool(new.security_group_ids) and not kept


def is_wrong(port: Any | None, held: Mapping[str, bytes]) -> bool:
    """Whether a port and what its groups hold of it (by group) differ; None: there is no such port."""
    if port is None:
        return bool(held)
    if not port.filtered and not is_of_service(port):
        return True
    return _wanted(port) != held


def _wanted(port: Any) -> dict[str, bytes]:
    """What the groups of a port hold of it, by group."""
    value = store_pb2.Member(addresses=sends_from(port)).SerializeToString()
    return dict.fromkeys(port.security_group_ids, value)


def mend(transaction: Transaction, port_id: str, groups: set[str], context: Context) -> bool:
    """Put right what is wrong with the groups of a port; whether anything was. groups: those that hold something of it."""
    kind = KINDS["Port"]
    key = transaction.locate(kind, port_id)
    if key is None:
        transaction.read(keys.index(kind.name, port_id))
    else:
        transaction.read(key)
    port = transaction.message(kind, key) if key else None
    held = {group: entry.value for group in groups if (entry := transaction.read(keys.members(group) + port_id)) is not None}
    if not is_wrong(port, held):
        return False
    if port is not None and not port.filtered and not is_of_service(port):
        new = kernel.copy(port)
        settle(transaction, new, port, context)
        kernel.restate(transaction, kind, new)
        return True
    wanted = _wanted(port) if port is not None else {}
    for group in sorted({*wanted, *held}):
        if group not in wanted:
            transaction.delete(keys.members(group) + port_id)
        elif wanted[group] != held.get(group):
            transaction.put_bytes(keys.members(group) + port_id, wanted[group])
        if group in held and wanted.get(group) != held[group]:
            transaction.cut(keys.scope(group, keys.SECURITY), f"port {port_id}")
    return True
