"""Settings: the defaults of the installation, in the store, so that they change for all replicas at once.

A transaction that depends on a default compares the key that holds the Settings (base.py: `Context.at`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlplane.errors import Violation, precondition
from controlplane.registry import KINDS
from controlplane.services import quota
from controlplane.services.base import Context, Rules, in_use
from controlplane.services.node import TUNNEL_POOL
from controlplane.store import keys
from controlplane.store.txn import Transaction
from controlplane.values import Invalid, address, mac
from kumihimo.v1 import store_pb2


class SettingsRules(Rules):
    """See the module."""

    kind = "Settings"

    def default(self, object_id: str, context: Context) -> Any | None:
        return KINDS[self.kind].message(id=object_id) if object_id == keys.INSTALLATION else None

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        if new.id and new.id != keys.INSTALLATION:
            yield Violation("id", "ID_INVALID", f"id is {new.id}; there is one Settings, with the id {keys.INSTALLATION}")
        if new.mac_base:
            try:
                new.mac_base = mac(f"{new.mac_base}:00:00:01".replace("-", ":"))[:8]
            except Invalid:
                text = f"mac_base {new.mac_base!r} is not the first half of a unicast MAC address; fa:16:3e would be accepted"
                yield Violation("mac_base", "MAC_INVALID", text)
        yield from quota.check_limits("quotas", new.quotas)

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        self._keep_family(transaction, new, context)
        self._remember(KINDS[self.kind].message(), new)

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        self._keep_family(transaction, new, context)
        self._remember(old, new)

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        new = KINDS[self.kind].message()
        self._keep_family(transaction, new, context)
        new.former_quotas.update(old.former_quotas)
        self._remember(old, new)
        if new.former_quotas:
            kinds = ", ".join(sorted(new.former_quotas)).replace("_", " ")
            raise precondition(
                "INCOMPATIBLE_STATE",
                f"Settings {old.id}: more {kinds} are or were allowed than without them, and may be in use; clear the fields by"
                " an update instead",
            )

    def _keep_family(self, transaction: Transaction, new: Any, context: Context) -> None:
        """The underlay's family changes only while no node has a tunnel address of the other: they would not meet."""
        version = context.installation.over_file(new).underlay_ip_version
        if version == context.defaults.underlay_ip_version:
            return
        folder = keys.claim(TUNNEL_POOL)
        transaction.require_unchanged(folder)
        others = [key for key in transaction.folder(folder) if address(key.removeprefix(folder)).version != version]
        nodes = {store_pb2.Claim.FromString(transaction.folder(folder)[key].value).owner for key in others}
        if nodes:
            shown = [f"Node {node}" for node in sorted(nodes)]
            raise in_use(self.kind, keys.INSTALLATION, "underlay_ip_version", shown)

    def _remember(self, old: Any, new: Any) -> None:
        quota.remember(new.former_quotas, quota.effective(old.quotas, {}), quota.effective(new.quotas, {}))
