"""Addresses of this host and the links that bear them, as the kernel tells them: nothing is asked while nothing changes.

Messages are taken apart by hand: a host has a veth for each network and a tap for each guest, each speaks several times while
it comes, and to decode a message whole takes longer than to wire the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from struct import pack, unpack_from

from agent.facts.model import Link

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
NLMSG_DONE, NLM_F_REQUEST, NLM_F_DUMP = 3, 0x1, 0x300
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 16, 17, 18, 20, 21, 22
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
IFLA_IFNAME, IFLA_MTU, IFLA_EXT_MASK = 3, 4, 29
IFA_ADDRESS, IFA_LOCAL = 1, 2
RT_SCOPE_LINK = 253  # and above: not to be reached from elsewhere
RTEXT_FILTER_SKIP_STATS = 8
SO_RCVBUFFORCE = 33  # asm-generic/socket.h

_HEADER, _IFINFO, _IFADDR = 16, 16, 8
_BUFFER = 1 << 20  # of the socket: a thousand links may come at once
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
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
        self._socket.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
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
            mask = pack("=HHI", 8, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
            size = _HEADER + _IFINFO + len(mask)
            header = pack("=IHHII", size, self._dumps.pop(), NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
            self._socket.send(header + bytes(_IFINFO) + mask)
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
        place = 0
        while place + _HEADER <= len(data):
            size, kind = unpack_from("=IH", data, place)
            body = data[place + _HEADER : place + size]
            if kind in (RTM_NEWLINK, RTM_DELLINK):
                self._take_link(body, kind == RTM_NEWLINK)
            elif kind in (RTM_NEWADDR, RTM_DELADDR):
                self._take_address(body, kind == RTM_NEWADDR)
            elif kind == NLMSG_DONE:
                self._ask()
            place += max(_HEADER, (size + 3) & ~3)

    def _take_link(self, body: bytes, there: bool) -> None:
        family, index = unpack_from("=B3xi", body)
        if family != socket.AF_UNSPEC:
            return  # a bridge or IPv6 tells of its own part of the link
        if not there:
            self._links.pop(index, None)
            self._borne.pop(index, None)
            return
        told = _attributes(body[_IFINFO:])
        if IFLA_IFNAME in told and IFLA_MTU in told:
            name = told[IFLA_IFNAME].rstrip(b"\0").decode(errors="replace")
            self._links[index] = Link(name, unpack_from("=I", told[IFLA_MTU])[0])

    def _take_address(self, body: bytes, there: bool) -> None:
        scope, index = unpack_from("=3xBI", body)
        told = _attributes(body[_IFADDR:])
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


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    place = 0
    while place + 4 <= len(data):
        size, kind = unpack_from("=HH", data, place)
        found[kind] = data[place + 4 : place + size]
        place += max(4, (size + 3) & ~3)
    return found
