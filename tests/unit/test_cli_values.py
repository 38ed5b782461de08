"""Text of the command line and values of fields, both ways."""

from __future__ import annotations

import re

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from cli import values
from kumihimo.v1 import network_pb2, port_pb2, resource_pb2

PORT = port_pb2.Port.DESCRIPTOR.fields_by_name
SUBNET = network_pb2.Subnet.DESCRIPTOR.fields_by_name
NETWORK = network_pb2.Network.DESCRIPTOR.fields_by_name
MAC = "fa:16:3e:00:00:01"


@pytest.mark.parametrize(
    ("text", "milli"),
    [
        ("24h", 86_400_000),
        ("1h30m", 5_400_000),
        ("120s", 120_000),
        ("500ms", 500),
        ("1.5s", 1500),
        ("90", 90_000),
        ("2d", 172_800_000),
        ("-1s", -1000),
        ("infinite", -1000),
        ("0s", 0),
    ],
)
def test_durations(text: str, milli: int) -> None:
    assert values.milliseconds(text) == milli
    assert values.milliseconds(values.duration_text(milli)) == milli


@pytest.mark.parametrize("text", ["", "h", "1x", "1h 30m", "-5s", "1h-30m", "abc"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 24h"):
        values.milliseconds(text)


def test_infinite_lease_is_minus_one_second() -> None:
    assert values.parse(SUBNET["dhcp_lease_duration"], "-1s") == Duration(seconds=-1)
    assert values.parse(SUBNET["dhcp_lease_duration"], "1.25s") == Duration(seconds=1, nanos=250_000_000)


@pytest.mark.parametrize("text", ["vxlan", "VXLAN", "VxLan", "NETWORK_TYPE_VXLAN"])
def test_enums_in_any_case(text: str) -> None:
    assert values.parse(NETWORK["network_type"], text) == network_pb2.NETWORK_TYPE_VXLAN


@pytest.mark.parametrize("text", ["unspecified", "", "2", "vx"])
def test_what_is_no_enum(text: str) -> None:
    with pytest.raises(ValueError, match="is not one of vlan, vxlan, gre, geneve, flat, local"):
        values.parse(NETWORK["network_type"], text)


def test_private_vlan_kind_keeps_its_underscores() -> None:
    assert values.choices(PORT["vnic_type"].enum_type)[3] == "direct_physical"
    assert values.parse(PORT["vnic_type"], "direct-physical") == port_pb2.VNIC_TYPE_DIRECT_PHYSICAL


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("fixed_ips", "10.0.0.5", port_pb2.FixedIp(ip_address="10.0.0.5")),
        ("fixed_ips", "fd00::5", port_pb2.FixedIp(ip_address="fd00::5")),
        ("fixed_ips", "my-subnet", port_pb2.FixedIp(subnet_id="my-subnet")),
        ("fixed_ips", "subnet=s,ip_address=10.0.0.5", port_pb2.FixedIp(subnet_id="s", ip_address="10.0.0.5")),
        ("fixed_ips", "subnet_id=s", port_pb2.FixedIp(subnet_id="s")),
        ("allowed_address_pairs", "10.0.0.0/24", port_pb2.AddressPair(ip_address="10.0.0.0/24")),
        ("allowed_address_pairs", f"::1,{MAC}", port_pb2.AddressPair(ip_address="::1", mac_address=MAC)),
        ("allowed_address_pairs", f"mac_address={MAC},ip_address=::1", port_pb2.AddressPair(ip_address="::1", mac_address=MAC)),
        ("extra_dhcp_opts", "name=114,value=a,b=c", port_pb2.DhcpOption(name="114", value="a,b=c")),
        (
            "extra_dhcp_opts",
            "option6:ntp-server=fd00::3",
            port_pb2.DhcpOption(name="ntp-server", value="fd00::3", ip_version=network_pb2.IP_VERSION_IPV6),
        ),
        ("extra_dhcp_opts", "ntp-server=10.0.0.3,10.0.0.4", port_pb2.DhcpOption(name="ntp-server", value="10.0.0.3,10.0.0.4")),
    ],
)
def test_nested_messages_of_a_port(field: str, text: str, message: Message) -> None:
    assert values.parse(PORT[field], text) == message


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("allocation_pools", "10.0.0.2-10.0.0.9"),
        ("allocation_pools", "fd00::2-fd00::9"),
        ("host_routes", "10.9.0.0/16=10.0.0.1"),
        ("host_routes", "fd00::/64=fd00::1"),
        ("dhcp_lease_duration", "1h30m"),
        ("ipv6_ra_mode", "dhcpv6_stateful"),
    ],
)
def test_what_is_shown_can_be_typed(field: str, text: str) -> None:
    value = values.parse(SUBNET[field], text)
    assert values.text(SUBNET[field], [value] if SUBNET[field].is_repeated else value) == text


@pytest.mark.parametrize(
    ("field", "text", "sentence"),
    [
        ("fixed_ips", "colour=blue", "is not ADDRESS or SUBNET or subnet=...,ip_address=..."),
        ("fixed_ips", "subnet=a,subnet=b", "gives subnet_id more than once"),
        ("extra_dhcp_opts", "6", "is not NAME=VALUE or option6:NAME=VALUE or name=...,value=...,ip_version=..."),
        ("extra_dhcp_opts", "name=6,ip_version=5", "'5' is not one of ipv4, ipv6"),
        ("allowed_address_pairs", "", "is not ADDRESS"),
        ("hints", "=x", "is not KEY=VALUE"),
        ("hints", "x", "is not KEY=VALUE"),
    ],
)
def test_faults_say_what_would_be_accepted(field: str, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        values.parse(PORT[field], text)


def test_cells_of_what_the_server_says() -> None:
    port = port_pb2.Port(
        conditions=[
            resource_pb2.Condition(type="Wired", status=True),
            resource_pb2.Condition(type="Bound", reason="NO_NODE", message="no node has it"),
        ],
        realization=resource_pb2.Realization(
            desired_revision=9, realized_revision=7, lagging=[resource_pb2.NodeLag(node="h2")]
        ),
        hints={"b": "2", "a": "1"},
    )
    cells = {field.name: values.text(field, value) for field, value in port.ListFields()}
    assert cells == {
        "conditions": "Wired=yes, Bound=no: no node has it [NO_NODE]",
        "realization": "7 of 9, behind: h2",
        "hints": "a=1, b=2",
    }
