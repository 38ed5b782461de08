"""Settings: the defaults of the installation, in the store, so that they change for all replicas at once.

A transaction that depends on a default compares the key that holds the Settings (base.py: `Context.at`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlplane.errors import Code, Violation, precondition
from controlplane.registry import KINDS
from controlplane.services import quota
from controlplane.services.base import Context, Rules
from controlplane.services.network import ENABLED
from controlplane.services.segment import type_name
from controlplane.store import keys
from controlplane.store.txn import Transaction
from controlplane.values import Invalid, mac
from kumihimo.v1 import network_pb2 as pb


class SettingsRules(Rules):
    """See the module."""

    kind = "Settings"

    def default(self, object_id: str, context: Context) -> Any | None:
        return KINDS[self.kind].message(id=object_id) if object_id == keys.INSTALLATION else None

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        if new.id and new.id != keys.INSTALLATION:
            yield Violation("id", "ID_INVALID", f"id is {new.id}; there is one Settings, with the id {keys.INSTALLATION}")
        if new.network_type in pb.NetworkType.values() and new.network_type and new.network_type not in ENABLED:
            names = ", ".join(type_name(number) for number in sorted(ENABLED))
            yield Violation(
                "network_type",
                "FEATURE_DISABLED",
                f"network_type {type_name(new.network_type)} is not enabled on this installation; {names} is accepted",
                Code.UNIMPLEMENTED,
            )
        if new.mac_base:
            try:
                new.mac_base = mac(f"{new.mac_base}:00:00:01".replace("-", ":"))[:8]
            except Invalid:
                text = f"mac_base {new.mac_base!r} is not the first half of a unicast MAC address; fa:16:3e would be accepted"
                yield Violation("mac_base", "MAC_INVALID", text)
        yield from quota.check_limits("quotas", new.quotas)

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        self._remember(KINDS[self.kind].message(), new)

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        self._remember(old, new)

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        new = KINDS[self.kind].message()
        new.former_quotas.update(old.former_quotas)
        self._remember(old, new)
        if new.former_quotas:
            kinds = ", ".join(sorted(new.former_quotas)).replace("_", " ")
            raise precondition(
                "INCOMPATIBLE_STATE",
                f"Settings {old.id}: more {kinds} are or were allowed than without them, and may be in use; clear the fields by"
                " an update instead",
            )

    def _remember(self, old: Any, new: Any) -> None:
        quota.remember(new.former_quotas, quota.effective(old.quotas, {}), quota.effective(new.quotas, {}))
