"""What the agent knows of its own host: values that compilation takes beside the snapshot of the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a bridge, as Open vSwitch's database has it.

    ofport is None until the switch has assigned one, and when it could not (-1); error then says why, else "".
    iface_id is external_ids:iface-id, by which hypervisors name the port that the interface stands for.
    type is "" for a system device, else for example "internal" or "vxlan".
    """

    name: str
    bridge: str
    ofport: int | None
    iface_id: str | None
    type: str
    error: str


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Everything that the host contributes to its desired state.

    interfaces by name; datapath_types are those that the switch offers ("system", "netdev"), sorted; ovs_version is ""
    while unknown; underlay_ips are addresses that tunnels may start from, best first.
    """

    interfaces: Mapping[str, Interface]
    datapath_types: tuple[str, ...]
    ovs_version: str
    underlay_ips: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Capability:
    """Something that the host can do, or cannot; reason is a sentence either way."""

    name: str
    on: bool
    reason: str
