"""Drift: what others changed of what is ours, and what stands among ours that is not ours. Bounded, and told in status.

`status/{node}/drift` outlives the agent: a later one goes on from what it finds there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import structlog
from google.protobuf.message import DecodeError

from agent.model import text
from agent.model.item import Item, Key
from kumihimo.v1 import node_pb2, store_pb2

KEPT = 64  # findings, and as many foreign objects

_log = structlog.get_logger("kumihimo.agent")


class Drifts:
    """What one node has found. owner: which resource a key belongs to; told: called when there is something new to tell."""

    def __init__(self, owner: Callable[[Key], str], told: Callable[[], None]) -> None:
        self._owner = owner
        self._told = told
        self._found: dict[tuple[str, str], node_pb2.Drift] = {}  # oldest first
        self._foreign: dict[str, tuple[Item, ...]] = {}
        self._seen: dict[tuple[str, str], node_pb2.Drift] = {}
        self.repairs = True  # whether what is found is put right, or only told

    def resume(self, stored: bytes) -> None:
        """Go on from what a former process has written."""
        try:
            report = store_pb2.DriftReport.FromString(stored)
        except DecodeError:
            return
        for drift in reversed(report.items):
            known = self._seen if drift.outcome == node_pb2.DRIFT_OUTCOME_FOREIGN else self._found
            known[drift.kind, drift.object] = drift

    def found(self, wanted: Item | None, found: Item | None) -> bool:
        """Somebody else made `found` of what is to be `wanted`. Whether it is to be put right."""
        item = wanted or found
        assert item is not None
        kind, name = str(item.key[0]), text.name(item)
        drift = self._found.pop((kind, name), None) or node_pb2.Drift(kind=kind, object=name)
        difference = text.difference(wanted, found)
        outcome = node_pb2.DRIFT_OUTCOME_REPAIRED if self.repairs else node_pb2.DRIFT_OUTCOME_REPORTED
        self._found[kind, name] = drift
        if not self.repairs and (drift.outcome, drift.difference) == (outcome, difference):
            return False  # it is still so
        drift.outcome, drift.difference, drift.owner = outcome, difference, self._owner(item.key)
        drift.count += 1
        drift.last_time.GetCurrentTime()
        if drift.count == 1:
            drift.first_time.CopyFrom(drift.last_time)
        if len(self._found) > KEPT:
            del self._found[next(iter(self._found))]
        _log.warning("drift", kind=kind, object=name, owner=drift.owner, difference=difference, repaired=self.repairs)
        self._told()
        return self.repairs

    def foreign(self, kinds: Iterable[str], items: Sequence[Item]) -> None:
        """All that stands among these kinds and is not ours."""
        place = min(kinds)
        now = tuple(items)
        if self._foreign.get(place, ()) != now:
            self._foreign[place] = now
            self._told()

    def report(self) -> store_pb2.DriftReport:
        """What is to be told: findings, the newest first, then what is foreign."""
        report = store_pb2.DriftReport(items=reversed(self._found.values()))
        seen: dict[tuple[str, str], node_pb2.Drift] = {}
        foreign = [item for _, items in sorted(self._foreign.items()) for item in items]
        for item in foreign[:KEPT]:
            kind, name = str(item.key[0]), text.name(item)
            drift = self._seen.get((kind, name))
            if drift is None:
                drift = node_pb2.Drift(kind=kind, object=name, outcome=node_pb2.DRIFT_OUTCOME_FOREIGN, count=1)
                drift.first_time.GetCurrentTime()
                drift.last_time.CopyFrom(drift.first_time)
            drift.difference = text.contents(item)
            seen[kind, name] = drift
        self._seen = seen
        report.items.extend(seen.values())
        report.foreign = len(foreign)
        return report
