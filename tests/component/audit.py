"""What must hold for the keys in the store after anything whatever has happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from controlplane.registry import KINDS
from controlplane.services import prefixes
from controlplane.services.segment import segment_of
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.values import prefix
from kumihimo.v1 import port_pb2, store_pb2

INDEXED = {name.lower(): name for name, kind in KINDS.items() if kind.indexed}


def faults(entries: Mapping[str, Entry]) -> list[str]:
    """What is wrong with the store: objects, claims, index and bindings must follow from each other, and nothing else be."""
    found: list[str] = []
    objects: dict[tuple[str, str], Any] = {}
    for key, item in entries.items():
        here = keys.resource(key)
        match keys.split(key):
            case ["net", network, _, object_id] if here is not None:
                objects[here[0].name, object_id] = message = here[0].new(item.value)
                if message.network_id != network:
                    found.append(f"{key}: its network_id is {message.network_id}")
            case _ if here is not None:
                objects[here[0].name, here[1]] = here[0].new(item.value)
    # key → its owner's id, for every key that the objects call for.
    claims: dict[str, str] = {}
    others: set[str] = set()

    def needs(pool: str, value: object, owner: str) -> None:
        key = keys.claim(pool, value)
        if key in claims:
            found.append(f"{key}: wanted by {claims[key]} and by {owner}")
        claims[key] = owner

    for (kind, object_id), message in objects.items():
        if KINDS[kind].indexed:
            others.add(keys.index(kind, object_id))
        if KINDS[kind].options.quota:
            index = entries.get(keys.index(kind, object_id))
            slot = store_pb2.Index.FromString(index.value).quota_slot if index else 0
            needs(keys.quota_pool(message.project_id, KINDS[kind]), slot, object_id)
        if message.id != object_id:
            found.append(f"{kind} {object_id}: its id is {message.id}")
        if kind in ("Subnet", "Port") and ("Network", message.network_id) not in objects:
            found.append(f"{kind} {object_id}: its network {message.network_id} is gone")
        if kind == "Network":
            others.add(keys.change_of_network(object_id))
            segment = segment_of(message)
            if segment is not None:
                needs(*segment, object_id)
            needs("network-key", message.key, object_id)
            octets = message.key.to_bytes(3, "big")
            needs(keys.mac_pool(object_id), "fa:16:3f:" + octets.hex(":"), object_id)
        elif kind == "Subnet":
            if message.dhcp_server_ip:
                needs(keys.ip_pool(message.network_id, object_id), message.dhcp_server_ip, object_id)
            if message.subnet_pool_id:
                needs(keys.prefix_pool(message.subnet_pool_id), prefixes.value_of(prefix(message.cidr)), object_id)
                pool = objects.get(("SubnetPool", message.subnet_pool_id))
                if pool is None or not any(prefixes.contains(prefix(text), prefix(message.cidr)) for text in pool.prefixes):
                    found.append(f"Subnet {object_id}: its pool {message.subnet_pool_id} is gone, or lacks {message.cidr}")
        elif kind == "SubnetPool":
            if message.is_default:
                needs("default-subnet-pool", message.ip_version, object_id)
            for text in message.prefixes if message.address_scope_id else ():
                needs(keys.scope_pool(message.address_scope_id), prefixes.value_of(prefix(text)), object_id)
            if message.address_scope_id and ("AddressScope", message.address_scope_id) not in objects:
                found.append(f"SubnetPool {object_id}: its address scope {message.address_scope_id} is gone")
        elif kind == "Port":
            needs(keys.mac_pool(message.network_id), message.mac_address, object_id)
            for fixed in message.fixed_ips:
                if ("Subnet", fixed.subnet_id) not in objects:
                    found.append(f"Port {object_id}: its subnet {fixed.subnet_id} is gone")
                needs(keys.ip_pool(message.network_id, fixed.subnet_id), fixed.ip_address, object_id)
        elif kind == "Node":
            needs("node-key", message.key, object_id)
            if message.tunnel_ip:
                needs("tunnel-ip", message.tunnel_ip, object_id)
    found.extend(_overlaps(claims))
    for key, item in entries.items():
        found.extend(_faults_of(key, item, objects, claims, others, entries))
    found.extend(f"{key}: missing" for key in [*claims, *others] if key not in entries)
    return found


def _overlaps(claims: Iterable[str]) -> Iterable[str]:
    """Prefixes claimed in one pool or scope that overlap: one's key begins with the other's."""
    taken = sorted(key for key in claims if keys.split(key)[1] in ("prefix", "scope"))
    return [f"{later} lies in {earlier}" for earlier, later in pairwise(taken) if later.startswith(earlier)]


def _faults_of(
    key: str,
    item: Entry,
    objects: Mapping[tuple[str, str], Any],
    claims: Mapping[str, str],
    others: set[str],
    entries: Mapping[str, Entry],
) -> Iterable[str]:
    match keys.split(key):
        case ["claim", *_]:
            claim = store_pb2.Claim.FromString(item.value)
            if key in claims and (claim.releasing or claim.owner != claims[key]):
                yield f"{key}: owned by {claim.owner}, releasing {claim.releasing}, wanted by {claims[key]}"
            elif key not in claims and not claim.releasing:
                yield f"{key}: nothing that {claim.owner} is calls for it"
        case ["index", "bind", node, port]:
            binding = port_pb2.Binding.FromString(item.value)
            message = objects.get(("Port", port))
            if binding.node != node or message is None:
                yield f"{key}: binding {binding.node}, port {'there' if message else 'gone'}"
            elif entries.get(keys.bindings(message.network_id) + port, Entry(b"", 0, 0)).value != item.value:
                yield f"{key}: the binding says otherwise"
        case ["net", network, "bind", port]:
            binding = port_pb2.Binding.FromString(item.value)
            if ("Port", port) not in objects or objects["Port", port].network_id != network:
                yield f"{key}: its port is gone"
            if ("Node", binding.node) not in objects or keys.bound_to(binding.node, port) not in entries:
                yield f"{key}: its node is gone, or the index"
        case ["index", name, object_id] if name in INDEXED:
            message = objects.get((INDEXED[name], object_id))
            parent = getattr(message, "network_id", "")
            if message is None or store_pb2.Index.FromString(item.value).network_id != parent:
                yield f"{key}: its object is gone or elsewhere"
        case _ if keys.resource(key) is not None:
            pass
        case ["net", _, "change"] | ["node", ".change"] if key in others or key == keys.NODES_CHANGE:
            pass
        case ["status" | "alive" | "apply" | "request" | "change" | "controller", *_] | ["meta", "format"]:
            pass
        case _:
            yield f"{key}: nothing calls for it"
