"""Rules of security groups that have ended by themselves: out of the history, since they are no more."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Any

from google.protobuf.message import DecodeError

from controlplane.api.packets import ICMP, ICMPV6
from controlplane.controllers.expiry import ORIGIN
from controlplane.errors import StoreUnavailable
from controlplane.store import keys
from controlplane.store.client import Store
from controlplane.values import protocol_number
from kumihimo.v1 import inspect_pb2 as pb
from kumihimo.v1 import network_pb2, security_pb2, store_pb2

LOOKED_AT = 500  # changes, the newest


class Expired:
    """Looks for them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def find(self, groups: Iterable[str], ingress: bool, packet: pb.Packet) -> Any | None:
        """The rule of these groups that ended last of those that would have let a packet pass, as far as its own fields say."""
        wanted = set(groups)
        try:
            records = await self._store.newest(keys.CHANGES, LOOKED_AT)
        except StoreUnavailable:
            return None
        for kv in records:
            try:
                record = store_pb2.ChangeRecord.FromString(kv.value)
                if record.kind != "SecurityGroupRule" or record.after or record.actor != ORIGIN.actor:
                    continue
                rule = security_pb2.SecurityGroupRule.FromString(record.before)
            except DecodeError:
                continue
            if rule.security_group_id in wanted and lets_pass(rule, ingress, packet):
                return rule
        return None


def lets_pass(rule: security_pb2.SecurityGroupRule, ingress: bool, packet: pb.Packet) -> bool:
    """Whether a rule allows a packet. Of one that names a group its members are not asked for: it does."""
    other = ip_address(packet.ip_src if ingress else packet.ip_dst)
    version = 6 if rule.ethertype == network_pb2.IP_VERSION_IPV6 else 4
    if (rule.direction == security_pb2.DIRECTION_INGRESS) != ingress or other.version != version:
        return False
    if rule.protocol and protocol_number(rule.protocol) != packet.protocol:
        return False
    if rule.remote_ip_prefix and other not in ip_network(rule.remote_ip_prefix):
        return False
    if not rule.HasField("port_range_min"):
        return True
    if packet.protocol in (ICMP, ICMPV6):
        of_code = not rule.HasField("port_range_max") or rule.port_range_max == packet.icmp_code
        return of_code and rule.port_range_min == packet.icmp_type
    return rule.port_range_min <= packet.destination_port <= rule.port_range_max
