"""What the agent knows of its own host: values that compilation takes beside the snapshot of the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a bridge, as Open vSwitch's database has it.

    ofport is None until the switch has assigned one, and when it could not (-1); error then says why, else "".
    iface_id is external_ids:iface-id, by which hypervisors name the port that the interface stands for.
    type is "" for a system device, else for example "internal" or "vxlan". mtu in bytes; 0 where it is not known, and where
    nobody asks: on br-int, and for what stands for a port.
    """

    name: str
    bridge: str
    ofport: int | None
    iface_id: str | None
    type: str
    error: str
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface of the host that has an address. mtu in bytes."""

    name: str
    mtu: int


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Everything that the host contributes to its desired state.

    interfaces by name; datapath_types are those that the switch offers ("system", "netdev"), sorted; ovs_version is ""
    while unknown; underlay_ips are addresses that tunnels may start from, best first, and underlay_bridges says on which
    bridge each is; foreign_bridges are those that the agent has not made; addresses are all of the host that others can
    reach, each with what bears it.
    """

    interfaces: Mapping[str, Interface]
    datapath_types: tuple[str, ...]
    ovs_version: str
    underlay_ips: tuple[str, ...]
    underlay_bridges: Mapping[str, str] = field(default_factory=dict)
    foreign_bridges: frozenset[str] = frozenset()
    addresses: Mapping[str, Link] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capability:
    """Something that the host can do, or cannot; reason is a sentence either way."""

    name: str
    on: bool
    reason: str
