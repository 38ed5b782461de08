"""The connection to the host's ovsdb-server: facts for compilation, transactions for the driver.

One connection, with a thread of its own (the library's loop blocks). After each batch of changes that thread builds
an immutable `View` and hands it to the asyncio loop, so that readers never take a lock and never see half a change.
When ovsdb-server goes away the last view stays, `connected` turns False, and the connection comes back by itself:
the library retries every 1 to 8 s. Both turns are told to the listeners like any other change.

A transaction counts as done when ovs-vswitchd has acted on it: next_cfg is raised in the transaction, and cur_cfg
follows once the switch is reconfigured. Waiting for that happens in the asyncio loop, not in the connection's thread.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ovs.db.idl import SchemaHelper
from ovsdbapp.backend.ovs_idl import command, connection, transaction
from ovsdbapp.exceptions import TimeoutException
from ovsdbapp.schema.open_vswitch.impl_idl import OvsdbIdl

from agent.facts.capability import usable_datapaths
from agent.facts.links import Links
from agent.facts.model import HostFacts, Interface, Link
from agent.model.host import INTEGRATION_BRIDGE

SOCKET = "/var/run/openvswitch/db.sock"

# What is read or written; every other column (statistics above all) would wake the agent for nothing.
COLUMNS = {
    "Open_vSwitch": ["bridges", "cur_cfg", "next_cfg", "datapath_types", "iface_types", "ovs_version"],
    "Bridge": ["name", "ports", "datapath_type", "fail_mode", "protocols", "other_config", "external_ids"],
    "Port": ["name", "interfaces", "external_ids", "tag", "trunks", "vlan_mode"],
    "Interface": ["name", "type", "options", "external_ids", "ofport", "error", "mtu"],
}

T = TypeVar("T")
Rows = Mapping[str, Any]
"""The tables of the database by name, as the library has them."""


class OvsdbError(ConnectionError):
    """The database or the switch did not do what was asked; str() is one line."""


class OvsdbRefused(OvsdbError):
    """The server took nothing of a transaction."""


@dataclass(frozen=True, slots=True)
class View:
    """The database at one moment. Views compare equal when nothing that is compiled differs. change: number of the copy's
    last change, of whatever column."""

    connected: bool = False
    interfaces: Mapping[str, Interface] = field(default_factory=dict)
    bridges: tuple[str, ...] = ()
    foreign_bridges: frozenset[str] = frozenset()
    datapath_types: tuple[str, ...] = ()
    ovs_version: str = ""
    interface_types: tuple[str, ...] = ()
    cur_cfg: int = field(default=0, compare=False)
    change: int = field(default=0, compare=False)


class Ovsdb:
    """The host's Open vSwitch database. start() first; all methods belong to the loop that start() ran in."""

    def __init__(self, path: str = SOCKET, timeout: float = 10.0) -> None:
        """path of the server's unix socket; timeout in seconds for the first copy and for each transaction."""
        self._path = path
        self._timeout = timeout
        self._view = View()
        self._told = View()
        self._listeners: list[Callable[[], None]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._links = Links(self._tell)
        self._probed_for: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._datapaths: tuple[str, ...] = ()

    async def start(self) -> None:
        """Connect and wait for the first full copy. Raises OvsdbError, also when there is no server."""
        self._loop = asyncio.get_running_loop()
        helper = SchemaHelper(None, await self._schema())
        for table, columns in COLUMNS.items():
            helper.register_columns(table, columns)
        self._connection = connection.Connection(_Idl(f"unix:{self._path}", helper, self._publish), self._timeout)
        self._api = _Api(self._connection, start=False)
        try:
            await asyncio.to_thread(self._connection.start)
        except TimeoutException:
            self._connection.idl.close()
            raise OvsdbError(f"ovsdb-server on {self._path} sent no copy within {self._timeout:g} s") from None
        await self._links.start()

    async def stop(self) -> None:
        """End the connection and its thread."""
        self._links.close()
        await asyncio.to_thread(self._connection.stop)

    @property
    def connected(self) -> bool:
        """Whether the view follows the server; if not it is the last one seen."""
        return self._view.connected

    @property
    def bridges(self) -> tuple[str, ...]:
        """Names of all bridges, sorted."""
        return self._view.bridges

    @property
    def interface_types(self) -> tuple[str, ...]:
        """The types of interfaces that the switch offers, sorted."""
        return self._view.interface_types

    @property
    def last_change(self) -> int:
        """Number of the last change of what is watched, by whomever."""
        return self._view.change

    async def changed_since(self, change: int) -> None:
        """Return when the database is not what it was at this change. OvsdbError while not connected."""
        while self._view.change == change:
            self._need_connection()
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def facts(self) -> Mapping[str, Interface]:
        """Every interface of every bridge, by name."""
        return self._view.interfaces

    async def host_facts(self) -> HostFacts:
        """All facts of the host in one value."""
        view = self._view
        if self._probed_for != (view.bridges, view.datapath_types):
            # Asked anew only when bridges come or go: this is on the way of every port that is plugged.
            self._datapaths = await asyncio.to_thread(usable_datapaths, view.datapath_types)
            self._probed_for = (view.bridges, view.datapath_types)
        addresses = self._links.addresses
        underlay = underlay_bridges(addresses, view.bridges)
        return HostFacts(
            interfaces=view.interfaces,
            datapath_types=self._datapaths,
            ovs_version=view.ovs_version,
            underlay_ips=tuple(underlay),
            underlay_bridges=underlay,
            foreign_bridges=view.foreign_bridges,
            addresses=addresses,
        )

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have callback called in the loop after the facts or `connected` changed; quick changes come as one call."""
        self._listeners.append(callback)

    async def read(self, work: Callable[[Rows], T]) -> T:
        """Run work(tables) in a thread while nothing changes the copy. Raises OvsdbError while not connected."""
        self._need_connection()
        return await asyncio.to_thread(self._locked, work)

    async def change(self, work: Callable[[Rows, Any], T]) -> T:
        """Run work(tables, transaction) as one transaction and wait until the switch has acted on it.

        work is run again when another client was faster, so it must start from the tables each time. Raises
        OvsdbRefused when nothing was changed, OvsdbError when that is unknown.
        """
        self._need_connection()
        result, generation = await asyncio.to_thread(self._commit, work)
        try:
            await self._until(lambda view: view.cur_cfg >= generation)
        except TimeoutError:
            raise OvsdbError(f"ovs-vswitchd did not act within {self._timeout:g} s") from None
        return result

    def _need_connection(self) -> None:
        if not self.connected:
            raise OvsdbError(f"not connected to ovsdb-server on {self._path}")

    async def _until(self, condition: Callable[[View], bool]) -> None:
        async with asyncio.timeout(self._timeout):
            while not condition(self._view):
                waiter = self._loop.create_future()
                self._waiters.append(waiter)
                await waiter

    async def _schema(self) -> Any:
        """Ask the server for its schema (the library's own call has no deadline)."""
        request = {"method": "get_schema", "params": ["Open_vSwitch"], "id": 0}
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_unix_connection(self._path)
                try:
                    writer.write(json.dumps(request).encode())
                    text = b""
                    while chunk := await reader.read(65536):
                        text += chunk
                        try:  # messages follow each other without a delimiter
                            return json.loads(text)["result"]
                        except json.JSONDecodeError:
                            continue
                    raise OvsdbError(f"ovsdb-server on {self._path} closed the connection")
                finally:
                    writer.close()
        except TimeoutError:
            raise OvsdbError(f"ovsdb-server on {self._path} does not answer") from None
        except OSError as error:
            raise OvsdbError(f"no ovsdb-server on {self._path}: {error.strerror}") from error

    def _locked(self, work: Callable[[Rows], T]) -> T:
        with self._connection.lock:
            return work(self._api.tables)

    def _commit(self, work: Callable[[Rows, Any], T]) -> tuple[T, int]:
        txn = _Transaction(self._api, self._connection, self._timeout, check_error=True, log_errors=False)
        step = txn.add(_Work(self._api, work))
        try:
            txn.commit()
        except TimeoutException:
            raise OvsdbError(f"ovsdb-server did not commit within {self._timeout:g} s") from None
        except RuntimeError as error:  # what the library raises when the server refuses
            raise OvsdbRefused(str(error)) from error
        return step.result, txn.generation

    def _publish(self, view: View) -> None:
        """Called in the connection's thread."""
        self._view = view
        self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._view != self._told:
            self._told = self._view
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


class _Idl(connection.OvsdbIdl):  # type: ignore[misc]
    """The library's copy of the database, which publishes a View after every batch of messages that changed it.

    Reading a column costs the library 10 to 20 us, so what was read is kept, by row, until that row changes.
    """

    def __init__(self, remote: str, schema: SchemaHelper, publish: Callable[[View], None]) -> None:
        super().__init__(remote, schema)
        self._publish = publish
        self._view = View()
        self._seen = self.change_seqno
        self._read: dict[Any, Any] = {}

    def notify(self, event: str, row: Any, updates: Any = None) -> None:  # the library's signature
        self._read.pop(row.uuid, None)

    def run(self) -> bool:
        changed: bool = super().run()
        if not (self._session.is_connected() and self.state == self.IDL_S_MONITORING):
            self._read.clear()  # rows that go while the server is away are not told of
            if self._view.connected:
                self._view = replace(self._view, connected=False)
                self._publish(self._view)
        elif self.change_seqno != self._seen:
            self._seen = self.change_seqno
            self._view = replace(_view(self.tables, self._read), change=self._seen)
            self._publish(self._view)
        return changed


class _Api(OvsdbIdl):  # type: ignore[misc]
    ovsdb_connection = None  # the library keeps one per class and ignores every later one


class _Transaction(transaction.Transaction):  # type: ignore[misc]
    """A transaction that tells which cur_cfg shows that the switch has acted on it."""

    generation = 0

    def pre_commit(self, txn: Any) -> None:
        # Written, not incremented: an increment is left out when nothing else changes, and then the switch would not
        # look again, for example at a port whose device has appeared meanwhile.
        for row in self.api.tables["Open_vSwitch"].rows.values():
            row.verify("next_cfg")
            self.generation = row.next_cfg = row.next_cfg + 1

    def post_commit(self, txn: Any) -> None:
        """Nothing: the library's own waits for the switch while it holds the connection."""


class _Work(command.BaseCommand):  # type: ignore[misc]
    """A function as a command of the library."""

    def __init__(self, api: _Api, work: Callable[[Rows, Any], Any]) -> None:
        super().__init__(api)
        self._work = work

    def run_idl(self, txn: Any) -> None:
        self.result = self._work(self.api.tables, txn)


def _view(tables: Rows, read: dict[Any, Any]) -> View:
    """The View of the tables. read holds what is known of rows by their uuid, and is filled."""
    interfaces: dict[str, Interface] = {}
    bridges, foreign = [], set()
    for bridge in tables["Bridge"].rows.values():
        if bridge.uuid not in read:
            read[bridge.uuid] = bridge.name, tuple(bridge.ports), "kumihimo" in bridge.external_ids
        name, ports, ours = read[bridge.uuid]
        bridges.append(name)
        if not ours:
            foreign.add(name)
        for port in ports:
            if port.uuid not in read:
                read[port.uuid] = tuple(port.interfaces)
            for row in read[port.uuid]:
                known = read.get(row.uuid)
                if known is None or known.bridge != name:
                    known = read[row.uuid] = _interface(row, name)
                interfaces[known.name] = known
    view = View(connected=True, interfaces=interfaces, bridges=tuple(sorted(bridges)), foreign_bridges=frozenset(foreign))
    for row in tables["Open_vSwitch"].rows.values():
        types, version = tuple(sorted(row.datapath_types)), "".join(row.ovs_version)
        offered = tuple(sorted(row.iface_types))
        view = replace(view, datapath_types=types, interface_types=offered, ovs_version=version, cur_cfg=row.cur_cfg)
    return view


def _interface(row: Any, bridge: str) -> Interface:
    ofport = next((number for number in row.ofport if number > 0), None)
    iface_id = row.external_ids.get("iface-id")
    mtu = 0 if iface_id or bridge == INTEGRATION_BRIDGE else next(iter(row.mtu), 0)
    return Interface(row.name, bridge, ofport, iface_id, row.type, "".join(row.error), mtu)


def underlay_bridges(addresses: Mapping[str, Link], bridges: Iterable[str]) -> dict[str, str]:
    """Address → bridge, of addresses that bridges other than the integration bridge have, in the bridges' order.

    In the userspace datapath a tunnel can start only from such an address.
    """
    return {
        address: bridge
        for bridge in bridges
        if bridge != INTEGRATION_BRIDGE
        for address, link in addresses.items()
        if link.name == bridge
    }
