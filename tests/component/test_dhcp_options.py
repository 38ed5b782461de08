"""The options a port may be given are those that the real dnsmasq knows, and it can read each value that is accepted."""

from __future__ import annotations

import os
import random
import re
import string
import subprocess
from pathlib import Path

import pytest

from controlplane.dhcpoptions import MOST, V4, V6, Family
from controlplane.values import Invalid
from tests.component.dhcp import ACCEPTED, ACCEPTED6

SEED = int(os.environ.get("KUMI_SEED", "4"))
ROUNDS = 20_000 if os.environ.get("KUMI_FULL") else 1_000
DIGITS, HEX = "0123456789", "0123456789abcdef:"
ALPHABETS = (DIGITS, f"{DIGITS}.", f"{DIGITS}.,/", HEX, f"{HEX}[],", string.printable[:-5], '",\\#: ')


def reads(tmp_path: Path, lines: list[str]) -> str:
    """What dnsmasq objects to in these lines; "" when nothing."""
    file = tmp_path / "dnsmasq.conf"
    file.write_text("".join(f"dhcp-option-force=tag:x,{line}\n" for line in lines))
    done = subprocess.run(["dnsmasq", "--test", f"--conf-file={file}"], capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else done.stderr


@pytest.mark.parametrize(("family", "topic", "one"), [(V4, "dhcp", (3, "router")), (V6, "dhcp6", (23, "dns-server"))])
def test_b_sub_05_names_and_codes_are_dnsmasqs(family: Family, topic: str, one: tuple[int, str]) -> None:
    listed = subprocess.run(["dnsmasq", "--help", topic], capture_output=True, text=True, timeout=10, check=True).stdout
    theirs = {int(code): name for code, name in re.findall(r"^ *(\d+) (\S+)$", listed, re.MULTILINE)}
    assert one in theirs.items()
    assert {code: option.name for code, option in family.by_code.items()} == theirs
    assert not set(family.by_code) & set(family.refused)


# family, name, value
GIVEN = [(V4, *option) for option in ACCEPTED] + [(V6, *option) for option in ACCEPTED6]


@pytest.mark.parametrize(
    ("family", "name", "value"), GIVEN, ids=[f"{of.title}-{name}={value[:20]}" for of, name, value in GIVEN]
)
def test_b_sub_05_dnsmasq_reads_what_is_accepted(tmp_path: Path, family: Family, name: str, value: str) -> None:
    assert reads(tmp_path, [family.written(name, value)]) == ""


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_b_sub_05_dnsmasq_reads_whatever_is_accepted(tmp_path: Path, family: Family) -> None:
    """Values of every look for every option: one that it could not read would keep the network's DHCP from starting."""
    chance = random.Random(SEED)
    names = [*family.by_name, *map(str, range(1, 255)), str(family.last)]
    lines = []
    for _ in range(ROUNDS):
        alphabet = chance.choice(ALPHABETS)
        value = "".join(chance.choice(alphabet) for _ in range(chance.choice((1, 2, 5, 12, 40, MOST))))
        try:
            lines.append(family.written(chance.choice(names), value))
        except Invalid:
            continue
    assert len(lines) > ROUNDS / 4
    complaint = reads(tmp_path, lines)
    number = int(match[1]) if (match := re.search(r"at line (\d+)", complaint)) else 0
    assert complaint == "", f"seed {SEED}: {lines[number - 1] if number else ''}"
    assert reads(tmp_path, [*lines, "224,1.2.3"]) != "", "it does say what it cannot read"
