"""What status says of a network although everything of it is applied. No driver takes it: the loop does."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model.item import Key

KIND = "remark"
PENDING = "NOT_YET_APPLIED"


@dataclass(frozen=True, slots=True)
class Remark:
    """reason is a word that programs compare, message a sentence. port_id: of a port of the network, or "" of the whole."""

    network_id: str
    reason: str
    message: str
    port_id: str = ""

    @property
    def key(self) -> Key:
        return (KIND, self.network_id, self.reason, self.port_id)


def pending(network_id: str) -> Remark:
    """A port that we have made for the network has no number yet: it is not applied until that is known and compiled."""
    return Remark(network_id, PENDING, "a port of br-int has no number yet")
