"""How long a run of random tests is, and of which seed: what every module with chance in it asks."""

from __future__ import annotations

import os
import random

FULL = bool(os.environ.get("KUMI_FULL"))


def seed() -> int:
    """That of this run, printed: KUMI_SEED when it is set, another each time in the long run, else always the same."""
    number = int(os.environ.get("KUMI_SEED") or (random.randrange(1 << 32) if FULL else 1507))
    print(f"KUMI_SEED={number}")
    return number
