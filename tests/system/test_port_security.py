"""What a workload may send: its own addresses; every refusal has its counter."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from agent.model.pipeline import Reason
from cli.status import sentences
from deploy.lab import Host, wait_until
from kumihimo.v1 import port_pb2
from tests.system import frames
from tests.system.cloud import PATIENCE, Cloud, Scene, Vm, drops

FORGED_MAC = "fa:16:3e:66:66:66"
FORGED_IP = "10.0.0.66"
COUNT = 3

Forge = Callable[[Vm, Vm, bytes], bytes]


def forged_mac(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames.udp(FORGED_MAC, to.mac, me.ip, to.ip, (7, 7), marker)


def forged_mac_arp(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames.arp(FORGED_MAC, me.ip, FORGED_IP, op=frames.ARP_REPLY) + marker


def forged_ip(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames.udp(me.mac, to.mac, FORGED_IP, to.ip, (7, 7), marker)


def broadcast_forged_ip(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames.udp(me.mac, frames.BROADCAST, FORGED_IP, "255.255.255.255", (7, 7), marker)


def forged_arp_ip(me: Vm, to: Vm, marker: bytes) -> bytes:
    """Says that another's address is here."""
    return frames.arp(me.mac, FORGED_IP, to.ip, op=frames.ARP_REPLY, target=to.mac) + marker


def forged_arp_mac(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames.arp(me.mac, me.ip, me.ip, op=frames.ARP_REPLY, sender_mac=FORGED_MAC) + marker


def dhcp_server(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames.udp(me.mac, to.mac, me.ip, to.ip, (67, 68), marker)


def other_protocol(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames.ethernet(me.mac, to.mac, 0x88B5, marker)


def version_6(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames.ipv6(me.mac, to.mac, marker)


def tagged(me: Vm, to: Vm, marker: bytes) -> bytes:
    """Honest but for a tag of VLAN 100."""
    frame = frames.udp(me.mac, to.mac, me.ip, to.ip, (7, 7), marker)
    return frame[:12] + b"\x81\x00\x00\x64" + frame[12:]


def priority_tagged(me: Vm, to: Vm, marker: bytes) -> bytes:
    """The same, of no VLAN: only the priority is said."""
    frame = frames.echo(me.mac, to.mac, me.ip, to.ip, marker)
    return frame[:12] + b"\x81\x00\xe0\x00" + frame[12:]


def to_nobody(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames.udp(me.mac, FORGED_MAC, me.ip, FORGED_IP, (7, 7), marker)


def arp_for_nobody(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames.arp(me.mac, me.ip, FORGED_IP) + marker


def arp_for_itself(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames.arp(me.mac, frames.UNSET, me.ip) + marker


REFUSED = {
    forged_mac: Reason.SPOOFED_MAC,
    forged_mac_arp: Reason.SPOOFED_MAC,
    forged_ip: Reason.SPOOFED_IP,
    broadcast_forged_ip: Reason.SPOOFED_IP,
    forged_arp_ip: Reason.SPOOFED_ARP,
    forged_arp_mac: Reason.SPOOFED_ARP,
    dhcp_server: Reason.DHCP_SERVER,
    other_protocol: Reason.PROTOCOL,
    version_6: Reason.IPV6,
    tagged: Reason.VLAN_TAG,
    priority_tagged: Reason.VLAN_TAG,
    to_nobody: Reason.UNKNOWN_UNICAST,
    arp_for_nobody: Reason.ARP_UNKNOWN,
    arp_for_itself: Reason.ARP_OWN,
}
# Port security off lets these through; what nobody is there for stays undelivered.
SPOOFED = (
    forged_mac,
    forged_mac_arp,
    forged_ip,
    broadcast_forged_ip,
    forged_arp_ip,
    forged_arp_mac,
    dhcp_server,
    other_protocol,
    version_6,
)


class Attack:
    """A sender, and a victim on its own host and on another."""

    def __init__(self, scene: Scene, h1: Host, h2: Host, network: Any = None, **fields: object) -> None:
        network = network or scene.network()
        self.sender = scene.vm(network, h1, **fields)  # type: ignore[arg-type]
        # What is guarded is the sender. Victims take what it may send; when that is anything, then anything.
        victims = fields if "port_security_enabled" in fields else scene.open()
        self.victims = [scene.vm(network, host, **victims) for host in (h1, h2)]  # type: ignore[arg-type]
        # Without an address its kernel sends nothing by itself: every count is the test's.
        self.sender.workload.run("ip address flush dev eth0")
        self.ofport = self.sender.ofport

    def send(self, forge: Forge) -> dict[Vm, bool]:
        """Send it to each victim COUNT times, and behind it a frame that must pass; who has seen the first."""
        marker, last = os.urandom(16), os.urandom(16)
        me, guest = self.sender, self.sender.guest
        for victim in self.victims:
            guest.send(*[forge(me, victim, marker)] * COUNT, me.echo(victim, last))
        for victim in self.victims:
            victim.guest.wait_for(last)
        return {victim: victim.guest.has(marker) for victim in self.victims}

    def wait_dropped(self, reason: Reason, count: int) -> None:
        """Wait until that many are counted."""
        wait_until(lambda: self.drops().get(reason, 0) >= count, f"{reason.name} counts {count}")

    def drops(self) -> dict[Reason, int]:
        return {Reason(number): count for number, count in drops(self.sender.host, self.ofport).items()}


@pytest.fixture
def attack(scene: Scene, h1: Host, h2: Host) -> Attack:
    return Attack(scene, h1, h2)


def test_b_prt_05_forged_frames_are_dropped_and_counted_by_reason(attack: Attack, cloud: Cloud) -> None:
    expected: dict[Reason, int] = {}
    assert attack.drops() == {}
    for forge, reason in REFUSED.items():
        assert not any(attack.send(forge).values()), f"{forge.__name__} arrived"
        expected[reason] = expected.get(reason, 0) + COUNT * len(attack.victims)
        # The switch adds up what its fast path has dropped about twice a second.
        attack.wait_dropped(reason, expected[reason])
        assert attack.drops() == expected, f"{forge.__name__} is counted once, and only as {reason.name}"
    assert drops(attack.sender.host, attack.victims[0].ofport) == {}, "nobody else is blamed"
    told(cloud, attack, expected)


def told(cloud: Cloud, attack: Attack, expected: dict[Reason, int]) -> None:
    """The API and the command line say it of this port, and of no other."""
    by_name = {reason.name: count for reason, count in expected.items()}

    def shown() -> bool:
        counters = cloud.admin.get(attack.sender.port).counters
        return dict(counters.drops) == by_name and counters.tx_packets >= sum(by_name.values())

    wait_until(shown, "the API shows what the node has told", PATIENCE)

    def victims() -> list[port_pb2.PortCounters]:
        return [cloud.admin.get(victim.port).counters for victim in attack.victims]

    wait_until(lambda: all(each.rx_packets and each.rx_bytes and each.tx_packets for each in victims()), "theirs too", PATIENCE)
    assert [dict(each.drops) for each in victims()] == [{}, {}]
    said = " ".join(sentences(cloud.admin.get(attack.sender.port)))
    assert f"packets were dropped: {by_name['ARP_OWN']} ARP_OWN, {by_name['ARP_UNKNOWN']} ARP_UNKNOWN, " in said
    assert f"{by_name['VLAN_TAG']} VLAN_TAG." in said


def test_b_prt_05_without_port_security_they_pass(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    attack = Attack(scene, h1, h2, port_security_enabled=False)
    for forge in SPOOFED:
        assert all(attack.send(forge).values()), f"{forge.__name__} arrives"
    assert attack.drops() == {}
    assert not any(attack.send(tagged).values()), "a tag is none of its business all the same"
    port = port_pb2.Port(id=attack.sender.id, port_security_enabled=True)
    changed = cloud.admin.update(port, "port_security_enabled")
    cloud.admin.wait(changed.revision, port.id)
    for forge in SPOOFED:
        assert not any(attack.send(forge).values()), f"{forge.__name__} arrives no more"


def test_b_prt_04_an_allowed_pair_passes_and_nothing_beside_it(attack: Attack, cloud: Cloud) -> None:
    def allow(*pairs: port_pb2.AddressPair) -> None:
        port = port_pb2.Port(id=attack.sender.id, allowed_address_pairs=pairs)
        changed = cloud.admin.update(port, "allowed_address_pairs")
        cloud.admin.wait(changed.revision, port.id)

    def passes(forge: Forge) -> bool:
        found = set(attack.send(forge).values())
        assert len(found) == 1, f"{forge.__name__} arrives on one host and not on the other"
        return found.pop()

    assert not passes(forged_ip)
    allow(port_pb2.AddressPair(ip_address=f"{FORGED_IP}/32"))
    assert passes(forged_ip)
    assert passes(forged_arp_ip)
    assert not passes(forged_mac), "the pair's MAC is the port's own"
    allow(port_pb2.AddressPair(ip_address="10.0.0.67/32"))
    assert not passes(forged_ip), "another address"
    allow(port_pb2.AddressPair(ip_address="10.0.0.64/29"))
    assert passes(forged_ip)
    allow(port_pb2.AddressPair(ip_address=f"{attack.sender.ip}/32", mac_address=FORGED_MAC))
    assert passes(forged_mac)
    assert not passes(forged_ip)
    allow()
    assert not passes(forged_mac)


def test_an_arp_request_for_an_allowed_pair_reaches_its_owner(attack: Attack, cloud: Cloud) -> None:
    """Such an address may move between ports, so nobody answers for its owner."""
    port = port_pb2.Port(id=attack.sender.id, allowed_address_pairs=[port_pb2.AddressPair(ip_address=f"{FORGED_IP}/32")])
    changed = cloud.admin.update(port, "allowed_address_pairs")
    cloud.admin.wait(changed.revision, port.id)
    attack.sender.workload.run(f"ip address add {FORGED_IP}/24 dev eth0")
    for victim in attack.victims:
        asked = frames.arp(victim.mac, victim.ip, FORGED_IP)
        found = victim.guest.probe([asked], {"arp": [*frames.expect_arp(FORGED_IP), (22, attack.sender.mac.replace(":", ""))]})
        assert found["arp"]


def test_b_prt_05_a_port_that_is_switched_off_counts_what_it_sends(attack: Attack, cloud: Cloud) -> None:
    sender = attack.sender
    changed = cloud.admin.update(port_pb2.Port(id=sender.id, admin_state_up=False), "admin_state_up")
    cloud.admin.wait(changed.revision, sender.id)
    marker = os.urandom(16)
    sender.guest.send(*[sender.echo(attack.victims[1], marker)] * COUNT)
    wait_until(lambda: attack.drops() == {Reason.ADMIN_DOWN: COUNT}, "they are counted")
    assert not attack.victims[1].guest.has(marker)
