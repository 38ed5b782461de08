"""Deletes security group rules whose `expire_time` has come, within a moment of it, protected ones too."""

from __future__ import annotations

import asyncio
import time

import structlog
from google.protobuf.message import DecodeError

from controlplane.controllers.runner import Controller
from controlplane.progress import Progress
from controlplane.registry import KINDS
from controlplane.services import kernel
from controlplane.services.base import of_controller
from controlplane.services.defaults import Installation
from controlplane.services.rule import has_expired
from controlplane.store.client import Entry
from controlplane.store.commit import Committer
from controlplane.store.keys import split
from controlplane.store.txn import Origin, Transaction

ORIGIN = Origin(actor="expiry", project_id="", method="controller/expiry")
LONGEST = 60.0  # seconds until the clock is looked at again: it may have been set

_log = structlog.get_logger("kumihimo.expiry")


class Expiry(Controller):
    """See the module. Marks are ids of rules that may have expired."""

    name = "expiry"

    def __init__(self, committer: Committer, progress: Progress, installation: Installation) -> None:
        super().__init__(committer, progress)
        self._installation = installation
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    def changed(self, key: str, new: Entry | None) -> None:
        match split(key):
            case ["secgroup", _, "security_group_rule", rule]:
                timer = self._timers.pop(rule, None)
                if timer is not None:
                    timer.cancel()
                if new is not None:
                    self._expect(rule, new)

    def _expect(self, rule_id: str, entry: Entry) -> None:
        """Have a rule looked at when its end comes, if it has one."""
        try:
            rule = KINDS["SecurityGroupRule"].new(entry.value)
        except DecodeError:
            return  # `kumi doctor` names it
        if rule.HasField("expire_time"):
            left = rule.expire_time.seconds + rule.expire_time.nanos / 1e9 - time.time()
            loop = asyncio.get_running_loop()
            self._timers[rule_id] = loop.call_later(max(0.0, min(left, LONGEST)), self.mark, rule_id)

    async def work(self, marks: list[str]) -> None:
        kind = KINDS["SecurityGroupRule"]
        context = of_controller(self.name, self._installation, self.committer.hints)

        def attempt(transaction: Transaction) -> int:
            ended = 0
            for rule_id in marks:
                key = transaction.locate(kind, rule_id)
                rule = transaction.message(kind, key) if key and transaction.read(key) else None
                if rule is not None and rule.HasField("expire_time") and has_expired(rule):
                    kernel.remove(transaction, kind, rule, True, context)
                    ended += 1
            return ended

        ended, revision = await self.committer.commit(attempt, ORIGIN)
        if ended:
            _log.info("expired", rules=ended, revision=revision)
        for rule_id in marks:
            found = self.cache.located(kind, rule_id)
            if found is not None:
                self._expect(rule_id, found[1])
