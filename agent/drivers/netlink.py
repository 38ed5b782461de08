"""Network namespaces for services, each with one veth to the host; and interfaces of the host that are to be up.

Ours is every namespace whose name begins with `kumi-`, and every link of the host whose alias is `kumihimo:NAMESPACE`.
The pair itself is recognised by its ends pointing at each other, so a veth that was made just before the agent died
needs no mark. The host's end goes up last: a namespace that is not finished reads back as one that nobody can want,
and putting it again takes every step that is missing. An interface that is to be up needs no mark: it is never put down again,
and a fresh process that wants it puts it up once more.

Netlink, sysctl and ioctl act on the namespace of the calling thread, so the work inside a namespace is a plain
function in a short-lived thread that has entered it: about 3 ms, and no fork of a process that has threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from agent.drivers import inetconf
from agent.drivers.exec import ExecError, run
from agent.drivers.linkwatch import LinkWatch
from agent.faults import point
from agent.model.host import ServiceNamespace, Uplink
from agent.model.item import Failure, Item, Key

PREFIX = "kumi-"
ALIAS = "kumihimo:"
DIRECTORY = Path("/run/netns")

# linux/sockios.h, linux/ethtool.h
SIOCETHTOOL = 0x8946
ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM = 0x16, 0x17

IFF_UP = 1
_UNREAD = 0  # no inode
_NO_NAMESPACE = -1
_LOOK = 4.0  # seconds between two looks at what the kernel does not tell of: names of namespaces, and SYSCTLS
# linux/if_addr.h: the kernel made this link-local address by itself.
IFAPROT_KERNEL_LL = 3

# No address from router advertisements, and none tentative: the control plane gave it to this port alone.
SYSCTLS = {"accept_ra": 0, "autoconf": 0, "accept_dad": 0, "disable_ipv6": 0}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Link:
    """One end of a veth. peer is the index of the other end, in the namespace where that is."""

    name: str
    index: int
    peer: int
    kind: str
    mac: str
    mtu: int
    up: bool
    alias: str
    peer_namespace: int  # the kernel's number of the namespace where the other end is
    settings: Mapping[str, int]  # of IPv6: those of SYSCTLS


class NetlinkDriver:
    """Makes ServiceNamespace and Uplink items real.

    Addresses are exact, except that the link-local address which the kernel makes from the MAC is left alone and not
    read back. A link of the wanted name that is not ours is never touched: Failure FOREIGN_OBJECT.

    Once `changed` has been called the kernel tells of changes, and what it has not told of is not read again.
    """

    kinds = frozenset({"namespace", "uplink"})

    def __init__(self) -> None:
        self._watch: LinkWatch | None = None
        # As last read: the item, the number of its namespace, and the settings inside; and which file stood for it.
        self._known: dict[str, tuple[ServiceNamespace, int, Mapping[str, int]]] = {}
        self._bent: set[str] = set()  # namespaces whose settings are not what was read
        self._files: dict[str, int] = {}
        self._uplinks: set[str] = set()  # those that this process has put
        self._reading = False
        self._look_at = 0.0  # when settings are asked for next

    async def changed(self) -> None:
        """Return when a link, a setting or an address of ours may have changed, or a namespace has come, gone or been made
        anew."""
        if self._watch is None:
            self._watch = LinkWatch()
            self._known.clear()
            return
        loop = asyncio.get_running_loop()
        while True:
            await self._watch.told(_LOOK)
            if loop.time() >= self._look_at:
                self._bent |= await self._other_settings()
                self._look_at = loop.time() + _LOOK
            if self._reading:
                continue
            uplinks = any(self._watch.concerns(name, _NO_NAMESPACE) for name in self._uplinks)
            if uplinks or self._suspects() or _files() != self._files:
                return
            self._watch.forget()

    def close(self) -> None:
        """Listen no longer."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    async def _other_settings(self) -> set[str]:
        """Namespaces whose settings are not what was read."""
        known = {
            name: (number, item.inner, told) for name, (item, number, told) in self._known.items() if number != _NO_NAMESPACE
        }
        found = await asyncio.to_thread(inetconf.read, [(number, inner) for number, inner, _ in known.values()])
        return {name for name, (number, inner, told) in known.items() if found[number, inner] != told}

    def _suspects(self) -> set[str]:
        """Namespaces of which something may have changed since they were read."""
        watch = self._watch
        told = {name for name, (item, number, _) in self._known.items() if watch is None or watch.concerns(item.outer, number)}
        return told | (self._bent & self._known.keys()) | (self._files.keys() - self._known.keys())

    async def read_owned(self) -> Mapping[Key, Item]:
        """Our namespaces; one that is not whole says what is wrong with it. Interfaces that this process has put up."""
        suspects, files = self._suspects(), _files()
        for name in self._known.keys() - {name for name in files if files[name] == self._files.get(name)} | suspects:
            self._known.pop(name, None)
        self._files = files
        if self._watch is not None:
            self._watch.forget()  # what is told from here on may come after it is read
        self._bent.clear()
        self._reading = True
        try:
            unread = sorted(files.keys() - self._known.keys())
            host = await in_namespace(None, _links) if unread else {}
            for name in unread:
                self._known[name] = await self._read(name, host)
            uplinks = await in_namespace(None, lambda: [*map(_uplink, sorted(self._uplinks))]) if self._uplinks else []
        finally:
            self._reading = False
        found: list[Item] = [*(self._known[name][0] for name in sorted(files)), *uplinks]
        return {item.key: item for item in found}

    async def read_foreign(self) -> Sequence[Item]:
        """Nothing: what is not ours is no namespace of this prefix, and stands by itself."""
        return ()

    async def _read(self, name: str, host: Mapping[str, _Link]) -> tuple[ServiceNamespace, int, Mapping[str, int]]:
        nothing = ServiceNamespace(name, "", "", "", (), 0)
        if not _is_namespace(name):
            return replace(nothing, wrong="it is a file and no namespace"), _NO_NAMESPACE, {}
        links, addresses = await in_namespace(name, lambda: (_links(), _addresses()))
        for inner in links.values():
            outer = next((link for link in host.values() if _paired(link, inner)), None)
            if outer is not None:
                wrong = [f"{link.name} is down" for link in (outer, inner) if not link.up]
                if outer.mtu != inner.mtu:
                    wrong.append(f"{outer.name} has MTU {outer.mtu}, {inner.name} {inner.mtu}")
                wrong += [f"{inner.name} has {setting} {inner.settings.get(setting)}" for setting in _bent(inner.settings)]
                for place, link in ((None, outer), (name, inner)):
                    if await in_namespace(place, partial(_offloads, link.name)):
                        wrong.append(f"{link.name} leaves checksums to hardware")
                own = tuple(sorted(addresses.get(inner.index, ())))
                item = ServiceNamespace(name, outer.name, inner.name, inner.mac, own, inner.mtu, ", ".join(wrong))
                return item, outer.peer_namespace, inner.settings
        return replace(nothing, wrong="no veth leads to it"), _NO_NAMESPACE, {}

    async def apply(self, put: Sequence[Item], delete: Sequence[Item]) -> Mapping[Key, Failure]:
        """Namespaces one after the other, those to be removed first; then interfaces."""
        failures: dict[Key, Failure] = {}
        self._uplinks -= {item.name for item in delete if isinstance(item, Uplink)}
        for work, items in ((self._delete, delete), (self._put, put)):
            for item in items:
                if isinstance(item, ServiceNamespace):
                    self._known.pop(item.name, None)
                    self._files[item.name] = _UNREAD
                    failure = await _attempt(work, item)
                    if failure:
                        failures[item.key] = failure
        for item in put:
            if isinstance(item, Uplink):
                self._uplinks.add(item.name)
                try:
                    await in_namespace(None, partial(_put_up, item.name))
                except NetlinkError as error:
                    failures[item.key] = Failure("NETLINK", f"{item.name} cannot be put up: {os.strerror(error.code)}")
        return failures

    async def _put(self, item: ServiceNamespace) -> Failure | None:
        if not _is_namespace(item.name):
            # A process that dies between making the file and mounting the namespace on it leaves an empty file.
            (DIRECTORY / item.name).unlink(missing_ok=True)
            await run(["ip", "netns", "add", item.name])
            point("namespace: made")
        outer = (await in_namespace(None, _links)).get(item.outer)
        inner = (await in_namespace(item.name, _links)).get(item.inner)
        if not (outer and inner and _paired(outer, inner)):
            if outer and outer.alias != ALIAS + item.name:
                return Failure("FOREIGN_OBJECT", f"link {item.outer} is not ours")
            await in_namespace(item.name, _remove_veths)
            point("namespace: former veth removed")
            await in_namespace(None, lambda: _add_pair(item))
            point("namespace: veth made")
        await in_namespace(item.name, lambda: _set_inner(item))
        point("namespace: inner end set")
        await in_namespace(None, lambda: _set_outer(item))
        return None

    async def _delete(self, item: ServiceNamespace) -> Failure | None:
        if not item.name.startswith(PREFIX):
            return Failure("FOREIGN_OBJECT", f"namespace {item.name} is not ours")
        # A program that still runs inside keeps the namespace alive when its name is gone: so the veth goes first.
        if _is_namespace(item.name):
            await in_namespace(item.name, _remove_veths)
            point("namespace: veth removed")
            await run(["ip", "netns", "del", item.name])
            point("namespace: removed")
        (DIRECTORY / item.name).unlink(missing_ok=True)
        await in_namespace(None, lambda: _remove_aliased(ALIAS + item.name))
        return None


async def _attempt(
    work: Callable[[ServiceNamespace], Any],
    item: ServiceNamespace,
) -> Failure | None:
    try:
        failure: Failure | None = await work(item)
    except NetlinkError as error:
        return Failure("NETLINK", f"{item.name}: {os.strerror(error.code)}")
    except (ExecError, OSError) as error:
        return Failure("NAMESPACE", f"{item.name}: {error}")
    return failure


async def in_namespace(name: str | None, work: Callable[[], T]) -> T:
    """Run work in a new thread inside the namespace (None: the agent's own) and return its result."""

    def enter() -> T:
        if name is not None:
            netns.setns(str(DIRECTORY / name), flags=0)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return await asyncio.get_running_loop().run_in_executor(thread, enter)


def _files() -> dict[str, int]:
    """Our namespaces by name, with the inode that stands for each."""
    with contextlib.suppress(FileNotFoundError):
        return {entry.name: os.stat(entry.path).st_ino for entry in os.scandir(DIRECTORY) if entry.name.startswith(PREFIX)}
    return {}


def _is_namespace(name: str) -> bool:
    try:
        return (DIRECTORY / name).stat().st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


def _bent(settings: Mapping[str, int]) -> list[str]:
    """Settings that are not what they must be."""
    return [name for name, value in SYSCTLS.items() if settings.get(name) != value]


def _paired(outer: _Link, inner: _Link) -> bool:
    return inner.kind == outer.kind == "veth" and inner.peer == outer.index and outer.peer == inner.index


def _links() -> dict[str, _Link]:
    with IPRoute() as ip:
        return {link.name: link for link in map(_link, ip.get_links())}


def _link(message: Any) -> _Link:
    kind = message.get(("linkinfo", "kind")) or ""
    up = bool(message["flags"] & IFF_UP)
    address, mtu = message.get("address") or "", message.get("mtu")
    settings = message.get(("af_spec", "af_inet6", "inet6_conf")) or {}
    return _Link(
        message.get("ifname"),
        message["index"],
        message.get("link") or 0,
        kind,
        address,
        mtu,
        up,
        message.get("ifalias") or "",
        _NO_NAMESPACE if (number := message.get("link_netnsid")) is None else number,
        {name: settings[name] for name in SYSCTLS if name in settings},
    )


def _addresses() -> dict[int, set[str]]:
    """`ip/length` by index of the link, without what the kernel made itself."""
    found: dict[int, set[str]] = {}
    with IPRoute() as ip:
        for message in ip.get_addr():
            if message.get("proto") != IFAPROT_KERNEL_LL:
                text = f"{message.get('local') or message.get('address')}/{message['prefixlen']}"
                found.setdefault(message["index"], set()).add(str(ip_interface(text)))
    return found


def _uplink(name: str) -> Uplink:
    """An interface as it is."""
    try:
        with IPRoute() as ip:
            up = bool(ip.link("get", ifname=name)[0]["flags"] & IFF_UP)
    except NetlinkError as error:
        return Uplink(name, os.strerror(error.code))
    return Uplink(name, "" if up else "it was down")


def _put_up(name: str) -> None:
    with IPRoute() as ip:
        ip.link("set", ifname=name, state="up")


def _add_pair(item: ServiceNamespace) -> None:
    with IPRoute() as ip:
        for index in ip.link_lookup(ifname=item.outer):
            ip.link("del", index=index)
        peer = {"ifname": item.inner, "address": item.mac, "mtu": item.mtu, "net_ns_fd": str(DIRECTORY / item.name)}
        ip.link("add", ifname=item.outer, kind="veth", mtu=item.mtu, peer=peer)


def _set_outer(item: ServiceNamespace) -> None:
    offload_off(item.outer)
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=item.outer)[0]
        ip.link("set", index=index, ifalias=ALIAS + item.name, mtu=item.mtu)
        point("namespace: outer end marked")
        ip.link("set", index=index, state="up")


def _set_inner(item: ServiceNamespace) -> None:
    for name, value in SYSCTLS.items():
        Path(f"/proc/sys/net/ipv6/conf/{item.inner}/{name}").write_text(str(value))
    offload_off(item.inner)
    wanted = {str(ip_interface(address)) for address in item.addresses}
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=item.inner)[0]
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")
        ip.link("set", index=index, address=item.mac, mtu=item.mtu)
        point("namespace: MAC set")
        for address in _addresses().get(index, set()) - wanted:
            ip.addr("del", index=index, address=address)
            point("namespace: address removed")
        for address in sorted(wanted):
            ip.addr("replace", index=index, address=address)
            point("namespace: address set")
        ip.link("set", index=index, state="up")


def _remove_veths() -> None:
    with IPRoute() as ip:
        for link in _links().values():
            if link.kind == "veth":
                _remove(ip, link.index)


def _remove_aliased(alias: str) -> None:
    with IPRoute() as ip:
        for link in _links().values():
            if link.alias == alias:
                _remove(ip, link.index)


def _remove(ip: IPRoute, index: int) -> None:
    try:
        ip.link("del", index=index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:  # it went with its other end
            raise


def offload_off(name: str) -> None:
    """Have the kernel finish checksums before the link sends: nothing behind it would. Segmentation goes with them.

    Acts on a link of the calling thread's namespace. Raises OSError.
    """
    _ethtool(name, ETHTOOL_STXCSUM)


def _offloads(name: str) -> bool:
    """Whether the kernel leaves checksums to what is behind the link. OSError."""
    return bool(_ethtool(name, ETHTOOL_GTXCSUM))


def _ethtool(name: str, command: int) -> int:
    value = array("I", [command, 0])
    request = struct.pack("16sP", name.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, request.ljust(40, b"\0"))
    return value[1]
