"""Peers on a private host: neighbours are resolved before the first packet, and kept so by the kernel."""

from __future__ import annotations

import asyncio

import pytest

from agent.drivers import peers
from agent.drivers.peers import PeerDriver
from agent.facts.capability import usable_datapaths
from agent.model.host import Peer
from tests.component.node import UNDERLAY
from tests.component.private_host import on_private_host, sh
from tests.waiting import DEADLINE, until


@on_private_host
async def test_peers_are_resolved_owned_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    sh(UNDERLAY)
    driver = PeerDriver()
    sh("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent")
    with monkeypatch.context() as patience:
        patience.setattr(peers, "PATIENCE", DEADLINE)
        assert not await driver.apply([Peer("192.0.2.2"), Peer("192.0.2.3")], [])
    assert "lladdr" in sh("ip neigh show to 192.0.2.2")
    assert set(await driver.read_owned()) == {("peer", "192.0.2.2"), ("peer", "192.0.2.3")}
    assert not await driver.apply([Peer("192.0.2.2")], [Peer("192.0.2.3")])
    assert set(await driver.read_owned()) == {("peer", "192.0.2.2")}
    assert not await driver.apply([], [Peer("192.0.2.2")])
    assert not await driver.apply([], [Peer("192.0.2.2")])
    assert not await driver.read_owned()
    assert "192.0.2.9" in sh("ip neigh show"), "an entry that is not ours stays"
    # A peer that is down is no failure; one without a route is.
    assert not await driver.apply([Peer("192.0.2.77")], [])
    failures = await driver.apply([Peer("198.51.100.1")], [])
    assert failures[("peer", "198.51.100.1")].reason == "NO_ROUTE"
    assert not await driver.apply([], [Peer("192.0.2.77")])
    sh("ip link del v0; ip link del nic0; ip netns del other")


@on_private_host
async def test_peers_of_an_ipv6_underlay_are_kept_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PATIENCE", DEADLINE)
    sh(UNDERLAY)
    sh("ip address add 2001:db8::1/64 dev v0 nodad; ip -n other address add 2001:db8::2/64 dev v1 nodad")
    # The kernel asks from its link-local address, and not before it has one.
    await until(lambda: "tentative" not in sh("ip -6 address show dev v0; ip -n other -6 address show dev v1"))
    driver = PeerDriver()
    peer = Peer("2001:db8::2")
    assert not await driver.apply([peer], [])
    entry = sh("ip -6 neigh show to 2001:db8::2")
    assert "lladdr" in entry
    assert "managed" in entry
    assert "2001:db8::2" in sh("ovs-appctl tnl/neigh/show"), "the switch is told"
    assert await driver.read_owned() == {peer.key: peer}
    assert not await driver.apply([], [peer])
    assert not await driver.read_owned()
    assert (await driver.apply([Peer("2001:db8:1::1")], []))[("peer", "2001:db8:1::1")].reason == "NO_ROUTE"
    sh("ip link del v0; ip link del nic0; ip netns del other")


@on_private_host
async def test_the_userspace_datapath_is_always_there_and_the_kernels_only_with_its_module() -> None:
    found = await asyncio.to_thread(usable_datapaths, ["system", "netdev"])
    assert "netdev" in found
    assert ("system" in found) == bool(sh("grep -wE 'openvswitch|ovs_datapath' /proc/modules /proc/kallsyms || true"))
