"""Processes that have nothing to do: what came before is not to be measured with what comes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.lab import wait_until

PATIENCE = 300.0
MOMENT = 0.5  # seconds
STILL = 2  # hundredths of a second of processor time in a moment


def wait_idle(pids: Sequence[int]) -> None:
    """Wait until processes take next to no processor time."""

    before = -1

    def idle() -> bool:
        nonlocal before
        was, before = before, _ticks(pids)
        return was >= 0 and before - was <= STILL * len(pids)

    wait_until(idle, f"processes {', '.join(map(str, pids))} are idle", PATIENCE, interval=MOMENT)


def _ticks(pids: Sequence[int]) -> int:
    """Hundredths of a second of processor time that they have taken."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields)
