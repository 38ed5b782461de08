"""Messages of rtnetlink(7), taken apart by hand: who hears of all links of a host decodes what he needs of them and no more.

A host has a veth for each network and a tap for each guest, and each speaks several times while it comes: to decode a message
whole, as pyroute2 does, takes longer than to wire the port.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from struct import pack, unpack_from

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
NLM_F_REQUEST, NLMSG_DONE = 1, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 16, 17, 18, 20, 21, 22
IFLA_IFNAME, IFLA_EXT_MASK = 3, 29
HEADER, IFINFO = 16, 16  # bytes: struct nlmsghdr, struct ifinfomsg

_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
_RTEXT_FILTER_SKIP_STATS = 8
_NLA_TYPE_MASK = 0x3FFF
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_BUFFER = 1 << 20  # of the socket: a thousand links may come at once


def listen(*options: tuple[int, int, int]) -> socket.socket:
    """A socket that hears of every change of a link or an address and does not block. options: to be set before it hears."""
    heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    for option in options:
        heard.setsockopt(*option)
    with contextlib.suppress(OSError):
        heard.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    heard.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    return heard


def question(kind: int, *asked: bytes, flags: int = 0, number: int = 0) -> bytes:
    """A request about links or addresses, without statistics in the answer. asked: further attributes."""
    body = bytes(IFINFO) + b"".join(asked) + attribute(IFLA_EXT_MASK, pack("=I", _RTEXT_FILTER_SKIP_STATS))
    return pack("=IHHII", HEADER + len(body), kind, NLM_F_REQUEST | flags, number, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, what follows the header) of each message in what was received at once."""
    place = 0
    while place + HEADER <= len(data):
        size, kind = unpack_from("=IH", data, place)
        yield kind, data[place + HEADER : place + size]
        place += max(HEADER, _padded(size))


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by kind."""
    found: dict[int, bytes] = {}
    place = 0
    while place + 4 <= len(data):
        size, kind = unpack_from("=HH", data, place)
        found[kind & _NLA_TYPE_MASK] = data[place + 4 : place + size]
        place += max(4, _padded(size))
    return found


def attribute(kind: int, value: bytes) -> bytes:
    return pack("=HH", 4 + len(value), kind) + value.ljust(_padded(len(value)), b"\0")


def name_of(value: bytes) -> str:
    """Of a link, as IFLA_IFNAME has it."""
    return value.rstrip(b"\0").decode(errors="replace")


def _padded(size: int) -> int:
    return (size + 3) & ~3
