"""What is on a node, as text, beside the object, and as a picture; from answers made here."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cli import live, picture
from kumihimo.v1 import inspect_pb2 as pb
from tests.fakes.api import FakeApi, Kumi

pytest_plugins = ("tests.fakes.api",)
SVG = "{http://www.w3.org/2000/svg}"
NETWORK = pb.ObjectRef(kind="Network", id="n-1", name="web<&>net")


def answer() -> pb.NodeInspection:
    found = pb.NodeInspection(node="h1", live=True)
    found.time.FromJsonString("2026-11-25T08:00:00Z")
    inner = found.bridges.add(name="br-int", datapath_type="netdev", managed=True)
    port = inner.ports.add(name="tap1", ofport=5, purpose="workload", wired=True, segment="vxlan 100")
    port.objects.extend([pb.ObjectRef(kind="Port", id="p-1", name="web1"), NETWORK])
    inner.ports.add(name="tap2", purpose="workload", reason="PORT_UNKNOWN").objects.add(kind="Port", id="p-2")
    inner.ports.add(name="kumi-vxlan", type="vxlan", ofport=1, managed=True, purpose="tunnel").options["local_ip"] = "192.0.2.1"
    inner.ports.add(name="int-phy", type="patch", ofport=2, managed=True, purpose="provider").options["peer"] = "phy-int"
    outer = found.bridges.add(name="br-phy", datapath_type="netdev")
    outer.ports.add(name="phy-int", type="patch", ofport=9, managed=True).options["peer"] = "int-phy"
    outer.ports.add(name="eth1", ofport=1, error="could not open network device", tag=7)
    found.namespaces.add(name="kumi-n-1", service="dhcp", running=True, objects=[NETWORK])
    found.peers.add(node="h2", address="192.0.2.2", resolved=True, objects=[NETWORK])
    found.peers.add(node="h3", address="192.0.2.3", objects=[NETWORK])
    return found


def test_a_62_the_tree() -> None:
    assert list(live.tree(answer())) == [
        "h1, as it is at 2026-11-25T08:00:00Z",
        "br-int (netdev)",
        "├─ tap1        port 5   wired                        Port web1 · Network web<&>net · vxlan 100",
        "├─ tap2        no port  not wired: PORT_UNKNOWN      Port p-2",
        "├─ kumi-vxlan  port 1   tunnel vxlan from 192.0.2.1",
        "└─ int-phy     port 2   provider to phy-int",
        "br-phy (netdev), not ours",
        "├─ phy-int  port 9  patch to int-phy",
        "└─ eth1     port 1  error: could not open network device",
        "namespaces",
        "└─ kumi-n-1  dhcp runs  Network web<&>net",
        "other nodes of its networks",
        "├─ h2  192.0.2.2  resolved      Network web<&>net",
        "└─ h3  192.0.2.3  not resolved  Network web<&>net",
    ]


def test_what_is_missing_is_said() -> None:
    found = pb.NodeInspection(node="h1", reason="NODE_DEAD", message="it is not heard of", left_out=3, notes=["dhcp: gone"])
    assert list(live.tree(found)) == [
        "h1, as it was heard of last: it is not heard of [NODE_DEAD]",
        "and 3 more ports",
        "not known: dhcp: gone",
    ]


def test_a_62_the_picture_shows_all_and_nothing_overlaps() -> None:
    drawn = ElementTree.fromstring(picture.svg(answer()))
    titles = [item.text for item in drawn.iter(f"{SVG}title")]
    for text in ("Port web1 · Network web<&>net · vxlan 100", "tap1 wired", "phy-int patch to int-phy", "kumi-vxlan tunnel"):
        assert any(title and title.startswith(text) for title in titles), (text, titles)
    width, height = int(drawn.get("width", "0")), int(drawn.get("height", "0"))
    boxes = [
        (float(item.get("x", "")), float(item.get("y", "")), float(item.get("width", "")), float(item.get("height", "")))
        for item in drawn.iter(f"{SVG}rect")
        if item.get("x")
    ]
    assert len(boxes) == len(titles) == 6 + 2 + 1 + 2 + len(picture.SIGNS)
    assert titles[-len(picture.SIGNS) :] == list(picture.SIGNS.values()), "what the colours mean"
    assert "h3 192.0.2.3 not resolved · Network web<&>net" in titles, "a colour says nothing alone"
    for number, (x, y, w, h) in enumerate(boxes):
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
        for other_x, other_y, other_w, other_h in boxes[:number]:
            assert x + w <= other_x or other_x + other_w <= x or y + h <= other_y or other_y + other_h <= y
    # Two objects, one patch, one tunnel to each of two nodes.
    assert len(list(drawn.iter(f"{SVG}path"))) == 2 + 1 + 2
    assert picture.svg(answer()).count("<script") == 0


def test_a_62_a_picture_of_nothing_and_of_a_large_node() -> None:
    assert ElementTree.fromstring(picture.svg(pb.NodeInspection(node="h1"))).get("width")
    large = answer()
    for number in range(2000):
        large.bridges[0].ports.add(name=f"tap{number}", purpose="workload", objects=[NETWORK])
    drawn = ElementTree.fromstring(picture.svg(large))
    assert int(drawn.get("height", "0")) > 2000 * picture.ROW


def test_show_tells_both_in_tables_and_the_object_alone_in_json(kumi: Kumi, api: FakeApi, tmp_path: Path) -> None:
    api.add("node", id="h1", tunnel_ip="192.0.2.1")
    api.replies["Nodes/Inspect"] = [answer() for _ in range(3)]
    table = kumi("node", "show", "h1")
    assert "tunnel_ip" in table.out
    assert "├─ tap1" in table.out
    assert "tap1" not in kumi("node", "show", "h1", "--no-live").out
    alone = json.loads(kumi("node", "show", "h1", "-o", "json").out)
    assert "live" not in alone
    assert len(api.requests("Nodes/Inspect")) == 1, "who wants the object alone asks no agent"
    both = json.loads(kumi("node", "show", "h1", "--live", "-o", "json").out)
    assert both.pop("live")["bridges"][0]["ports"][0]["name"] == "tap1"
    assert both == alone
    drawn = tmp_path / "h1.svg"
    assert kumi("node", "show", "h1", "--no-live", "--svg", str(drawn)).code == 0
    assert ElementTree.parse(drawn).getroot().tag == f"{SVG}svg"
    api.replies["Nodes/Inspect"] = [answer()]
    failed = kumi("node", "show", "h1", "--svg", str(tmp_path / "no" / "h1.svg"))
    assert (failed.code, failed.err) == (1, f"kumi: {tmp_path}/no/h1.svg cannot be written: No such file or directory\n")
    assert kumi("node", "show", "h1", "--at", "7", "--live").code == 2


@pytest.mark.parametrize("noun", ["network", "port"])
def test_what_has_no_live_part_has_no_option_of_it(noun: str, kumi: Kumi) -> None:
    assert "--svg" not in kumi(noun, "show", "--help").out
