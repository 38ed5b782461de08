"""IPv6 settings (net.ipv6.conf) of links in other namespaces, asked from this one: of their changes the kernel tells nobody.

RTM_GETLINK takes the number by which this namespace knows another (IFLA_TARGET_NETNSID, Linux 4.20), so one socket asks after
all: some 15 us each, where entering a namespace and reading files takes four times as much.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from struct import pack, unpack_from

from agent.rtnetlink import IFINFO, IFLA_IFNAME, RTM_GETLINK, RTM_NEWLINK, attribute, attributes, messages, question

# linux/if_link.h
IFLA_AF_SPEC, IFLA_TARGET_NETNSID = 26, 46
IFLA_INET6_CONF = 2
# linux/ipv6.h: places in IFLA_INET6_CONF, by the name of the sysctl.
PLACES = {"accept_ra": 3, "autoconf": 5, "disable_ipv6": 26, "accept_dad": 27}

_PATIENCE = 5.0  # seconds for an answer of the kernel


def read(links: Iterable[tuple[int, str]]) -> dict[tuple[int, str], Mapping[str, int]]:
    """Settings by (number of the namespace, name of the link); {} of what is not there. Blocks: for threads. OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asked:
        asked.settimeout(_PATIENCE)
        asked.bind((0, 0))
        return {(number, name): _ask(asked, number, name) for number, name in links}


def _ask(asked: socket.socket, namespace: int, name: str) -> Mapping[str, int]:
    of = attribute(IFLA_TARGET_NETNSID, pack("=i", namespace)), attribute(IFLA_IFNAME, name.encode() + b"\0")
    asked.send(question(RTM_GETLINK, *of))
    for kind, body in messages(asked.recv(65536)):
        if kind == RTM_NEWLINK:
            of_family = attributes(attributes(body[IFINFO:]).get(IFLA_AF_SPEC, b"")).get(socket.AF_INET6, b"")
            values = attributes(of_family).get(IFLA_INET6_CONF, b"")
            return {
                name: unpack_from("=I", values, 4 * place)[0] for name, place in PLACES.items() if len(values) >= 4 * place + 4
            }
    return {}
