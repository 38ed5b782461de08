"""Told by the kernel when a link or an address changes, on the host and in the namespaces that its links lead to.

One netlink socket hears all of them (NETLINK_LISTEN_ALL_NSID, netlink(7)): the kernel numbers the namespaces at the other
ends of the host's veths, and says with each message from which one it comes. So nothing has to be looked at while nothing
happens, however many namespaces there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from struct import unpack_from

# asm-generic/socket.h, linux/netlink.h, linux/rtnetlink.h
SO_RCVBUFFORCE = 33
SOL_NETLINK = 270
NETLINK_LISTEN_ALL_NSID = 8
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
RTM_NEWLINK, RTM_DELLINK = 16, 17
IFLA_IFNAME = 3

_HEADER, _IFINFO = 16, 16
_BUFFER = 1 << 20  # of the socket: a thousand links may come at once


class LinkWatch:
    """`links` of this host and `namespaces` (numbers) in which something has changed since `forget`; `overrun`: the kernel
    had more to say than there was room for."""

    def __init__(self) -> None:
        self.links: set[str] = set()
        self.namespaces: set[int] = set()
        self.overrun = False
        self._event = asyncio.Event()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
        self._socket.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._receive)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    async def told(self, timeout: float) -> None:
        """Return when there is something new, or after timeout seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._event.wait()
        self._event.clear()

    def concerns(self, link: str, namespace: int) -> bool:
        """Whether something has changed in one of these."""
        return self.overrun or link in self.links or namespace in self.namespaces

    def forget(self) -> None:
        """From now on it is told anew."""
        self.links, self.namespaces, self.overrun = set(), set(), False

    def _receive(self) -> None:
        self._event.set()
        try:
            while True:
                data, ancillary, _, _ = self._socket.recvmsg(65536, 64)
                for level, kind, value in ancillary:
                    if (level, kind) == (SOL_NETLINK, NETLINK_LISTEN_ALL_NSID):
                        self.namespaces.add(int.from_bytes(value[:4], "little", signed=True))
                        break
                else:
                    self.links.update(_links(data))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.overrun = True


def _links(data: bytes) -> set[str]:
    """Names of the links that messages of this host are about."""
    found = set()
    offset = 0
    while offset + _HEADER <= len(data):
        length, kind = unpack_from("=IH", data, offset)
        place, end = offset + _HEADER + _IFINFO, offset + length
        while kind in (RTM_NEWLINK, RTM_DELLINK) and place + 4 <= end:
            size, attribute = unpack_from("=HH", data, place)
            if attribute == IFLA_IFNAME:
                found.add(data[place + 4 : place + size].rstrip(b"\0").decode(errors="replace"))
                break
            place += max(4, (size + 3) & ~3)
        offset += max(_HEADER, (length + 3) & ~3)
    return found
