"""What is known of one scope of the store."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

Token = tuple[Hashable, ...]


@dataclass(slots=True)
class ScopeState:
    """What is known of one scope. listed: known as a whole, at a revision of an etcd cluster."""

    listed: bool = False
    revision: int = 0
    cluster: int = 0
    trace_context: str = ""
    keys: dict[str, None] = field(default_factory=dict)  # in order; a set of many takes three times as much

    def note(self, key: str, *, there: bool) -> None:
        """A key is there, or is gone."""
        if there:
            self.keys[key] = None
        else:
            self.keys.pop(key, None)
