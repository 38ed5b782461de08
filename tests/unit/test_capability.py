"""What a host says of its underlay: the link that has the Node's tunnel_ip counts, be it a bridge of the switch or not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.facts.capability import probe
from agent.facts.model import Capability, HostFacts, Link

LINKS = {"192.0.2.1": Link("eth0", 1500), "192.0.2.2": Link("eth1", 9000), "198.51.100.1": Link("br-wire", 1600)}


@pytest.mark.parametrize(
    ("tunnel_ip", "bridged", "on", "words"),
    [
        ("", (), False, "the Node has no tunnel_ip"),
        ("", ("198.51.100.1",), True, "198.51.100.1 on br-wire"),
        ("192.0.2.1", (), False, "192.0.2.1 on eth0"),
        ("192.0.2.2", ("198.51.100.1",), True, "192.0.2.2 on eth1"),
        ("203.0.113.1", ("198.51.100.1",), False, "no interface of this host has the Node's tunnel_ip 203.0.113.1"),
    ],
)
def test_a_63_whether_the_underlay_takes_1500_bytes(
    tmp_path: Path, tunnel_ip: str, bridged: tuple[str, ...], on: bool, words: str
) -> None:
    facts = HostFacts({}, ("system",), "3.1.0", bridged, addresses=LINKS)
    found: list[Capability] = asyncio.run(probe(facts, (), "br-int", tunnel_ip, tmp_path))
    told = found[-1]
    assert (told.name, told.on) == ("mtu_1500", on)
    assert words in told.reason
