"""`kumi-agent`: reads its small local file (settings.py), puts the parts together, runs until told to stop.

Stopping, crashing or upgrading the agent changes nothing in the data plane: flows, namespaces and daemons stay.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import signal
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import structlog

from agent.compile import FEATURES
from agent.compile.engine import Engine
from agent.drivers.dnsmasq import DnsmasqDriver
from agent.drivers.names import NamesDriver
from agent.drivers.netlink import NetlinkDriver
from agent.drivers.openflow.driver import OpenFlowDriver
from agent.drivers.ovsdb import OvsdbDriver
from agent.drivers.peers import PeerDriver
from agent.facts.capability import probe
from agent.facts.ovsdb import Ovsdb, OvsdbError
from agent.inspection.explain import Explainer
from agent.inspection.look import Look
from agent.inspection.probe import Prober
from agent.inspection.samples import Samples
from agent.inspection.service import Method, Service, source_address
from agent.inspection.trace import Tracer
from agent.mirror.snapshot import Recorder
from agent.mirror.snapshot import load as load_snapshot
from agent.mirror.state import State
from agent.model.host import INTEGRATION_BRIDGE
from agent.model.item import Driver
from agent.model.pipeline import CookieKind, Table, cookie, is_our_group, is_our_meter, is_ours
from agent.reconcile import alive, counters
from agent.reconcile.lane import Lane
from agent.reconcile.loop import Loop
from agent.reconcile.status import Status
from agent.settings import Settings, load
from controlplane import telemetry
from controlplane.errors import BadConfig, StoreRefused, StoreUnavailable
from controlplane.store import keys
from controlplane.store.client import Store
from controlplane.store.feed import Feed
from controlplane.tls import node_user
from kumihimo.v1 import store_pb2

RUNDIR = Path("/var/run/openvswitch")
SNAPSHOT = Path("/var/lib/kumihimo/agent/mirror")
RETRY = 1.0
M_MMAP_THRESHOLD, LARGE = -3, 64 * 1024  # bytes
PROBE = 60.0  # seconds between two looks at what the host can do

_log = structlog.get_logger("kumihimo.agent")


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work = asyncio.create_task(_work(settings))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        stopped.cancel()
        work.result()
        return
    work.cancel()
    await asyncio.wait([work])
    _log.info("stopped; the data plane goes on")


async def _work(settings: Settings) -> None:
    store = Store(settings.etcd, settings.etcd_tls)  # first: certificates that cannot be used are told at once
    ovsdb = Ovsdb()
    await _until_ovsdb_answers(ovsdb)
    status = Status(store, settings.node)
    state = State(settings.node)
    feed = Feed(store)
    recorder = Recorder(SNAPSHOT, settings.node, settings.etcd)
    engine = Engine(state, FEATURES)
    loop = Loop(state, engine, feed, ovsdb, status, recorder)
    samples = Samples()
    switch = OpenFlowDriver(
        INTEGRATION_BRIDGE,
        is_ours,
        is_our_group,
        is_our_meter,
        marker_table=Table.MARKER,
        marker_cookie=cookie(CookieKind.MARKER),
        rundir=RUNDIR,
        same=lambda item: flows.as_wanted(item),
        sampled=samples.take,
    )
    netlink = NetlinkDriver()
    of_host: list[Driver] = [netlink, OvsdbDriver(ovsdb), NamesDriver(), DnsmasqDriver()]
    flows = Lane("flows", [switch], loop.wake, switch.synchronize, switch.lost, loop.drifts, engine.scopes)
    host = Lane("host", of_host, loop.wake, drifts=loop.drifts, scopes=engine.scopes)
    peers = Lane("peers", [PeerDriver(RUNDIR)], loop.wake, lost=switch.lost, drifts=loop.drifts, scopes=engine.scopes)
    loop.use(flows, host, peers)
    look = Look(
        state,
        ovsdb,
        [OvsdbDriver(ovsdb), DnsmasqDriver(), PeerDriver(RUNDIR)],
        lambda port: status.get(keys.port_status(settings.node, port)),
    )
    explainer = Explainer(state, switch, samples)
    tracer = Tracer(state, lambda: engine.items().values(), explainer.dropped, RUNDIR)
    begun = asyncio.Event()

    def away() -> None:
        """The store does not answer: begin from what was known, unless that is done or nothing is."""
        if not begun.is_set() and (known := load_snapshot(SNAPSHOT, settings.node, settings.etcd)):
            recorder.begin(known)
            loop.recall(known)
            begun.set()

    async def follow_store() -> None:
        await _until_status_is_read(store, status, settings.node, away)
        loop.follow()
        begun.set()
        async with asyncio.TaskGroup() as following:
            for part in (feed.run(), status.run(), alive.run(store, settings.node, RUNDIR)):
                following.create_task(part)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(follow_store())
            await begun.wait()
            _introduce(status, settings.node)
            for part in (
                flows.run(),
                host.run(),
                peers.run(),
                loop.run(),
                recorder.run(),
                _describe(status, state, settings.node, ovsdb),
                _answer(
                    settings,
                    state,
                    status,
                    {
                        "Inspect": look.inspect,
                        "Trace": tracer.trace,
                        "Explain": explainer.explain,
                        "Probe": Prober(state, switch).probe,
                    },
                ),
                counters.run(state, switch, status),
            ):
                group.create_task(part)
    finally:
        netlink.close()
        await switch.close()
        await ovsdb.stop()
        await store.close()


async def _until_ovsdb_answers(ovsdb: Ovsdb) -> None:
    """Wait for ovsdb-server: at boot it may come later than we do."""
    while True:
        try:
            return await ovsdb.start()
        except OvsdbError as error:
            _log.warning("waiting for ovsdb-server", detail=str(error))
            await asyncio.sleep(RETRY)


async def _until_status_is_read(store: Store, status: Status, node: str, away: Callable[[], None]) -> None:
    """Wait until etcd answers and knows this node; says what is in the way whenever that is something else, and `away`
    whenever etcd does not answer (one that refuses us does: then nothing is begun)."""
    told = ""
    while True:
        try:
            return await status.read()
        except StoreRefused as error:
            event, pause = f"waiting for Node {node}; `kumi node create {node}` lets it in", error.pause
            detail = obstacle = str(error)
            if store.user != node_user(node):
                event, detail = "waiting for the store", f"{error}; a certificate of {node_user(node)} is needed"
        except StoreUnavailable as error:
            away()
            event, pause = "waiting for the store; traffic goes on", RETRY
            # What gRPC says of one broken connection differs from attempt to attempt: the obstacle is the same.
            obstacle = await store.fault()
            detail = obstacle or str(error)
        if told != event + obstacle:
            told = event + obstacle
            _log.warning(event, detail=detail)
        await asyncio.sleep(pause)


def _introduce(status: Status, node: str) -> None:
    """What the agent says of itself, at its start; others add to it."""
    about = store_pb2.AgentStatus(version=version("kumihimo"))
    about.start_time.GetCurrentTime()
    status.set(keys.agent_status(node), about)


async def _describe(status: Status, state: State, node: str, ovsdb: Ovsdb) -> None:
    """What the host can do: now, whenever bridges or the switch change, and every `PROBE`, for not everything tells of it."""
    changed = asyncio.Event()
    ovsdb.on_change(changed.set)
    seen: object = None
    due = True
    while True:
        facts = await ovsdb.host_facts()
        tunnel_ip = state.nodes[node].tunnel_ip if node in state.nodes else ""
        switch = (ovsdb.connected, ovsdb.bridges, ovsdb.interface_types, facts.datapath_types, facts.ovs_version)
        now = (switch, facts.addresses, tunnel_ip)
        if due or now != seen:
            seen = now
            found = await probe(facts, ovsdb.interface_types, INTEGRATION_BRIDGE, tunnel_ip, RUNDIR)
            about = store_pb2.AgentStatus.FromString(status.get(keys.agent_status(node)) or b"")
            del about.capabilities[:]
            for capability in found:
                about.capabilities.add(name=capability.name, on=capability.on, reason=capability.reason)
            about.underlay_ips[:] = facts.underlay_ips
            about.features["ovs"] = facts.ovs_version
            about.features["datapath_types"] = ",".join(facts.datapath_types)
            status.set(keys.agent_status(node), about)
        try:
            async with asyncio.timeout(PROBE if node in state.nodes else RETRY):
                await changed.wait()
            due = False
        except TimeoutError:
            due = True
        changed.clear()


async def _answer(settings: Settings, state: State, status: Status, methods: Mapping[str, Method]) -> None:
    """Answer questions of API and operators, and say in status where."""

    def address() -> str:
        own = state.nodes.get(settings.node)
        return (own.management_ip if own is not None else "") or source_address(settings.etcd)

    def told(where: str, why_not: str) -> None:
        key = keys.agent_status(settings.node)
        about = store_pb2.AgentStatus.FromString(status.get(key) or b"")
        about.address = where
        about.features.pop("inspect", "")
        if why_not:
            about.features["inspect"] = f"off: {why_not}"
        status.set(key, about)

    if settings.etcd_tls is None:
        return told("", "etcd_ca, etcd_certificate and etcd_key are not set, so nobody can be known")
    return await Service(settings.etcd_tls, methods, address, told).run()


def _keep_heap_small() -> None:
    """Have what is large lie in pages of its own, which the kernel gets back when it is freed (mallopt(3)). The C library would
    take the size of the largest that was ever freed for its bound, and what a start reads leave holes of 15 MB behind."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def main() -> None:
    """Entry point of `kumi-agent`. Exit code 0 after an orderly stop, 1 with one line when it cannot run."""
    parser = argparse.ArgumentParser(
        prog="kumi-agent",
        description="The Kumihimo node agent.",
        epilog="example: kumi-agent --config /etc/kumihimo/agent.toml",
    )
    parser.add_argument("--config", type=Path, default=Path("/etc/kumihimo/agent.toml"), help="configuration file")
    arguments = parser.parse_args()
    _keep_heap_small()
    try:
        settings = load(arguments.config)
        telemetry.start_logging(service="kumi-agent", node=settings.node)
        telemetry.start_tracing("kumi-agent", settings.trace_file)
        asyncio.run(run(settings))
    except (BadConfig, OSError) as error:
        sys.exit(f"kumi-agent: {error}")


if __name__ == "__main__":
    main()
