"""A network's folder, {state_dir}/{network_id}, which dnsmasq watches: what the drivers of DHCP and of names do in it alike."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from agent.faults import point

NAMES = "names"
PART = ".part"
LOOK = 4.0  # seconds between two looks


async def other_marks(marks: Callable[[], object], seen: Callable[[], object]) -> None:
    """Return when the marks of files are not those that were seen last. marks: looked at in a thread."""
    while True:
        await asyncio.sleep(LOOK)
        if await asyncio.to_thread(marks) != seen():
            return


def make_folder(folder: Path) -> None:
    """dnsmasq drops its privileges and reads its hosts as nobody, whatever our umask is."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)


def write(folder: Path, name: str, text: str) -> None:
    """Write by rename, from outside the folder of hosts: dnsmasq reads whatever appears in that."""
    part = folder / PART
    part.write_text(text)
    part.chmod(0o644)
    point("dhcp: file written beside")
    part.replace(folder / name)


def remove_if_empty(folder: Path) -> None:
    """A network's folder goes with the last thing in it. While there is a server it watches its folders: they stay."""
    if not has_server(folder):
        (folder / PART).unlink(missing_ok=True)
        for each in (folder / NAMES, folder):
            with contextlib.suppress(OSError):
                each.rmdir()


def has_server(folder: Path) -> bool:
    """Whether the driver of DHCP has anything in it."""
    return (folder / "dnsmasq.conf").exists() or (folder / "hosts").exists()


def mark_of(stat: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file does."""
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
