"""Match fields on the wire: OXM/NXM class, field number and width of every field that agent/model/flow.py names.

Source: ovs-fields(7) for names and NXM numbers, OpenFlow Switch Specification 1.5.1, section 7.2.3 for OXM. Where a
field has both an OXM and an NXM number, Open vSwitch answers with the OXM one over OpenFlow 1.5, so this table has it.

A field that is not in the table still has a name, made from its header: `oxm:CLASS:NUMBER:BYTES` (hex, decimal,
decimal), with a fourth part `:VENDOR` (hex) in the experimenter class. It encodes back to the same bytes, so a flow of
a newer version that names such a field can be deleted by an older one.
"""

from __future__ import annotations

from functools import lru_cache

from agent.model.flow import FIELD_BITS

NXM_OF, NXM_NX, OXM, PACKET_REGISTERS, EXPERIMENTER = 0x0000, 0x0001, 0x8000, 0x8001, 0xFFFF


class Field:
    """How one field is written: class, number, width in bits; vendor only in the experimenter class.

    size is the length of a value in bytes; header and masked_header are the OXM header before a value, and before a
    value and a mask, with the vendor's id if there is one. The header's length counts that id, the value and the mask.
    """

    __slots__ = ("bits", "header", "masked_header", "name", "number", "oxm_class", "size")

    def __init__(self, name: str, oxm_class: int, number: int, bits: int, vendor: int | None = None) -> None:
        self.name = name
        self.oxm_class = oxm_class
        self.number = number
        self.bits = bits
        self.size = (bits + 7) // 8
        tail = b"" if vendor is None else vendor.to_bytes(4, "big")
        start = oxm_class << 16 | number << 9
        self.header = (start | self.size + len(tail)).to_bytes(4, "big") + tail
        self.masked_header = (start | 1 << 8 | 2 * self.size + len(tail)).to_bytes(4, "big") + tail


_OXM_NUMBERS = {
    "in_port": 0,
    "metadata": 2,
    "eth_dst": 3,
    "eth_src": 4,
    "eth_type": 5,
    "vlan_vid": 6,
    "ip_proto": 10,
    "ip_src": 11,
    "ip_dst": 12,
    "tcp_src": 13,
    "tcp_dst": 14,
    "udp_src": 15,
    "udp_dst": 16,
    "sctp_src": 17,
    "sctp_dst": 18,
    "icmp_type": 19,
    "icmp_code": 20,
    "arp_op": 21,
    "arp_spa": 22,
    "arp_tpa": 23,
    "arp_sha": 24,
    "arp_tha": 25,
    "ipv6_src": 26,
    "ipv6_dst": 27,
    "icmpv6_type": 29,
    "icmpv6_code": 30,
    "nd_target": 31,
    "nd_sll": 32,
    "nd_tll": 33,
    "tun_id": 38,
}
_NXM_NX_NUMBERS = {
    **{f"reg{n}": n for n in range(16)},
    "ip_frag": 26,
    "ip_ttl": 29,
    "tun_src": 31,
    "tun_dst": 32,
    "tun_ipv6_dst": 110,
    "ct_state": 105,
    "ct_zone": 106,
    "ct_mark": 107,
    "ct_nw_proto": 119,
    "ct_nw_src": 120,
    "ct_nw_dst": 121,
    "ct_ipv6_src": 122,
    "ct_ipv6_dst": 123,
    "ct_tp_src": 124,
    "ct_tp_dst": 125,
    **{f"xxreg{n}": 111 + n for n in range(4)},
}

FIELDS = {
    **{name: Field(name, OXM, number, FIELD_BITS[name]) for name, number in _OXM_NUMBERS.items()},
    **{name: Field(name, NXM_NX, number, FIELD_BITS[name]) for name, number in _NXM_NX_NUMBERS.items()},
}
BY_NUMBER = {(field.oxm_class, field.number): field for field in FIELDS.values()}

# A field may be named only after the fields it depends on (1.5.1, section 7.2.3.6). Lower ranks are written first.
RANK = {"eth_type": 0, "ct_state": 0, "ip_proto": 1, "icmpv6_type": 2}
RANK_OF_OTHERS = 3


@lru_cache(maxsize=4096)
def by_name(name: str) -> Field:
    """The field of that name. ValueError when there is none."""
    if field := FIELDS.get(name):
        return field
    try:
        prefix, oxm_class, number, size, *vendor = name.split(":")
        if prefix != "oxm" or len(vendor) > 1:
            raise ValueError(name)
        return Field(name, int(oxm_class, 16), int(number), int(size) * 8, int(vendor[0], 16) if vendor else None)
    except ValueError:
        raise ValueError(f"no such field: {name}") from None


@lru_cache(maxsize=4096)
def by_header(oxm_class: int, number: int, size: int, vendor: int | None) -> Field:
    """The field of that header; size is the value's length in bytes, without vendor and mask."""
    field = BY_NUMBER.get((oxm_class, number))
    if field is not None and field.size == size:
        return field
    name = f"oxm:{oxm_class:04x}:{number}:{size}" + ("" if vendor is None else f":{vendor:08x}")
    return Field(name, oxm_class, number, size * 8, vendor)
