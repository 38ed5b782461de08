"""How flows are built: every flow goes through `flow`, which refuses what the pipeline does not know."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from agent.model.flow import Action, Flow, Match, Resubmit, SetField
from agent.model.pipeline import NEXT, REASON, Reason, Table
from kumihimo.v1 import network_pb2, port_pb2

ETH_ARP = 0x0806
ETH_IPV4 = 0x0800
ETH_IPV6 = 0x86DD
UDP = 17
MULTICAST = (1 << 40, 1 << 40)  # value and mask: the group bit of a MAC

# An item belongs to a scope: the id of a network, or "" for the node itself. What a node reports as applied is by scope.
NODE_SCOPE = ""


class PipelineError(Exception):
    """A flow that does not fit the pipeline: a defect of compile."""


def flow(table: Table, priority: int, match: Match, *actions: Action, cookie: int) -> Flow:
    """A flow of the pipeline. Raises PipelineError when it goes where its table may not."""
    for action in actions:
        if isinstance(action, Resubmit) and Table(action.table) not in NEXT[table]:
            raise PipelineError(f"table {table.name} may not go to {Table(action.table).name}")
    return Flow(int(table), priority, match, actions, cookie)


def drop(reason: Reason) -> tuple[Action, ...]:
    """The only way to drop: say why, and go to the drop stage."""
    return SetField(REASON, int(reason)), Resubmit(Table.DROP)


def is_up(message: network_pb2.Network | port_pb2.Port) -> bool:
    """Its admin_state_up, which is true unless somebody says otherwise."""
    return not message.HasField("admin_state_up") or message.admin_state_up


def mac_number(mac: str) -> int:
    return int(mac.replace(":", ""), 16)


def ip_number(ip: str) -> int:
    return int(IPv4Address(ip))


def ip_match(cidr: str) -> tuple[int, int]:
    """Value and mask of an IPv4 prefix."""
    network = IPv4Network(cidr)
    return int(network.network_address), int(network.netmask)
