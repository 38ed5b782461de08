"""The options a port may be given are those that the real dnsmasq knows, and it can read each value that is accepted."""

from __future__ import annotations

import os
import random
import re
import string
import subprocess
from pathlib import Path

import pytest

from controlplane.dhcpoptions import BY_CODE, BY_NAME, MOST, REFUSED, written
from controlplane.values import Invalid
from tests.component.dhcp import ACCEPTED

SEED = int(os.environ.get("KUMI_SEED", "4"))
ROUNDS = 20_000 if os.environ.get("KUMI_FULL") else 1_000
ALPHABETS = ("0123456789", "0123456789.", "0123456789.,/", "0123456789abcdef:", string.printable[:-5], '",\\#: ')


def reads(tmp_path: Path, lines: list[str]) -> str:
    """What dnsmasq objects to in these lines; "" when nothing."""
    file = tmp_path / "dnsmasq.conf"
    file.write_text("".join(f"dhcp-option-force=tag:x,{line}\n" for line in lines))
    done = subprocess.run(["dnsmasq", "--test", f"--conf-file={file}"], capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else done.stderr


def test_b_sub_05_names_and_codes_are_dnsmasqs() -> None:
    listed = subprocess.run(["dnsmasq", "--help", "dhcp"], capture_output=True, text=True, timeout=10, check=True).stdout
    theirs = {int(code): name for code, name in re.findall(r"^ *(\d+) (\S+)$", listed, re.MULTILINE)}
    assert theirs[3] == "router"
    assert {code: option.name for code, option in BY_CODE.items()} == theirs
    assert not set(BY_CODE) & set(REFUSED)


@pytest.mark.parametrize("option", ACCEPTED, ids=lambda option: f"{option[0]}={option[1][:20]}")
def test_b_sub_05_dnsmasq_reads_what_is_accepted(tmp_path: Path, option: tuple[str, str]) -> None:
    assert reads(tmp_path, [written(*option)]) == ""


def test_b_sub_05_dnsmasq_reads_whatever_is_accepted(tmp_path: Path) -> None:
    """Values of every look for every option: one that it could not read would keep the network's DHCP from starting."""
    chance = random.Random(SEED)
    names = [*BY_NAME, *map(str, range(1, 255))]
    lines = []
    for _ in range(ROUNDS):
        alphabet = chance.choice(ALPHABETS)
        value = "".join(chance.choice(alphabet) for _ in range(chance.choice((1, 2, 5, 12, 40, MOST))))
        try:
            lines.append(written(chance.choice(names), value))
        except Invalid:
            continue
    assert len(lines) > ROUNDS / 4
    complaint = reads(tmp_path, lines)
    number = int(match[1]) if (match := re.search(r"at line (\d+)", complaint)) else 0
    assert complaint == "", f"seed {SEED}: {lines[number - 1] if number else ''}"
    assert reads(tmp_path, [*lines, "224,1.2.3"]) != "", "it does say what it cannot read"
