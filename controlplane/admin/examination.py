"""What `kumi doctor` looks at: etcd's members, all keys at one revision, nodes, certificates. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from controlplane.admin import certificates
from controlplane.admin.common import Place
from controlplane.audit import Finding, audit, family_of
from controlplane.config import StoreSettings
from controlplane.controllers import binder, compactor, registrar, release
from controlplane.errors import StoreUnavailable
from controlplane.store import health, keys, maintenance
from controlplane.store.client import Entry, entry
from controlplane.store.maintenance import Member
from kumihimo.v1 import store_pb2

SOON = timedelta(days=30)


@dataclass(slots=True)
class Report:
    """What was found. about: figures of the installation, for who reads on."""

    about: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, what: str, key: str, object_: str, todo: str) -> None:
        self.findings.append(Finding(what, key, object_, todo))


async def examine(etcd: Place, settings: StoreSettings) -> Report:
    """Everything but files. Raises StoreUnavailable when no etcd answers."""

    report = Report()
    store = etcd.store(await _look_at_members(report, etcd, settings.quota))
    try:
        entries: dict[str, Entry] = {}
        async for revision, kvs in store.pages(""):
            report.about["revision"] = revision
            entries.update((kv.key.decode(errors="backslashreplace"), entry(kv)) for kv in kvs)
    except StoreUnavailable as error:
        report.add(f"the keys cannot be read: {error}", "etcd", "", "see the other findings; a majority of members must run")
    else:
        look_at_keys(report, entries, settings.history)
    finally:
        await store.close()
    return report


async def _look_at_members(report: Report, etcd: Place, quota: int) -> str:
    """The address of one that answers."""
    members: dict[str, Member] = {}
    clusters: dict[str, int] = {}
    alarms: set[str] = set()
    failed: list[str] = []
    for address in etcd.addresses:
        store = etcd.store(address)
        try:
            members[address] = await maintenance.member(store)
            clusters[address] = store.cluster
            alarms |= await maintenance.alarms(store)
        except StoreUnavailable as error:
            failed.append(str(error))
            report.add(f"no etcd answers: {error}", f"etcd {address}", "", "start it, or take it out of the configuration")
        finally:
            await store.close()
    if not members:
        raise StoreUnavailable("; ".join(failed))
    for address, member in members.items():
        where = f"etcd {address}"
        if not health.is_new_enough(member.version):
            report.add(f"it is version {member.version}", where, "", "upgrade it to 3.4 or later")
        if not member.leader:
            report.add("it sees no leader", where, "", "start the other members; a majority must run")
        for fault in member.faults:
            if not fault.startswith("memberID:"):  # an alarm, told by its own
                report.add(f"it says: {fault}", where, "", "see its log")
        for trouble in health.troubles(alarms, member, quota):
            report.add(trouble.what, where, "", trouble.todo)
        alarms = set()
    if len(set(clusters.values())) > 1:
        told = ", ".join(f"{address}: {cluster:x}" for address, cluster in clusters.items())
        report.add(
            f"they are of several clusters: {told}",
            "etcd",
            "",
            "name the members of one cluster in `etcd` of the configuration",
        )
    largest = max(members.values(), key=lambda member: member.size)
    report.about["etcd"] = f"{len(members)} of {len(etcd.addresses)} answer, version {largest.version}"
    report.about["database"] = f"{largest.size >> 10} KiB, {largest.used >> 10} KiB in use, quota {quota >> 10} KiB"
    return min(members)


def look_at_keys(report: Report, entries: Mapping[str, Entry], history: float) -> None:
    """What the keys tell, all of one revision."""
    kinds = Counter(found[0].kind for key in entries if (found := family_of(key)) is not None and found[0].kind)
    report.about["objects"] = dict(sorted(kinds.items()))
    report.findings += audit(entries)
    _look_at_format(report, entries)
    _look_at_controllers(report, entries, history)
    _look_at_nodes(report, entries)


def _look_at_format(report: Report, entries: Mapping[str, Entry]) -> None:

    if not entries:
        report.add("the store is empty", keys.FORMAT, "", "start kumi-api once; if there was state, restore a backup")
        return
    mark = _parsed(store_pb2.StoreFormat, entries.get(keys.FORMAT))
    report.about["format"] = mark.version
    if mark.version != keys.FORMAT_VERSION:
        text = f"the store's format is {mark.version}, this release reads {keys.FORMAT_VERSION}"
        report.add(text, keys.FORMAT, "", "run the release that wrote it")


def _look_at_controllers(report: Report, entries: Mapping[str, Entry], history: float) -> None:

    for controller in (binder.Binder, release.Release, registrar.Registrar, compactor.Compactor):
        if keys.controller(controller.name) not in entries:
            key = keys.controller(controller.name)
            report.add(f"no API replica runs the {controller.name}", key, "", "start kumi-api; see its log if it runs")
    notes = _parsed(store_pb2.CompactionNotes, entries.get(keys.COMPACTION))
    oldest = notes.notes[0].revision if notes.notes else 0
    report.about["history"] = f"{compactor.kept(notes):.0f} of {history:.0f} s at least, from revision {oldest}"


def _look_at_nodes(report: Report, entries: Mapping[str, Entry]) -> None:

    nodes = {key.removeprefix(keys.NODES) for key in entries if key.startswith(keys.NODES)} - {".change"}
    speaking = {keys.split(key)[1] for key in entries if key.startswith((keys.STATUS, keys.ALIVE))}
    ours = version("kumihimo")
    for node in sorted(nodes | speaking):
        key, label = keys.agent_status(node), f"Node {node}"
        if node not in nodes:
            todo = f"`kumi node create {node}`, or stop its agent and `etcdctl del --prefix {keys.status(node)}`"
            report.add(f"{node} reports, and there is no such node", keys.status(node), label, todo)
            continue
        if keys.alive(node) not in entries:
            never = key not in entries
            text = "was never heard of" if never else "is not heard of; its traffic goes on"
            todo = f"start kumi-agent there, or `kumi node delete {node}{'' if never else ' --force'}`"
            report.add(f"node {node} {text}", keys.alive(node), label, todo)
        agent = _parsed(store_pb2.AgentStatus, entries.get(key))
        if agent.version and agent.version != ours:
            report.add(f"its agent is of release {agent.version}, this is {ours}", key, label, "upgrade the older of the two")
    for key, item in sorted(entries.items()):
        if not key.startswith(keys.STATUS):
            continue
        match keys.split(key):
            case [_, node, "nodes"] | [_, node, "net", _]:
                for error in _parsed(store_pb2.Applied, item).errors:
                    text = f"node {node} could not bring about {error.object}: {error.message} [{error.reason}]"
                    report.add(text, key, f"Node {node}", f"see the agent's log on {node}")
            case [_, node, "port", port]:
                seen = _parsed(store_pb2.PortStatus, item)
                if seen.reason == "PORT_UNKNOWN":
                    report.add(
                        f"node {node}: {seen.message}", key, f"Port {port}", f"unplug interface {seen.interface} on {node}"
                    )


def _parsed(message: Any, item: Entry | None) -> Any:
    """The message; an empty one when there is none, or none that can be parsed (the audit says so)."""
    try:
        return message.FromString(item.value) if item else message()
    except DecodeError:
        return message()


def look_at_certificates(report: Report, config: Path, settings: Mapping[str, Any], now: datetime) -> None:
    """Certificates that the configuration names, whatever field does."""
    found: Iterable[tuple[str, Path]] = certificates.named(settings)
    for name, file in found:
        try:
            end = certificates.ends(file)
        except ValueError as error:
            report.add(f"its certificate cannot be read: {error}", f"{config}: {name}", str(file), "replace the file")
            continue
        if end < now + SOON:
            word = "ran out" if end < now else "runs out"
            report.add(f"its certificate {word} at {end:%Y-%m-%d %H:%M} UTC", f"{config}: {name}", str(file), "renew it")
