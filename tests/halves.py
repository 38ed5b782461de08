"""All tests, in two halves side by side: while one waits for a store or a host, the other computes.

`python -m tests.halves [options of pytest]`. The first half is shown as it runs, the other when it has ended. Tests that are
named, by path, are run alone, in one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile

from tests.mortal import MORTAL

HALVES = (("tests/component",), ("tests/chaos", "tests/system", "tests/unit"))
PYTEST = (*MORTAL, sys.executable, "-m", "pytest")


def main(arguments: list[str]) -> int:
    """The status of the worse half."""
    if any(not argument.startswith("-") for argument in arguments):
        return subprocess.run([*PYTEST, *arguments], check=False).returncode
    with tempfile.TemporaryFile() as told:
        # Each has a cache of its own: they would overwrite each other's.
        second = subprocess.Popen(
            [*PYTEST, *HALVES[1], "-p", "no:cacheprovider", *arguments], stdout=told, stderr=subprocess.STDOUT
        )
        first = subprocess.run([*PYTEST, *HALVES[0], *arguments], check=False).returncode
        other = second.wait()
        told.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(told.read())
        sys.stdout.flush()
    return max(first, other, key=abs)


if __name__ == "__main__":
    # An interrupt reaches the halves as well: they end with all that they have started, and are waited for.
    signal.signal(signal.SIGINT, lambda *_: None)
    sys.exit(main(sys.argv[1:]))
