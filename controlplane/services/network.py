"""Networks: type, segment, MTU, and the numbers a network is known by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlplane.errors import Violation, exhausted, fault, precondition, taken
from controlplane.registry import KINDS
from controlplane.services import kernel
from controlplane.services.availability import availability
from controlplane.services.base import (
    Context,
    Rules,
    claim,
    claim_free,
    first_free,
    hold,
    in_use,
    label,
    messages,
    release,
    subnets_of,
)
from controlplane.services.segment import DEFAULT_MTU, SEGMENTS, draw, segment_of, type_name
from controlplane.services.subnet import LEAST_MTU_OF_IPV6
from controlplane.store import keys
from controlplane.store.txn import Transaction
from controlplane.values import overhead, service_mac
from kumihimo.v1 import network_pb2 as pb

PHYSICAL = {pb.NETWORK_TYPE_VLAN, pb.NETWORK_TYPE_FLAT}
LEAST_MTU = 68
KEY_POOL = "network-key"
KEYS = (1, (1 << 24) - 1)


class NetworkRules(Rules):
    """See the module."""

    kind = "Network"

    def __init__(self) -> None:
        self.reads = {"GetIpAvailability": availability}

    def complete(self, new: Any, context: Context) -> None:
        if not new.network_type:
            new.network_type = pb.NetworkType.Value(f"NETWORK_TYPE_{context.defaults.network_type.upper()}")
        for field in ("admin_state_up", "port_security_enabled"):
            if not new.HasField(field):
                setattr(new, field, True)
        if not new.HasField("mtu") and new.network_type not in PHYSICAL:
            new.mtu = _underlay_ceiling(new, context)
        new.dns_domain = new.dns_domain or context.defaults.dns_domain

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        if new.network_type not in pb.NetworkType.values():
            return  # the descriptor's rules have said so
        kind = type_name(new.network_type)
        if new.segments and (new.physical_network or new.segmentation_id):
            yield Violation(
                "segments",
                "FIELDS_EXCLUSIVE",
                "segments excludes physical_network and segmentation_id; give the one or the other",
            )
        if new.network_type not in PHYSICAL and new.physical_network:
            yield Violation(
                "physical_network",
                "FIELDS_EXCLUSIVE",
                f"physical_network is for VLAN and FLAT; a {kind} network has none",
            )
        if new.network_type == pb.NETWORK_TYPE_FLAT and not new.physical_network:
            yield Violation("physical_network", "MISSING_FIELD", "physical_network is missing; a FLAT network needs one")
        if new.segmentation_id:
            yield from self._check_segment(new, kind)
            if new.network_type == pb.NETWORK_TYPE_VLAN and not new.physical_network:
                text = "physical_network is missing; it goes with the segmentation_id of a VLAN network"
                yield Violation("physical_network", "MISSING_FIELD", text)
        if new.network_type not in PHYSICAL:
            ceiling = _underlay_ceiling(new, context)
            if text := _mtu_fault(new, old, ceiling, f"{kind} over this underlay"):
                yield Violation("mtu", "VALUE_OUT_OF_RANGE", text)

    def _check_segment(self, new: Any, kind: str) -> Iterator[Violation]:
        if new.network_type not in SEGMENTS:
            yield Violation(
                "segmentation_id", "VALUE_OUT_OF_RANGE", f"segmentation_id: a {kind} network has none; leave it out"
            )
            return
        low, high = SEGMENTS[new.network_type]
        if not low <= new.segmentation_id <= high:
            yield Violation(
                "segmentation_id",
                "VALUE_OUT_OF_RANGE",
                f"segmentation_id is {new.segmentation_id}; {low} to {high} is accepted for {kind}",
            )

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        if new.network_type in SEGMENTS and not new.segmentation_id:
            draw(transaction, new, context)
        self._fit_physical(transaction, new, None)
        segment = segment_of(new)
        if segment is not None:
            self._claim(transaction, *segment, new, "segmentation_id" if new.segmentation_id else "physical_network")
        key = first_free(transaction, KEY_POOL, *KEYS, context)
        if key is None:
            raise exhausted("NO_FREE_SEGMENT", f"all {KEYS[1]} numbers of networks are in use", pool=KEY_POOL)
        new.key = key
        for pool, value in ((KEY_POOL, new.key), (keys.mac_pool(new.id), service_mac(new.key))):
            claim_free(transaction, pool, value, owner=new.id, project=new.project_id, network=new.id)

    def _claim(self, transaction: Transaction, pool: str, number: object, new: Any, field: str) -> None:
        holder = claim(transaction, pool, number, owner=new.id, project=new.project_id, network=new.id)
        if holder is None:
            return
        if holder.releasing:
            raise taken(
                "SEGMENT_TAKEN",
                f"{field} {number} was in use until now and is free again when the nodes have let go of it; try again",
                holder.owner,
            )
        network = transaction.object(KINDS["Network"], holder.owner)
        name = label(holder.owner, network.name) if network else holder.owner
        raise taken("SEGMENT_TAKEN", f"{field} {number} is taken by Network {name}; leave it out to have one chosen", name)

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        new.key = old.key
        self._fit_physical(transaction, new, old)
        if new.mtu < LEAST_MTU_OF_IPV6 and new.mtu != old.mtu:
            _refuse_small_mtu(transaction, new)

    def _fit_physical(self, transaction: Transaction, new: Any, old: Any | None) -> None:
        """The MTU of a VLAN or FLAT network: at most that of the physical network that carries it, which is the default."""
        if new.network_type not in PHYSICAL or (old is not None and new.mtu == old.mtu):
            return
        key = keys.place(KINDS["PhysicalNetwork"], new.physical_network)
        transaction.read(key)
        wire = transaction.message(KINDS["PhysicalNetwork"], key)
        ceiling = wire.mtu if wire is not None else DEFAULT_MTU
        if not new.HasField("mtu"):
            new.mtu = ceiling
        if text := _mtu_fault(new, old, ceiling, f"physical network {new.physical_network}"):
            raise fault("mtu", "VALUE_OUT_OF_RANGE", text)

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        ports = messages(transaction, "Port", keys.ports(old.id))
        subnets = subnets_of(transaction, old.id)
        bound = {key.rsplit("/", 1)[1] for key in transaction.folder(keys.bindings(old.id))}
        kept = [port for port in ports if not force or port.id in bound or port.device_owner]
        if kept:
            referrers = [f"Port {label(port.id, port.name)}" for port in kept]
            if not force:
                referrers += [f"Subnet {label(subnet.id, subnet.name)}" for subnet in subnets]
            raise in_use("Network", old.id, old.name, sorted(referrers))
        for child in (*ports, *subnets):
            if child.deletion_protection:
                kind = child.DESCRIPTOR.name
                raise precondition(
                    "DELETION_PROTECTED",
                    f"{kind} {label(child.id, child.name)} of Network {label(old.id, old.name)} is protected; set its"
                    " deletion_protection to false first",
                )
        for kind, children in (("Port", ports), ("Subnet", subnets)):
            for child in children:
                kernel.remove(transaction, KINDS[kind], child, force, context)
        for folder in (keys.ports(old.id), keys.subnets(old.id)):
            hold(transaction, folder)
        transaction.delete_prefix(keys.scope(old.id))
        transaction.delete_prefix(keys.claim(f"net/{old.id}"))
        segment = segment_of(old)
        if segment is not None:
            release(transaction, *segment)
        release(transaction, KEY_POOL, old.key)


def _underlay_ceiling(network: Any, context: Context) -> int:
    """The largest MTU that the underlay allows a network of its type."""
    defaults = context.defaults
    return defaults.underlay_mtu - overhead(network.network_type, defaults.underlay_ip_version)


def _mtu_fault(new: Any, old: Any | None, ceiling: int, what: str) -> str:
    """What is wrong with a network's MTU; one that exists keeps its own when what carries it is lowered."""
    if LEAST_MTU <= new.mtu <= ceiling or (old is not None and new.mtu == old.mtu):
        return ""
    return f"mtu is {new.mtu}; {LEAST_MTU} to {ceiling} is accepted for {what}"


def _refuse_small_mtu(transaction: Transaction, new: Any) -> None:
    transaction.require_unchanged(keys.subnets(new.id))
    for subnet in subnets_of(transaction, new.id):
        if subnet.ip_version == pb.IP_VERSION_IPV6:
            name = label(subnet.id, subnet.name)
            text = f"mtu is {new.mtu}; Subnet {name} is IPv6 and needs {LEAST_MTU_OF_IPV6} or more"
            raise fault("mtu", "VALUE_OUT_OF_RANGE", text)
