"""Bridges and ports in Open vSwitch's database.

Ours is what carries external_ids:kumihimo: bridges `kumihimo=bridge`, ports `kumihimo=PURPOSE`. Everything of one
apply() goes into one transaction, so that the switch reconfigures once; only when the server refuses it is every
item tried alone, to find the one at fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agent.facts.ovsdb import Ovsdb, OvsdbError, OvsdbRefused, Rows
from agent.faults import point
from agent.model.host import Bridge, OvsPort
from agent.model.item import Failure, Item, Key

OWNER = "kumihimo"

# OpenFlow10 and 13 are for operators' tools; the agent speaks 1.5.
PROTOCOLS = ["OpenFlow10", "OpenFlow13", "OpenFlow14", "OpenFlow15"]
# Columns of a Port by which a bridge that forwards like a switch keeps frames from it: never set on ours.
VLAN = ("tag", "trunks", "vlan_mode")


class OvsdbDriver:
    """Makes Bridge and OvsPort items real.

    An existing bridge is adopted: its columns are set, its ports stay, and so do its flows if it was in secure mode
    and of the wanted datapath_type already (the switch flushes them when one of these changes). A bridge that others
    still have ports on is not removed; it only ceases to be ours. A port that is not ours is never touched: Failure
    FOREIGN_OBJECT.
    """

    kinds = frozenset({"bridge", "ovs-port"})

    def __init__(self, ovsdb: Ovsdb) -> None:
        self._ovsdb = ovsdb
        self._change = 0  # of the database, when it was last read
        self._foreign: list[Item] = []

    async def changed(self) -> None:
        """Return when the database has changed since it was last read, by whomever."""
        await self._ovsdb.changed_since(self._change)

    async def read_owned(self) -> Mapping[Key, Item]:
        """Our bridges and ports. One that somebody bent reads back as a value that nobody can want."""
        self._change = self._ovsdb.last_change
        owned, self._foreign = await self._ovsdb.read(_read)
        return {item.key: item for item in owned}

    async def read_foreign(self) -> Sequence[Item]:
        """Ports of our bridges that neither we nor a hypervisor (external_ids:iface-id) asked for, as last read."""
        return self._foreign

    async def apply(self, put: Sequence[Item], delete: Sequence[Item]) -> Mapping[Key, Failure]:
        """One transaction, then what the switch says about each interface. Bridges are put before ports."""
        items = (*put, *delete)
        if put and delete and {item.key[-1] for item in put} & {item.key[-1] for item in delete}:
            # The switch refuses a port that leaves one bridge and enters another in one reconfiguration.
            return {**await self.apply([], delete), **await self.apply(put, [])}
        point("ovsdb: about to commit")
        try:
            failures = await self._ovsdb.change(lambda tables, txn: _change(tables, txn, put, delete))
        except OvsdbRefused as error:
            if len(items) == 1:
                return {items[0].key: Failure("OVSDB", str(error))}
            alone = [await self.apply([], [item]) for item in sorted(delete, key=_bridge_last)]
            alone += [await self.apply([item], []) for item in sorted(put, key=_bridge_first)]
            return {key: failure for failures in alone for key, failure in failures.items()}
        except OvsdbError as error:
            return {item.key: Failure("OVSDB", str(error)) for item in items}
        point("ovsdb: committed")
        facts = self._ovsdb.facts()
        for item in put:
            if isinstance(item, OvsPort) and item.key not in failures:
                seen = facts.get(item.name)
                if seen is None or seen.ofport is None:
                    why = seen.error if seen else ""
                    failures[item.key] = Failure("INTERFACE", why or f"{item.name} got no port number")
        return failures


def _read(tables: Rows) -> tuple[list[Item], list[Item]]:
    """(what is ours, what stands on our bridges and nobody asked for)."""
    owned: list[Item] = []
    foreign: list[Item] = []
    for bridge in tables["Bridge"].rows.values():
        ours = bridge.external_ids.get(OWNER) == "bridge"
        if ours:
            owned.append(Bridge(bridge.name, bridge.datapath_type, "".join(bridge.fail_mode), _wrong(bridge)))
        for port in bridge.ports:
            for interface in port.interfaces:
                found = OvsPort(bridge.name, port.name, interface.type, _pairs(interface.options), _pairs(port.external_ids))
                if OWNER in port.external_ids:
                    owned.append(replace(found, wrong=_wrong_port(port, interface)))
                elif ours and port.name != bridge.name and "iface-id" not in interface.external_ids:
                    foreign.append(found)
    return owned, foreign


def _wrong(bridge: Any) -> str:
    """What of a bridge of ours somebody bent, other than what the item says."""
    wrong = []
    if sorted(bridge.protocols) != PROTOCOLS:
        wrong.append(f"protocols were {' '.join(sorted(bridge.protocols)) or 'unset'}")
    if bridge.other_config.get("disable-in-band") != "true":
        wrong.append("disable-in-band was not true")
    return ", ".join(wrong)


def _wrong_port(port: Any, interface: Any) -> str:
    """What of a port of ours somebody bent, other than what the item says."""
    wrong = [] if port.external_ids == interface.external_ids else ["the interface has external_ids of its own"]
    for column in VLAN:
        if value := getattr(port, column):
            wrong.append(f"{column} was {' '.join(map(str, value))}")
    return ", ".join(wrong)


def _pairs(mapping: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(mapping.items()))


def _change(tables: Rows, txn: Any, put: Sequence[Item], delete: Sequence[Item]) -> dict[Key, Failure]:
    """Write the whole change into the transaction; returns what cannot be done, which is then left as it is."""
    bridges = {row.name: row for row in tables["Bridge"].rows.values()}
    ports = {port.name: (bridge, port) for bridge in bridges.values() for port in bridge.ports}
    failures: dict[Key, Failure] = {}
    for item in sorted(delete, key=_bridge_last):
        if isinstance(item, OvsPort) and item.name in ports:
            bridge, port = ports[item.name]
            if bridge.name == item.bridge and OWNER in port.external_ids:
                bridge.delvalue("ports", port)
                del ports[item.name]
        elif isinstance(item, Bridge) and item.name in bridges:
            _remove_bridge(tables, bridges.pop(item.name))
    for item in sorted(put, key=_bridge_first):
        if isinstance(item, Bridge):
            failure = _put_bridge(tables, txn, item, bridges, ports)
        elif isinstance(item, OvsPort):
            failure = _put_port(tables, txn, item, bridges, ports)
        if failure:
            failures[item.key] = failure
    return failures


def _put_bridge(tables: Rows, txn: Any, item: Bridge, bridges: dict[str, Any], ports: dict[str, Any]) -> Failure | None:
    row = bridges.get(item.name)
    if row is None:
        if item.name in ports:
            return Failure("FOREIGN_OBJECT", f"a port has the name {item.name}")
        row = bridges[item.name] = txn.insert(tables["Bridge"])
        row.name = item.name
        row.addvalue("ports", _new_port(tables, txn, item.name, "internal"))
        for root in tables["Open_vSwitch"].rows.values():
            root.addvalue("bridges", row)
    row.datapath_type = item.datapath_type
    row.fail_mode = item.fail_mode
    row.protocols = PROTOCOLS
    row.setkey("other_config", "disable-in-band", "true")
    row.setkey("external_ids", OWNER, "bridge")
    return None


def _put_port(tables: Rows, txn: Any, item: OvsPort, bridges: dict[str, Any], ports: dict[str, Any]) -> Failure | None:
    if item.bridge not in bridges:
        return Failure("NO_BRIDGE", f"there is no bridge {item.bridge}")
    bridge = bridges[item.bridge]
    home, port = ports.get(item.name, (None, None))
    if port is None:
        port = _new_port(tables, txn, item.name, item.type)
        bridge.addvalue("ports", port)
    elif OWNER not in port.external_ids:
        return Failure("FOREIGN_OBJECT", f"{item.name} on {home.name} is not ours")
    elif home is not bridge:
        return Failure("NAME_TAKEN", f"{item.name} is on {home.name}")
    ports[item.name] = (bridge, port)
    port.external_ids = dict(item.external_ids)
    for column in VLAN:
        setattr(port, column, [])
    for interface in port.interfaces:
        interface.type = item.type
        interface.options = dict(item.options)
        interface.external_ids = dict(item.external_ids)
    return None


def _new_port(tables: Rows, txn: Any, name: str, type: str) -> Any:
    """A port with one interface of the same name, as a row that no bridge has yet."""
    port, interface = txn.insert(tables["Port"]), txn.insert(tables["Interface"])
    port.name = interface.name = name
    interface.type = type
    port.interfaces = [interface]
    return port


def _remove_bridge(tables: Rows, row: Any) -> None:
    if any(port.name != row.name and OWNER not in port.external_ids for port in row.ports):
        row.delkey("external_ids", OWNER)
        return
    for root in tables["Open_vSwitch"].rows.values():
        root.delvalue("bridges", row)


def _bridge_first(item: Item) -> bool:
    return item.key[0] != "bridge"


def _bridge_last(item: Item) -> bool:
    return item.key[0] == "bridge"
