"""The agent's loop: notices and facts in, compile, lanes, status out.

One task decides; lanes and the status writer work beside it and tell it when they have progressed. Each run of the engine
has a number; a scope is applied at the revision it was compiled from once every lane has finished that number.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agent.compile.base import NODE_SCOPE
from agent.compile.engine import Changes, Engine
from agent.compile.port import Verdict, verdict
from agent.compile.view import View
from agent.facts.model import HostFacts
from agent.facts.ovsdb import Ovsdb, OvsdbError
from agent.mirror.scope import Token
from agent.mirror.snapshot import Recorder
from agent.mirror.state import State
from agent.model.item import Failure, Key
from agent.model.remark import KIND, PENDING, Remark
from agent.reconcile.drift import Drifts
from agent.reconcile.lane import Lane
from agent.reconcile.status import Status
from controlplane.store import keys
from controlplane.store.feed import Changed, Feed, Listed, Lost
from kumihimo.v1 import node_pb2, store_pb2

_log = structlog.get_logger("kumihimo.agent")
_context = TraceContextTextMapPropagator()
DRIFT_PAUSE = 1.0  # seconds
TOGETHER = 0.001  # seconds in which notices of one transaction come

# An etcd cluster and a revision of it: after a restoration the same number is another revision.
Revision = tuple[int, int]
NONE: Revision = (0, 0)


@dataclass(slots=True)
class _Goal:
    """What a scope will be at when all lanes have finished a run's number."""

    number: int
    at: Revision
    ports: dict[str, store_pb2.PortStatus] = field(default_factory=dict)
    gone: bool = False
    pending: bool = False  # something is yet to be compiled, from facts that these very items bring about
    span: trace.Span | None = None


class Loop:
    """See the module."""

    def __init__(
        self, state: State, engine: Engine, feed: Feed, ovsdb: Ovsdb, status: Status, recorder: Recorder | None = None
    ) -> None:
        self.drifts = Drifts(self._owner, self._drift_found)
        self._state = state
        self._engine = engine
        self._feed = feed
        self._ovsdb = ovsdb
        self._status = status
        self._lanes: list[Lane] = []
        self._woken = asyncio.Event()
        self._drift_told = 0.0
        self._drift_untold = True
        self._facts_changed = True
        self._watched: set[str] = set()
        self._announcing: dict[str, asyncio.Task[None]] = {}
        self._number = 0
        self._started = False
        self._recorder = recorder
        # What a former process knew of prefixes that the store has not listed yet; not empty: the start was from it.
        self._recalled: dict[str, Listed] = {}
        self._remembered: set[str] = set()
        self._sparing = False
        self._following = True
        self._lost = False
        self._goals: dict[str, deque[_Goal]] = {}
        self._applied: dict[str, Revision] = {}
        self._noted: dict[str, Revision] = {}  # that of each scope's last goal
        self._remarks: dict[str, dict[Key, Remark]] = {}  # by scope
        self._traces: dict[str, str] = {}
        self._tracer = trace.get_tracer("kumihimo.agent")

    def use(self, *lanes: Lane) -> None:
        """The lanes that apply what is compiled."""
        self._lanes = list(lanes)

    def wake(self) -> None:
        """Something happened elsewhere: look again."""
        self._woken.set()

    def recall(self, known: Mapping[str, Listed]) -> None:
        """The store is away: begin from what was known. Nothing is removed that is not known, and nothing said in status,
        until `follow`, and until the store has listed everything."""
        self._recalled = dict(known)
        self._sparing, self._following = True, False

    def follow(self) -> None:
        """The store answers, and status has been read."""
        self._following = True
        self.wake()

    async def run(self) -> None:
        """Work until cancelled."""
        self._ovsdb.on_change(self._host_changed)
        self.wake()  # the first look is owed to nobody
        notice = asyncio.create_task(self._feed.notices.get())
        tokens: set[Token] = set()
        try:
            while True:
                woken = asyncio.create_task(self._woken.wait())
                if not self._woken.is_set():
                    await asyncio.wait([notice, woken], return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                self._woken.clear()
                if notice.done():
                    # One change of a port is told in its network and in its groups. What comes in two passes of a lane takes
                    # twice as long, since each waits for the switch's caches.
                    await asyncio.sleep(TOGETHER)
                    tokens |= self._take(notice.result())
                    while not self._feed.notices.empty():
                        tokens |= self._take(self._feed.notices.get_nowait())
                    notice = asyncio.create_task(self._feed.notices.get())
                tokens |= await self._take_facts()
                tokens |= self._remember() | self._state.forget()
                self._follow_interest()
                if self._sparing and self._following and self._state.is_complete and not self._unlisted():
                    self._confirm()
                if self._started or self._state.is_complete or self._sparing:
                    self._compile(tokens)
                    tokens = set()
                self._publish()
        finally:
            notice.cancel()
            for task in self._announcing.values():
                task.cancel()

    # -- in -----------------------------------------------------------------------------------------------------------

    def _take(self, notice: object) -> set[Token]:
        if isinstance(notice, Lost):
            if not self._lost:
                _log.warning("store lost; traffic goes on", detail=notice.detail)
            self._lost = True
            return set()
        if self._lost:
            _log.info("store found again")
        self._lost = False
        assert isinstance(notice, Listed | Changed)
        if isinstance(notice, Listed):
            self._status.follow(notice.cluster)
            former = self._recalled.pop(notice.prefix, None)
            if former is not None and former.cluster != notice.cluster and notice.prefix == keys.NODES:
                _log.warning("the store is not the one that the snapshot was made from; what it lists replaces all")
        if self._recorder is not None:
            self._recorder.take(notice)
        return self._state.take(notice)

    def _remember(self) -> set[Token]:
        """Take in what was known of what is of interest and not listed yet."""
        tokens: set[Token] = set()
        taken: set[str] = set()
        while self._sparing and (new := (self._state.interest() & self._recalled.keys()) - taken - self._remembered):
            for prefix in new:
                tokens |= self._state.take(self._recalled[prefix])
            taken |= new
        self._remembered = (self._remembered | taken) & self._state.interest()
        return tokens

    def _unlisted(self) -> set[str]:
        """What is of interest and only remembered."""
        return self._state.interest() & self._recalled.keys()

    def _confirm(self) -> None:
        """The store has listed everything: what follows is a start like any other."""
        _log.info("the store has told everything; what was remembered is forgotten")
        self._sparing = self._started = False
        self._recalled.clear()
        self._remembered.clear()
        self._goals.clear()
        self._noted.clear()
        self._applied.clear()

    def _host_changed(self) -> None:
        self._facts_changed = True
        self.wake()

    async def _take_facts(self) -> set[Token]:
        if not self._facts_changed:
            return set()
        self._facts_changed = False
        try:
            facts: HostFacts = await self._ovsdb.host_facts()
        except OvsdbError as error:
            _log.warning("ovsdb-server does not answer", detail=str(error))
            return set()
        before = self._state.facts
        tokens = self._state.take_facts(facts)
        if before.ovs_version != facts.ovs_version:
            for lane in self._lanes:
                lane.unsettle()
        return tokens

    def _follow_interest(self) -> None:
        """Watch what is wanted and forget what is not. A network is announced in status before it is read."""
        if not self._following:
            return
        wanted = self._state.interest()
        if self._recorder is not None and not self._sparing and wanted != self._watched:
            self._recorder.keep(wanted)
        for prefix in self._watched - wanted:
            self._feed.forget(prefix)
            task = self._announcing.pop(prefix, None)
            if task is not None:
                task.cancel()
        for prefix in wanted - self._watched:
            if keys.is_scope(prefix):
                task = asyncio.create_task(self._announce(prefix))
                self._announcing[prefix] = task
            else:
                self._feed.watch(prefix)
        self._watched = wanted

    async def _announce(self, prefix: str) -> None:
        key = keys.scope_status(self._state.node_id, prefix)
        if self._status.get(key) is None:
            self._status.set(key, store_pb2.Applied())
        await self._status.flushed()
        self._feed.watch(prefix)
        self._announcing.pop(prefix, None)

    # -- compile ------------------------------------------------------------------------------------------------------

    def _compile(self, tokens: set[Token]) -> None:
        own = self._state.nodes.get(self._state.node_id)
        self.drifts.repairs = own is None or own.drift_policy != node_pb2.DRIFT_POLICY_REPORT
        stale = self._stale()
        if self._started and not tokens and not stale:
            return
        self._engine.touch(tokens)
        changes = self._engine.run()
        self._number += 1
        self._take_remarks(changes)
        for scope in stale | self._touched(tokens, changes):
            self._goals.setdefault(scope, deque()).append(self._goal(scope))
        for lane in self._lanes:
            lane.submit(self._number, changes.put, changes.delete, changes.scopes)
        if not self._started:
            self._started = True
            if self._sparing:
                _log.warning("the store is away: begun from the snapshot", networks=len(self._state.networks))
                for lane in self._lanes:
                    lane.start(sparing=True)
            else:
                self._begin()
        for unit, detail in changes.failed.items():
            _log.error("not compiled", unit=str(unit), detail=detail)
        _log.info(
            "compiled",
            units=changes.compiled,
            put=len(changes.put),
            delete=len(changes.delete),
            revision=max((state.revision for _, state in self._state.scopes()), default=self._state.nodes_revision),
        )

    def _take_remarks(self, changes: Changes) -> None:
        """Keep what compile has to say of each scope."""
        for key in [key for key in changes.delete if key[0] == KIND]:
            self._remarks.get(str(key[1]), {}).pop(key, None)
        for item in changes.put.values():
            if isinstance(item, Remark) and not item.port_id:
                self._remarks.setdefault(item.scope, {})[item.key] = item

    def _begin(self) -> None:
        """The mirror is complete."""
        self.drifts.resume(self._status.get(keys.drift_status(self._state.node_id)) or b"")
        for lane in self._lanes:
            lane.start()
        self._forget_former()
        if self._recorder is not None:
            self._recorder.keep(self._state.interest())

    def _stale(self) -> set[str]:
        """Scopes that have come to a new revision, even by a change that no unit reads."""
        scopes = {
            scope
            for scope, state in self._state.scopes()
            if state.listed and self._noted.get(scope) != (state.cluster, state.revision)
        }
        if self._noted.get(NODE_SCOPE) != self._nodes_at:
            scopes.add(NODE_SCOPE)
        return scopes

    @property
    def _nodes_at(self) -> Revision:
        return self._state.nodes_cluster, self._state.nodes_revision

    def _touched(self, tokens: set[Token], changes: Changes) -> set[str]:
        """Scopes in which something has changed: what is wanted, or what of it can be had."""
        scopes = {scope for found in changes.scopes.values() for scope in found}
        scopes.update(keys.scope(str(token[1])) for token in tokens if token[0] in ("network", "port", "local"))
        scopes.update(str(token[1]) for token in tokens if token[0] == "group")
        return scopes

    def _goal(self, scope: str) -> _Goal:
        if scope == NODE_SCOPE:
            self._noted[scope] = self._nodes_at
            return _Goal(self._number, self._nodes_at)
        state = self._state.scope(scope)
        if state is None:
            self._noted.pop(scope, None)
            wanted = scope in self._state.wanted_scopes()
            return _Goal(self._number, NONE, gone=not wanted)
        self._noted[scope] = (state.cluster, state.revision)
        view = View(self._state)
        pending = any(remark.reason == PENDING for remark in self._remarks.get(scope, {}).values())
        goal = _Goal(self._number, self._noted[scope], pending=pending)
        for network, port in self._state.ports_of(scope):
            goal.ports[port] = self._port_status(port, verdict(view, network, port))
        if state.trace_context and self._traces.get(scope) != state.trace_context:
            self._traces[scope] = state.trace_context
            parent = _context.extract({"traceparent": state.trace_context})
            goal.span = self._tracer.start_span("agent.apply", context=parent)
            goal.span.set_attributes({"node": self._state.node_id, "scope": scope, "revision": state.revision})
        return goal

    def _port_status(self, port: str, found: Verdict) -> store_pb2.PortStatus:
        interface = self._state.interface_of[port]
        return store_pb2.PortStatus(
            interface=interface.name,
            ofport=interface.ofport or 0,
            wired=found.wired,
            reason=found.reason,
            message=found.message,
        )

    def _forget_former(self) -> None:
        """Status that a former process wrote of what is no longer here."""
        node = self._state.node_id
        wanted = self._state.wanted_scopes()
        ports = {keys.port_status(node, port) for port in self._state.interface_of}
        for key in self._status.known():
            scope = keys.scope_of_status(key)
            if scope and scope not in wanted:
                # Its flows, if any are left, go with the first pass of the lanes.
                self._goals.setdefault(scope, deque()).append(_Goal(self._number, NONE, gone=True))
            elif key.startswith(keys.port_status(node)) and key not in ports:
                self._status.remove(key)

    # -- out ----------------------------------------------------------------------------------------------------------

    def _owner(self, key: Key) -> str:
        """The resource that wants an object of the host, as kind and id."""
        for unit in self._engine.wanting(key):
            if unit[0] in ("port", "policy"):
                return f"Port {unit[-1]}"
            if unit[0] == "rule":
                return f"SecurityGroupRule {unit[-1]}"
            if (scope := self._engine.scope(unit)) and (owner := keys.resource(keys.head(scope))):
                kind, object_id = owner
                return f"{kind.name} {object_id}"
            return f"Node {unit[-1] if len(unit) > 1 else self._state.node_id}"
        return ""

    def _drift_found(self) -> None:
        self._drift_untold = True
        self.wake()

    def _publish_drift(self) -> None:
        """At most once in `DRIFT_PAUSE`: what changes over and over must not fill the store."""
        loop = asyncio.get_running_loop()
        if not self._drift_untold:
            return
        wait = self._drift_told + DRIFT_PAUSE - loop.time()
        if wait > 0:
            loop.call_later(wait, self.wake)
            return
        self._drift_untold, self._drift_told = False, loop.time()
        self._status.set(keys.drift_status(self._state.node_id), self.drifts.report())

    def _publish(self) -> None:
        """Say in status what the lanes have finished."""
        if self._sparing:
            return
        self._publish_plugged()
        if self._started:
            self._publish_drift()
        if not self._lanes:
            return
        finished = min(lane.finished for lane in self._lanes)
        failures: dict[str, dict[Key, Failure]] = {}
        for lane in self._lanes:
            for scope, found in lane.failures().items():
                failures.setdefault(scope, {}).update(found)
        for key, detail in self._state.unreadable.items():
            failures.setdefault(keys.scope_of(key) or NODE_SCOPE, {})[("key", key)] = Failure(
                "UNREADABLE", f"the store's value cannot be parsed: {detail}"
            )
        for scope in list(self._goals):
            self._publish_scope(scope, finished, failures.get(scope, {}))

    def _publish_plugged(self) -> None:
        """Ports seen on br-int, at once, since nothing leads to them before they are bound; whether they are wired follows."""
        node = self._state.node_id
        for port, interface in self._state.interface_of.items():
            key = keys.port_status(node, port)
            located = self._state.located.get(port)
            if located == "":
                missing = f"interface {interface.name} names port {port}, which does not exist"
                seen = store_pb2.PortStatus(interface=interface.name, reason="PORT_UNKNOWN", message=missing)
                self._status.set_port(port, seen)
            elif self._status.get(key) is None:
                self._status.set_port(port, store_pb2.PortStatus(interface=interface.name, reason="NOT_YET_APPLIED"))
                self._status.hurry()
        for key in [key for key in self._status.known() if key.startswith(keys.port_status(node))]:
            if self._started and key.rsplit("/", 1)[1] not in self._state.interface_of:
                self._status.remove(key)

    def _publish_scope(self, scope: str, finished: int, failures: dict[Key, Failure]) -> None:
        goals = self._goals[scope]
        reached: _Goal | None = None
        while goals and goals[0].number <= finished:
            if reached is not None and reached.span is not None:
                reached.span.end()
            reached = goals.popleft()
        if reached is None:
            return
        if failures:
            # Not reached: what fails is said, and the goal stays to be reached when the retry succeeds.
            goals.appendleft(reached)
            self._say_applied(scope, self._applied.get(scope, NONE), failures)
            return
        if reached.pending:
            goals.appendleft(reached)  # until the fact is there and has made another
            return
        if not goals:
            del self._goals[scope]
        if reached.span is not None:
            reached.span.end()
        if reached.gone:
            self._applied.pop(scope, None)
            self._traces.pop(scope, None)
            self._remarks.pop(scope, None)
            self._status.remove(keys.scope_status(self._state.node_id, scope))
            return
        if scope and scope not in self._state.wanted_scopes():
            return
        self._applied[scope] = reached.at
        self._say_applied(scope, reached.at, {})
        for port, status in reached.ports.items():
            if port in self._state.interface_of:
                self._status.set_port(port, status)

    def _say_applied(self, scope: str, at: Revision, failures: dict[Key, Failure]) -> None:
        node = self._state.node_id
        key = keys.scope_status(node, scope)
        cluster, revision = at
        applied = store_pb2.Applied(revision=revision, cluster=cluster)
        for item, failure in sorted(failures.items(), key=lambda pair: str(pair[0]))[:20]:
            applied.errors.add(object=" ".join(str(part) for part in item[:3]), reason=failure.reason, message=failure.message)
        for remark in self._remarks.get(scope, {}).values():
            if remark.reason != PENDING:
                about = keys.split(scope)[1] if scope else node
                applied.errors.add(object=about, reason=remark.reason, message=remark.message)
        self._status.set(key, applied)
