"""Pure functions from the mirror and the facts to items. No I/O, no clock, no random.

`FEATURES` is the whole list: a feature is a function of a `View`, and the units that call it.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.compile.base import NODE_SCOPE
from agent.compile.dhcp import compile_dhcp
from agent.compile.engine import Features, Unit
from agent.compile.floating import compile_floating
from agent.compile.guard6 import compile_nd_guard
from agent.compile.neighbour import compile_arp, compile_nd
from agent.compile.network import compile_network
from agent.compile.node import compile_base
from agent.compile.policy import compile_filter, compile_policy
from agent.compile.port import compile_port
from agent.compile.provider import compile_providers
from agent.compile.rules import compile_fragments, compile_group, compile_member, compile_rule
from agent.compile.tunnel import compile_node, compile_tunnels
from agent.mirror.scope import Token
from agent.mirror.state import State
from controlplane.store import keys


def _units(token: Token) -> Iterable[Unit]:
    """The units that a token may call into being; all other readers are known to the engine."""
    match token:
        case ("node", node_id):
            yield "node", node_id
        case ("network", network):
            yield "network", network
            yield "dhcp", network
        case ("floating", network):
            yield "floating", network
        case ("port", network, port):
            yield "port", network, port
        case ("policy" | "group" | "member" | "rule" | "fragments", *_):
            yield token


def _scope(unit: Unit) -> str:
    match unit:
        case ("network" | "dhcp" | "floating" | "port" | "policy", str(network), *_):
            return keys.scope(network)
        case ("group" | "member" | "rule" | "fragments", str(scope), *_):
            return scope
    return NODE_SCOPE


def _exists(state: State, unit: Unit) -> bool:
    match unit:
        case ("node", str(node_id)):
            return node_id in state.nodes
        case ("network" | "dhcp" | "floating", str(network)):
            return network in state.networks
        case ("port", str(network), str(port)):
            return network in state.networks and (port in state.networks[network].ports or port in state.interface_of)
        case ("policy", _, str(port)):
            return port in state.interface_of
        case ("group" | "member" | "rule" | "fragments", str(scope), *_):
            return scope in state.groups.states and state.groups.states[scope].holds(unit)
    return True


FEATURES = Features(
    functions={
        "base": compile_base,
        "arp": compile_arp,
        "nd": compile_nd,
        "nd-guard": compile_nd_guard,
        "providers": compile_providers,
        "tunnels": compile_tunnels,
        "node": compile_node,
        "network": compile_network,
        "dhcp": compile_dhcp,
        "floating": compile_floating,
        "port": compile_port,
        "filter": compile_filter,
        "policy": compile_policy,
        "group": compile_group,
        "member": compile_member,
        "rule": compile_rule,
        "fragments": compile_fragments,
    },
    units=_units,
    scope=_scope,
    exists=_exists,
    always=(("base",), ("arp",), ("nd",), ("nd-guard",), ("filter",), ("providers",), ("tunnels",)),
)
