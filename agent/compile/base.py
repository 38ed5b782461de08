"""How flows are built: every flow goes through `flow`, which refuses what the pipeline does not know."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network

from agent.model.flow import Action, Flow, Match, Resubmit, SetField, Track
from agent.model.pipeline import NEXT, REASON, Reason, Table
from controlplane.values import LINK_LOCAL, eui64
from kumihimo.v1 import network_pb2, port_pb2

MULTICAST = (1 << 40, 1 << 40)  # value and mask: the group bit of a MAC

# An item belongs to a scope (store/keys.py); "" is that of all nodes. What a node reports as applied is by scope.
NODE_SCOPE = ""


class PipelineError(Exception):
    """A flow that does not fit the pipeline: a defect of compile."""


def flow(table: Table, priority: int, match: Match, *actions: Action, cookie: int) -> Flow:
    """A flow of the pipeline. Raises PipelineError when it goes where its table may not."""
    for action in actions:
        onward = action.table if isinstance(action, Resubmit | Track) else None
        if onward is not None and Table(onward) not in NEXT[table]:
            raise PipelineError(f"table {table.name} may not go to {Table(onward).name}")
    return Flow(int(table), priority, match, _shared(actions), cookie)


@lru_cache(1024)
def _shared(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    """One object for all flows that do the same."""
    return actions


def drop(reason: Reason) -> tuple[Action, ...]:
    """The only way to drop: say why, and go to the drop stage."""
    return SetField(REASON, int(reason)), Resubmit(Table.DROP)


def is_up(message: network_pb2.Network | port_pb2.Port) -> bool:
    """Its admin_state_up, which is true unless somebody says otherwise."""
    return not message.HasField("admin_state_up") or message.admin_state_up


def mac_number(mac: str) -> int:
    return int(mac.replace(":", ""), 16)


def ip_number(ip: str) -> int:
    return int(ip_address(ip))


def ip_match(cidr: str) -> tuple[int, int]:
    """Value and mask of a prefix."""
    network = ip_network(cidr)
    return int(network.network_address), int(network.netmask)


def is_ipv6(address: str) -> bool:
    """Whether an address or prefix is of IPv6."""
    return ":" in address


def link_local(mac: str) -> str:
    """The link-local address of an interface with this MAC (RFC 4862)."""
    return eui64(LINK_LOCAL, mac)


def speaks_ipv6(port: port_pb2.Port) -> bool:
    """Whether IPv6 is let through, and a link-local address with it: the port has an address or pair, or is not guarded."""
    if port.HasField("port_security_enabled") and not port.port_security_enabled:
        return True
    given = (*(fixed.ip_address for fixed in port.fixed_ips), *(pair.ip_address for pair in port.allowed_address_pairs))
    return any(map(is_ipv6, given))
