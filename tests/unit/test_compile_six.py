"""What compile makes of IPv6 subnets and addresses."""

from __future__ import annotations

import pytest

from agent.compile.base import link_local
from agent.compile.dhcp import config
from agent.compile.dhcp6 import flows, hosts
from agent.compile.guard import guard
from agent.compile.neighbour import floating, neighbour
from agent.model.flow import Flow, Output, Resubmit, SetField
from agent.model.host import DhcpServer
from agent.model.pipeline import REASON, Reason, Table
from kumihimo.v1 import network_pb2 as pb
from kumihimo.v1 import port_pb2
from tests.unit.test_compile import small
from tests.unit.test_engine import PORTS

MAC, VIRTUAL = "fa:16:3e:00:00:01", "00:00:5e:00:02:01"


def subnet(mode: int, cidr: str = "fd00:1::/64", **fields: object) -> pb.Subnet:
    made = pb.Subnet(
        id="00000000-0000-7000-8000-0123456789ab", cidr=cidr, ipv6_ra_mode=mode, dhcp_server_ip="fd00:1::ffff", **fields
    )  # type: ignore[arg-type]
    made.dhcp_lease_duration.seconds = 7200
    return made


@pytest.mark.parametrize(
    ("mode", "word"),
    [
        (pb.IPV6_MODE_SLAAC, "ra-only"),
        (pb.IPV6_MODE_DHCPV6_STATELESS, "ra-stateless"),
        (pb.IPV6_MODE_DHCPV6_STATEFUL, "static"),
    ],
)
def test_b_sub_10_dnsmasq_is_told_how_guests_come_by_their_addresses(mode: int, word: str) -> None:
    network = pb.Network(id=PORTS[0], key=1, mtu=1450, dns_domain="cloud.example")
    lines = config(network, [subnet(mode, dns_nameservers=["fd00:53::1", "fd00:53::2"])]).splitlines()
    for line in (
        "enable-ra",
        "ra-param=dhcp0,mtu:1450,200,0",
        f"dhcp-range=set:s0123456789ab,fd00:1::,{word},64,7200s",
        "dhcp-option=tag:s0123456789ab,option6:dns-server,[fd00:53::1],[fd00:53::2]",
        "dhcp-option=tag:s0123456789ab,option6:domain-search,cloud.example",
    ):
        assert line in lines
    assert not [line for line in lines if "option:" in line], "nothing of IPv4"
    unnamed = config(network, [subnet(mode)]).splitlines()
    assert "dhcp-option=tag:s0123456789ab,option6:dns-server,[fd00:1::ffff]" in unnamed, "the service itself"


def test_routers_on_a_wire_hear_solicitations_too() -> None:
    for kind, onward in ((pb.NETWORK_TYPE_VXLAN, []), (pb.NETWORK_TYPE_VLAN, [Resubmit(Table.L2)])):
        network = pb.Network(id=PORTS[0], key=1, network_type=kind)
        asked = [item for item in flows(network, [subnet(pb.IPV6_MODE_SLAAC)], 7) if ("icmpv6_type", 133, None) in item.match]
        assert [list(item.actions) for item in asked] == [[Output(7), *onward]]


def test_b_sub_08_hosts_of_both_families_have_a_file_each() -> None:
    machine = small()
    machine.put_port(3, 0, True, True)
    machine.plug(3, True)
    machine.put_network(0, True, 2)  # DHCPv6, and DHCP for IPv4
    machine.cloud.settle()
    machine.cloud.engine.run()
    server = next(item for item in machine.cloud.engine.items().values() if isinstance(item, DhcpServer))
    mine = {name: line for name, line in server.hosts if name.startswith(PORTS[3])}
    assert set(mine) == {PORTS[3], f"{PORTS[3]}.6"}
    assert mine[f"{PORTS[3]}.6"] == "fa:16:3e:00:00:03,[fd00::f816:3eff:fe00:3]"


@pytest.mark.parametrize(
    ("mode", "told"), [(pb.IPV6_MODE_SLAAC, False), (pb.IPV6_MODE_DHCPV6_STATELESS, True), (pb.IPV6_MODE_DHCPV6_STATEFUL, True)]
)
def test_b_sub_05_a_port_with_options_is_known_to_dhcpv6_where_guests_ask_by_it(mode: int, told: bool) -> None:
    served = subnet(mode, ipv6_address_mode=mode)
    port = port_pb2.Port(id=PORTS[0], mac_address=MAC)
    port.fixed_ips.add(subnet_id=served.id, ip_address="fd00:1::5")

    class Plugged:
        def local_ports(self, network_id: str) -> list[str]:
            return [PORTS[0]]

        def port(self, network_id: str, port_id: str) -> port_pb2.Port:
            return port

    def lines() -> list[tuple[str, str]]:
        return list(hosts(Plugged(), "n", [served]))  # type: ignore[arg-type]

    assert bool(lines()) == (mode == pb.IPV6_MODE_DHCPV6_STATEFUL), "else it has nothing to tell"
    port.extra_dhcp_opts.add(name="ntp-server", value="10.0.0.3")
    mark = f"set:s{PORTS[0][-12:]}"
    assert lines() == ([(f"{PORTS[0]}.6", f"{MAC},{mark},[fd00:1::5]")] if told else [])


def guarded(**fields: object) -> list[Flow]:
    return list(guard(port_pb2.Port(id=PORTS[0], mac_address=MAC, **fields), 5, 0))  # type: ignore[arg-type]


def reasons(found: list[Flow]) -> set[int]:
    return {
        action.value for item in found for action in item.actions if isinstance(action, SetField) and action.field == REASON
    }


def test_b_prt_05_a_port_without_ipv6_says_nothing_in_it() -> None:
    found = guarded(fixed_ips=[port_pb2.FixedIp(ip_address="10.0.0.5")])
    assert Reason.IPV6 in reasons(found)
    assert not reasons(found) & {Reason.SPOOFED_IPV6, Reason.RA_SERVER}
    assert not [item for item in found if item.table == Table.ND_GUARD]


def test_b_prt_04_a_pair_with_a_mac_of_its_own_has_its_link_local_address_too() -> None:
    pair = port_pb2.AddressPair(ip_address="fd00:1::64/126", mac_address=VIRTUAL)
    found = guarded(fixed_ips=[port_pb2.FixedIp(ip_address="10.0.0.5")], allowed_address_pairs=[pair])
    assert {Reason.SPOOFED_IPV6, Reason.RA_SERVER, Reason.DHCPV6_SERVER} <= reasons(found)
    virtual = int(VIRTUAL.replace(":", ""), 16)
    sent = {
        (value, mask)
        for item in found
        if item.table == Table.PORT_SECURITY and ("eth_src", virtual, None) in item.match
        for name, value, mask in item.match
        if name == "ipv6_src"
    }
    assert sent == {
        (0xFD00_0001 << 96 | 0x64, (1 << 128) - 4),
        (0xFE80 << 112 | 0x0200_5EFF_FE00_0201, None),
        (0, None),
    }


def test_b_net_20_neighbours_of_either_family_are_looked_up_by_the_same_two_functions() -> None:
    network = pb.Network(id=PORTS[0], key=1)
    assert neighbour(1, "10.0.0.5", 9, 0).table == floating(network, "10.0.0.0/24").table == Table.NEIGHBOURS
    assert neighbour(1, "fd00::5", 9, 0).table == floating(network, "fd00::/64").table == Table.NEIGHBOURS_6
    assert link_local(MAC) == "fe80::f816:3eff:fe00:1"
