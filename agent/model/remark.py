"""What status says of a network although everything of it is applied. No driver takes it: the loop does."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model.item import Key

KIND = "remark"


@dataclass(frozen=True, slots=True)
class Remark:
    """reason is a word that programs compare, message a sentence."""

    network_id: str
    reason: str
    message: str

    @property
    def key(self) -> Key:
        return (KIND, self.network_id, self.reason)
