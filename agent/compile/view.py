"""What compile may see of the mirror; every look is recorded by its token."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from agent.facts.model import Interface, Link
from agent.mirror.groups import GroupState
from agent.mirror.scope import Token
from agent.mirror.state import NetworkState, State
from agent.model.rule import Allowed, Direction, Prefix, Rule
from kumihimo.v1 import network_pb2, node_pb2, port_pb2


@dataclass(frozen=True, slots=True)
class Group:
    """key: 0 when there is no such group; used: ports plugged here have it."""

    key: int
    stateful: bool
    observes: bool
    used: bool


class View:
    """A reader of one state that notes in `reads` what one unit has looked at."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.reads: set[Token] = set()

    @property
    def node_id(self) -> str:
        """This node."""
        return self._state.node_id

    def datapath_type(self) -> str:
        """What br-int is to be: the kernel's datapath where Open vSwitch has it, else the userspace one."""
        self.reads.add(("host",))
        return "system" if "system" in self._state.facts.datapath_types else "netdev"

    def foreign_bridges(self) -> Set[str]:
        """Bridges of Open vSwitch that others have made."""
        self.reads.add(("host",))
        return self._state.facts.foreign_bridges

    def bridge_of(self, address: str) -> str:
        """The bridge that has an address of this host; "" when none has."""
        self.reads.add(("host",))
        return self._state.facts.underlay_bridges.get(address, "")

    def underlay_ips(self) -> Sequence[str]:
        """Addresses of this host that tunnels may start from, best first."""
        self.reads.add(("host",))
        return self._state.facts.underlay_ips

    def link_of(self, address: str) -> Link | None:
        """What bears an address of this host; None when nothing does."""
        self.reads.add(("address", address))
        return self._state.facts.addresses.get(address)

    def wire_mtu(self, bridge: str) -> int:
        """Bytes of the largest IP packet that a bridge's system interfaces carry; 0: not known."""
        self.reads.add(("bridge", bridge))
        return self._state.mtu_of.get(bridge, 0)

    def node(self, node_id: str) -> node_pb2.Node | None:
        self.reads.add(("node", node_id))
        return self._state.nodes.get(node_id)

    def network(self, network: str) -> network_pb2.Network | None:
        """The network; None while it is not known as a whole."""
        self.reads.add(("network", network))
        state = self._listed(network)
        return state.network if state else None

    def subnets(self, network: str) -> Sequence[network_pb2.Subnet]:
        """By id."""
        self.reads.add(("subnets", network))
        state = self._listed(network)
        return [state.subnets[key] for key in sorted(state.subnets)] if state else []

    def port(self, network: str, port: str) -> port_pb2.Port | None:
        self.reads.add(("port", network, port))
        state = self._listed(network)
        return state.port(port) if state else None

    def bound_to(self, network: str, port: str) -> str:
        """The node a port is bound to; "" when it is not."""
        self.reads.add(("port", network, port))
        state = self._listed(network)
        return state.bindings.get(port, "") if state else ""

    def asked_to(self, network: str, port: str) -> str:
        """The node a port shall be on; "" when any will do."""
        self.reads.add(("port", network, port))
        state = self._listed(network)
        return state.places.get(port, "") if state else ""

    def plugged(self, network: str, port: str) -> Interface | None:
        """The interface of this host that names the port."""
        self.reads.add(("port", network, port))
        return self._state.interface_of.get(port) if port in self._state.local_ports(network) else None

    def local_ports(self, network: str) -> Sequence[str]:
        """Ports of the network that are plugged here, by id."""
        self.reads.add(("local", network))
        return sorted(self._state.local_ports(network))

    def members(self, network: str) -> Sequence[str]:
        """Other nodes with ports of the network, by name."""
        self.reads.add(("members", network))
        state = self._listed(network)
        return sorted(node for node in state.members if node != self.node_id) if state else []

    def domains(self, network: str) -> Sequence[str]:
        """Domains that ports of the network have of their own, in place of the network's."""
        self.reads.add(("domains", network))
        state = self._listed(network)
        return sorted(state.domains) if state else []

    def floating_macs(self, network: str) -> dict[str, Sequence[str]]:
        """MACs of allowed address pairs that are not the port's own, each with the ports that have it, by id."""
        self.reads.add(("floating", network))
        state = self._listed(network)
        return {mac: sorted(state.floating[mac]) for mac in sorted(state.floating)} if state else {}

    def interface(self, name: str) -> Interface | None:
        """An interface of Open vSwitch by name."""
        self.reads.add(("interface", name))
        return self._state.facts.interfaces.get(name)

    # Groups, by scope: security groups and address groups.

    def group(self, scope: str) -> Group | None:
        """What a group is; None while it is not known."""
        self.reads.add(("group", scope))
        state = self._known(scope)
        if state is None:
            return None
        return Group(state.key, state.stateful, state.observes, self._state.groups.is_used(scope))

    def cut(self, scope: str) -> tuple[int, int]:
        """When something was last taken away from a group: an etcd cluster, and a revision of it."""
        self.reads.add(("cut", scope))
        state = self._known(scope)
        return (state.cluster, state.cut) if state else (0, 0)

    def remotes(self, scope: str) -> dict[str, Set[Direction]]:
        """The groups that rules of a group name, "" where they name none, and in which directions and families."""
        self.reads.add(("remotes", scope))
        state = self._known(scope)
        return {remote: state.remotes[remote].keys() for remote in sorted(state.remotes)} if state else {}

    def filter_of(self, port: str) -> tuple[Sequence[str], bool]:
        """The groups by which a port plugged here is filtered, and whether no others are to take their place."""
        self.reads.add(("groups", port))
        return self._state.groups.of(port)

    def referents(self, scope: str) -> Sequence[str]:
        """The groups that rules of a group name."""
        self.reads.add(("referents", scope))
        state = self._known(scope)
        return sorted(remote for remote in state.remotes if remote) if state else []

    def named(self, scope: str) -> Sequence[Direction]:
        """In which directions and families rules for ports here name a group."""
        self.reads.add(("named", scope))
        return sorted(self._state.groups.named.get(scope, ()))

    def member(self, scope: str, name: str) -> Sequence[Prefix]:
        """The addresses of one member of a group."""
        self.reads.add(("member", scope, name))
        state = self._known(scope)
        return state.members.get(name, ()) if state else ()

    def rule(self, scope: str, rule: str) -> Rule | None:
        """A rule of a security group."""
        self.reads.add(("rule", scope, rule))
        state = self._known(scope)
        return state.rules.get(rule) if state else None

    def owner(self, scope: str, allowed: Allowed) -> str:
        """The rule, of all that have a match, that is said to allow it: the first by id."""
        self.reads.add(("allowed", scope, allowed))
        state = self._known(scope)
        return min(state.owners.get(allowed, ()), default="") if state else ""

    def has_fragments(self, scope: str, allowed: Allowed) -> bool:
        """Whether some rule of a group lets fragments of such packets through."""
        self.reads.add(("fragments", scope, allowed))
        state = self._known(scope)
        return state is not None and allowed in state.fragments

    def _known(self, scope: str) -> GroupState | None:
        state = self._state.groups.states.get(scope)
        return state if state is not None and state.listed else None

    def _listed(self, network: str) -> NetworkState | None:
        state = self._state.networks.get(network)
        return state if state is not None and state.listed else None
