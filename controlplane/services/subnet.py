"""Subnets: prefix, gateway, pools, what DHCP tells."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from controlplane.errors import Code, Violation, exhausted, fault, precondition, refuse, taken
from controlplane.registry import KINDS
from controlplane.services import formed, prefixes
from controlplane.services.base import (
    Context,
    Rules,
    claim,
    claim_free,
    label,
    network_of,
    release,
    subnets_of,
)
from controlplane.store import keys
from controlplane.store.txn import Transaction
from controlplane.values import Address, Network, address, prefix
from kumihimo.v1 import network_pb2 as pb
from kumihimo.v1 import store_pb2

LEAST_LEASE = 120  # seconds
MOST_LEASE = (1 << 32) - 2  # DHCP has 32 bits for it, and all ones mean for ever
DEFAULT_LEASE = 24 * 3600
INFINITE_LEASE = -1
DHCPV6 = (64, 126)  # lengths of prefixes that dnsmasq serves, and where it finds an address for itself
LEAST_MTU_OF_IPV6 = 1280  # RFC 8200, section 5


def forms_addresses(subnet: Any) -> bool:
    """Whether guests make their own address in the subnet (RFC 4862), so that no other can be chosen for them."""
    return subnet.ipv6_address_mode in (pb.IPV6_MODE_SLAAC, pb.IPV6_MODE_DHCPV6_STATELESS)


def usable(network: Network) -> tuple[int, int]:
    """First and last address that a host may have."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.version == 4 and network.prefixlen < 31:
        return first + 1, last - 1
    if network.version == 6 and network.prefixlen < 127:
        return first + 1, last
    return first, last


def ranges(subnet: Any) -> list[tuple[int, int]]:
    """The allocation pools as numbers."""
    return [(int(address(pool.start)), int(address(pool.end))) for pool in subnet.allocation_pools]


class SubnetRules(Rules):
    """See the module."""

    kind = "Subnet"

    def complete(self, new: Any, context: Context) -> None:
        if not new.cidr or not _is_prefix(new.cidr):
            return
        network = prefix(new.cidr)
        if not new.ip_version:
            new.ip_version = network.version
        first, last = usable(network)
        if not new.disable_gateway and not new.gateway_ip and first < last:
            new.gateway_ip = str(ip_address(first))
        if not new.allocation_pools:
            for start, end in _without(first, last, new.gateway_ip):
                new.allocation_pools.add(start=str(_address(network, start)), end=str(_address(network, end)))
        if network.version == 6:
            new.ipv6_ra_mode = new.ipv6_ra_mode or new.ipv6_address_mode or pb.IPV6_MODE_SLAAC
            new.ipv6_address_mode = new.ipv6_address_mode or new.ipv6_ra_mode
        if not new.HasField("enable_dhcp"):
            new.enable_dhcp = network.prefixlen < 31 if network.version == 4 else new.ipv6_ra_mode != pb.IPV6_MODE_NONE
        if not new.HasField("dhcp_lease_duration"):
            new.dhcp_lease_duration.seconds = DEFAULT_LEASE

    def check(self, new: Any, old: Any | None, context: Context) -> Iterator[Violation]:
        if old is None and new.prefix_length:
            yield from self._check_length(new)
        if new.disable_gateway and new.gateway_ip:
            yield Violation("gateway_ip", "FIELDS_EXCLUSIVE", "gateway_ip and disable_gateway exclude each other")
        if not new.cidr:
            if not new.subnet_pool_id or old is not None:
                yield Violation("cidr", "MISSING_FIELD", "cidr is missing; for example 10.0.0.0/24")
            return
        if not _is_prefix(new.cidr):
            return  # the descriptor's rules have said so
        network = prefix(new.cidr)
        if old is not None and old.cidr != new.cidr and not prefixes.contains(network, prefix(old.cidr)):
            # Said first and alone: that gateway and pools lie outside follows from it.
            yield Violation("cidr", "IMMUTABLE_FIELD", f"cidr is {old.cidr}; only a prefix that contains it is accepted")
            return
        yield from self._check_prefix(new, network)
        yield from self._check_addresses(new, network)
        yield from self._check_told(new, network)

    def _check_length(self, new: Any) -> Iterator[Violation]:
        if not new.subnet_pool_id:
            yield Violation("prefix_length", "FIELDS_EXCLUSIVE", "prefix_length goes with subnet_pool_id; give a cidr instead")
        elif new.cidr and _is_prefix(new.cidr) and prefix(new.cidr).prefixlen != new.prefix_length:
            text = f"prefix_length {new.prefix_length} is not that of the cidr {new.cidr}; give one of the two"
            yield Violation("prefix_length", "FIELDS_EXCLUSIVE", text)

    def _check_prefix(self, new: Any, network: Network) -> Iterator[Violation]:
        if new.ip_version in pb.IpVersion.values() and new.ip_version != network.version:
            yield Violation("ip_version", "IP_FAMILY_MISMATCH", f"ip_version is not that of {new.cidr}; leave it out")
        low, high = prefixes.LIMITS[network.version]
        if not low <= network.prefixlen <= high:
            yield Violation("cidr", "CIDR_INVALID", f"cidr {new.cidr}: a length of /{low} to /{high} is accepted")
        if not prefixes.for_hosts(network):
            text = f"cidr {new.cidr} is multicast, link-local or loopback; one that hosts may have is accepted"
            yield Violation("cidr", "CIDR_INVALID", text)
        if network.version == 6:
            yield from self._check_modes(new, network)
        elif new.ipv6_ra_mode or new.ipv6_address_mode:
            yield Violation("ipv6_ra_mode", "FIELDS_EXCLUSIVE", "ipv6_ra_mode and ipv6_address_mode are for IPv6 subnets")
        elif new.enable_dhcp and network.prefixlen >= 31:
            yield _no_dhcp(f"cidr {new.cidr} has no address for DHCP")

    def _check_modes(self, new: Any, network: Network) -> Iterator[Violation]:
        modes = (new.ipv6_ra_mode, new.ipv6_address_mode)
        if modes[0] != modes[1]:
            yield Violation("ipv6_address_mode", "FIELDS_EXCLUSIVE", "ipv6_ra_mode and ipv6_address_mode must be equal")
        elif forms_addresses(new) and network.prefixlen != 64:
            yield Violation(
                "ipv6_address_mode",
                "VALUE_OUT_OF_RANGE",
                f"ipv6_address_mode: SLAAC and DHCPV6_STATELESS need a /64; for {new.cidr} DHCPV6_STATEFUL or NONE is accepted",
            )
        elif new.enable_dhcp and new.ipv6_ra_mode == pb.IPV6_MODE_NONE:
            yield _no_dhcp("ipv6_ra_mode NONE says that nobody tells guests anything")
        elif new.enable_dhcp and not DHCPV6[0] <= network.prefixlen <= DHCPV6[1]:
            low, high = DHCPV6
            yield _no_dhcp(f"DHCPv6 serves a /{low} to /{high}, and {new.cidr} is none")

    def _check_addresses(self, new: Any, network: Network) -> Iterator[Violation]:
        first, last = usable(network)
        gateway = _parsed(new.gateway_ip)
        if gateway is not None:
            inside = gateway in network and first <= int(gateway) <= last
            if not inside and not (network.version == 6 and gateway.is_link_local):
                yield Violation(
                    "gateway_ip",
                    "IP_NOT_IN_SUBNET",
                    f"gateway_ip {gateway} is no host's address of {network}; {_address(network, first)} to"
                    f" {_address(network, last)} is accepted",
                )
        server = _parsed(new.dhcp_server_ip)
        if server is not None and (server not in network or not first <= int(server) <= last or server == gateway):
            yield Violation(
                "dhcp_server_ip",
                "IP_NOT_IN_SUBNET",
                f"dhcp_server_ip {server} is the gateway or no host's address of {network}; leave it out to have one chosen",
            )
        seen: list[tuple[int, int]] = []
        for number, pool in enumerate(new.allocation_pools):
            place = f"allocation_pools[{number}]"
            start, end = _parsed(pool.start), _parsed(pool.end)
            if start is None or end is None:
                continue
            if start.version != end.version or int(start) > int(end):
                yield Violation(place, "IP_INVALID", f"{place}: start must not be after end, and of the same family")
            elif start not in network or end not in network or int(start) < first or int(end) > last:
                yield Violation(
                    place,
                    "IP_NOT_IN_SUBNET",
                    f"{place} is not inside {_address(network, first)} to {_address(network, last)}",
                )
            elif gateway is not None and int(start) <= int(gateway) <= int(end) and gateway in network:
                yield Violation(place, "IP_NOT_IN_SUBNET", f"{place} holds the gateway {gateway}; leave it out of the pool")
            elif any(int(start) <= high and low <= int(end) for low, high in seen):
                yield Violation(place, "DUPLICATE_VALUE", f"{place} overlaps another pool; pools must be disjoint")
            else:
                seen.append((int(start), int(end)))

    def _check_told(self, new: Any, network: Network) -> Iterator[Violation]:
        if network.version == 6 and new.host_routes:
            # Advertisements name their sender as the next hop (RFC 4191), and DHCPv6 has no option for routes.
            text = "host_routes: no option tells guests an IPv6 route by another next hop; leave it empty"
            yield Violation("host_routes", "FEATURE_NOT_SUPPORTED", text, Code.UNIMPLEMENTED)
            return
        for number, server in enumerate(new.dns_nameservers):
            parsed = _parsed(server)
            if parsed is not None and parsed.version != network.version:
                place = f"dns_nameservers[{number}]"
                yield Violation(place, "IP_FAMILY_MISMATCH", f"{place} is not an IPv{network.version} address")
        for number, route in enumerate(new.host_routes):
            hop = _parsed(route.nexthop)
            if hop is None or not _is_prefix(route.destination):
                continue
            if hop.version != network.version or prefix(route.destination).version != network.version:
                place = f"host_routes[{number}]"
                yield Violation(place, "IP_FAMILY_MISMATCH", f"{place} is not an IPv{network.version} route")
        lease = new.dhcp_lease_duration
        infinite = lease.seconds == INFINITE_LEASE and not lease.nanos
        if lease.nanos % 1_000_000 or not (LEAST_LEASE <= lease.seconds <= MOST_LEASE or infinite):
            yield Violation(
                "dhcp_lease_duration",
                "VALUE_OUT_OF_RANGE",
                f"dhcp_lease_duration must be whole milliseconds, {LEAST_LEASE} to {MOST_LEASE} s, or -1 s for ever",
            )

    def create(self, transaction: Transaction, new: Any, context: Context) -> None:
        network = network_of(transaction, new.network_id)
        new.project_id = network.project_id
        if new.subnet_pool_id:
            prefixes.allocate(transaction, new, context)
            self.complete(new, context)
            refuse([*self.check(new, None, context)])
        self._refuse_overlap(transaction, new)
        if prefix(new.cidr).version == 6:
            _refuse_small_mtu(transaction, network)
        self._serve(transaction, new, "")
        if forms_addresses(new):
            formed.come(transaction, new, context)

    def update(self, transaction: Transaction, old: Any, new: Any, context: Context) -> None:
        if new.cidr != old.cidr:
            self._refuse_overlap(transaction, new)
            if old.subnet_pool_id:
                prefixes.give_back(transaction, keys.prefix_pool(old.subnet_pool_id), prefix(old.cidr))
                prefixes.allocate(transaction, new, context)
        if new.gateway_ip != old.gateway_ip and new.gateway_ip:
            self._refuse_taken_gateway(transaction, new)
        self._serve(transaction, new, old.dhcp_server_ip)

    def _serve(self, transaction: Transaction, new: Any, old: str) -> None:
        """Claim the address at which DHCP answers, given or chosen; let go of the one it had."""
        pool = keys.ip_pool(new.network_id, new.id)
        if not new.enable_dhcp:
            new.dhcp_server_ip = ""
        elif not new.dhcp_server_ip:
            new.dhcp_server_ip = old or self._claim_server(transaction, new)
        elif new.dhcp_server_ip != old:
            owner, project = new.id, new.project_id
            holder = claim(transaction, pool, new.dhcp_server_ip, owner=owner, project=project, network=new.network_id)
            if holder is not None:
                port = transaction.object(KINDS["Port"], holder.owner)
                name = f"Port {label(port.id, port.name)}" if port is not None else holder.owner
                text = f"dhcp_server_ip {new.dhcp_server_ip} is taken by {name}; leave it out to have one chosen"
                raise taken("ADDRESS_TAKEN", text, name)
        if old and old != new.dhcp_server_ip:
            release(transaction, pool, old)

    def delete(self, transaction: Transaction, old: Any, force: bool, context: Context) -> None:
        pool = keys.claim(keys.ip_pool(old.network_id, old.id))
        holders: set[str] = set()
        for entry in transaction.folder(pool).values():
            held = store_pb2.Claim.FromString(entry.value)
            if not held.releasing and held.owner != old.id:
                holders.add(held.owner)
        if forms_addresses(old):
            formed.go(transaction, old, holders, context)
        elif holders:
            ports = [transaction.object(KINDS["Port"], holder) for holder in sorted(holders)]
            raise formed.used_by(old, [port for port in ports if port is not None])
        transaction.require_unchanged(pool)
        transaction.delete_prefix(pool)
        if old.subnet_pool_id:
            prefixes.give_back(transaction, keys.prefix_pool(old.subnet_pool_id), prefix(old.cidr))

    def _refuse_overlap(self, transaction: Transaction, new: Any) -> None:
        transaction.require_unchanged(keys.subnets(new.network_id))
        mine = prefix(new.cidr)
        for other in subnets_of(transaction, new.network_id):
            if other.id != new.id and prefixes.overlap(mine, prefix(other.cidr)):
                name = label(other.id, other.name)
                raise taken("CIDR_OVERLAP", f"cidr {new.cidr} overlaps {other.cidr} of Subnet {name}", name)

    def _refuse_taken_gateway(self, transaction: Transaction, new: Any) -> None:
        entry = transaction.read(keys.claim(keys.ip_pool(new.network_id, new.id), new.gateway_ip))
        if entry is not None:
            owner = store_pb2.Claim.FromString(entry.value).owner
            port = transaction.object(KINDS["Port"], owner)
            name = f"Port {label(port.id, port.name)}" if port is not None else "the subnet's DHCP service"
            raise taken("ADDRESS_TAKEN", f"gateway_ip {new.gateway_ip} is taken by {name}", owner)

    def _claim_server(self, transaction: Transaction, new: Any) -> str:
        """The highest free address of the pools: ports are given the lowest first, so the two seldom meet."""
        pool = keys.ip_pool(new.network_id, new.id)
        for low, high in reversed(ranges(new)):
            for number in range(high, low - 1, -1):
                candidate = str(_address(prefix(new.cidr), number))
                if not transaction.holds(keys.claim(pool, candidate)):
                    owner, project = new.id, new.project_id
                    claim_free(transaction, pool, candidate, owner=owner, project=project, network=new.network_id)
                    return candidate
        if not new.allocation_pools:
            raise precondition(
                "INCOMPATIBLE_STATE",
                f"{new.cidr} has no pool to take an address for DHCP from; set enable_dhcp to false",
            )
        raise exhausted("NO_FREE_ADDRESS", f"the pools of {new.cidr} have no address left for DHCP")


def _refuse_small_mtu(transaction: Transaction, network: Any) -> None:
    transaction.read(keys.network(network.id))
    if network.mtu < LEAST_MTU_OF_IPV6:
        name = label(network.id, network.name)
        text = f"cidr is IPv6 and needs an mtu of {LEAST_MTU_OF_IPV6}; Network {name} has {network.mtu}; raise it first"
        raise fault("cidr", "VALUE_OUT_OF_RANGE", text)


def _no_dhcp(why: str) -> Violation:
    return Violation("enable_dhcp", "INCOMPATIBLE_STATE", f"{why}; enable_dhcp must be false", Code.FAILED_PRECONDITION)


def _is_prefix(text: str) -> bool:
    try:
        prefix(text)
    except ValueError:
        return False
    return True


def _parsed(text: str) -> Address | None:
    try:
        return address(text) if text else None
    except ValueError:
        return None


def _address(network: Network, number: int) -> Address:
    return type(network.network_address)(number)


def _without(first: int, last: int, gateway: str) -> Iterator[tuple[int, int]]:
    """[first, last] less one address."""
    parsed = _parsed(gateway)
    if parsed is None or not first <= int(parsed) <= last:
        yield first, last
        return
    if first < int(parsed):
        yield first, int(parsed) - 1
    if int(parsed) < last:
        yield int(parsed) + 1, last
