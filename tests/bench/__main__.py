"""Runs the parts that are named (all by default) and writes docs/BENCHMARKS.md."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import api, large, node, security
from tests.bench.figures import Figure

OUT = Path(__file__).resolve().parents[2] / "docs" / "BENCHMARKS.md"
PARTS: dict[str, Callable[[], list[Figure]]] = {
    "api": lambda: asyncio.run(api.measure()),
    "node": node.measure,
    "large": large.measure,
    "security": security.measure,
}


def machine() -> str:
    models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    switch = subprocess.run(["ovs-vswitchd", "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    return f"{len(models)} × {models[0]}, Linux {platform.release()}, {switch.splitlines()[0]}, userspace datapath"


HEAD = """# Figures

Made by `./tests/bench/run`. Median [95 % interval of the median] (samples). Ours and the baseline take turns in one
run; absolute values are those of the machine, so read the ratios. A part that is measured again takes the place of what it
said before.
"""


def sections(text: str) -> dict[str, str]:
    """The parts of the page, by name."""
    found = (part.partition("\n") for part in text.split("\n## ")[1:])
    return {name: body.strip("\n") for name, _, body in found}


def main(names: list[str]) -> None:
    unknown = set(names) - set(PARTS)
    if unknown:
        sys.exit(f"bench: {', '.join(sorted(unknown))} is no part; {', '.join(PARTS)} are")
    page = sections(OUT.read_text()) if OUT.exists() else {}
    for name, measure in PARTS.items():
        if names and name not in names:
            continue
        print(f"measuring {name} …", flush=True)
        where = f"{datetime.now(UTC):%Y-%m-%d}, {machine()}, load {os.getloadavg()[0]:.1f} at the start."
        rows = ["| what | ours | baseline | aim |", "|---|---|---|---|"]
        for figure in measure():
            print(figure.row(), flush=True)
            rows.append(figure.row())
        page[name] = "\n".join([where, "", *rows])
        # After each part: what was measured stays when a later one fails.
        OUT.write_text(HEAD + "".join(f"\n## {part}\n\n{page[part]}\n" for part in PARTS if part in page))
    print(f"written to {OUT.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
