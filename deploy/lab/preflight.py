"""What a lab needs of the machine, asked before anything is made; and what it borrows of it, given back at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from deploy.lab import init
from deploy.lab.network import namespaces
from deploy.lab.process import LabError, run, succeeds

BASE = Path("/var/lib/kumihimo-lab")
"""Holds the directory of every lab; there only while there is a lab."""

PROGRAMS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "ethtool": "ethtool",
    "ovs-vsctl": "openvswitch-switch",
    "ovs-vswitchd": "openvswitch-switch",
    "ovsdb-server": "openvswitch-switch",
    "etcd": "etcd-server",
    "dnsmasq": "dnsmasq-base",
    "udhcpc": "udhcpc",
    "dhclient": "isc-dhcp-client",
    "tcpdump": "tcpdump",
    "ping": "iputils-ping",
}
"""Programs a lab runs -> the Debian package that has them."""

_BORROWED = BASE / ".borrowed"
_NETNS = "/run/netns"


def check(name: str) -> None:
    """Raise LabError with one clear line for the first thing that keeps a new lab of this name from starting."""
    if not re.fullmatch(r"[a-z][a-z0-9]{0,9}", name):
        raise LabError(f"lab name {name!r}: it must be 1 to 10 lower-case letters and digits, a letter first")
    if os.geteuid():
        raise LabError("this needs root: it makes network namespaces")
    if not Path("/dev/net/tun").is_char_device():
        raise LabError("this needs /dev/net/tun: load the module with `modprobe tun`, or give the container the device")
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if missing:
        raise LabError(f"these Debian packages are missing: {' '.join(sorted(missing))}; ./deploy/setup installs them")
    if not succeeds(["unshare", "--mount", "--net", "--pid", "--uts", "--fork", "true"]):
        raise LabError("namespaces are refused here: a container must be privileged for this")
    if not (BASE / name).exists():
        taken = sorted({f"{name}-net", f"{name}-out"} & namespaces())
        if taken:
            raise LabError(f"network namespace {taken[0]} is there already: `ip netns delete {taken[0]}` if it is old")


def borrow() -> None:
    """Make the folders hosts mount their own over, where the machine has none, and remember them."""
    BASE.mkdir(parents=True, exist_ok=True)
    with _locked():
        places = [*init.PERSISTENT.values(), *init.VOLATILE]
        made = [place for place in places if not Path(place).exists()]
        if not _is_mounted(_NETNS):  # `ip netns add` is about to mount it
            made.append(_NETNS)
        with _BORROWED.open("a") as record:
            record.writelines(f"{place}\n" for place in made)
        for place in made:
            if place != _NETNS:
                Path(place).mkdir(parents=True, exist_ok=True)


def give_back() -> None:
    """Remove what `borrow` made once no lab is left. What holds something by now is someone else's and stays."""
    if not BASE.exists():
        return
    with _locked():
        # A folder in use as a mount point of another lab must not go: removing it would unmount it there.
        if any(path.is_dir() for path in BASE.iterdir()):
            return
        for place in set(_BORROWED.read_text().split()) if _BORROWED.exists() else ():
            if place == _NETNS and _is_mounted(_NETNS) and not os.listdir(_NETNS):
                run(["umount", _NETNS], check=False)
            with contextlib.suppress(OSError):
                os.rmdir(place)
        _BORROWED.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            BASE.rmdir()


def _is_mounted(place: str) -> bool:
    """Also true of a folder that is mounted on itself, which os.path.ismount cannot see."""
    return any(line.split()[4] == place for line in Path("/proc/self/mountinfo").read_text().splitlines())


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """One lab at a time: several may start and end side by side."""
    handle = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
