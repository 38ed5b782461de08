"""What status says of a scope although everything of it is applied. No driver takes it: the loop does."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model.item import Key

KIND = "remark"
PENDING = "NOT_YET_APPLIED"


@dataclass(frozen=True, slots=True)
class Remark:
    """scope: its prefix. reason is a word that programs compare, message a sentence. port_id: of a port of a network, or "" of
    the whole scope."""

    scope: str
    reason: str
    message: str
    port_id: str = ""

    @property
    def key(self) -> Key:
        return (KIND, self.scope, self.reason, self.port_id, self.message)


def pending(scope: str, message: str = "a port of br-int has no number yet") -> Remark:
    """Something is not known yet that the scope's items depend on: it is not applied until that is known and compiled."""
    return Remark(scope, PENDING, message)
