"""The set-up's choice of what it fetches for the tests, and what it says where that cannot be had."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[2] / "deploy" / "setup"


def client(machine: str, *, npm: bool = True) -> subprocess.CompletedProcess[str]:
    """The step that fetches buf, on a machine of this kind; it says what it would do."""
    script = f"""
        source {SETUP}
        cd "$(mktemp -d)" && mkdir .venv && trap 'rm -r "$PWD"' EXIT
        uname() {{ echo {machine}; }}
        step() {{ echo "${{@:2}}"; }}
        command() {{ {"true" if npm else "false"}; }}
        client
    """
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=20)


@pytest.mark.parametrize(("machine", "platform"), [("x86_64", "x64"), ("aarch64", "aarch64")])
def test_the_client_of_this_kind_of_machine_is_fetched(machine: str, platform: str) -> None:
    said = client(machine)
    assert (said.returncode, said.stderr) == (0, "")
    assert f" @bufbuild/buf-linux-{platform}@" in said.stdout
    assert f"/bufbuild-buf-linux-{platform}-" in said.stdout


@pytest.mark.parametrize(
    ("machine", "npm", "words"), [("riscv64", True, "there is none for riscv64"), ("x86_64", False, "the tests need npm")]
)
def test_where_it_cannot_be_had_one_line_says_so(machine: str, npm: bool, words: str) -> None:
    said = client(machine, npm=npm)
    assert said.returncode == 1
    (line,) = said.stderr.splitlines()
    assert line.startswith("setup: ")
    assert words in line
    assert said.stdout == ""
