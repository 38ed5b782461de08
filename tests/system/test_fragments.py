"""Fragments that are cut to deceive: nothing that rules or guards forbid arrives by them, in part or as a whole, and each that
the switch refuses is counted by its reason (RFC 1858, 3128, 5722, 6980, 7112). What belongs to no whole packet is held by the
switch, and goes nowhere when it gives up waiting.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.model.pipeline import Reason
from deploy.lab import Host, wait_until
from kumihimo.v1 import network_pb2
from kumihimo.v1 import security_pb2 as pb
from tests.policymodel import Probe
from tests.system import frames6, probes
from tests.system.cloud import PATIENCE, RECEIVED, SENT, Cloud, Scene, Vm, drops
from tests.system.fragments import DESTINATION_OPTIONS, Piece, behind_options, body, fragments, pieces
from tests.system.test_ipv6 import ip6, link_local
from tests.system.volley import ip, send, settle

WAYS = (pb.DIRECTION_INGRESS, pb.DIRECTION_EGRESS)
TCP, UDP = 6, 17
ALLOWED, NOT_SENT, NOT_RECEIVED = 80, 22, 81  # ports
SIZE = 3000  # bytes of what is cut
FIRST = 1280  # bytes of the first fragment
CUTS = FIRST, 2 * FIRST
OPTIONS = (8, 1280)  # bytes of a header that hides the next: a fragment of its own, too small or not
GROUPS = {"stateful": (True,), "stateless": (False,), "both": (True, False)}
ANYTHING = [{"direction": way, "ethertype": family} for way in WAYS for family in (4, 6)]
MOST = 32  # fragments of a packet that gets through
_sources = itertools.count(20_000)


@dataclass(frozen=True, slots=True)
class Cut:
    """Fragments; which of them arrive, by their place; and by what reasons others are counted, for sender and receiver."""

    name: str
    frames: list[bytes]
    arrive: set[int] = field(default_factory=set)
    sender: Counter[Reason] = field(default_factory=Counter)
    receiver: Counter[Reason] = field(default_factory=Counter)


def whole(me: Vm, to: Vm, family: int, protocol: int, port: int, data: bytes = b"") -> bytes:
    """A packet; without data given, one that no other is like."""
    probe = Probe(ip(me, family), ip(to, family), protocol, (next(_sources), port))
    return probes.frame(me.mac, to.mac, probe, data or os.urandom(SIZE))


def cut_up(me: Vm, to: Vm, family: int, protocol: int) -> Iterator[Cut]:
    """Honest fragments, and others, of what may be sent and received, and of what may not."""
    allowed, forbidden = (whole(me, to, family, protocol, port) for port in (ALLOWED, NOT_SENT))
    other = body(forbidden)
    refused = Counter([Reason.FRAGMENT])

    def made(parts: Iterable[Piece]) -> list[bytes]:
        return list(fragments(allowed, parts))

    parts = pieces(body(allowed), *CUTS)
    yield Cut("in order", made(parts), {0, 1, 2})
    yield Cut("last first", made(reversed(pieces(body(whole(me, to, family, protocol, ALLOWED)), *CUTS))), {0, 1, 2})
    yield Cut("not to be sent", made(pieces(other, *CUTS)), sender=Counter([Reason.SG_EGRESS]))
    unwanted = body(whole(me, to, family, protocol, NOT_RECEIVED))
    yield Cut("not to be received", made(pieces(unwanted, *CUTS)), receiver=Counter([Reason.SG_INGRESS]))
    for port in (ALLOWED, NOT_SENT):
        data = body(whole(me, to, family, protocol, port))
        yield Cut(f"ports alone in the first, to {port}", made(pieces(data, 8, *CUTS)), sender=refused)
    data = body(whole(me, to, family, protocol, ALLOWED))
    yield Cut("a small one in the middle", made(pieces(data, FIRST, FIRST + 8, 2 * FIRST)), sender=refused)
    first, *rest = pieces(body(whole(me, to, family, protocol, ALLOWED)), *CUTS)
    yield Cut("another first behind it", made([first, Piece(0, other[:FIRST]), *rest]), {0, 2, 3}, refused)
    first, *rest = pieces(body(whole(me, to, family, protocol, ALLOWED)), *CUTS)
    yield Cut("over the header from byte 8", made([first, Piece(8, other[8:FIRST]), *rest]), {0, 2, 3}, refused)
    first, second, third = pieces(body(whole(me, to, family, protocol, ALLOWED)), *CUTS)
    yield Cut("over both ends", made([first, second, Piece(FIRST - 8, os.urandom(FIRST + 16)), third]), {0, 1, 3}, refused)
    data = os.urandom(SIZE)  # the same of both: their checksums have to be right
    first, *rest = pieces(body(whole(me, to, family, protocol, ALLOWED, data)), *CUTS)
    hidden = body(whole(me, to, family, protocol, NOT_SENT, data))[:FIRST]
    both = refused + Counter([Reason.SG_EGRESS])
    yield Cut("another first before it", made([Piece(0, hidden), first, *rest]), sender=both)
    yield Cut("from byte 8 alone", made([Piece(8, os.urandom(FIRST), more=False)]))
    yield Cut("without a first", made(pieces(body(whole(me, to, family, protocol, ALLOWED)), *CUTS)[1:]))
    if family == 6:
        yield from _behind_headers(me, to, protocol)


def _behind_headers(me: Vm, to: Vm, protocol: int) -> Iterator[Cut]:
    """The header with the ports in the second fragment, or in the first and again in the second. Of IPv6 the switch puts
    nothing together that has another header behind that of fragments; so it is held."""
    refused = Counter([Reason.FRAGMENT])
    for size in OPTIONS:
        frame = whole(me, to, 6, protocol, NOT_SENT)
        parts = pieces(behind_options(body(frame), protocol, size), *(size + cut for cut in (0, *CUTS)))
        sender = refused if size < 1280 else Counter[Reason]()
        yield Cut(f"behind options of {size} bytes", list(fragments(frame, parts, DESTINATION_OPTIONS)), sender=sender)
    frame = whole(me, to, 6, protocol, ALLOWED)
    first, *rest = pieces(behind_options(body(frame), protocol), *CUTS)
    over = Piece(8, body(whole(me, to, 6, protocol, NOT_SENT))[:FIRST])
    made = list(fragments(frame, [first, over, *rest], DESTINATION_OPTIONS))
    yield Cut("over the header behind options", made, sender=refused)


def guarded(me: Vm, to: Vm) -> Iterator[Cut]:
    """What only routers, DHCP servers and others say, behind a header that fills the first fragment."""
    said = {
        "advertisement of a router": frames6.router_advertise(me.mac, link_local(me), os.urandom(8)),
        "server of DHCPv6": frames6.udp(me.mac, to.mac, link_local(me), link_local(to), (547, 546), os.urandom(FIRST)),
        "advertisement for another": frames6.advertise(me.mac, ip6(me), ip6(to), me.mac, to.mac, ip6(to)),
    }
    for name, frame in said.items():
        for size in OPTIONS:
            data = behind_options(body(frame) + os.urandom(FIRST), frame[20], size)[: size + FIRST]
            made = list(fragments(frame, pieces(data, size), DESTINATION_OPTIONS))
            yield Cut(f"{name} behind {size} bytes", made, sender=Counter([Reason.FRAGMENT] if size < 1280 else []))


def dual(scene: Scene, cloud: Cloud) -> Any:
    network = scene.network()
    cloud.admin.create(network_pb2.Subnet(network_id=network.id, cidr="fd00:1::/64"))
    return network


def silent(scene: Scene, network: Any, host: Host, *groups: Any) -> Vm:
    """A workload whose kernel says nothing."""
    vm = scene.vm(network, host, security_group_ids=[group.id for group in groups])
    vm.workload.run("ip address flush dev eth0")
    return vm


def rules(*ports: int) -> list[dict[str, Any]]:
    """Of both directions and families, for these ports of TCP and UDP."""
    return [
        {**rule, "protocol": name, "port_range_min": port, "port_range_max": port}
        for rule in ANYTHING
        for name in ("tcp", "udp")
        for port in ports
    ]


def counted(vm: Vm, way: str) -> Counter[Reason]:
    return Counter({Reason(number): count for number, count in drops(vm.host, vm.ofport, way).items()})


def arrived(vm: Vm, frames: list[bytes]) -> set[int]:
    """Which of the frames have come."""
    seen = {frame[14:] for frame in vm.guest.seen()}
    return {number for number, frame in enumerate(frames) if frame[14:] in seen}


def carry(me: Vm, to: Vm, cuts: list[Cut]) -> None:
    """Send all of them; what has come and what is counted is as it has to be."""
    before = counted(me, SENT), counted(to, RECEIVED)
    for each in cuts:
        send(me, to, each.frames)
    settle({(me, to)})
    found = {each.name: arrived(to, each.frames) for each in cuts}
    assert found == {each.name: each.arrive for each in cuts}
    wanted = [sum((getattr(each, side) for each in cuts), Counter[Reason]()) for side in ("sender", "receiver")]

    def told() -> list[Counter[Reason]]:
        return [counted(me, SENT) - before[0], counted(to, RECEIVED) - before[1]]

    wait_until(lambda: sum(map(Counter.total, told())) >= sum(map(Counter.total, wanted)), "all are counted", PATIENCE)
    assert told() == wanted


@pytest.mark.parametrize("kind", GROUPS)
def test_fragments_carry_nothing_that_rules_forbid(kind: str, scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = dual(scene, cloud)
    sending, receiving = ([], [])  # type: ignore[var-annotated]
    for number, stateful in enumerate(GROUPS[kind]):
        sending.append(scene.group(*([] if number else rules(ALLOWED, NOT_RECEIVED)), stateful=stateful))
        receiving.append(scene.group(*([] if number else rules(ALLOWED)), stateful=stateful))
    me = silent(scene, network, h1, *sending)
    for host in (h1, h2):
        to = silent(scene, network, host, *receiving)
        for family in (4, 6):
            for protocol in (TCP, UDP):
                carry(me, to, list(cut_up(me, to, family, protocol)))


@pytest.mark.parametrize("kind", GROUPS)
def test_fragments_carry_nothing_that_guards_forbid(kind: str, scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    """Though rules allow anything."""
    network = dual(scene, cloud)
    groups = [scene.group(*ANYTHING, stateful=stateful) for stateful in GROUPS[kind]]
    me = silent(scene, network, h1, *groups)
    for host in (h1, h2):
        to = silent(scene, network, host, *groups)
        carry(me, to, list(guarded(me, to)))


def test_without_port_security_fragments_are_nobodys_business(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    network = dual(scene, cloud)
    me, to = (scene.vm(network, host, port_security_enabled=False) for host in (h1, h2))
    for vm in (me, to):
        vm.workload.run("ip address flush dev eth0")
    cuts = [*cut_up(me, to, 4, UDP), *cut_up(me, to, 6, UDP), *guarded(me, to)]
    for each in cuts:
        send(me, to, each.frames)
    settle({(me, to)})
    lost = {each.name for each in cuts if arrived(to, each.frames) != set(range(len(each.frames)))}
    assert not lost
    assert not counted(me, SENT)


def waited_for(host: Host) -> int:
    """How many fragments the switch holds because the rest of their packet has not come."""
    found = re.search(r"num frag: (\d+)", host.run("ovs-appctl dpctl/ipf-get-status"))
    assert found
    return int(found[1])


def test_what_the_switch_waits_for_in_vain_goes_to_nobody(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    """Open vSwitch sends such fragments on with whatever it tracks next: that of another network, here."""
    mine, others = dual(scene, cloud), dual(scene, cloud)
    first, *rest = (silent(scene, others, host, scene.group(*ANYTHING)) for host in (h1, h2, h1))
    held: list[bytes] = []
    receivers = []
    for stateful in (True, False):
        group = scene.group(*ANYTHING, stateful=stateful)
        me, to = silent(scene, mine, h1, group), silent(scene, mine, h2, group)
        sent = [
            fragment
            for frame in (whole(me, to, family, UDP, ALLOWED) for family in (4, 6) for _ in range(5))
            for fragment in fragments(frame, pieces(body(frame), *CUTS)[1:])
        ]
        send(me, to, sent)
        held += sent
        receivers.append(to)
    assert waited_for(h1) >= len(held)

    def given_up() -> bool:
        """Meanwhile connections begin, one after the other: each is tracked, and committed."""
        for other in rest:
            for family in (4, 6):
                first.guest.send(whole(first, other, family, UDP, ALLOWED, os.urandom(100)))
        return waited_for(h1) == 0

    wait_until(given_up, "the switch gives up", PATIENCE * 2, interval=0.05)
    settle({(first, other) for other in rest})
    assert [arrived(vm, held) for vm in (*receivers, *rest)] == [set()] * 4
    assert counted(first, SENT) == Counter(), "nobody is to be blamed"


def test_a_packet_of_more_fragments_than_the_switch_sends_at_once_is_lost(
    scene: Scene, cloud: Cloud, h1: Host, h2: Host
) -> None:
    """A bound of Open vSwitch 3.1: it forwards 32 packets at once, and of the others no packet comes to be."""
    network = dual(scene, cloud)
    group = scene.group(*ANYTHING)
    me, to = silent(scene, network, h1, group), silent(scene, network, h2, group)
    for family in (4, 6):
        for count in (MOST, MOST + 1):
            frame = whole(me, to, family, UDP, ALLOWED, os.urandom(FIRST * count - 8))
            sent = list(fragments(frame, pieces(body(frame), *range(FIRST, FIRST * count, FIRST))))
            send(me, to, sent)
            settle({(me, to)})
            assert len(arrived(to, sent)) == (count if count == MOST else 0)
