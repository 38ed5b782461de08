"""Processes that have nothing to do: what came before is not to be measured with what comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from deploy.lab import wait_until

PATIENCE = 300.0
MOMENT = 0.5  # seconds
STILL = 2  # hundredths of a second of processor time in a moment


def wait_idle(pids: Sequence[int]) -> None:
    """Wait until processes take next to no processor time."""

    def idle() -> bool:
        before = _ticks(pids)
        time.sleep(MOMENT)
        return _ticks(pids) - before <= STILL * len(pids)

    wait_until(idle, f"processes {', '.join(map(str, pids))} are idle", PATIENCE)


def _ticks(pids: Sequence[int]) -> int:
    """Hundredths of a second of processor time that they have taken."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields)
