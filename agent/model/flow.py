"""OpenFlow flows and groups as values.

Fields bear the names of ovs-fields(7): in_port, metadata, reg0-reg15, xxreg0-xxreg3, tun_id, tun_src, tun_dst, tun_ipv6_dst,
eth_src, eth_dst, eth_type, ip_proto, ip_src, ip_dst, ipv6_src, ipv6_dst, ip_ttl, arp_op, arp_spa, arp_tpa, arp_sha,
arp_tha, tcp_src, udp_dst, ct_state, ct_mark … Values are integers in host order (a MAC is a 48 bit integer, an address 32
or 128 bits; vlan_vid has the OpenFlow form: 0x1000 says "tagged", the lower 12 bits are the VLAN; ct_state and ip_frag have
the bits that are named below).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from agent.model.item import Key

_NAMES = {
    128: "xxreg0 xxreg1 xxreg2 xxreg3 ipv6_src ipv6_dst nd_target tun_ipv6_dst ct_ipv6_src ct_ipv6_dst",
    64: "metadata tun_id",
    48: "eth_src eth_dst arp_sha arp_tha nd_sll nd_tll",
    32: "in_port tun_src tun_dst ip_src ip_dst arp_spa arp_tpa ct_state ct_mark ct_nw_src ct_nw_dst",
    16: "eth_type arp_op tcp_src tcp_dst udp_src udp_dst sctp_src sctp_dst ct_zone ct_tp_src ct_tp_dst",
    13: "vlan_vid",
    8: "ip_proto ip_ttl icmp_type icmp_code icmpv6_type icmpv6_code ct_nw_proto",
    2: "ip_frag",
}
# Every field that a flow of ours may name, with its width in bits (ovs-fields(7)).
FIELD_BITS: Mapping[str, int] = MappingProxyType(
    {name: bits for bits, names in _NAMES.items() for name in names.split()} | {f"reg{n}": 32 for n in range(16)}
)

# Bits of ct_state; the bit of ip_frag that every fragment has, and that of one which is not the first of its packet.
CT_NEW, CT_ESTABLISHED, CT_RELATED, CT_REPLY, CT_INVALID, CT_TRACKED = (1 << bit for bit in range(6))
FRAGMENT, LATER = 1, 2

# One matched field: name, value, mask; mask None means every bit.
FieldMatch = tuple[str, int, int | None]
# Sorted by name, so that equal matches are equal values. Prerequisites (eth_type, ip_proto) are given like any field.
Match = tuple[FieldMatch, ...]


def match(**fields: int | tuple[int, int]) -> Match:
    """A match from keyword arguments: value, or (value, mask).

    The result is in the one form that the switch gives back: a mask of all bits becomes None, a mask of no bits
    leaves the field out, and xxregN is written as reg4N … reg4N+3 (the same storage). ValueError: no such field, or
    bits outside the mask or the width.
    """
    result: list[FieldMatch] = []
    for name, given in fields.items():
        value, mask = given if isinstance(given, tuple) else (given, None)
        if name.startswith("xxreg"):
            result += _split(name, value, mask)
        else:
            result += _canonical(name, value, mask)
    if len({name for name, _, _ in result}) < len(result):
        raise ValueError("a register is given twice, as reg and as part of an xxreg")
    return tuple(sorted(result))


@lru_cache(1024)
def _canonical(name: str, value: int, mask: int | None) -> tuple[FieldMatch, ...]:
    """The field in its one form: alone, or nothing when the mask is 0. What many flows match is one object."""
    if name not in FIELD_BITS:
        raise ValueError(f"no such field: {name}")
    full = (1 << FIELD_BITS[name]) - 1
    if (mask is not None and mask & ~full) or value & ~(full if mask is None else mask):
        raise ValueError(f"{name}: bits outside the mask or the width: {value:#x}/{full if mask is None else mask:#x}")
    if mask == 0:
        return ()
    return ((name, value, None if mask == full else mask),)


def _split(name: str, value: int, mask: int | None) -> list[FieldMatch]:
    """xxregN as four 32 bit registers; the first holds the most significant bits."""
    if name not in FIELD_BITS or value >> 128 or (mask or 0) >> 128:
        raise ValueError(f"no such field, or bits outside the width: {name}")
    first, word = int(name.removeprefix("xxreg")) * 4, (1 << 32) - 1
    result: list[FieldMatch] = []
    for index in range(4):
        shift = 96 - 32 * index
        part = None if mask is None else mask >> shift & word
        result += _canonical(f"reg{first + index}", value >> shift & word, part)
    return result


@dataclass(frozen=True, slots=True)
class Output:
    """Send out of an OpenFlow port (ofport number)."""

    port: int


@dataclass(frozen=True, slots=True)
class InPort:
    """Send back out of the port the packet came from."""


@dataclass(frozen=True, slots=True)
class SetField:
    """Write a value into a field, or into the bits of mask."""

    field: str
    value: int
    mask: int | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Copy bits: source[source_offset …] to target[target_offset …]."""

    source: str
    target: str
    bits: int
    source_offset: int = 0
    target_offset: int = 0


@dataclass(frozen=True, slots=True)
class Resubmit:
    """Look up again in another table (NXAST_RESUBMIT_TABLE with the packet's in_port)."""

    table: int


@dataclass(frozen=True, slots=True)
class ToGroup:
    """Apply a group."""

    group_id: int


@dataclass(frozen=True, slots=True)
class PushVlan:
    """Put an 802.1Q tag in front; set vlan_vid next."""


@dataclass(frozen=True, slots=True)
class PopVlan:
    """Take the outermost VLAN tag away."""


@dataclass(frozen=True, slots=True)
class Track:
    """Look the packet's connection up in a zone of connection tracking (ovs-actions(7): ct).

    zone: a number, or the register whose lower 16 bits are it. table: where the packet goes on with ct_state and the other
    ct fields set; None: it goes on here, and they are not. commit: a connection that is not known is known from now on;
    actions: what is written into it, SetField and Move to ct_mark.
    """

    zone: int | str
    table: int | None = None
    commit: bool = False
    actions: tuple[SetField | Move, ...] = ()


@dataclass(frozen=True, slots=True)
class ToController:
    """Send the first max_len bytes to whoever listens, as often as a meter lets; nothing else happens to the packet
    (ovs-actions(7): controller)."""

    meter_id: int
    max_len: int


@dataclass(frozen=True, slots=True)
class Opaque:
    """An action or instruction that we do not know, as it came from the switch. It is read and never written."""

    data: bytes


Action = Output | InPort | SetField | Move | Resubmit | ToGroup | PushVlan | PopVlan | Track | ToController | Opaque


@dataclass(frozen=True, slots=True, init=False)
class Flow:
    """One flow. No actions means drop. The cookie names the resource that caused it (agent/model/pipeline.py).

    It is made of its key: there are many flows, and whoever keeps one by its key needs no other.
    """

    __match_args__ = ("table", "priority", "match", "actions", "cookie")

    key: tuple[str, int, int, Match]
    actions: tuple[Action, ...]
    cookie: int

    def __init__(self, table: int, priority: int, match: Match, actions: tuple[Action, ...], cookie: int) -> None:
        object.__setattr__(self, "key", ("flow", table, priority, match))
        object.__setattr__(self, "actions", actions)
        object.__setattr__(self, "cookie", cookie)

    @property
    def table(self) -> int:
        return self.key[1]

    @property
    def priority(self) -> int:
        return self.key[2]

    @property
    def match(self) -> Match:
        return self.key[3]


@dataclass(frozen=True, slots=True)
class Group:
    """A group of type `all`: a copy of the packet goes through each bucket (a tuple of actions)."""

    group_id: int
    buckets: tuple[tuple[Action, ...], ...]

    @property
    def key(self) -> Key:
        return ("group", self.group_id)


@dataclass(frozen=True, slots=True)
class Meter:
    """Lets `rate` packets a second through, and `burst` at once after a pause."""

    meter_id: int
    rate: int
    burst: int

    @property
    def key(self) -> Key:
        return ("meter", self.meter_id)
