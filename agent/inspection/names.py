"""Which resource a flow, a port of the switch or an address belongs to, as far as this node knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from agent.facts.model import Interface
from agent.inspection.words import KINDS
from agent.mirror.state import State
from agent.model.host import INTEGRATION_BRIDGE
from agent.model.pipeline import CookieKind, cookie
from controlplane.store import keys
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import port_pb2


class Names:
    """Of one moment; made for each answer."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._by_number = {
            interface.ofport: interface
            for interface in state.facts.interfaces.values()
            if interface.bridge == INTEGRATION_BRIDGE and interface.ofport is not None
        }
        self._known: dict[int, pb.ObjectRef] = {}

    def behind(self, mark: int) -> pb.ObjectRef:
        """The resource of a cookie. One that is not known here has the part of its id that the cookie has."""
        if mark not in self._known:
            self._known[mark] = self._behind(mark)
        return self._known[mark]

    def _behind(self, mark: int) -> pb.ObjectRef:
        if mark >> 56 not in set(CookieKind):
            return pb.ObjectRef()
        kind = CookieKind(mark >> 56)
        if not KINDS.get(kind):
            return pb.ObjectRef()
        digits = f"{mark & (1 << 56) - 1:014x}"
        ending = f"{digits[:2]}-{digits[2:]}"  # of a UUID; there may be tens of thousands to look through
        for object_id, named in self._candidates(kind):
            if object_id.endswith(ending) or (KINDS[kind] == "Node" and cookie(kind, object_id) == mark):
                return pb.ObjectRef(kind=KINDS[kind], id=object_id, name=named())
        return pb.ObjectRef(kind=KINDS[kind], id=f"…{digits}")

    def _candidates(self, kind: CookieKind) -> Iterator[tuple[str, Callable[[], str]]]:
        """Ids of the resources of a kind, and how each is called."""
        match KINDS[kind]:
            case "Node":
                yield from ((node, partial(str, node)) for node in self._state.nodes)
            case "Network":
                yield from ((network_id, partial(self._name_of, network_id, "")) for network_id in self._state.networks)
            case "SecurityGroup":
                yield from ((keys.split(scope)[1], str) for scope in self._state.groups.states)
            case "SecurityGroupRule":
                for group in self._state.groups.states.values():
                    yield from ((rule_id, str) for rule_id in group.rules)
            case "Port":
                for network_id, state in self._state.networks.items():
                    yield from ((port_id, partial(self._name_of, network_id, port_id)) for port_id in state.ports)

    def _name_of(self, network_id: str, port_id: str) -> str:
        """The name of a network, or of a port of it."""
        state = self._state.networks[network_id]
        found = state.port(port_id) if port_id else state.network
        return found.name if found is not None else ""

    def network(self, network_id: str) -> pb.ObjectRef:
        state = self._state.networks.get(network_id)
        return pb.ObjectRef(kind="Network", id=network_id, name=state.network.name if state and state.network else "")

    def stored(self, port_id: str) -> port_pb2.Port | None:
        """A port that is plugged here."""
        network = self._state.networks.get(self._state.located.get(port_id) or "")
        return network.port(port_id) if network else None

    def port(self, port_id: str) -> pb.ObjectRef:
        known = self.stored(port_id)
        return pb.ObjectRef(kind="Port", id=port_id, name=known.name if known else "")

    def interface(self, ofport: int) -> Interface | None:
        """The interface of br-int with that number."""
        return self._by_number.get(ofport)

    def node_at(self, address: str) -> str:
        """The node with a tunnel address; "" when none has it."""
        return next((node_id for node_id, node in self._state.nodes.items() if node.tunnel_ip == address), "")
