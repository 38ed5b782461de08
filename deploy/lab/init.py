"""Process 1 of a lab host: private places, then reap children until it is killed.

Started as a script (`init.py LAB_DIRECTORY HOST`) in new network, mount, pid and uts namespaces, with nothing but the
standard library. Killing it is the host's power-off: the kernel ends every process of the pid namespace with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

PERSISTENT = {
    "etc-kumihimo": "/etc/kumihimo",
    "etc-openvswitch": "/etc/openvswitch",
    "lib-kumihimo": "/var/lib/kumihimo",
    "lib-openvswitch": "/var/lib/openvswitch",
    "log-kumihimo": "/var/log/kumihimo",
    "log-openvswitch": "/var/log/openvswitch",
}
"""What survives a power-off: folder of the host's own directory -> where the host sees it."""

VOLATILE = ("/etc/netns", "/var/lib/misc", "/run")
"""What is empty at every start; /run last, because the others may be reached through it."""

READY = "/run/lab-ready"
"""Appears when a host can be used; made last."""


def main() -> None:
    """Set up this host and serve as its process 1."""
    lab, name = sys.argv[1:]
    for folder, place in PERSISTENT.items():
        _do("mount", "--bind", f"{lab}/hosts/{name}/{folder}", place)
    for place in VOLATILE:
        _do("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place)
    for place in ("netns", "openvswitch", "lock"):
        Path("/run", place).mkdir()
    _do("mount", "-t", "proc", "proc", "/proc")
    # Shows the links of this host; a container may refuse it, and nothing of ours needs it.
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=False)
    _do("hostname", name)
    _do("ip", "link", "set", "lo", "up")
    # Blocked and waited for: a child that ends between two waits is not missed, and nothing is polled.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    Path(READY).touch()
    while True:
        _reap()
        signal.sigwait({signal.SIGCHLD})


def _do(*argv: str) -> None:
    subprocess.run(argv, check=True, timeout=30)


def _reap() -> None:
    """Collect every child that has ended: a zombie would look alive to whoever asks by its number."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
