"""Addresses of this host and the links that bear them, as the kernel tells them: nothing is asked while nothing changes."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from struct import unpack_from

from agent import rtnetlink
from agent.facts.model import Link
from agent.rtnetlink import (
    IFINFO,
    IFLA_IFNAME,
    NLMSG_DONE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    attributes,
    messages,
    name_of,
)

# linux/netlink.h, linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h
NLM_F_DUMP = 0x300
IFLA_MTU = 4
IFA_ADDRESS, IFA_LOCAL = 1, 2
RT_SCOPE_LINK = 253  # and above: not to be reached from elsewhere

_IFADDR = 8  # bytes: struct ifaddrmsg
_PATIENCE = 10.0  # seconds for all that the kernel has


class Links:
    """`addresses` as they are now; told: called after they, or a link that bears one, have changed."""

    def __init__(self, told: Callable[[], None]) -> None:
        self.addresses: Mapping[str, Link] = {}
        self._told = told
        self._links: dict[int, Link] = {}
        self._borne: dict[int, set[str]] = {}  # addresses by number of the link
        self._dumps: list[int] = []  # what is yet to be asked for
        self._whole = asyncio.Event()
        self._lost = False  # there was more to say than there was room for

    async def start(self) -> None:
        """Listen, and return when all is known that there is. OSError."""
        self._socket = rtnetlink.listen()
        asyncio.get_running_loop().add_reader(self._socket, self._receive)
        self._begin()
        async with asyncio.timeout(_PATIENCE):
            await self._whole.wait()

    def close(self) -> None:
        """Listen no longer."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _begin(self) -> None:
        self._whole.clear()
        self._lost = False
        self._links, self._borne = {}, {}
        self._dumps = [RTM_GETADDR, RTM_GETLINK]
        self._ask()

    def _ask(self) -> None:
        if self._dumps:
            self._socket.send(rtnetlink.question(self._dumps.pop(), flags=NLM_F_DUMP, number=1))
        elif self._lost:
            self._begin()
        else:
            self._whole.set()

    def _receive(self) -> None:
        try:
            while True:
                self._take(self._socket.recv(1 << 18))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._lost = True
            if self._whole.is_set():  # else when what was asked for has come: the kernel takes one question at a time
                self._begin()
        if self._whole.is_set():
            now = {
                address: self._links[index]
                for index in sorted(self._borne)
                if index in self._links
                for address in sorted(self._borne[index])
            }
            if now != self.addresses:
                self.addresses = now
                self._told()

    def _take(self, data: bytes) -> None:
        for kind, body in messages(data):
            if kind in (RTM_NEWLINK, RTM_DELLINK):
                self._take_link(body, kind == RTM_NEWLINK)
            elif kind in (RTM_NEWADDR, RTM_DELADDR):
                self._take_address(body, kind == RTM_NEWADDR)
            elif kind == NLMSG_DONE:
                self._ask()

    def _take_link(self, body: bytes, there: bool) -> None:
        family, index = unpack_from("=B3xi", body)
        if family != socket.AF_UNSPEC:
            return  # a bridge or IPv6 tells of its own part of the link
        if not there:
            self._links.pop(index, None)
            self._borne.pop(index, None)
            return
        told = attributes(body[IFINFO:])
        if IFLA_IFNAME in told and IFLA_MTU in told:
            self._links[index] = Link(name_of(told[IFLA_IFNAME]), unpack_from("=I", told[IFLA_MTU])[0])

    def _take_address(self, body: bytes, there: bool) -> None:
        scope, index = unpack_from("=3xBI", body)
        told = attributes(body[_IFADDR:])
        packed = told.get(IFA_LOCAL) or told.get(IFA_ADDRESS)
        if scope >= RT_SCOPE_LINK or packed is None:
            return
        address = str(ip_address(packed))
        borne = self._borne.setdefault(index, set())
        if there:
            borne.add(address)
        else:
            borne.discard(address)
        if not borne:
            del self._borne[index]
