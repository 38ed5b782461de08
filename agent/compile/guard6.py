"""Port security of IPv6: source addresses, and what neighbour discovery may claim (RFC 4861, 4862).

A port sends from its addresses and the link-local address of its MAC; from no address only what a host sends that has none
yet. Table PORT_SECURITY decides that, and ND_GUARD what a solicitation or advertisement says: link-layer addresses are the
sender's, advertised targets and those that are probed for a duplicate are its addresses. So nobody is led to a wrong MAC, and
nobody keeps another from taking its own address into use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.compile.base import drop, flow, ip_match, ip_number, is_ipv6, link_local, mac_number
from agent.compile.neighbour import ADVERTISEMENT, SOLICITATION
from agent.compile.view import View
from agent.model.flow import Action, Flow, Resubmit, match
from agent.model.item import Item
from agent.model.pipeline import SOURCE, CookieKind, Reason, Table, cookie
from agent.model.wire import ADVERTISE, ETH_IPV6, ICMPV6, SOLICIT, UDP
from kumihimo.v1 import port_pb2

ROUTER_ADVERTISEMENT, REDIRECT = 134, 137
# Router solicitation; report and done of MLD, report of MLDv2: with a solicitation, what may come from no address.
FROM_NO_ADDRESS = (133, 131, 132, 143, SOLICIT)
DHCP_SERVER, DHCP_CLIENT = 547, 546
WHOLE = (1 << 128) - 1


def guard_ipv6(port: port_pb2.Port, ofport: int, mark: int) -> Iterator[Flow]:
    """The flows of one port that has IPv6 addresses."""

    def rule(table: Table, priority: int, *actions: Action, **fields: int | tuple[int, int]) -> Flow:
        return flow(table, priority, match(**{SOURCE: ofport}, **fields), *actions, cookie=mark)

    icmp = {"eth_type": ETH_IPV6, "ip_proto": ICMPV6}
    served = {"eth_type": ETH_IPV6, "ip_proto": UDP, "udp_src": DHCP_SERVER, "udp_dst": DHCP_CLIENT}
    yield rule(Table.PORT_SECURITY, 120, *drop(Reason.DHCPV6_SERVER), **served)
    for kind in (ROUTER_ADVERTISEMENT, REDIRECT):
        yield rule(Table.PORT_SECURITY, 120, *drop(Reason.RA_SERVER), **icmp, icmpv6_type=kind)
    guarded, onward = Resubmit(Table.ND_GUARD), Resubmit(Table.SERVICES)
    for mac, prefixes in _senders(port).items():
        for kind in FROM_NO_ADDRESS:
            yield rule(Table.PORT_SECURITY, 100, guarded, eth_src=mac, **icmp, ipv6_src=0, icmpv6_type=kind)
        for link_layer in (mac, 0):  # 0: the option is not there
            yield rule(Table.ND_GUARD, 100, onward, eth_src=mac, **SOLICITATION, nd_sll=link_layer)
        for prefix in prefixes:
            yield rule(Table.PORT_SECURITY, 100, guarded, eth_src=mac, eth_type=ETH_IPV6, ipv6_src=prefix)
            yield rule(Table.ND_GUARD, 120, onward, eth_src=mac, **SOLICITATION, ipv6_src=0, nd_sll=0, nd_target=prefix)
            for link_layer in (mac, 0):
                yield rule(Table.ND_GUARD, 100, onward, eth_src=mac, **ADVERTISEMENT, nd_target=prefix, nd_tll=link_layer)


def _senders(port: port_pb2.Port) -> dict[int, list[tuple[int, int]]]:
    """MAC → the prefixes, as value and mask, that it may send from."""
    found = {mac_number(port.mac_address): [(ip_number(link_local(port.mac_address)), WHOLE)]}
    given = [(port.mac_address, fixed.ip_address) for fixed in port.fixed_ips]
    given += [(pair.mac_address or port.mac_address, pair.ip_address) for pair in port.allowed_address_pairs]
    for mac, ip in given:
        if is_ipv6(ip):
            prefixes = found.setdefault(mac_number(mac), [(ip_number(link_local(mac)), WHOLE)])
            prefixes.append(ip_match(ip))
    return {mac: list(dict.fromkeys(prefixes)) for mac, prefixes in found.items()}


def compile_nd_guard(_: View) -> Iterable[Item]:
    """What no port allows ends here; what is no neighbour discovery goes on."""
    base, refuse = cookie(CookieKind.BASE), drop(Reason.SPOOFED_ND)
    icmp = {"eth_type": ETH_IPV6, "ip_proto": ICMPV6}
    yield flow(Table.ND_GUARD, 110, match(**icmp, ipv6_src=0, icmpv6_type=SOLICIT), *refuse, cookie=base)
    for kind in (SOLICIT, ADVERTISE):
        yield flow(Table.ND_GUARD, 50, match(**icmp, icmpv6_type=kind), *refuse, cookie=base)
    yield flow(Table.ND_GUARD, 0, match(), Resubmit(Table.SERVICES), cookie=base)
