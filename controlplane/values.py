"""Value types: how a string is checked and brought to canonical form (RESOURCES, value types).

Each function takes the text as it came and returns the canonical text, or raises `Invalid` with the reason and what
would be accepted. Comparison is always on canonical form.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network, summarize_address_range

from kumihimo.v1 import network_pb2
from kumihimo.v1 import resource_pb2 as pb

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LONGEST_QUOTE = 80  # characters

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SLUG = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_MAC = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Invalid(ValueError):
    """The text is not of the form asked for."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def quoted(value: str) -> str:
    """A value as messages show it: an error is sent in headers, which hold little."""
    return repr(value if len(value) <= LONGEST_QUOTE else value[: LONGEST_QUOTE - 1] + "…")


def text(value: str) -> str:
    if _CONTROL.search(value):
        raise Invalid("STRING_INVALID", "holds a control character; printable text would be accepted")
    return value


def prose(value: str) -> str:
    """Text of several lines."""
    text(value.replace("\n", "").replace("\t", ""))
    return value


def identifier(value: str) -> str:
    canonical = value.lower()
    if not _UUID.fullmatch(canonical):
        raise Invalid("ID_INVALID", f"{quoted(value)} is not a UUID such as 0192f0c1-7c1e-7b3a-9d4e-5f60718293a4")
    return canonical


def slug(value: str) -> str:
    if not _SLUG.fullmatch(value):
        raise Invalid("ID_INVALID", f"{quoted(value)} is not 1-63 characters of a-z, 0-9, '.', '-' that begin and end with one")
    return value


@lru_cache(maxsize=8192)
def address(value: str) -> Address:
    """An IP address without zone id that is unicast: not unspecified, loopback or multicast."""
    try:
        parsed = ip_address(value)
    except ValueError:
        raise Invalid("IP_INVALID", f"{quoted(value)} is not an IP address such as 10.0.0.5 or fd00::5") from None
    if isinstance(parsed, IPv6Address) and parsed.scope_id:
        raise Invalid(
            "IP_INVALID", f"{quoted(value)} has a zone; the address without %{quoted(parsed.scope_id)[1:-1]} would be accepted"
        )
    if parsed.is_unspecified or parsed.is_loopback or parsed.is_multicast or parsed == ip_address("255.255.255.255"):
        raise Invalid("IP_INVALID", f"{quoted(value)} is not a unicast address of a host")
    return parsed


@lru_cache(maxsize=8192)
def prefix(value: str) -> Network:
    """A prefix `address/length` whose host bits are zero."""
    head, slash, length = value.partition("/")
    try:
        if not slash or "%" in head or not length.isdecimal() or len(length) > 3:
            raise ValueError
        parsed = ip_network(value, strict=False)
    except ValueError:
        raise Invalid("CIDR_INVALID", f"{quoted(value)} is not a prefix such as 10.0.0.0/24 or fd00::/64") from None
    if ip_address(head) != parsed.network_address:
        raise Invalid("CIDR_HOST_BITS_SET", f"{quoted(value)} has host bits set; {parsed} would be accepted")
    return parsed


def mac(value: str) -> str:
    canonical = value.lower()
    if not _MAC.fullmatch(canonical) or len(set(canonical[2::3])) != 1:
        raise Invalid("MAC_INVALID", f"{quoted(value)} is not a MAC address such as fa:16:3e:12:34:56")
    canonical = canonical.replace("-", ":")
    if int(canonical[:2], 16) & 1:
        raise Invalid("MAC_INVALID", f"{quoted(value)} is a multicast address; one with an even first octet would be accepted")
    if canonical == "00:00:00:00:00:00":
        raise Invalid("MAC_INVALID", "a MAC of all zeroes is not one; leave it out to have one made")
    return canonical


def dns_label(value: str) -> str:
    canonical = value.lower()
    if not _LABEL.fullmatch(canonical):
        raise Invalid("STRING_INVALID", f"{quoted(value)} is not a DNS label (RFC 1123): a-z, 0-9 and '-', at most 63")
    return canonical


def dns_name(value: str) -> str:
    canonical = value.lower()
    if canonical.endswith("."):
        raise Invalid("STRING_INVALID", f"{quoted(value)} ends with a dot; {quoted(value.rstrip('.'))} would be accepted")
    if len(canonical) > 255 or not all(_LABEL.fullmatch(label) for label in canonical.split(".")):
        raise Invalid("STRING_INVALID", f"{quoted(value)} is not a DNS name (RFC 1123) of at most 255 characters")
    return canonical


def tag(value: str) -> str:
    if not value or "," in value:
        raise Invalid("STRING_INVALID", f"tag {quoted(value)} must have 1-255 characters and no comma")
    return text(value)


# IP protocols that have a name here, by number (IANA's, in lower case; the first of two is stored).
PROTOCOLS: dict[int, str] = {
    0: "hopopt",
    1: "icmp",
    2: "igmp",
    4: "ipip",
    6: "tcp",
    8: "egp",
    17: "udp",
    33: "dccp",
    41: "ipv6-encap",
    43: "ipv6-route",
    44: "ipv6-frag",
    46: "rsvp",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "icmpv6",
    59: "ipv6-nonxt",
    60: "ipv6-opts",
    89: "ospf",
    112: "vrrp",
    113: "pgm",
    132: "sctp",
    136: "udplite",
}
_NUMBERS = {**{name: number for number, name in PROTOCOLS.items()}, "ipv6-icmp": 58}
_NAMES = ", ".join(PROTOCOLS.values())


def protocol(value: str) -> str:
    """An IP protocol by name or number; its name where it has one, "" for any."""
    lower = value.lower()
    if lower in ("", "any"):
        return ""
    number = _NUMBERS.get(lower)
    if number is None and lower.isascii() and lower.isdecimal() and len(lower) <= 3:
        number = int(lower)
    if number is None or number > 255:
        raise Invalid(
            "ENUM_INVALID", f"{quoted(value)} is no IP protocol; a number of 0-255, any, or one of {_NAMES} is accepted"
        )
    return PROTOCOLS.get(number, str(number))


def protocol_number(canonical: str) -> int:
    """The number of a protocol that is not any, as it is stored."""
    return _NUMBERS[canonical] if canonical in _NUMBERS else int(canonical)


@lru_cache(maxsize=1024)
def addresses(value: str) -> tuple[str, tuple[Network, ...]]:
    """(canonical text, the prefixes that it means) of an address, a prefix, or a range `first-last` of one family.

    An address of a group may be any, multicast too. A range that is a prefix is written as one, a prefix of one as an address.
    """
    if "/" in value:
        networks: tuple[Network, ...] = (prefix(value),)
    else:
        head, dash, tail = value.partition("-")
        first, last = _any_address(value, head), _any_address(value, tail) if dash else None
        last = first if last is None else last
        if type(first) is not type(last) or int(first) > int(last):
            text = f"{quoted(value)} does not go from a lower to a higher address of one family; 10.0.0.5-10.0.0.9 does"
            raise Invalid("IP_INVALID", text)
        networks = tuple(summarize_address_range(first, last))
    if len(networks) > 1:
        return f"{networks[0].network_address}-{networks[-1].broadcast_address}", networks
    (one,) = networks
    return str(one.network_address) if one.prefixlen == one.max_prefixlen else str(one), networks


def _any_address(value: str, part: str) -> Address:
    try:
        parsed = ip_address(part)
    except ValueError:
        text = f"{quoted(value)} is no address, prefix or range such as 10.0.0.5, 10.0.0.0/24 or 10.0.0.5-10.0.0.9"
        raise Invalid("IP_INVALID", text) from None
    if isinstance(parsed, IPv6Address) and parsed.scope_id:
        raise Invalid("IP_INVALID", f"{quoted(value)} has a zone; the address without it would be accepted")
    return parsed


# Bytes that an encapsulation adds to an IP packet over an IPv4 underlay: the outer IP, its own header, the inner Ethernet.
_OVERHEAD: dict[int, int] = {
    network_pb2.NETWORK_TYPE_VXLAN: 50,
    network_pb2.NETWORK_TYPE_GENEVE: 50,
    network_pb2.NETWORK_TYPE_GRE: 42,
}
_IPV6_MORE = 20  # by which IPv6's header is longer


def overhead(network_type: int, ip_version: int) -> int:
    """Bytes that a network's packets grow by on an underlay of IP version 4 or 6; 0 for types that have no tunnel."""
    more = _OVERHEAD.get(network_type, 0)
    return more + _IPV6_MORE if more and ip_version == 6 else more


def service_mac(key: int) -> str:
    """The MAC of a network's DHCP service, the same on every node; follows from the network's key."""
    octets = key.to_bytes(3, "big")
    return "fa:16:3f:" + ":".join(f"{octet:02x}" for octet in octets)


def eui64(network: Network, mac: str) -> str:
    """The address that a guest with this MAC makes for itself in an IPv6 /64 (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(IPv6Address(int(network.network_address) | int.from_bytes(identifier, "big")))


LINK_LOCAL = IPv6Network("fe80::/64")

CANONICAL: dict[int, Callable[[str], str]] = {
    pb.FORMAT_UNSPECIFIED: text,
    pb.FORMAT_UUID: identifier,
    pb.FORMAT_SLUG: slug,
    pb.FORMAT_IP: lambda value: str(address(value)),
    pb.FORMAT_CIDR: lambda value: str(prefix(value)),
    pb.FORMAT_MAC: mac,
    pb.FORMAT_DNS_LABEL: dns_label,
    pb.FORMAT_DNS_NAME: dns_name,
    pb.FORMAT_TAG: tag,
    pb.FORMAT_PROSE: prose,
    pb.FORMAT_PROTOCOL: protocol,
    pb.FORMAT_ADDRESSES: lambda value: addresses(value)[0],
}
