"""Told by the kernel when a link or an address changes, on the host and in the namespaces that its links lead to.

One netlink socket hears all of them (NETLINK_LISTEN_ALL_NSID, netlink(7)): the kernel numbers the namespaces at the other
ends of the host's veths, and says with each message from which one it comes. So nothing has to be looked at while nothing
happens, however many namespaces there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno

from agent import rtnetlink
from agent.rtnetlink import IFINFO, IFLA_IFNAME, RTM_DELLINK, RTM_NEWLINK, attributes, messages, name_of

# linux/netlink.h
SOL_NETLINK = 270
NETLINK_LISTEN_ALL_NSID = 8


class LinkWatch:
    """`links` of this host and `namespaces` (numbers) in which something has changed since `forget`; `overrun`: the kernel
    had more to say than there was room for."""

    def __init__(self) -> None:
        self.links: set[str] = set()
        self.namespaces: set[int] = set()
        self.overrun = False
        self._event = asyncio.Event()
        self._socket = rtnetlink.listen((SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1))
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
    for kind, body in messages(data):
        if kind in (RTM_NEWLINK, RTM_DELLINK) and (name := attributes(body[IFINFO:]).get(IFLA_IFNAME)):
            found.add(name_of(name))
    return found
