"""The pipeline as data: every table, register, flag, drop reason and cookie that flows may use. Shared names live here.

Stages, in the order a packet meets them:

    0 CLASSIFY      in_port → network and port; tunnel and tun_id → network
    10 PORT_SECURITY  VLAN tag, MAC, address, ARP, DHCP-server and RA guard of a local port; one default drop per kind
    11 ND_GUARD     what IPv6 neighbour discovery of a local port may say
    30 SERVICES     ARP request → 44, 31; neighbour solicitation → 45, 32; DHCP, RS → the service namespace; the rest → 20
    31 ARP_REPLY    turns the request into its answer
    32 ND_TARGET    leads the solicitation to the one that it asks about
    44 NEIGHBOURS   subroutine: (network, IPv4) → MAC
    45 NEIGHBOURS_6  the same for IPv6
    20 EGRESS_TRACK  security groups of the sender: connection tracking in the port's zone → 21
    21 EGRESS_STATE  connections that the port's policy of now has allowed pass; of others the rules are asked: 22, then 23
    22 POLICY       subroutine: of a port, its generation, and its groups in turn → 24
    23 EGRESS_DECIDE  what was allowed is committed with the generation as its mark, and goes to 28; what was not is dropped
    24 GROUP        subroutine: of a group, direction and family, the remotes that its rules name, in turn → 26, or by 25
    25 MEMBERS      subroutine: (remote, address) → 26
    26 RULES        subroutine: what a rule allows gets the flag
    27 EGRESS_STATELESS  after the rules of stateless groups, before 21
    28 EGRESS_KNOWN  what connection tracking has sent on once more: only what it has tracked for this port
    55 FROM_PROVIDER  patch port and VLAN tag → network; the tag goes
    60 L2           (network, MAC) → local port, node, provider network, or group of all members
    70 INGRESS      before a local port: never back to the sender; security groups of the receiver: as 20
    71 INGRESS_STATE  as 21
    73 INGRESS_DECIDE  as 23
    77 INGRESS_STATELESS  as 27
    78 INGRESS_KNOWN  as 28
    80 LOCAL        output
    81 NODE         network → segment on the wire
    82 PROVIDER     network → VLAN tag, patch port; never what came from there
    83 VXLAN        node → tunnel; 84 GENEVE, 85 GRE likewise
    99 DROP         every drop, counted by port and reason
    253 MARKER      one flow that the agent rewrites to see its changes through (OpenFlowDriver.synchronize)
"""

from __future__ import annotations

from enum import IntEnum
from uuid import UUID


class Table(IntEnum):
    """See the module. Numbers have gaps for stages to come; they are those of the design's pipeline."""

    CLASSIFY = 0
    PORT_SECURITY = 10
    ND_GUARD = 11
    EGRESS_TRACK = 20
    EGRESS_STATE = 21
    POLICY = 22
    EGRESS_DECIDE = 23
    GROUP = 24
    MEMBERS = 25
    RULES = 26
    EGRESS_STATELESS = 27
    EGRESS_KNOWN = 28
    SERVICES = 30
    ARP_REPLY = 31
    ND_TARGET = 32
    NEIGHBOURS = 44
    NEIGHBOURS_6 = 45
    FROM_PROVIDER = 55
    L2 = 60
    INGRESS = 70
    INGRESS_STATE = 71
    INGRESS_DECIDE = 73
    INGRESS_STATELESS = 77
    INGRESS_KNOWN = 78
    LOCAL = 80
    NODE = 81
    PROVIDER = 82
    VXLAN = 83
    GENEVE = 84
    GRE = 85
    DROP = 99
    MARKER = 253


# From which table to which a packet may go; a flow that says otherwise is refused when it is made (compile/base.py).
NEXT: dict[Table, frozenset[Table]] = {
    Table.CLASSIFY: frozenset({Table.PORT_SECURITY, Table.SERVICES, Table.FROM_PROVIDER, Table.L2, Table.DROP}),
    Table.PORT_SECURITY: frozenset({Table.ND_GUARD, Table.SERVICES, Table.DROP}),
    Table.ND_GUARD: frozenset({Table.SERVICES, Table.DROP}),
    Table.EGRESS_TRACK: frozenset(
        {Table.EGRESS_TRACK, Table.EGRESS_STATE, Table.POLICY, Table.EGRESS_STATELESS, Table.L2, Table.DROP}
    ),
    Table.EGRESS_STATE: frozenset({Table.POLICY, Table.EGRESS_DECIDE, Table.L2, Table.DROP}),
    Table.POLICY: frozenset({Table.GROUP}),
    Table.EGRESS_DECIDE: frozenset({Table.EGRESS_KNOWN, Table.DROP}),
    Table.GROUP: frozenset({Table.MEMBERS, Table.RULES}),
    Table.MEMBERS: frozenset({Table.RULES}),
    Table.RULES: frozenset(),
    Table.EGRESS_STATELESS: frozenset({Table.EGRESS_STATE, Table.EGRESS_KNOWN, Table.L2, Table.DROP}),
    Table.EGRESS_KNOWN: frozenset({Table.L2, Table.DROP}),
    Table.SERVICES: frozenset(
        {Table.NEIGHBOURS, Table.ARP_REPLY, Table.NEIGHBOURS_6, Table.ND_TARGET, Table.EGRESS_TRACK, Table.L2, Table.DROP}
    ),
    Table.ARP_REPLY: frozenset({Table.L2, Table.DROP}),
    Table.ND_TARGET: frozenset({Table.L2, Table.DROP}),
    Table.NEIGHBOURS: frozenset(),
    Table.NEIGHBOURS_6: frozenset(),
    Table.FROM_PROVIDER: frozenset({Table.L2, Table.DROP}),
    Table.L2: frozenset({Table.INGRESS, Table.NODE, Table.PROVIDER, Table.DROP}),
    Table.INGRESS: frozenset(
        {Table.INGRESS, Table.INGRESS_STATE, Table.POLICY, Table.INGRESS_STATELESS, Table.LOCAL, Table.DROP}
    ),
    Table.INGRESS_STATE: frozenset({Table.POLICY, Table.INGRESS_DECIDE, Table.LOCAL, Table.DROP}),
    Table.INGRESS_DECIDE: frozenset({Table.INGRESS_KNOWN, Table.DROP}),
    Table.INGRESS_STATELESS: frozenset({Table.INGRESS_STATE, Table.INGRESS_KNOWN, Table.LOCAL, Table.DROP}),
    Table.INGRESS_KNOWN: frozenset({Table.LOCAL, Table.DROP}),
    Table.LOCAL: frozenset({Table.DROP}),
    Table.NODE: frozenset({Table.VXLAN, Table.GENEVE, Table.GRE, Table.DROP}),
    Table.PROVIDER: frozenset({Table.DROP}),
    Table.VXLAN: frozenset({Table.DROP}),
    Table.GENEVE: frozenset({Table.DROP}),
    Table.GRE: frozenset({Table.DROP}),
    Table.DROP: frozenset(),
    Table.MARKER: frozenset(),
}

# Registers. metadata bits 0-23: network key.
FLAGS = "reg0"
JUDGED = "reg1"  # what is asked of the rules: bits below, and in bits 0-23 the key of the group whose turn it is
REMOTE = "reg4"  # key of the group or address group that the other side is looked for in; 0: anybody
NODE_KEY = "reg10"  # remote node
REASON = "reg11"  # why a packet is dropped
GENERATION = "reg12"  # of the policy of POLICY_PORT: the mark of connections that it allows
POLICY_PORT = "reg13"  # ofport of the port whose rules are asked
SOURCE = "reg14"  # ofport of the local port it came from; 0: not a local one
TARGET = "reg15"  # ofport of the local port it goes to; 0: not yet known, or not local
ASKED = "reg3"  # address whose MAC is looked up
ASKED_6 = "xxreg1"  # the same, IPv6
FOUND = "xxreg2"  # bits 64-111: the MAC that was found
FOUND_OFFSET = 64

# Bits of JUDGED.
GROUP_KEY = (1 << 24) - 1
OF_INGRESS = 1 << 31  # by the rules for what the port receives; else for what it sends
BY_CONNECTION = 1 << 30  # not the packet, but the first one of its connection
STATELESS = 1 << 29  # by the stateless groups of the port; else by the others

# Bits of FLAGS.
FROM_TUNNEL = 1 << 0  # also set for what must not leave the host
FROM_PROVIDER = 1 << 1
ALLOWED = 1 << 3  # a rule allows it
COMPLETE = 1 << 4  # a fragment of a packet whose other fragments are there too
NEIGHBOUR_FOUND = 1 << 5
FROM_SERVICE = 1 << 6
NEIGHBOUR_FLOATS = 1 << 7  # an address that moves between ports: its owner answers, not we
OBSERVED = 1 << 8  # the port has a group that only observes: what no rule allows is counted and passes


class Reason(IntEnum):
    """Why a packet was dropped; the numbers stand in REASON and in the flows of table DROP."""

    UNKNOWN_SOURCE = 1
    SPOOFED_MAC = 2
    SPOOFED_IP = 3
    SPOOFED_ARP = 4
    DHCP_SERVER = 5
    PROTOCOL = 6
    IPV6 = 7  # from a port that has no IPv6 address
    ADMIN_DOWN = 8
    ARP_UNKNOWN = 9
    ARP_OWN = 10
    UNKNOWN_UNICAST = 11
    BACK_TO_SENDER = 12
    SPLIT_HORIZON = 13
    NO_TUNNEL = 14
    NO_PORT = 15
    SPOOFED_IPV6 = 16
    SPOOFED_ND = 17
    RA_SERVER = 18
    DHCPV6_SERVER = 19
    ND_UNKNOWN = 20
    ND_OWN = 21
    VLAN_TAG = 22
    SG_EGRESS = 23  # no rule of the sender allows it
    SG_INGRESS = 24  # no rule of the receiver allows it
    CT_INVALID = 25  # of no connection, and none that can begin with it
    OBSERVED = 26  # not dropped: a group that only observes let it pass
    FRAGMENT = 27  # too small, over another of its packet, or of a packet as CT_INVALID


# What guests have that do nothing wrong: probes for their own address, IPv6 by default.
USUAL = frozenset({Reason.IPV6, Reason.ARP_OWN, Reason.ND_OWN, Reason.BACK_TO_SENDER, Reason.SPLIT_HORIZON})
# What can befall a packet that a given local port sends; each has a counter for each port.
REASONS_OF_SENDER = (
    Reason.SPOOFED_MAC,
    Reason.SPOOFED_IP,
    Reason.SPOOFED_ARP,
    Reason.DHCP_SERVER,
    Reason.PROTOCOL,
    Reason.IPV6,
    Reason.ADMIN_DOWN,
    Reason.ARP_UNKNOWN,
    Reason.ARP_OWN,
    Reason.UNKNOWN_UNICAST,
    Reason.NO_TUNNEL,
    Reason.SPOOFED_IPV6,
    Reason.SPOOFED_ND,
    Reason.RA_SERVER,
    Reason.DHCPV6_SERVER,
    Reason.ND_UNKNOWN,
    Reason.ND_OWN,
    Reason.VLAN_TAG,
    Reason.SG_EGRESS,
    Reason.CT_INVALID,
    Reason.OBSERVED,
    Reason.FRAGMENT,
)
# And to a packet on its way to a given local port.
REASONS_OF_RECEIVER = (Reason.SG_INGRESS, Reason.CT_INVALID, Reason.OBSERVED, Reason.FRAGMENT)

# Of what is dropped the first bytes are told of some packets: so many a second of each port, and so many at once.
SAMPLE_BYTES = 128
SAMPLES_A_SECOND = 1
SAMPLES_AT_ONCE = 16


class CookieKind(IntEnum):
    """First byte of a cookie: the kind of resource behind the flow."""

    BASE = 0x4B
    NODE = 0x4C
    NETWORK = 0x4D
    PORT = 0x4E
    MARKER = 0x4F
    GROUP = 0x50
    RULE = 0x51


def cookie(kind: CookieKind, object_id: str = "") -> int:
    """64 bits: the kind, then the last 14 hex digits of the resource's id (nodes: of its name), for whoever reads flows."""
    if not object_id:
        return kind << 56
    try:
        low = UUID(object_id).int
    except ValueError:
        low = int.from_bytes(object_id.encode()[-7:], "big")
    return kind << 56 | low & ((1 << 56) - 1)


def is_ours(value: int) -> bool:
    """Whether a flow with this cookie is the agent's to change or remove. The marker is the driver's own."""
    return CookieKind.BASE <= value >> 56 <= CookieKind.RULE and value >> 56 != CookieKind.MARKER


def is_our_group(group_id: int) -> bool:
    """Whether a group is the agent's: its number is the key of a network, of 24 bits (metadata bits 0-23)."""
    return group_id < 1 << 24


def is_our_meter(meter_id: int) -> bool:
    """Whether a meter is the agent's: its number is that of a port (OpenFlow: OFPP_MAX)."""
    return meter_id < 0xFF00
