"""Numbers of protocols on the wire, by the names that the agent uses: IEEE 802, IANA's protocol numbers, ICMPv6 types."""

from __future__ import annotations

ETH_IPV4, ETH_ARP, ETH_IPV6 = 0x0800, 0x0806, 0x86DD
TAGGED = 0x1000  # in vlan_vid: there is a tag (ovs-fields(7))
ICMP, IGMP, TCP, UDP, ICMPV6, SCTP = 1, 2, 6, 17, 58, 132
# Those whose ports Open vSwitch looks at, with the beginning of the fields' names.
WITH_PORTS = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
SOLICIT, ADVERTISE = 135, 136  # types of ICMPv6
