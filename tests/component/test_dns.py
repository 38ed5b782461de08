"""Names of ports: given once in a network, free again when the port lets go; what the API says of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.component import dhcp
from tests.component.cloud import Cloud, refused


@pytest.fixture
async def network(cloud: Cloud) -> Any:
    network = await cloud.api.create("Network", dns_domain="cloud.example")
    await cloud.api.create("Subnet", network_id=network.id, cidr="10.0.0.0/24")
    return network


def names(port: Any) -> list[tuple[str, str, str]]:
    return [(each.ip_address, each.hostname, each.fqdn) for each in port.dns_assignments]


async def test_b_prt_09_b_net_19_what_a_port_is_called(cloud: Cloud, network: Any) -> None:
    api = cloud.api
    fixed = [{"ip_address": "10.0.0.5"}, {"ip_address": "10.0.0.6"}]
    port = await api.create("Port", network_id=network.id, fixed_ips=fixed)
    assert names(port) == [
        ("10.0.0.5", "host-10-0-0-5", "host-10-0-0-5.cloud.example"),
        ("10.0.0.6", "host-10-0-0-6", "host-10-0-0-6.cloud.example"),
    ]
    port = await api.update("Port", port.id, dns_name="WEB")
    assert port.dns_name == "web"
    assert names(port) == [("10.0.0.5", "web", "web.cloud.example"), ("10.0.0.6", "web", "web.cloud.example")]
    port = await api.update("Port", port.id, dns_domain="other.example")
    assert names(port)[0] == ("10.0.0.5", "web", "web.other.example")
    # Output fields are not stored: what a user sends back of them changes nothing.
    again = await api.update("Port", port.id, dns_assignments=[{"fqdn": "forged"}], counters={"rx_packets": 7}, description="x")
    assert names(again) == names(port)
    assert again.counters.rx_packets == 0


async def test_b_prt_09_a_name_is_one_ports_alone_in_its_network(cloud: Cloud, network: Any) -> None:
    api = cloud.api
    first = await api.create("Port", network_id=network.id, dns_name="web", name="first")
    error = await refused(api.create("Port", network_id=network.id, dns_name="Web"))
    assert error.reason == "NAME_TAKEN"
    assert f"dns_name web is taken in the network by Port first ({first.id})" in error.message
    error = await refused(api.create("Port", network_id=network.id, dns_name="web", dns_domain="other.example"))
    assert error.reason == "NAME_TAKEN", "the short name would find two"
    second = await api.create("Port", network_id=network.id, dns_name="db")
    assert (await refused(api.update("Port", second.id, dns_name="web"))).reason == "NAME_TAKEN"
    elsewhere = await api.create("Network")
    await api.create("Port", network_id=elsewhere.id, dns_name="web")
    # Given up by a change and by a deletion, it is free at once.
    await api.update("Port", first.id, dns_name="www")
    await api.update("Port", second.id, dns_name="web")
    await api.delete("Port", second.id)
    third = await api.create("Port", network_id=network.id, dns_name="web")
    assert (await api.update("Port", third.id, mask=["dns_name"])).dns_name == ""
    await api.create("Port", network_id=network.id, dns_name="web")


async def test_b_sub_05_options_are_kept_as_they_were_given(cloud: Cloud, network: Any) -> None:
    options = dhcp.told(("ntp-server", "10.0.0.3,10.0.0.4"), ("67", "pxelinux.0"))
    port = await cloud.api.create("Port", network_id=network.id, **options)
    assert [(each.name, each.value) for each in port.extra_dhcp_opts] == [
        ("ntp-server", "10.0.0.3,10.0.0.4"),
        ("67", "pxelinux.0"),
    ]
    port = await cloud.api.update("Port", port.id, mask=["extra_dhcp_opts"])
    assert not port.extra_dhcp_opts
