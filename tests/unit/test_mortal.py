"""What a run of tests has started ends with it, also when it is killed."""

from __future__ import annotations

import subprocess
import sys

from deploy.lab import wait_until
from deploy.lab.process import argv_at

KILLED = """
import os, signal, subprocess
from deploy.lab import wait_until
from deploy.lab.process import argv_at
from tests.mortal import MORTAL
pid = subprocess.Popen([*MORTAL, "sleep", "3600"]).pid
wait_until(lambda: argv_at(pid)[:1] == ["sleep"], "it is the program", 60)
print(pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_is_killed_leaves_no_program_behind() -> None:
    told = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=120, check=False)
    wait_until(lambda: not argv_at(int(told.stdout)), "the program has ended")
