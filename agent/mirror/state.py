"""The mirror: what this node knows, as plain values, and what of it changed.

Pure: no I/O, no clock. `take_*` methods take in notices of the feed and facts of the host and return *tokens*, the names of
what changed; compile records the tokens it reads, so that exactly the units concerned are compiled again.

Interest closure: ports plugged here → their networks (through index/port/…) → everything below net/{net}/; their security
groups, and the groups that rules of those name; and all nodes.

Tokens: ("node", id) · ("network", net) · ("subnets", net) · ("port", net, id): port, binding, or its interface ·
("local", net): the set of ports plugged here · ("members", net): the set of other nodes with ports · ("domains", net): the set
of domains that ports have of their own · ("floating", net): MACs of address pairs · ("interface", name) · ("host",): bridges,
addresses · ("bridge", name): what its interfaces carry · ("policy", net, id): of a port plugged here, anything that decides how
it is filtered · those of groups (groups.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from agent.facts.model import HostFacts, Interface
from agent.mirror.groups import Groups, groups_of
from agent.mirror.scope import ScopeState, Token
from agent.model.host import INTEGRATION_BRIDGE
from controlplane.store import keys
from controlplane.store.client import Entry
from controlplane.store.feed import Changed, Listed
from kumihimo.v1 import network_pb2, node_pb2, port_pb2, store_pb2

_NONE: frozenset[str] = frozenset()
NO_FACTS = HostFacts(interfaces={}, datapath_types=(), ovs_version="", underlay_ips=())


@dataclass(slots=True)
class NetworkState(ScopeState):
    """One network as it stands below net/{net}/."""

    network: network_pb2.Network | None = None
    subnets: dict[str, network_pb2.Subnet] = field(default_factory=dict)
    ports: dict[str, bytes] = field(default_factory=dict)  # as they are stored; a parsed message is ten times as large
    bindings: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)  # port → node that it shall be on
    members: dict[str, int] = field(default_factory=dict)  # node → number of ports bound to it
    domains: dict[str, int] = field(default_factory=dict)  # dns_domain → number of ports that have it as their own
    floating: dict[str, set[str]] = field(default_factory=dict)  # MAC of an address pair, not the port's own → ports

    def port(self, port: str) -> port_pb2.Port | None:
        """A port of the network."""
        stored = self.ports.get(port)
        return None if stored is None else port_pb2.Port.FromString(stored)


class State:
    """See the module."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.facts: HostFacts = NO_FACTS
        self.nodes: dict[str, node_pb2.Node] = {}
        self.nodes_listed = False
        self.nodes_revision = 0
        self.nodes_cluster = 0
        self.networks: dict[str, NetworkState] = {}
        self.groups = Groups()
        # Ports plugged here: network id, "" when there is no such port, None while that is not known.
        self.located: dict[str, str | None] = {}
        self.interface_of: dict[str, Interface] = {}
        # Values that cannot be parsed, with why; what was known of their objects stays.
        self.unreadable: dict[str, str] = {}
        # By bridge: bytes of the largest packet that every system interface of it carries.
        self.mtu_of: dict[str, int] = {}
        self._local: dict[str, set[str]] = {}

    # -- interest -----------------------------------------------------------------------------------------------------

    def interest(self) -> set[str]:
        """The prefixes this node must watch."""
        wanted = {keys.NODES}
        wanted.update(keys.index("Port", port) for port in self.interface_of)
        return wanted | self.wanted_scopes()

    def wanted_scopes(self) -> set[str]:
        """Scopes that a port plugged here belongs to, and those that decide how it is filtered."""
        return {keys.scope(network) for network in self.wanted_networks()} | self.groups.wanted()

    def forget(self) -> set[Token]:
        """Let go of what is of no interest any more: once all notices at hand are taken in, before what to watch is decided."""
        return self.groups.forget()

    def wanted_networks(self) -> set[str]:
        """Networks with a port plugged here."""
        return {network for network in self.located.values() if network}

    @property
    def is_complete(self) -> bool:
        """Everything of interest has been listed."""
        return (
            self.nodes_listed
            and all(network is not None for network in self.located.values())
            and all(state is not None and state.listed for state in map(self.scope, self.wanted_scopes()))
        )

    def scopes(self) -> Iterator[tuple[str, ScopeState]]:
        """What is known, by scope."""
        for network, state in self.networks.items():
            yield keys.scope(network), state
        yield from self.groups.states.items()

    def scope(self, scope: str) -> ScopeState | None:
        """What is known of a scope."""
        folder, object_id, _ = keys.split(scope)
        return self.networks.get(object_id) if folder == "net" else self.groups.states.get(scope)

    def tokens(self) -> Iterator[Token]:
        """All that is known, by its tokens."""
        for network, state in self.networks.items():
            yield from (("network", network), ("floating", network))
            for port in state.ports:
                yield from (("port", network, port), ("policy", network, port))
        yield from (("node", node) for node in self.nodes)
        yield from self.groups.tokens()

    def ports_of(self, scope: str) -> Iterator[tuple[str, str]]:
        """(network, port) of the ports of a network's scope that are plugged here."""
        network = keys.split(scope)[1]
        for port in self.local_ports(network):
            yield network, port

    def local_ports(self, network: str) -> Set[str]:
        """Ports of a network that are plugged here. Not to be changed."""
        return self._local.get(network, _NONE)

    def ports_by_number(self) -> dict[int, str]:
        """Ports that exist and are plugged here, by their number in the switch."""
        return {
            interface.ofport: port
            for port, interface in self.interface_of.items()
            if interface.ofport is not None and self.located.get(port)
        }

    # -- facts --------------------------------------------------------------------------------------------------------

    def take_facts(self, facts: HostFacts) -> set[Token]:
        """Interfaces, bridges and addresses of the host as they are now."""
        tokens: set[Token] = set()
        old, self.facts = self.facts, facts
        if _of_host(old) != _of_host(facts):
            tokens.add(("host",))
        addresses = old.addresses.keys() | facts.addresses.keys()
        tokens.update(("address", name) for name in addresses if old.addresses.get(name) != facts.addresses.get(name))
        mtus, self.mtu_of = self.mtu_of, _mtus(facts.interfaces.values())
        tokens.update(("bridge", name) for name in mtus.keys() | self.mtu_of.keys() if mtus.get(name) != self.mtu_of.get(name))
        for name in old.interfaces.keys() | facts.interfaces.keys():
            if old.interfaces.get(name) != facts.interfaces.get(name):
                tokens.add(("interface", name))
        plugged: dict[str, Interface] = {}
        for name in sorted(facts.interfaces):
            interface = facts.interfaces[name]
            if interface.bridge == INTEGRATION_BRIDGE and interface.iface_id:
                # Two interfaces that name one port: the first by name has it.
                plugged.setdefault(interface.iface_id, interface)
        for port in self.interface_of.keys() | plugged.keys():
            if self.interface_of.get(port) == plugged.get(port):
                continue
            if port not in plugged:
                tokens |= self._unplug(port)
            elif port not in self.interface_of:
                self.located[port] = None
                for network, state in self.networks.items():
                    if state.listed and port in state.ports:
                        self._find(port, network)
            if found := self.located.get(port):
                tokens.update({("port", found, port), ("local", found)})
        self.interface_of = plugged
        return self._follow(tokens | self._drop_networks())

    def _find(self, port: str, network: str) -> set[Token]:
        """A port plugged here is of a network that is known, whether the index has been read or not; it will confirm it."""
        self.located[port] = network
        self._local.setdefault(network, set()).add(port)
        return {("port", network, port), ("local", network)}

    def _unplug(self, port: str) -> set[Token]:
        network = self.located.pop(port, None)
        if not network:
            return set()
        self._local.get(network, set()).discard(port)
        return {("port", network, port), ("local", network)}

    def _drop_networks(self) -> set[Token]:
        """Forget the networks that nothing here belongs to any more."""
        tokens: set[Token] = set()
        wanted = self.wanted_networks()
        for network in [network for network in self.networks if network not in wanted]:
            gone = self.networks.pop(network)
            self._local.pop(network, None)
            tokens |= {(what, network) for what in ("network", "subnets", "local", "members", "domains", "floating")}
            tokens |= {("port", network, port) for port in gone.ports}
        return tokens

    def _follow(self, tokens: set[Token]) -> set[Token]:
        """Tokens, and what follows from those of ports plugged here for their groups."""
        follow = self.interface_of.keys() | self.groups.filtered()
        changed = {(str(token[1]), str(token[2])) for token in tokens if token[0] == "port" and token[2] in follow}
        for network in (str(token[1]) for token in tokens if token[0] == "local"):
            changed.update((network, port) for port in self.local_ports(network))
        for network, port in changed:
            state = self.networks.get(network)
            here = state is not None and state.listed and port in self.interface_of and self.located.get(port) == network
            message = state.port(port) if state is not None and here else None
            if message is not None or self.located.get(port) in (None, "", network):
                tokens |= self.groups.use(port, (groups_of(message) or ()) if message is not None else ())
            tokens.add(("policy", network, port))
        if self.unreadable:
            wanted = self.wanted_scopes() | {""}
            self.unreadable = {key: why for key, why in self.unreadable.items() if keys.scope_of(key) in wanted}
        return tokens

    # -- notices ------------------------------------------------------------------------------------------------------

    def take(self, notice: Listed | Changed) -> set[Token]:
        """Take in one notice of the feed. A notice of a prefix that is no longer of interest changes nothing."""
        return self._follow(self._take(notice))

    def _take(self, notice: Listed | Changed) -> set[Token]:
        match notice:
            case Listed(prefix, revision, entries):
                gone = [key for key in self._known(prefix) if key not in entries]
                changes: list[tuple[str, Entry | None]] = [(key, None) for key in gone]
                changes += list(entries.items())
            case Changed(prefix, revision, changed):
                changes = list(changed)
        tokens: set[Token] = set()
        listed = isinstance(notice, Listed)
        if prefix == keys.NODES:
            for key, entry in changes:
                tokens |= self._guarded(key, entry, self._take_node)
            self.nodes_listed = self.nodes_listed or listed
            self.nodes_revision = revision
            if isinstance(notice, Listed):
                self.nodes_cluster = notice.cluster
        elif prefix.startswith(keys.index("Port")):
            tokens |= self._guarded(prefix, None, lambda key, _: self._take_index(key, entries=dict(changes)))
        elif prefix.startswith(keys.NETWORKS):
            network = prefix.removeprefix(keys.NETWORKS).rstrip("/")
            if network not in self.wanted_networks():
                return tokens
            state = self.networks.setdefault(network, NetworkState())
            for key, entry in changes:
                tokens |= self._guarded(key, entry, lambda key, entry: self._take_network(network, state, key, entry))
            if listed and not state.listed:
                state.listed = True
                tokens |= {(what, network) for what in ("network", "subnets", "local", "members", "domains", "floating")}
                for port in [port for port, found in self.located.items() if found is None and port in state.ports]:
                    tokens |= self._find(port, network)
            _reach(state, notice)
        elif keys.is_scope(prefix) and (group := self.groups.begin(prefix)) is not None:
            for key, entry in changes:
                tokens |= self._guarded(key, entry, lambda key, entry: self.groups.take(prefix, group, key, entry))
            tokens |= self.groups.complete(prefix) if listed else set()
            _reach(group, notice)
        return tokens

    def _guarded(self, key: str, entry: Entry | None, take: Callable[[str, Entry | None], set[Token]]) -> set[Token]:
        """One value that is no message must not hurt any other object."""
        try:
            tokens = take(key, entry)
        except DecodeError as error:
            self.unreadable[key] = str(error)
            return set()
        self.unreadable.pop(key, None)
        return tokens

    def _known(self, prefix: str) -> Iterable[str]:
        if prefix == keys.NODES:
            return [keys.node(node) for node in self.nodes]
        if prefix.startswith(keys.index("Port")):
            return [prefix] if self.located.get(prefix.rsplit("/", 1)[1]) else []
        state = self.scope(prefix) if keys.is_scope(prefix) else None
        return list(state.keys) if state else []

    def _take_node(self, key: str, entry: Entry | None) -> set[Token]:
        if key == keys.NODES_CHANGE:
            return set()
        node_id = key.removeprefix(keys.NODES)
        if entry is None:
            self.nodes.pop(node_id, None)
        else:
            self.nodes[node_id] = node_pb2.Node.FromString(entry.value)
        return {("node", node_id)}

    def _take_index(self, prefix: str, entries: Mapping[str, Entry | None]) -> set[Token]:
        port = prefix.rsplit("/", 1)[1]
        if port not in self.interface_of:
            return set()
        entry = entries.get(prefix)
        network = store_pb2.Index.FromString(entry.value).parent_id if entry else ""
        old = self.located.get(port)
        if old == network:
            return set()
        tokens: set[Token] = set()
        if old:
            self._local.get(old, set()).discard(port)
            tokens |= {("port", old, port), ("local", old)}
        self.located[port] = network
        if network:
            tokens |= self._find(port, network)
        return tokens | (self._drop_networks() if old else set())

    def _take_network(self, network: str, state: NetworkState, key: str, entry: Entry | None) -> set[Token]:
        state.note(key, there=entry is not None)
        match [sys.intern(part) for part in keys.split(key)]:
            case ["net", _, "network"]:
                state.network = network_pb2.Network.FromString(entry.value) if entry else None
                return {("network", network)}
            case ["net", _, "subnet", subnet]:
                if entry is None:
                    state.subnets.pop(subnet, None)
                else:
                    state.subnets[subnet] = network_pb2.Subnet.FromString(entry.value)
                return {("subnets", network)}
            case ["net", _, "port", port]:
                return self._take_port(network, state, port, entry)
            case ["net", _, "bind", port]:
                return self._take_binding(network, state, port, entry)
            case ["net", _, "place", port]:
                if entry is None:
                    state.places.pop(port, None)
                else:
                    state.places[port] = store_pb2.Placement.FromString(entry.value).node
                return {("port", network, port)}
            case ["net", _, "change"] if entry is not None:
                state.trace_context = store_pb2.ChangeRecord.FromString(entry.value).trace_context
        return set()

    def _take_port(self, network: str, state: NetworkState, port: str, entry: Entry | None) -> set[Token]:
        new = port_pb2.Port.FromString(entry.value) if entry else None
        old = state.port(port)
        if entry is not None:
            state.ports[port] = entry.value
        else:
            state.ports.pop(port, None)
        tokens: set[Token] = {("port", network, port)}
        before, after = old.dns_domain if old else "", new.dns_domain if new else ""
        if before != after:
            known = set(state.domains)
            _count(state.domains, before, after)
            if set(state.domains) != known:
                tokens.add(("domains", network))
        if (before_macs := _pair_macs(old)) != (after_macs := _pair_macs(new)):
            for mac in before_macs - after_macs:
                state.floating[mac].discard(port)
                if not state.floating[mac]:
                    del state.floating[mac]
            for mac in after_macs - before_macs:
                state.floating.setdefault(mac, set()).add(port)
            tokens.add(("floating", network))
        return tokens

    def _take_binding(self, network: str, state: NetworkState, port: str, entry: Entry | None) -> set[Token]:
        old = state.bindings.get(port, "")
        new = sys.intern(port_pb2.Binding.FromString(entry.value).node) if entry else ""
        if new:
            state.bindings[port] = new
        else:
            state.bindings.pop(port, None)
        if old == new:
            return set()
        before = set(state.members)
        _count(state.members, old, new)
        tokens: set[Token] = {("port", network, port)}
        if set(state.members) != before:
            tokens.add(("members", network))
        return tokens


def _reach(state: ScopeState, notice: Listed | Changed) -> None:
    """What is known of a scope is that of a revision."""
    state.revision = notice.revision
    if isinstance(notice, Listed):
        state.cluster = notice.cluster


def _of_host(facts: HostFacts) -> tuple[object, ...]:
    return facts.datapath_types, facts.underlay_ips, facts.underlay_bridges, facts.foreign_bridges


def _mtus(interfaces: Iterable[Interface]) -> dict[str, int]:
    found: dict[str, int] = {}
    for interface in interfaces:
        if not interface.type and interface.mtu:
            found[interface.bridge] = min(interface.mtu, found.get(interface.bridge, interface.mtu))
    return found


def _pair_macs(port: port_pb2.Port | None) -> set[str]:
    """MACs that the port may send with, beside its own."""
    if port is None:
        return set()
    return {pair.mac_address for pair in port.allowed_address_pairs} - {"", port.mac_address}


def _count(numbers: dict[str, int], old: str, new: str) -> None:
    """One that was `old` is `new` now; "" is nothing."""
    if old:
        numbers[old] -= 1
        if not numbers[old]:
            del numbers[old]
    if new:
        numbers[new] = numbers.get(new, 0) + 1
