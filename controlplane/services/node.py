"""Nodes: what operators say of the hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from controlplane.errors import Violation, exhausted, precondition, taken
from controlplane.registry import KINDS
from controlplane.services.base import Context, Rules, claim, claim_free, first_free, in_use, label, release
from controlplane.services.segment import TUNNELLED, require_physical_networks, type_name
from controlplane.store import keys
from controlplane.store.txn import Transaction
from controlplane.values import address, quoted
from kumihimo.v1 import network_pb2, store_pb2
from kumihimo.v1 import node_pb2 as pb

KEY_POOL = "node-key"
KEYS = (1, (1 << 16) - 1)
TUNNEL_POOL = "tunnel-ip"
_INTERFACE = re.compile(r"[^\s/:]{1,15}")


class NodeRules(Rules):
    """See the module."""

    kind = "Node"

    def complete(self, new: Any, context: Context) -> None:
        if not new.HasField("admin_state_up"):
            new.admin_state_up = True
        if not new.roles:
            new.roles.append(pb.NODE_ROLE_COMPUTE)
        new.availability_zone = new.availability_zone or context.defaults.availability_zone
        if not new.HasField("weight"):
            new.weight = 100

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        for physical_network, interface in sorted(new.bridge_mappings.items()):
            if not _INTERFACE.fullmatch(interface):
                text = (
                    f"bridge_mappings: {physical_network} is mapped to {quoted(interface)}; the name of an interface, of 1-15"
                )
                yield Violation("bridge_mappings", "STRING_INVALID", f"{text} characters, is accepted")
        targets: dict[str, str] = {}
        for physical_network, target in sorted(new.bridge_mappings.items()):
            if (other := targets.setdefault(target, physical_network)) != physical_network:
                text = f"{other} and {physical_network} are both mapped to {quoted(target)}; one physical network is accepted"
                yield Violation("bridge_mappings", "DUPLICATE_VALUE", f"bridge_mappings: {text}")
        names = ", ".join(type_name(number) for number in TUNNELLED)
        for position, number in enumerate(new.tunnel_types):
            if number in network_pb2.NetworkType.values() and number and number not in TUNNELLED:
                text = f"tunnel_types[{position}] is {type_name(number)}, which is no tunnel; one of {names} is accepted"
                yield Violation(f"tunnel_types[{position}]", "ENUM_INVALID", text)
        try:
            tunnel = address(new.tunnel_ip) if new.tunnel_ip else None
        except ValueError:
            return
        version = context.defaults.underlay_ip_version
        if tunnel is not None and tunnel.version != version and (old is None or old.tunnel_ip != new.tunnel_ip):
            text = f"tunnel_ip {tunnel} is of IPv{tunnel.version}; the underlay of this installation is of IPv{version}"
            yield Violation("tunnel_ip", "IP_INVALID", f"{text}, so an IPv{version} address is accepted")

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        require_physical_networks(transaction, new.bridge_mappings)
        key = first_free(transaction, KEY_POOL, *KEYS, context)
        if key is None:
            raise exhausted("NO_FREE_SEGMENT", f"all {KEYS[1]} node numbers are in use")
        claim_free(transaction, KEY_POOL, key, owner=new.id, project="")
        new.key = key
        self._claim_tunnel(transaction, new)

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        new.key = old.key
        require_physical_networks(transaction, set(new.bridge_mappings) - set(old.bridge_mappings))
        self._refuse_unmapped(transaction, old, set(old.bridge_mappings) - set(new.bridge_mappings))
        if new.tunnel_ip != old.tunnel_ip:
            if old.tunnel_ip:
                transaction.delete(keys.claim(TUNNEL_POOL, old.tunnel_ip))
            self._claim_tunnel(transaction, new)

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        bound = keys.bound_to(old.id)
        ports = [key.rsplit("/", 1)[1] for key in transaction.folder(bound)]
        if ports and not force:
            raise in_use("Node", old.id, "", [f"Port {port}" for port in sorted(ports)])
        if transaction.cache.get(keys.alive(old.id)) is not None and force:
            raise precondition(
                "INCOMPATIBLE_STATE",
                f"Node {old.id} is alive; force is for a dead node. Detach its ports, then delete it",
            )
        for port in ports:
            transaction.delete(bound + port)
            entry = transaction.get(keys.index("Port", port))
            if entry is None:
                continue
            binding = keys.bindings(store_pb2.Index.FromString(entry.value).parent_id) + port
            # Read, so that a binding that moves to another node meanwhile is not taken away there.
            if transaction.read(binding) is not None:
                transaction.delete(binding)
        if ports:
            transaction.require_unchanged(bound)
        else:
            transaction.require_empty(bound)
        transaction.delete_prefix(keys.status(old.id))
        # Numbers of nodes stand in flow tables of all nodes: not given to another one at once.
        release(transaction, KEY_POOL, old.key)
        if old.tunnel_ip:
            transaction.delete(keys.claim(TUNNEL_POOL, old.tunnel_ip))

    def _refuse_unmapped(self, transaction: Transaction, node: Any, gone: set[str]) -> None:
        """A mapping stays while a port on this node is on its physical network."""
        if not gone:
            return
        folder = keys.bound_to(node.id)
        transaction.require_unchanged(folder)
        ports = []
        for key in transaction.folder(folder):
            port = transaction.object(KINDS["Port"], key.removeprefix(folder))
            if port is None:
                continue
            network = transaction.object(KINDS["Network"], port.network_id)
            if network is not None and network.physical_network in gone:
                ports.append(f"Port {label(port.id, port.name)} on {network.physical_network}")
        if ports:
            raise in_use("Node", node.id, "bridge_mappings", sorted(ports))

    def _claim_tunnel(self, transaction: Transaction, new: Any) -> None:
        if not new.tunnel_ip:
            return
        holder = claim(transaction, TUNNEL_POOL, new.tunnel_ip, owner=new.id, project="")
        if holder is not None:
            raise taken("ADDRESS_TAKEN", f"tunnel_ip {new.tunnel_ip} is taken by Node {holder.owner}", holder.owner)
