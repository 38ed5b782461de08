"""Processes: names that are unique over hosts and for ever, whether one of this host has ended, and that this one is ready."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_PROC = Path("/proc")
_ENDED = "ZX"  # nobody has asked for its exit code yet
_START = 22 - 4  # of the fields behind the state


def this() -> str:
    """The name of this process: host, pid, and what makes it unique."""
    return f"{socket.gethostname()} {_name(os.getpid())}"


def ready() -> None:
    """Tell whoever started this process that it serves (sd_notify(3)); nothing where nobody wants to know."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def has_ended(name: str) -> bool:
    """Whether the process of a name has ended; false where that cannot be known, as of another host's."""
    match name.split(" "):
        case [_, pid, *_] if pid.isdecimal() and _around(name) == _around(this()):
            return name.partition(" ")[2] != _name(int(pid))
    return False


def _name(pid: int) -> str:
    """A pid with when its process was started, in which space of pids, in which run of the kernel; "" when there is none."""
    try:
        # Behind the name, which may hold anything: proc(5), from field 3.
        state, *fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    if state in _ENDED:
        return ""
    boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{pid} {fields[_START]} {(_PROC / 'self/ns/pid').stat().st_ino} {boot}"


def _around(name: str) -> list[str]:
    """The space of pids and the run of the kernel that a process is of."""
    return name.split(" ")[3:]
