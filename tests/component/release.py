"""A release of this tree: a wheel, and an environment of its own in which it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("agent", "cli", "controlplane", "proto", "deploy", "pyproject.toml", "README.md")


def wheel(folder: Path, version: str = "") -> Path:
    """Build the wheel, as `pip wheel .` does in a clean copy of the tree; version: another than the tree's."""
    tree = folder / "tree"
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "*_pb2*"))
        else:
            shutil.copy(ROOT / part, tree / part)
    if version:
        project = tree / "pyproject.toml"
        text, count = re.subn(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text())
        assert count == 1
        project.write_text(text)
    _run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q", "-w", str(folder), str(tree))
    (made,) = folder.glob("*.whl")
    shutil.rmtree(tree)
    return made


def install(made: Path, folder: Path) -> Path:
    """Install a wheel into an empty environment; the folder of its programs. What it depends on is taken from ours."""
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "pip", f"--python={python}", "install", "-q", "--no-index", "--no-deps", str(made))
    (packages,) = folder.glob("lib/python*/site-packages")
    # Behind its own, and without the files in it that would lead to this tree.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, cwd="/")
    assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
