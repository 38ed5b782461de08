"""What compile makes of a small cloud: the pipeline holds together, and DHCP says what the subnet says."""

from __future__ import annotations

from agent.compile.dhcp import config, host_line
from agent.compile.dns import dns_flows
from agent.compile.lease import options
from agent.model.flow import Flow, Group, Meter, Output, Resubmit, SetField, ToController
from agent.model.host import DhcpServer, Peer, PortName, ServiceNamespace
from agent.model.pipeline import (
    NEXT,
    REASON,
    SAMPLE_BYTES,
    SOURCE,
    TARGET,
    USUAL,
    CookieKind,
    Reason,
    Table,
    cookie,
    is_ours,
)
from kumihimo.v1 import network_pb2, port_pb2
from tests.unit.test_engine import MADE, NETWORKS, PORTS, Incremental


def small() -> Incremental:
    """Two ports of network 0 here, one on h2, one nowhere."""
    machine = Incremental()
    machine.cloud.interfaces["kumi-vxlan"] = machine_interface()
    machine.put_node(0, True)
    machine.put_node(1, True)
    machine.put_network(0, True, 100)
    for number in range(1, 5):
        machine.put_port(number, 0, True, True)
    machine.plug(1, True)
    machine.plug(2, True)
    machine.bind(1, 0)
    machine.bind(3, 1)
    machine.cloud.settle()
    machine.cloud.engine.run()
    return machine


def machine_interface() -> object:
    from agent.facts.model import Interface

    return Interface("kumi-vxlan", "br-int", 1, None, "vxlan", "")


def test_every_jump_is_one_that_the_pipeline_names_and_every_drop_has_a_reason() -> None:
    flows = [item for item in small().cloud.engine.items().values() if isinstance(item, Flow)]
    assert flows
    for flow in flows:
        jumps = {Table(action.table) for action in flow.actions if isinstance(action, Resubmit)}
        assert jumps <= NEXT[Table(flow.table)], flow
        assert is_ours(flow.cookie)
        if not flow.actions:
            assert flow.table == Table.DROP, f"a drop outside the drop stage: {flow}"
        if Table.DROP in jumps:
            reasons = [action.value for action in flow.actions if isinstance(action, SetField) and action.field == REASON]
            assert reasons
            assert Reason(reasons[-1])


def test_of_every_drop_of_a_port_that_need_not_be_its_own_meter_tells_some() -> None:
    items = small().cloud.engine.items().values()
    meters = {item.meter_id for item in items if isinstance(item, Meter)}
    assert meters == {11, 12}
    told = set()
    for flow in (item for item in items if isinstance(item, Flow) and item.table == Table.DROP and item.priority == 100):
        fields = {name: value for name, value, _ in flow.match}
        number = fields.get(TARGET) or fields[SOURCE]
        usual = fields[REASON] in USUAL
        assert flow.actions == (() if usual else (ToController(number, SAMPLE_BYTES),))
        told.add((number, usual))
    assert told == {(number, usual) for number in meters for usual in (False, True)}


def test_b_net_20_broadcast_goes_to_local_members_and_once_to_each_node_with_members() -> None:
    groups = [item for item in small().cloud.engine.items().values() if isinstance(item, Group)]
    assert len(groups) == 1
    targets = [(bucket[0].field, bucket[0].value) for bucket in groups[0].buckets if isinstance(bucket[0], SetField)]
    assert targets == [("reg15", 11), ("reg15", 12), ("reg10", 2)]


def test_b_net_20_only_known_ports_are_reachable_and_answered_for() -> None:
    flows = [item for item in small().cloud.engine.items().values() if isinstance(item, Flow)]
    reachable = {flow.match[0][1] for flow in flows if flow.table == Table.L2 and flow.priority == 100}
    # Ports 1 and 2 here, 3 on h2; port 4 is plugged nowhere.
    assert {mac & 0xFF for mac in reachable} == {1, 2, 3}


def test_a_service_namespace_and_a_peer_come_with_the_first_port() -> None:
    items = small().cloud.engine.items().values()
    namespaces = [item for item in items if isinstance(item, ServiceNamespace)]
    assert [(item.name, item.outer, item.addresses) for item in namespaces] == [
        (f"kumi-{NETWORKS[0]}", "kd000001", ("10.0.0.254/24",))
    ]
    assert [item.address for item in items if isinstance(item, Peer)] == ["192.168.50.2"]
    servers = [item for item in items if isinstance(item, DhcpServer)]
    assert [port for port, _ in servers[0].hosts] == [PORTS[1], PORTS[2]]


def test_b_prt_09_every_port_of_the_network_has_its_name_here_as_an_item_of_its_own() -> None:
    machine = small()
    names = {item.port_id: item.lines for item in machine.cloud.engine.items().values() if isinstance(item, PortName)}
    assert {port: lines[0] for port, lines in names.items()} == {
        PORTS[number]: f"10.0.0.{number + 2} host-10-0-0-{number + 2}.kumihimo.internal host-10-0-0-{number + 2}"
        for number in range(1, 5)
    }
    six = "host-fd00-0000-0000-0000-f816-3eff-fe00-0003"
    assert names[PORTS[3]][1:] == (f"fd00::f816:3eff:fe00:3 {six}.kumihimo.internal {six}",), "the one with an IPv6 address"
    server = next(item for item in machine.cloud.engine.items().values() if isinstance(item, DhcpServer))
    machine.put_port(5, 0, True, True)
    machine.cloud.settle()
    changes = machine.cloud.engine.run()
    assert [item for item in changes.put.values() if not isinstance(item, Flow)] == [
        PortName(NETWORKS[0], PORTS[5], ("10.0.0.7 name5.kumihimo.internal name5",))
    ]
    assert changes.put.keys() == {("name", NETWORKS[0], PORTS[5])}, "a port elsewhere restarts no dnsmasq"
    # A domain that nobody had yet: only now is dnsmasq told that it is ours.
    machine.put_port(20, 0, True, True)
    machine.cloud.settle()
    changed = machine.cloud.engine.run().put[server.key]
    assert isinstance(changed, DhcpServer)
    assert set(changed.config.splitlines()) - set(server.config.splitlines()) == {"local=/domain2.example/"}
    machine.put_port(40, 0, True, True)  # domain1
    machine.put_port(80, 0, True, True)  # domain2 again
    machine.delete_port(20)
    machine.cloud.settle()
    changes = machine.cloud.engine.run()
    assert "local=/domain2.example/" in str(changes.put[server.key])


def test_b_ops_02_questions_of_local_ports_reach_the_service_and_nothing_else_does() -> None:
    machine = small()
    machine.made_interface("kd000001", True)
    machine.cloud.facts()
    machine.cloud.settle()
    machine.cloud.engine.run()
    to_service = [
        {name: value for name, value, _ in flow.match}
        for flow in machine.cloud.engine.items().values()
        if isinstance(flow, Flow) and Output(MADE["kd000001"]) in flow.actions
    ]
    address, mac = 0x0A0000FE, 0xFA163F000001
    assert sorted((sorted(each.items()) for each in to_service), key=str) == sorted(
        (
            sorted({"metadata": 1, "eth_type": 0x800, **fields}.items())
            for fields in (
                {"ip_proto": 17, "udp_src": 68, "udp_dst": 67},
                {"ip_proto": 17, "udp_dst": 53, "eth_dst": mac, "ip_dst": address},
                {"ip_proto": 6, "tcp_dst": 53, "eth_dst": mac, "ip_dst": address},
                {"ip_proto": 1, "icmp_type": 8, "eth_dst": mac, "ip_dst": address},
            )
        ),
        key=str,
    )


def test_b_ops_02_the_ipv6_service_address_answers_too() -> None:
    subnet = network_pb2.Subnet(cidr="fd00::/64", dhcp_server_ip="fd00::2")
    flows = list(dns_flows(network_pb2.Network(id=NETWORKS[0], key=1), [subnet], 2, "fa:16:3f:00:00:01"))
    found = [{name: value for name, value, _ in flow.match} for flow in flows]
    assert {(each["eth_type"], each["ipv6_dst"] & 0xFF) for each in found} == {(0x86DD, 2)}
    assert [each.get("udp_dst") or each.get("tcp_dst") or each["icmpv6_type"] for each in found] == [53, 53, 128]


def test_b_sub_05_a_port_is_told_its_own_options_before_those_of_its_subnet() -> None:
    port = port_pb2.Port(id=PORTS[0], mac_address="fa:16:3e:00:00:01", dns_name="web", dns_domain="other.example")
    fixed = port.fixed_ips.add(ip_address="10.0.0.5")
    port.extra_dhcp_opts.add(name="ntp-server", value="10.0.0.3,10.0.0.4")
    port.extra_dhcp_opts.add(name="15", value="mine.example")
    port.extra_dhcp_opts.add(name="router")
    port.extra_dhcp_opts.add(name="not-known-here", value="x")
    port.extra_dhcp_opts.add(name="dns-server", value="fd00::1", ip_version=network_pb2.IP_VERSION_IPV6)
    mark = "s" + PORTS[0][-12:]
    assert options(port) == [
        f'dhcp-option-force=tag:{mark},option:domain-name,"mine.example"',
        f"dhcp-option-force=tag:{mark},option:domain-search,other.example",
        f"dhcp-option-force=tag:{mark},option6:domain-search,other.example",
        f"dhcp-option-force=tag:{mark},option:ntp-server,10.0.0.3,10.0.0.4",
        f"dhcp-option-force=tag:{mark},option:router",
        f"dhcp-option-force=tag:{mark},option6:dns-server,[fd00::1]",
    ]
    assert host_line(port, fixed) == f"fa:16:3e:00:00:01,set:{mark},10.0.0.5,web"


def test_b_prt_04_a_pairs_mac_leads_to_every_port_that_may_have_it_once_for_each_host() -> None:
    machine = small()
    for number in (7, 14, 21, 28, 35, 42):  # of these, 7, 28 have 00:00:5e:00:01:01; see test_engine.port
        machine.put_port(number, 0, True, True)
    machine.plug(7, True)
    for number, node in ((28, 1), (49, 1), (70, 1)):
        machine.put_port(number, 0, True, True)
        machine.bind(number, node)
    machine.cloud.settle()
    machine.cloud.engine.run()

    def ways() -> dict[int, list[tuple[str, int]]]:
        flows = [item for item in machine.cloud.engine.items().values() if isinstance(item, Flow)]
        return {
            {name: value for name, value, _ in each.match}["eth_dst"]: [
                (action.field, action.value) for action in each.actions if isinstance(action, SetField)
            ]
            for each in flows
            if (each.table, each.priority) == (Table.L2, 95)
        }

    plugged = machine.cloud.interfaces["tap7"].ofport
    assert ways()[0x00005E000101] == [("reg15", plugged), ("reg10", 2)], "of 28, 49 and 70 on one host, one copy"
    machine.unplug(7)
    machine.put_port(28, 0, True, False)
    machine.put_port(49, 0, False, True)
    machine.cloud.settle()
    machine.cloud.engine.run()
    assert ways()[0x00005E000101] == [("reg10", 2)]
    machine.delete_port(70)
    machine.cloud.settle()
    machine.cloud.engine.run()
    assert 0x00005E000101 not in ways()


def test_a_port_that_is_down_sends_nothing_and_is_not_reached() -> None:
    machine = small()
    machine.put_port(1, 0, False, True)
    machine.cloud.settle()
    machine.cloud.engine.run()
    flows = [item for item in machine.cloud.engine.items().values() if isinstance(item, Flow)]
    mine = [flow for flow in flows if flow.cookie == cookie(CookieKind.PORT, PORTS[1])]
    assert not [flow for flow in mine for action in flow.actions if isinstance(action, Output)]
    classify = [flow for flow in mine if flow.table == Table.CLASSIFY]
    assert SetField(REASON, Reason.ADMIN_DOWN) in classify[0].actions


def test_b_sub_03_dnsmasq_is_told_what_the_subnet_says() -> None:
    network = network_pb2.Network(id=NETWORKS[0], key=1, mtu=1450, dns_domain="cloud.example")
    subnet = network_pb2.Subnet(
        id="00000000-0000-7000-8000-0123456789ab",
        cidr="10.0.0.0/22",
        gateway_ip="10.0.0.1",
        dns_nameservers=["192.0.2.53", "192.0.2.54"],
        enable_dhcp=True,
    )
    subnet.host_routes.add(destination="198.51.100.0/24", nexthop="10.0.0.9")
    subnet.dhcp_lease_duration.seconds = -1
    text = config(network, [subnet])
    assert "port=0" not in text, "it answers DNS too"
    for line in (
        "domain=cloud.example",
        "dhcp-range=set:s0123456789ab,10.0.0.0,static,255.255.252.0,infinite",
        "dhcp-option=tag:s0123456789ab,option:mtu,1450",
        "dhcp-option=tag:s0123456789ab,option:router,10.0.0.1",
        "dhcp-option=tag:s0123456789ab,option:dns-server,192.0.2.53,192.0.2.54",
        "dhcp-option=tag:s0123456789ab,option:domain-search,cloud.example",
        "dhcp-option=tag:s0123456789ab,option:classless-static-route,198.51.100.0/24,10.0.0.9,0.0.0.0/0,10.0.0.1",
    ):
        assert line in text.splitlines()
    port = port_pb2.Port(id=PORTS[0], mac_address="fa:16:3e:00:00:01")
    fixed = port.fixed_ips.add(subnet_id=subnet.id, ip_address="10.0.0.5")
    assert host_line(port, fixed) == "fa:16:3e:00:00:01,10.0.0.5,host-10-0-0-5"
