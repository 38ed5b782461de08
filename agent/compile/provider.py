"""Physical networks: the bridge that `Node.bridge_mappings` gives each, the patch to br-int, and VLAN tags on the way.

A mapping names a bridge that somebody else has made, which is used and otherwise left alone; or an interface, for which
the agent makes the bridge `br-NAME`, and which it brings up. Both forward like a plain switch: what may pass is decided on
br-int.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.compile.base import flow
from agent.compile.view import View
from agent.model.flow import Action, Output, PopVlan, PushVlan, Resubmit, SetField, match
from agent.model.host import INTEGRATION_BRIDGE, Bridge, OvsPort, Uplink
from agent.model.item import Item
from agent.model.pipeline import FLAGS, FROM_PROVIDER, FROM_TUNNEL, CookieKind, Table, cookie
from agent.model.wire import TAGGED
from kumihimo.v1 import network_pb2

PHYSICAL = (network_pb2.NETWORK_TYPE_VLAN, network_pb2.NETWORK_TYPE_FLAT)
LONGEST = 15  # characters of a bridge's name (linux/if.h)
UNTAGGED = 0


@dataclass(frozen=True, slots=True)
class Provider:
    """How this node is attached to a physical network. nic is "" where the bridge is not ours."""

    bridge: str
    nic: str

    @property
    def patch(self) -> str:
        """The end of the patch on br-int."""
        return f"int-{self.bridge}"

    @property
    def peer(self) -> str:
        """The other end."""
        return f"phy-{self.bridge}"


def provider(view: View, physical_network: str) -> Provider | None:
    """This node's attachment; None where the physical network is not mapped."""
    own = view.node(view.node_id)
    target = own.bridge_mappings.get(physical_network, "") if own is not None else ""
    if not target:
        return None
    foreign = view.foreign_bridges()
    if target in foreign:
        return Provider(target, "")
    name = f"br-{physical_network}"
    if len(name) > LONGEST or name == INTEGRATION_BRIDGE or name in foreign:
        name = f"br-{physical_network[:5]}-{hashlib.sha256(physical_network.encode()).hexdigest()[:6]}"
    return Provider(name, target)


def obstacle(view: View, physical_network: str) -> str:
    """Why no frame of the physical network can pass here; "" when it can."""
    found = provider(view, physical_network)
    if found is None:
        return f"physical network {physical_network} is not in the bridge_mappings of node {view.node_id}"
    for name in (found.nic, found.patch) if found.nic else (found.patch,):
        interface = view.interface(name)
        if interface is None or interface.ofport is None:
            why = (interface.error if interface is not None else "") or "it is not there"
            return f"physical network {physical_network} of node {view.node_id}: {name} on {found.bridge}: {why}"
    return ""


def compile_providers(view: View) -> Iterable[Item]:
    """Bridge and patch of every physical network that is mapped."""
    own = view.node(view.node_id)
    for physical_network in sorted(own.bridge_mappings) if own is not None else ():
        found = provider(view, physical_network)
        if found is None:
            continue
        owner = (("kumihimo", "provider"), ("kumihimo-physical-network", physical_network))
        if found.nic:
            yield Bridge(found.bridge, view.datapath_type(), "standalone")
            yield OvsPort(found.bridge, found.nic, "", (), owner)
            nic = view.interface(found.nic)
            if nic is not None and nic.ofport is not None:  # else it is said already that it is not there
                yield Uplink(found.nic)
        yield OvsPort(INTEGRATION_BRIDGE, found.patch, "patch", (("peer", found.peer),), owner)
        yield OvsPort(found.bridge, found.peer, "patch", (("peer", found.patch),), owner)
        interface = view.interface(found.patch)
        if interface is not None and interface.ofport is not None:
            from_wire = match(in_port=interface.ofport)
            yield flow(Table.CLASSIFY, 100, from_wire, Resubmit(Table.FROM_PROVIDER), cookie=cookie(CookieKind.BASE))


def provider_items(view: View, network: network_pb2.Network, mark: int) -> Iterator[Item]:
    """A VLAN or flat network's frames from the wire and to it, and that unknown addresses are looked for there."""
    found = provider(view, network.physical_network)
    interface = view.interface(found.patch) if found is not None else None
    if interface is None or interface.ofport is None:
        return
    tag = UNTAGGED
    pop: tuple[Action, ...] = ()
    push: tuple[Action, ...] = ()
    if network.network_type == network_pb2.NETWORK_TYPE_VLAN:
        tag = TAGGED | network.segmentation_id
        pop, push = (PopVlan(),), (PushVlan(), SetField("vlan_vid", tag))
    yield flow(
        Table.FROM_PROVIDER,
        100,
        match(in_port=interface.ofport, vlan_vid=tag),
        *pop,
        SetField("metadata", network.key),
        SetField(FLAGS, FROM_PROVIDER, FROM_PROVIDER),
        Resubmit(Table.L2),
        cookie=mark,
    )
    # A frame that a workload has tagged itself would come to another network of the wire.
    outward = match(metadata=network.key, vlan_vid=UNTAGGED)
    yield flow(Table.PROVIDER, 100, outward, *push, Output(interface.ofport), cookie=mark)
    local = match(metadata=network.key, reg0=(0, FROM_TUNNEL | FROM_PROVIDER))
    yield flow(Table.L2, 10, local, Resubmit(Table.PROVIDER), cookie=mark)
    for table in (Table.ARP_REPLY, Table.ND_TARGET):
        yield flow(table, 40, match(metadata=network.key), Resubmit(Table.L2), cookie=mark)
