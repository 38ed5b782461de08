"""Points between two steps at which a test lets the agent die. Without KUMI_FAULT in the environment they do nothing.

`point("kind: what has been done")` stands between any two steps that are not one to the host. tests/component/test_faults.py
finds every point by itself, and lets a process die there by SIGKILL: a later one must come to the same end.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "KUMI_FAULT"

armed = os.environ.get(VARIABLE, "")


def point(name: str) -> None:
    """Die here, if a test has asked for it."""
    if armed and armed == name:
        os.kill(os.getpid(), signal.SIGKILL)
