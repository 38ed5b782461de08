"""IPv6 settings (net.ipv6.conf) of links in other namespaces, asked from this one: of their changes the kernel tells nobody.

RTM_GETLINK takes the number by which this namespace knows another (IFLA_TARGET_NETNSID, Linux 4.20), so one socket asks after
all: some 15 us each, where entering a namespace and reading files takes four times as much.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from struct import pack, unpack_from

# linux/rtnetlink.h, linux/if_link.h
RTM_NEWLINK, RTM_GETLINK, NLM_F_REQUEST = 16, 18, 1
IFLA_IFNAME, IFLA_AF_SPEC, IFLA_EXT_MASK, IFLA_TARGET_NETNSID = 3, 26, 29, 46
RTEXT_FILTER_SKIP_STATS = 8
IFLA_INET6_CONF = 2
NLA_TYPE_MASK = 0x3FFF
# linux/ipv6.h: places in IFLA_INET6_CONF, by the name of the sysctl.
PLACES = {"accept_ra": 3, "autoconf": 5, "disable_ipv6": 26, "accept_dad": 27}

_HEADER, _IFINFO = 16, 16
_PATIENCE = 5.0  # seconds for an answer of the kernel


def read(links: Iterable[tuple[int, str]]) -> dict[tuple[int, str], Mapping[str, int]]:
    """Settings by (number of the namespace, name of the link); {} of what is not there. Blocks: for threads. OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asked:
        asked.settimeout(_PATIENCE)
        asked.bind((0, 0))
        return {(number, name): _ask(asked, number, name) for number, name in links}


def _ask(asked: socket.socket, namespace: int, name: str) -> Mapping[str, int]:
    body = bytes(_IFINFO)
    body += _attribute(IFLA_TARGET_NETNSID, pack("=i", namespace))
    body += _attribute(IFLA_IFNAME, name.encode() + b"\0")
    body += _attribute(IFLA_EXT_MASK, pack("=I", RTEXT_FILTER_SKIP_STATS))
    asked.send(pack("=IHHII", _HEADER + len(body), RTM_GETLINK, NLM_F_REQUEST, 0, 0) + body)
    answer = asked.recv(65536)
    if unpack_from("=IH", answer)[1] != RTM_NEWLINK:
        return {}
    of_family = _find(_find(answer[_HEADER + _IFINFO :], IFLA_AF_SPEC), socket.AF_INET6)
    values = _find(of_family, IFLA_INET6_CONF)
    return {name: unpack_from("=I", values, 4 * place)[0] for name, place in PLACES.items() if len(values) >= 4 * place + 4}


def _attribute(kind: int, value: bytes) -> bytes:
    return pack("=HH", 4 + len(value), kind) + value.ljust((len(value) + 3) & ~3, b"\0")


def _find(attributes: bytes, kind: int) -> bytes:
    """The value of the first attribute of a kind; empty when there is none."""
    place = 0
    while place + 4 <= len(attributes):
        size, found = unpack_from("=HH", attributes, place)
        if found & NLA_TYPE_MASK == kind:
            return attributes[place + 4 : place + size]
        place += max(4, (size + 3) & ~3)
    return b""
