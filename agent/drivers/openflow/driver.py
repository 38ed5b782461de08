"""The flows, groups and meters of one bridge.

A flow is ours when its cookie says so, a group or meter when its number does. A fresh process needs nothing else to tell what
it made before: what is remembered here, how the tables were last described, saves work only.

A zone of connection tracking that is named by number belongs to the resource whose cookie the flow has that names it. When such
a flow is put and the zone was not that resource's before, the zone is emptied first: what a former port of that number had
open is not open for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from agent.drivers import unixctl
from agent.drivers.openflow import codec
from agent.drivers.openflow.connection import METER_EXISTS, NO_SUCH_GROUP, Connection, ErrorReply, OpenFlowError
from agent.faults import point
from agent.model.flow import Action, Flow, Group, Match, Meter, ToController, ToGroup, Track
from agent.model.item import Failure, Item, Key

_ROUNDS = 32  # bundles tried in one apply; a commit names only the first message that it refuses
_NUDGE_SECONDS = 0.01
_LOOK = 4.0  # seconds between two looks at groups and meters
_NET = 60.0  # seconds after which tables are read back although the switch has told of nothing


@dataclass(frozen=True, slots=True)
class _Change:
    """One message of a bundle: what it is about, its type and body, and whether it deletes."""

    item: Flow | Group
    kind: int
    body: bytes
    deletes: bool


class OpenFlowDriver:
    """Driver (agent.model.item) of the kinds "flow", "group" and "meter".

    bridge is on the host's Open vSwitch, and has OpenFlow 1.5 among its protocols. is_ours tells by cookie, is_our_group and
    is_our_meter by number. The marker is a flow that `synchronize` adds and deletes: a table that no packet enters and a cookie
    that nothing else has; it counts neither as ours nor as foreign. timeout in seconds, for every answer of the switch.

    The connection is opened when it is first needed, and again after a loss. Methods raise ConnectionError when the
    switch cannot be talked to; what was under way is then unknown, and has to be read again.
    """

    kinds = frozenset({"flow", "group", "meter"})

    def __init__(
        self,
        bridge: str,
        is_ours: Callable[[int], bool],
        is_our_group: Callable[[int], bool] = lambda _: True,
        is_our_meter: Callable[[int], bool] = lambda _: True,
        *,
        marker_table: int,
        marker_cookie: int,
        rundir: Path = Path("/var/run/openvswitch"),
        timeout: float = 10.0,
        same: Callable[[Flow], Flow] = lambda flow: flow,
        sampled: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """same: gives an equal flow that is kept elsewhere already, or the one that it is given.

        sampled: called with each packet that a flow sends here (codec.decode_packet).
        """
        self._bridge = bridge
        self._same = same
        self._is_ours = is_ours
        self._is_our_group = is_our_group
        self._is_our_meter = is_our_meter
        self._sampled = sampled
        self._marker = Flow(marker_table, 0, (), (), marker_cookie)
        self._rundir = rundir
        self._timeout = timeout
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._synchronizing = asyncio.Lock()
        self._bundles = count(1)
        self._known: dict[bytes, Flow] = {}  # the tables as they were last read
        self._foreign: list[Item] = []
        self._groups: dict[int, Group] = {}
        self._meters: dict[int, Meter] = {}
        self._tracking: dict[Key, tuple[int, int]] = {}  # flow → zone that it names, cookie of the zone's owner

    async def close(self) -> None:
        """Close the connection, if there is one. Flows stay."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def lost(self) -> None:
        """Return when the connection, opened if there is none, is lost: the switch may have restarted, without flows.

        ConnectionError when there is no switch to connect to.
        """
        async with self._connected() as connection:
            pass
        await connection.ended()

    async def changed(self) -> None:
        """Return when somebody else has changed a flow, when groups or meters are not what they were, or after `_NET` seconds.

        The switch tells of flows (flow monitor); of the others it tells nothing, so they are looked at.
        """
        async with self._connected() as connection:
            pass
        deadline = asyncio.get_running_loop().time() + _NET
        told = asyncio.create_task(connection.changed())
        ended = asyncio.create_task(connection.ended())
        try:
            while asyncio.get_running_loop().time() < deadline:
                done, _ = await asyncio.wait([told, ended], timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
                if ended in done:
                    raise OpenFlowError(f"{self._bridge}: connection lost")
                if done or await self._all_groups() != self._groups or await self._all_meters() != self._meters:
                    return
        finally:
            told.cancel()
            ended.cancel()

    async def read_owned(self) -> Mapping[Key, Item]:
        """Our flows, groups and meters. A flow that the switch describes in the bytes of last time is not decoded again."""
        self._groups, self._meters = await self._all_groups(), await self._all_meters()
        known: dict[bytes, Flow] = {}
        owned: dict[Key, Item] = {}
        foreign: list[Item] = []
        for body in await self._multipart(codec.flows_request()):
            for digest, flow in codec.flows_known(body, self._known, self._same):
                known[digest] = flow
                if self._is_ours(flow.cookie):
                    owned[flow.key] = self._as_metered(flow)
                    if (zone := _zone_of(flow)) is not None:
                        self._tracking[flow.key] = zone, flow.cookie
                elif (flow.table, flow.cookie) != (self._marker.table, self._marker.cookie):
                    foreign.append(flow)
            await asyncio.sleep(0)  # there may be many thousands, and whoever waits for the loop has more urgent work
        for group in self._groups.values():
            if self._is_our_group(group.group_id):
                owned[group.key] = group
            else:
                foreign.append(group)
        for meter in self._meters.values():
            if self._is_our_meter(meter.meter_id):
                owned[meter.key] = meter
            else:
                foreign.append(meter)
        self._known, self._foreign = known, foreign
        return owned

    def _as_metered(self, flow: Flow) -> Flow:
        """A flow whose meter is gone is not held back by the next one of that number either, unless it is put again: it reads
        as one without a meter."""
        if _meters(flow) <= self._meters.keys():
            return flow
        actions: list[Action] = [replace(each, meter_id=0) if isinstance(each, ToController) else each for each in flow.actions]
        return Flow(flow.table, flow.priority, flow.match, tuple(actions), flow.cookie)

    async def read_foreign(self) -> Sequence[Item]:
        """What is not ours, as of the last `read_owned`."""
        return self._foreign

    async def _all_groups(self) -> dict[int, Group]:
        bodies = await self._multipart(codec.groups_request())
        return {group.group_id: group for body in bodies for group in codec.decode_groups(body)}

    async def _all_meters(self) -> dict[int, Meter]:
        bodies = await self._multipart(codec.meters_request())
        return {meter.meter_id: meter for body in bodies for meter in codec.decode_meters(body)}

    async def flow_counters(
        self, table: int | None = None, idle: bool = False, matched: Match = ()
    ) -> list[tuple[Flow, int, int]]:
        """The flows of one table, or of all, ours or not, with their packets and bytes; without idle, those that have seen
        any; those alone that match all of `matched`, and perhaps more."""
        found = []
        for body in await self._multipart(codec.flows_request(codec.ALL_TABLES if table is None else table, matched)):
            found += [(entry.flow, entry.packets, entry.bytes) for entry in codec.decode_flows(body, idle)]
            await asyncio.sleep(0)  # there may be thousands, and whoever waits for the loop has more urgent work
        return found

    async def port_counters(self) -> Mapping[int, codec.PortStats]:
        """What each port of the bridge has received and sent, by its number."""
        return {
            number: stats for body in await self._multipart(codec.ports_request()) for number, stats in codec.decode_ports(body)
        }

    async def send(self, in_port: int, data: bytes) -> None:
        """Have the switch take a frame for one that came by a port."""
        async with self._connected() as connection:
            with connection.exchange() as exchange:
                exchange.send(codec.PACKET_OUT, codec.packet_out(in_port, data))
                await exchange.barrier(self._timeout)
                _raise_any(exchange.errors, "the switch refused to send")

    async def apply(self, put: Sequence[Item], delete: Sequence[Item]) -> Mapping[Key, Failure]:
        """Put and delete in one atomic bundle: lookups see all of it or nothing. A bundle takes no meters: they are put
        before it and deleted after it.

        Groups go in before the flows that name them, and out after. A flow is deleted only while it still has the
        cookie that the item has. What the switch refuses is left out and reported with the OpenFlow error in words,
        and the rest is tried again, at most 32 times: while a bundle is filled every bad message is named, but a
        refusal at commit names one message only. Of those the common one is a group that is not there, so the other
        flows that name the group are left out with it.
        """
        failures = await self._put_meters([item for item in put if isinstance(item, Meter)])
        unmetered = await self._unmetered(put)
        failures.update((flow.key, Failure("refused", "the meter that it names is not there")) for flow in unmetered)
        metered = [item for item in put if item not in unmetered] if unmetered else put
        failures.update(await self._apply_tables(metered, delete))
        await self._delete_meters([item for item in delete if isinstance(item, Meter)])
        return failures

    async def _put_meters(self, meters: Sequence[Meter]) -> dict[Key, Failure]:
        failures: dict[Key, Failure] = {}
        for there in (False, True):
            refused = await self._send_meters({meter: codec.meter_put(meter, there) for meter in meters})
            self._meters.update((meter.meter_id, meter) for meter in meters if meter not in refused)
            meters = [meter for meter, why in refused.items() if why == METER_EXISTS]
            told = {meter: why for meter, why in refused.items() if why != METER_EXISTS}
            failures.update((meter.key, Failure("refused", f"the switch refused: {why}")) for meter, why in told.items())
        return failures

    async def _unmetered(self, put: Sequence[Item]) -> set[Item]:
        """The flows that name a meter which is not there: the switch takes them, and nothing would hold them back."""
        metered = {item: meters for item in put if isinstance(item, Flow) and (meters := _meters(item))}
        if not set().union(*metered.values()) <= self._meters.keys():
            self._meters = await self._all_meters()
        return {flow for flow, meters in metered.items() if not meters <= self._meters.keys()}

    async def _delete_meters(self, meters: Sequence[Meter]) -> None:
        """One that is gone is no failure, for the switch either."""
        await self._send_meters({meter: codec.meter_delete(meter) for meter in meters})
        for meter in meters:
            self._meters.pop(meter.meter_id, None)

    async def _send_meters(self, bodies: Mapping[Meter, bytes]) -> dict[Meter, ErrorReply]:
        """What the switch refused."""
        if not bodies:
            return {}
        async with self._connected() as connection:
            with connection.exchange() as exchange:
                xids = {exchange.send(codec.METER_MOD, body): meter for meter, body in bodies.items()}
                await exchange.barrier(self._timeout)
                return {xids[xid]: why for xid, why in exchange.errors.items() if xid in xids}

    async def _apply_tables(self, put: Sequence[Item], delete: Sequence[Item]) -> dict[Key, Failure]:
        failures: dict[Key, Failure] = {}
        changes = _changes(put, delete, failures)
        for _ in range(_ROUNDS):
            refused = await self._bundle(changes) if changes else {}
            if not refused:
                return failures
            failures.update((key, Failure("refused", f"the switch refused: {why}")) for key, why in refused.items())
            for change in [change for change in changes if refused.get(change.item.key) == NO_SUCH_GROUP]:
                missing = _groups(change.item)
                told = Failure("refused", f"the switch refused: {NO_SUCH_GROUP}, one of {sorted(missing)}")
                failures.update((other.item.key, told) for other in changes if missing & _groups(other.item))
            changes = [change for change in changes if change.item.key not in failures]
        told = Failure("not-tried", "too many other changes were refused")
        return failures | {change.item.key: told for change in changes}

    async def synchronize(self) -> None:
        """Return when the datapath's flow cache reflects everything that was committed before the call.

        A commit changes the tables that are looked up; cached (megaflow) decisions follow later, when revalidator
        threads next go through the cache. `revalidator/wait` is answered when a pass ends, even one that began too
        early, and an idle switch begins a pass only every max-revalidator (500 ms). In ovs-vswitchd one thread runs,
        over and over: announce pending table changes to the revalidators and answer finished waits; serve OpenFlow;
        serve control commands. A pass that begins after the announcement checks every cached flow. So:

        1. A control command and then a barrier are answered one after the other: the barrier is served in a later
           turn than the commit was, which means that the commit has been announced by now.
        2. A wait is issued, then the marker is added. The request lies in its socket before the flow-mod does, and in
           each turn control commands come after OpenFlow: the wait is registered before the change is announced, and
           the announcement begins a pass. The answer comes at once and not after 500 ms. The pass that it tells the
           end of may have begun before step 1.
        3. The same again, now deleting the marker. This second pass began after the end of the first, so after
           step 1. When it ends no decision of before the commit is cached.

        The answer of a wait can be late for want of a wake-up: when a pass ends between the main thread's two looks at
        the pass counter (udpif_run, then run of ofproto-dpif) it goes to sleep with the answer due. A barrier wakes it.

        Two passes begin at least 5 ms apart, so an idle switch needs about 10 ms. A handler thread (kernel datapath or
        PMD) that began to translate a packet before the commit may cache its result later; that the second pass comes
        5 ms later covers it in practice, and with the main thread as the only handler it cannot happen.

        ConnectionError also when the daemon has datapaths of two types: it refuses to wait then.
        """
        async with (
            self._synchronizing,
            unixctl.connect(self._rundir, timeout=self._timeout) as control,
            self._connected() as connection,
        ):
            await control.call("version")
            with connection.exchange() as exchange:
                await exchange.barrier(self._timeout)
            for change in (codec.flow_put(self._marker), codec.flow_delete(self._marker)):
                control.send("revalidator/wait")
                with connection.exchange() as exchange:
                    exchange.send(codec.FLOW_MOD, change)
                    await exchange.barrier(self._timeout)
                    _raise_any(exchange.errors, "the marker flow was refused")
                point("flows: marker changed")
                await self._answer(control, connection)

    async def _answer(self, control: unixctl.Control, connection: Connection) -> None:
        """Receive the answer of a control command, waking the switch's main thread until it is there."""
        answer = asyncio.create_task(control.receive())
        try:
            while not (await asyncio.wait([answer], timeout=_NUDGE_SECONDS))[0]:
                with connection.exchange() as exchange:
                    await exchange.barrier(self._timeout)
            answer.result()
        finally:
            answer.cancel()

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        """The connection; it is dropped when something goes wrong on it."""
        async with self._connecting:
            if self._connection is None or not self._connection.usable:
                await self.close()
                opened = await Connection.open(self._rundir / f"{self._bridge}.mgmt", self._timeout, self._sampled)
                try:
                    await self._prepare(opened)
                except BaseException:
                    await opened.close()
                    raise
                self._connection = opened
            connection = self._connection
        try:
            yield connection
        except OpenFlowError:
            await connection.close()
            raise

    async def _prepare(self, connection: Connection) -> None:
        """What a switch must be told whenever it may have started: how to match fragments, and to
        send what flows would have told; and to tell of changes."""
        with connection.exchange() as exchange:
            exchange.send(codec.SET_CONFIG, codec.config_body())
            exchange.send(codec.MULTIPART_REQUEST, codec.monitor_request())
            await exchange.barrier(self._timeout)
            _raise_any(exchange.errors, "the switch refused to tell of changes, or to tell fragments apart")

    async def _multipart(self, request: bytes) -> list[bytes]:
        """The bodies of all replies to a multipart request."""
        async with self._connected() as connection:
            with connection.exchange() as exchange:
                xid = exchange.send(codec.MULTIPART_REQUEST, request)
                await exchange.barrier(self._timeout)
                _raise_any(exchange.errors, "the switch refused to describe its tables")
                replies = exchange.replies.get(xid)
                if not replies or codec.more_follow(replies[-1]):
                    raise OpenFlowError(f"{self._bridge}: an incomplete description of the tables")
                return replies

    async def _bundle(self, changes: Sequence[_Change]) -> Mapping[Key, ErrorReply]:
        """Commit the changes in one bundle and return nothing, or change nothing and return what was refused.

        Messages are checked as they are added, and a refused one would merely be missing from the bundle; so the
        errors are waited for before the commit.
        """
        bundle = next(self._bundles) & 0xFFFF_FFFF
        async with self._connected() as connection:
            await self._flush_zones(connection, changes)
            with connection.exchange() as exchange:
                exchange.send(codec.BUNDLE_CONTROL, codec.bundle_control(bundle, codec.OPEN))
                keys: dict[int, Key] = {}
                for change in changes:
                    xid = exchange.xid()
                    keys[xid] = change.item.key
                    exchange.write(codec.bundle_add(bundle, xid, change.kind, change.body))
                await exchange.barrier(self._timeout)
                point("flows: bundle filled")
                end = codec.DISCARD if exchange.errors else codec.COMMIT
                ended = exchange.send(codec.BUNDLE_CONTROL, codec.bundle_control(bundle, end))
                await exchange.barrier(self._timeout)
                refused = {keys[xid]: why for xid, why in exchange.errors.items() if xid in keys}
                if not refused:
                    _raise_any(exchange.errors, "bundle refused")
                    if ended not in exchange.replies:
                        raise OpenFlowError(f"{self._bridge}: no reply to the commit of a bundle")
                    point("flows: committed")
                    self._note_groups(changes)
                    self._note_zones(changes)
                return refused

    async def _flush_zones(self, connection: Connection, changes: Sequence[_Change]) -> None:
        """Empty the zones that are about to belong to another resource."""
        taken = {
            (zone, change.item.cookie)
            for change in changes
            if isinstance(change.item, Flow) and not change.deletes and (zone := _zone_of(change.item)) is not None
        }
        new = {zone for zone, _ in taken - set(self._tracking.values())} if taken else set()
        if not new:
            return
        with connection.exchange() as exchange:
            for zone in new:
                exchange.send(codec.EXPERIMENTER, codec.flush_zone(zone))
            await exchange.barrier(self._timeout)
            _raise_any(exchange.errors, "the switch refused to empty a zone of connection tracking")
        point("flows: zones emptied")

    def _note_zones(self, changes: Sequence[_Change]) -> None:
        """A zone that none of our changes has left with a flow is nobody's, and is emptied for whoever comes next. What others
        delete counts for nothing: it is put back, for the connections that are open."""
        for change in changes:
            if isinstance(change.item, Flow):
                self._tracking.pop(change.item.key, None)
                if not change.deletes and (zone := _zone_of(change.item)) is not None:
                    self._tracking[change.item.key] = zone, change.item.cookie

    def _note_groups(self, changes: Sequence[_Change]) -> None:
        for change in changes:
            if isinstance(change.item, Group):
                self._groups.pop(change.item.group_id, None)
                if not change.deletes:
                    self._groups[change.item.group_id] = change.item


def _changes(put: Sequence[Item], delete: Sequence[Item], failures: dict[Key, Failure]) -> list[_Change]:
    """The messages in order. An item that cannot be encoded goes to failures."""
    phases: tuple[list[_Change], ...] = ([], [], [], [])
    for items, deleting in ((put, False), (delete, True)):
        for item in items:
            try:
                match item:
                    case Group():
                        body = codec.group_delete(item) if deleting else codec.group_put(item)
                        phases[3 if deleting else 0].append(_Change(item, codec.GROUP_MOD, body, deleting))
                    case Flow():
                        body = codec.flow_delete(item) if deleting else codec.flow_put(item)
                        phases[2 if deleting else 1].append(_Change(item, codec.FLOW_MOD, body, deleting))
                    case Meter():
                        continue
                    case _:
                        raise ValueError(f"not a flow, group or meter: {item.key}")
            except ValueError as wrong:
                failures[item.key] = Failure("invalid", str(wrong))
    return [change for phase in phases for change in phase]


def _groups(item: Flow | Group) -> set[int]:
    """The groups that a flow names."""
    return {action.group_id for action in item.actions if isinstance(action, ToGroup)} if isinstance(item, Flow) else set()


def _meters(flow: Flow) -> set[int]:
    """The meters that a flow names."""
    return {action.meter_id for action in flow.actions if isinstance(action, ToController)}


def _zone_of(flow: Flow) -> int | None:
    """The zone of connection tracking that a flow names by number."""
    zones = (action.zone for action in flow.actions if isinstance(action, Track))
    return next((zone for zone in zones if isinstance(zone, int)), None)


def _raise_any(errors: Mapping[int, ErrorReply], what: str) -> None:
    for why in errors.values():
        raise OpenFlowError(f"{what}: {why}")
