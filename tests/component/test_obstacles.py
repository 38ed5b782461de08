"""One object that cannot be made hurts no other, of whatever kind; it is told, tried again, and made when it can be."""

from __future__ import annotations

from agent.model.flow import Flow, ToGroup, match
from agent.model.host import Bridge, DhcpServer, OvsPort, Peer, ServiceNamespace, Uplink
from agent.model.item import Item
from agent.model.pipeline import CookieKind, cookie
from tests.component.node import CONFIG, UNDERLAY, UNSEEN, everything, running_node
from tests.component.private_host import on_private_host, processes, sh
from tests.waiting import DEADLINE, until

OTHER = "0192f0c4-7a3e-7c1d-8f2a-5b6c7d8e9f01"
OWNER = (("kumihimo", "service"),)
THEIRS = 0x1000077  # a group that is not ours by its number: one of ours that nobody here asks for is taken away
# Item → why it cannot be made. What stands in its way is made by OBSTACLES and taken away by CLEARED.
BAD: dict[Item, str] = {
    ServiceNamespace(f"kumi-{OTHER}", "kd000006", "dhcp0", "fa:16:3e:00:00:06", ("10.0.6.2/24",), 1450): "FOREIGN_OBJECT",
    DhcpServer(OTHER, f"kumi-{OTHER}", CONFIG + "no-such-option\n", ()): "DNSMASQ",
    OvsPort("br-int", "missing0", "", (), OWNER): "INTERFACE",
    OvsPort("br-int", "strange0", "", (), OWNER): "FOREIGN_OBJECT",
    Bridge("strange0", "netdev"): "FOREIGN_OBJECT",
    Peer("198.51.100.7"): "NO_ROUTE",
    Uplink("missing2"): "NETLINK",
    Flow(80, 55, match(reg15=9), (ToGroup(THEIRS),), cookie(CookieKind.BASE)): "refused",
}
OBSTACLES = """
ip link add kd000006 type veth peer name twin0
ip link set kd000006 alias mine
ip link add strange0 type veth peer name strange1
ovs-vsctl add-port br-int strange0
"""
CLEARED = f"""
ip link del kd000006
ovs-vsctl del-port strange0
ip link add missing0 type veth peer name missing1
ip link add missing2 type veth peer name missing3
ip route add 198.51.100.0/24 via 192.0.2.3 dev v0
ovs-ofctl -O OpenFlow15 add-group br-int group_id={THEIRS},type=all,bucket=actions=output:1
"""


@on_private_host
async def test_what_cannot_be_made_hurts_nobody_else_and_is_made_when_it_can_be() -> None:
    sh(UNDERLAY)
    async with running_node() as node:
        await node.held([Bridge("br-int", "netdev")])
        sh(OBSTACLES)
        node.submit([*everything(), *BAD])
        await node.finished()
        await until(lambda: len(node.failures()) == len(BAD), f"all that cannot be made is told: {node.failures()}")
        assert {key: failure.reason for key, failure in node.failures().items()} == {
            item.key: reason for item, reason in BAD.items()
        }
        assert all(failure.message for failure in node.failures().values())
        good = {item.key: item for item in everything() if item.key[0] not in UNSEEN}
        assert good.items() <= (await node.there()).items()
        assert "managed" in sh("ip neigh show to 192.0.2.2")
        # The others change and go as if nothing were the matter.
        less = [item for item in everything() if item.key[0] != "dhcp"]
        node.submit([*less, *BAD])
        await node.finished()
        assert not processes("dnsmasq")
        assert sh("ovs-vsctl port-to-br strange0") == "br-int"
        assert sh("cat /sys/class/net/kd000006/ifalias") == "mine"

        possible = [item for item in BAD if item.key[0] not in ("bridge", "dhcp")]
        possible.append(DhcpServer(OTHER, f"kumi-{OTHER}", CONFIG, ()))
        node.submit([*everything(), *possible])
        sh(CLEARED)
        try:
            # What fails is tried again ever more seldom.
            await until(lambda: not node.failures(), timeout=4 * DEADLINE)
        except AssertionError:
            raise AssertionError(f"not made: {node.failures()}") from None
        assert {item.key for item in possible if item.key[0] not in UNSEEN} <= (await node.there()).keys()
