"""What a workload may say in IPv6; every refusal has its counter."""

from __future__ import annotations

import os
from typing import Any

import pytest

from agent.model.pipeline import Reason
from deploy.lab import Host, wait_until
from kumihimo.v1 import port_pb2
from tests.system import frames6
from tests.system.cloud import Cloud, Scene, Vm, drops
from tests.system.frames6 import ALL_NODES, NO_ADDRESS, TARGET
from tests.system.test_ipv6 import ip6, link_local, subnet
from tests.system.test_port_security import COUNT, FORGED_MAC, Attack, Forge

FORGED = "fd00:1::66"
ANY_PORT = (7, 7)


def forged_source(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.udp(me.mac, to.mac, FORGED, ip6(to), ANY_PORT, marker)


def forged_link_local(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.udp(me.mac, to.mac, link_local(to), ip6(to), ANY_PORT, marker)


def from_no_address(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.udp(me.mac, frames6.group_mac(ALL_NODES), NO_ADDRESS, ALL_NODES, ANY_PORT, marker)


def advertised_from_another(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.advertise(me.mac, ip6(to), ip6(me), me.mac) + marker


def advertised_for_another(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.advertise(me.mac, ip6(me), ip6(to), me.mac) + marker


def advertised_for_another_without_option(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.advertise(me.mac, ip6(me), link_local(to), None, to.mac, ip6(to)) + marker


def advertised_mac(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.advertise(me.mac, ip6(me), ip6(me), FORGED_MAC) + marker


def advertised_with_another_code(me: Vm, to: Vm, marker: bytes) -> bytes:
    """Receivers ignore it, and the switch does not look into it."""
    body = bytes([1, 0, 0, 0, 0x20, 0, 0, 0]) + frames6.ip_bytes(ip6(me)) + frames6.option(TARGET, me.mac)
    body = bytes([frames6.NA]) + body
    return frames6.packet(me.mac, to.mac, ip6(me), ip6(to), frames6.ICMP, body) + marker


def solicited_with_another_mac(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.solicit(me.mac, ip6(me), ip6(to), FORGED_MAC) + marker


def probed_for_another(me: Vm, to: Vm, marker: bytes) -> bytes:
    """Would keep the other from taking its address into use."""
    return frames6.solicit(me.mac, NO_ADDRESS, ip6(to)) + marker


def probed_with_an_option(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.solicit(me.mac, NO_ADDRESS, ip6(me), me.mac) + marker


def router(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.router_advertise(me.mac, link_local(me), marker)


def router_behind_a_header(me: Vm, to: Vm, marker: bytes) -> bytes:
    """The same behind a hop-by-hop header of padding."""
    whole = frames6.router_advertise(me.mac, link_local(me), marker)
    length = int.from_bytes(whole[18:20], "big") + 8
    head = whole[:18] + length.to_bytes(2, "big") + b"\0" + whole[21:54]
    return head + bytes([frames6.ICMP, 0, 1, 4, 0, 0, 0, 0]) + whole[54:]


def redirect(me: Vm, to: Vm, marker: bytes) -> bytes:
    body = bytes(4) + frames6.ip_bytes(link_local(me)) + frames6.ip_bytes("fd00:9::9")
    return frames6.icmp(me.mac, to.mac, link_local(me), ip6(to), frames6.REDIRECT, body) + marker


def dhcp_server(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.udp(me.mac, to.mac, link_local(me), link_local(to), (547, 546), marker)


def solicited_for_nobody(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.solicit(me.mac, ip6(me), FORGED, me.mac) + marker


def solicited_for_itself(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.solicit(me.mac, link_local(me), ip6(me), me.mac) + marker


def probed_for_itself(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.solicit(me.mac, NO_ADDRESS, link_local(me)) + marker


def to_nobody(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.udp(me.mac, FORGED_MAC, ip6(me), FORGED, ANY_PORT, marker)


REFUSED: dict[Forge, Reason] = {
    forged_source: Reason.SPOOFED_IPV6,
    forged_link_local: Reason.SPOOFED_IPV6,
    from_no_address: Reason.SPOOFED_IPV6,
    advertised_from_another: Reason.SPOOFED_IPV6,
    advertised_for_another: Reason.SPOOFED_ND,
    advertised_for_another_without_option: Reason.SPOOFED_ND,
    advertised_mac: Reason.SPOOFED_ND,
    advertised_with_another_code: Reason.SPOOFED_ND,
    solicited_with_another_mac: Reason.SPOOFED_ND,
    probed_for_another: Reason.SPOOFED_ND,
    probed_with_an_option: Reason.SPOOFED_ND,
    router: Reason.RA_SERVER,
    router_behind_a_header: Reason.RA_SERVER,
    redirect: Reason.RA_SERVER,
    dhcp_server: Reason.DHCPV6_SERVER,
    solicited_for_nobody: Reason.ND_UNKNOWN,
    solicited_for_itself: Reason.ND_OWN,
    probed_for_itself: Reason.ND_OWN,
    to_nobody: Reason.UNKNOWN_UNICAST,
}
# Port security off lets these through. A solicitation is answered on the spot all the same.
SPOOFED = (forged_source, from_no_address, advertised_for_another, advertised_mac, router, redirect, dhcp_server)


def own_address(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.udp(me.mac, to.mac, ip6(me), ip6(to), ANY_PORT, marker)


def own_link_local(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.udp(me.mac, to.mac, link_local(me), link_local(to), ANY_PORT, marker)


def own_advertisement(me: Vm, to: Vm, marker: bytes) -> bytes:
    return frames6.advertise(me.mac, ip6(me), ip6(me), me.mac) + marker


def group_report(me: Vm, to: Vm, marker: bytes) -> bytes:
    target = frames6.MLD_ROUTERS
    return frames6.icmp(me.mac, frames6.group_mac(target), link_local(me), target, frames6.MLD, bytes(4)) + marker


def first_group_report(me: Vm, to: Vm, marker: bytes) -> bytes:
    target = frames6.MLD_ROUTERS
    return frames6.icmp(me.mac, frames6.group_mac(target), NO_ADDRESS, target, frames6.MLD, bytes(4)) + marker


ALLOWED = (own_address, own_link_local, own_advertisement, group_report, first_group_report)


def six(scene: Scene, cloud: Cloud) -> Any:
    network = scene.network()
    subnet(cloud, network, "fd00:1::/64")
    return network


def test_b_prt_05_forged_ipv6_is_dropped_and_counted_by_reason(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    attack = Attack(scene, h1, h2, six(scene, cloud))
    for forge in ALLOWED:
        assert all(attack.send(forge).values()), f"{forge.__name__} arrives"
    assert attack.drops() == {}
    expected: dict[Reason, int] = {}
    for forge, reason in REFUSED.items():
        assert not any(attack.send(forge).values()), f"{forge.__name__} arrived"
        expected[reason] = expected.get(reason, 0) + COUNT * len(attack.victims)
    wait_until(lambda: attack.drops() == expected, "each is counted once, by its own reason")
    assert drops(attack.sender.host, attack.victims[0].ofport) == {}, "nobody else is blamed"


def test_b_prt_05_without_port_security_they_pass_and_duplicates_are_told(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host
) -> None:
    attack = Attack(scene, h1, h2, six(scene, cloud), port_security_enabled=False)
    for forge in SPOOFED:
        assert all(attack.send(forge).values()), f"{forge.__name__} arrives"
    sender, known = attack.sender, ip6(attack.victims[1])
    probe = frames6.solicit(sender.mac, NO_ADDRESS, known)
    told = [(0, "333300000001"), (54, "88"), (62, frames6.ip_bytes(known).hex())]
    assert sender.guest.probe([probe], {"taken": told})["taken"], "who takes another's address hears of it"
    assert attack.drops() == {}


def test_b_prt_04_an_ipv6_address_that_floats(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    """Two ports may have it: who has it answers himself, and tells of it when he takes it over."""
    attack = Attack(scene, h1, h2, six(scene, cloud))
    owner, (near, far) = attack.sender, attack.victims

    def told(me: Vm, to: Vm, marker: bytes) -> bytes:
        return frames6.advertise(me.mac, FORGED, FORGED, me.mac) + marker

    assert not any(attack.send(told).values())
    for vm in (owner, far):
        pair = port_pb2.AddressPair(ip_address="fd00:1::64/126")
        changed = cloud.admin.update(port_pb2.Port(id=vm.id, allowed_address_pairs=[pair]), "allowed_address_pairs")
    cloud.admin.wait(changed.revision, owner.id, far.id)
    assert all(attack.send(told).values()), "a takeover is told to all"
    for vm in (owner, far):
        vm.workload.speak6()
        vm.workload.run(f"ip -6 address add {FORGED}/64 dev eth0 nodad")
        for asker in {near, owner, far} - {vm}:
            asked = frames6.solicit(asker.mac, ip6(asker), FORGED, asker.mac)
            found = asker.guest.probe([asked], {"answer": frames6.expect_advertisement(FORGED, vm.mac)})
            assert found["answer"], f"{asker.host.name} finds it on {vm.host.name}"
        vm.workload.run(f"ip -6 address delete {FORGED}/64 dev eth0")


@pytest.mark.parametrize("kind", ["global", "link-local"])
def test_b_net_20_the_answer_names_the_port_wherever_it_is(kind: str, scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = six(scene, cloud)
    first, *others = [scene.vm(network, host) for host in (h1, h1, h2)]
    for other, bystander in zip(others, reversed(others), strict=True):
        asked = ip6(other) if kind == "global" else link_local(other)
        assert (other.workload.slaac() if kind == "global" else [other.workload.link_local()]) == [asked]
        sent = frames6.solicit(first.mac, link_local(first), asked, first.mac)
        assert first.guest.probe([sent], {"answer": frames6.expect_advertisement(asked, other.mac)})["answer"]
        asks = [[frame[:6].hex(":") for frame in vm.guest.seen() if frame[14:] == sent[14:]] for vm in (other, bystander)]
        assert asks == [[other.mac], []], "it alone has been asked"
        marker = os.urandom(16)
        first.guest.send(frames6.udp(first.mac, other.mac, ip6(first), ip6(other), ANY_PORT, marker))
        other.guest.wait_for(marker)
        other.guest.clear()
