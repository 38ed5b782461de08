"""A node as a picture (A-62): in the middle the integration bridge, left what its ports belong to, right where they lead.

Plain SVG, with nothing in it that a viewer would have to fetch or run. One row a port, so that nothing overlaps, however
many there are; what would not fit into its column is cut, and whole in the element's title. Dark on white of its own, so
that it can be read on any page; no colour says what no word does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

from cli import live

ROW, GAP, TOP = 22, 18, 48
LEFT, MIDDLE, RIGHT, WIDTH = 16, 470, 950, 1366  # where columns begin, and the whole
BOX, SIGN = 400, 150  # widths of a box, and of one that explains a colour
NARROW, ORDINARY, BROAD = 4.5, 7.4, 9.6  # of characters, in a font that is a wide one
SIGNS = {"good": "works", "ours": "Kumihimo's own", "bad": "does not work", "": "others', or no state"}

_STYLE = """text{font:12px "DejaVu Sans",Verdana,sans-serif;fill:#222}.head{font-weight:bold}.dim{fill:#666}
rect{fill:#fff;stroke:#888}.ours{fill:#eef5ff;stroke:#36c}.bad{fill:#fff0f0;stroke:#c33}.good{fill:#effaf0;stroke:#393}
path{fill:none;stroke:#999}"""


@dataclass(slots=True)
class _Page:
    """Elements drawn so far, lines apart: they go below the boxes."""

    lines: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)
    bottom: int = TOP

    def box(self, x: int, y: int, text: str, style: str = "", width: int = BOX) -> None:
        whole, shown, height = escape(text), escape(_cut(text, width - 12)), ROW - 4
        mark = f' class="{style}"' if style else ""
        self.boxes.append(f'<g><title>{whole}</title><rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3"{mark}/>')
        self.boxes.append(f'<text x="{x + 6}" y="{y + 13}">{shown}</text></g>')
        self.bottom = max(self.bottom, y + height)

    def text(self, x: int, y: int, text: str, style: str, width: int = BOX) -> None:
        self.boxes.append(f'<text x="{x}" y="{y}" class="{style}">{escape(_cut(text, width))}</text>')
        self.bottom = max(self.bottom, y)

    def line(self, x: int, y: int, to_x: int, to_y: int) -> None:
        half = (x + to_x) // 2
        self.lines.append(f'<path d="M{x} {y} C{half} {y} {half} {to_y} {to_x} {to_y}"/>')


def svg(found: Any) -> str:
    """The picture of a NodeInspection."""
    page = _Page()
    page.text(LEFT, 24, live.title(found), "head", WIDTH - 2 * LEFT)
    ends: dict[str, tuple[int, int]] = {}  # of patch ports: where a line may begin
    tunnels: list[tuple[int, int]] = []
    y = TOP
    for number, bridge in enumerate(found.bridges):
        y = _bridge(page, bridge, MIDDLE if number == 0 else RIGHT, y if number < 2 else y + GAP, ends, tunnels)
        if number == 0:
            _namespaces(page, found, y + GAP)
            y = TOP
    peers = y + GAP if len(found.bridges) > 1 else TOP
    _peers(page, found, peers, tunnels)
    for bridge in found.bridges[:1]:
        for port in bridge.ports:
            if port.options.get("peer", "") in ends and port.name in ends:
                page.line(*ends[port.name], *ends[port.options["peer"]])
    if found.left_out or found.notes:
        rest = [f"and {found.left_out} more ports"] if found.left_out else []
        for text in [*rest, *(f"not known: {note}" for note in found.notes)]:
            page.text(LEFT, page.bottom + ROW, text, "dim", WIDTH - 2 * LEFT)
    bottom = page.bottom + GAP
    for number, (style, text) in enumerate(SIGNS.items()):
        page.box(LEFT + number * (SIGN + 8), bottom, text, style, SIGN)
    return "\n".join(_document(page))


def _bridge(page: _Page, bridge: Any, x: int, y: int, ends: dict[str, tuple[int, int]], tunnels: list[tuple[int, int]]) -> int:
    """Draw a bridge at a place; where it ends. The first has what its ports belong to at its left."""
    page.text(x, y + 12, f"{bridge.name} {bridge.datapath_type}{'' if bridge.managed else ', not ours'}", "head")
    y += ROW
    for port in bridge.ports:
        text = " ".join(filter(None, [port.name, live.state(port)]))
        belongs = " · ".join(filter(None, [live.named(port.objects), port.segment]))
        middle = y + ROW // 2 - 2
        if belongs and x == MIDDLE:
            page.box(LEFT, y, belongs)
            page.line(LEFT + BOX, middle, x, middle)
        page.box(x, y, text if x == MIDDLE or not belongs else f"{text} · {belongs}", _style(port))
        if "peer" in port.options:
            ends[port.name] = (x + BOX if x == MIDDLE else x, middle)
        if port.purpose == "tunnel":
            tunnels.append((x + BOX, middle))
        y += ROW
    return y


def _style(port: Any) -> str:
    if port.error or (port.purpose == "workload" and not port.wired):
        return "bad"
    return "good" if port.purpose == "workload" else "ours" if port.managed else ""


def _namespaces(page: _Page, found: Any, y: int) -> None:
    if not found.namespaces:
        return
    page.text(LEFT, y + 12, "namespaces", "head")
    for number, item in enumerate(found.namespaces, 1):
        text = f"{item.service} {'runs' if item.running else 'does not run'} · {live.named(item.objects)} · {item.name}"
        page.box(LEFT, y + number * ROW, text, "ours" if item.running else "bad")


def _peers(page: _Page, found: Any, y: int, tunnels: list[tuple[int, int]]) -> None:
    if not found.peers:
        return
    page.text(RIGHT, y + 12, "other nodes of its networks", "head")
    for number, peer in enumerate(found.peers, 1):
        at = y + number * ROW
        text = f"{peer.node} {peer.address} {live.way(peer)} · {live.shared(peer)}"
        page.box(RIGHT, at, text, "good" if peer.resolved else "bad")
        for x, begin in tunnels:
            page.line(x, begin, RIGHT, at + ROW // 2 - 2)


def _document(page: _Page) -> Iterator[str]:
    height = page.bottom + GAP
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
    yield f"<style>{_STYLE}</style>"
    yield f'<rect width="{WIDTH}" height="{height}" style="stroke:none"/>'
    yield from page.lines
    yield from page.boxes
    yield "</svg>\n"


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) > width - BROAD:
        text = text[:-1]
    return text + "…"


def _width(text: str) -> float:
    return sum(
        NARROW if each in "fijlrt.,:·-|'/() " else BROAD if each.isupper() or each in "mw@%" else ORDINARY for each in text
    )
