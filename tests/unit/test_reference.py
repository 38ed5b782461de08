"""The reference pages are what the sources say (A-47), and every reason has a line (A-10)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent.model.pipeline import REASONS_OF_SENDER
from cli.kinds import kinds
from cli.main import root
from docs import generate
from tests.unit.test_imports import modules

# Algorithms, values, environment, alarms of etcd, usage texts, protocols, words of Open vSwitch: in capitals, and no reasons.
OTHERS = re.compile(
    r"(RS|PS|ES)\d+|UNSPECIFIED|PARENT|NAMES?|FILE|BUNDLE|NONE|USER|SIZE|CORRUPT|NOSPACE|GRPC_VERBOSITY|NOTIFY_SOCKET|ETCDCTL_API|KUMI_FAULT"
    r"|ICMP|SCTP|IN_PORT|NXM_\w+"
)
_WORD = re.compile(r"(?=.{4})[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")


@pytest.fixture(scope="module")
def sources() -> list[generate.Source]:
    return generate.sources()


def reasons_in(files: list[Path]) -> set[str]:
    """Every string of the code that is a word in capitals."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _WORD.fullmatch(node.value):
                found.add(node.value)
    return {word for word in found if not OTHERS.fullmatch(word)}


def test_every_reason_of_a_port_for_a_drop_is_explained() -> None:
    text = (generate.PAGES / "errors.md").read_text().partition("## Why packets of a port are dropped")[2]
    assert set(re.findall(r"[A-Z][A-Z0-9_]{3,}", text)) >= {reason.name for reason in REASONS_OF_SENDER}


def documented(page: str) -> list[str]:
    return re.findall(r"^\| ([A-Z][A-Z0-9_]+) \|", page, re.MULTILINE)


def test_a10_every_reason_has_one_line_and_every_line_a_reason() -> None:
    page = documented((generate.PAGES / "errors.md").read_text())
    assert len(page) == len(set(page))
    assert set(page) == reasons_in(modules("controlplane", "agent"))


def test_reasons_are_found_wherever_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "new.py"
    file.write_text('raise ApiError(Code.X, "NEW_REASON", f"text")\nfault("field", "OTHER" if x else "THIRD_2", "t")\n')
    assert reasons_in([file]) == {"NEW_REASON", "OTHER", "THIRD_2"}
    assert documented("| NEW_REASON | when | |\n| reason | when |\n") == ["NEW_REASON"]


def test_a47_nothing_of_the_contract_is_without_a_comment(sources: list[generate.Source]) -> None:
    assert generate.undocumented(sources) == []


def test_a47_what_has_no_comment_is_found(tmp_path: Path) -> None:
    file = tmp_path / "kumihimo" / "v1" / "x.proto"
    file.parent.mkdir(parents=True)
    file.write_text(
        'syntax = "proto3";\npackage kumihimo.v1;\nmessage A {\n  // Told.\n  string told = 1;\n  string b = 2;\n}\n'
        "enum E {\n  E_UNSPECIFIED = 0;\n}\nservice S {\n  rpc Do(A) returns (A);\n}\n"
    )
    found = generate.undocumented(generate.sources(tmp_path))
    assert found == [f"x.proto: {name}" for name in ("A", "A.b", "E", "E_UNSPECIFIED", "S", "S.Do")]


def test_a47_the_pages_are_what_the_sources_say() -> None:
    """In a process of its own: a command keeps the help option that it was first asked with."""
    check = [sys.executable, "-m", "docs.generate", "--check"]
    done = subprocess.run(check, cwd=generate.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a47_a_stale_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new.md").write_text("new")
    (tmp_path / "old.md").write_text("old")
    monkeypatch.setattr(generate, "pages", lambda: {tmp_path / name: "new" for name in ("new.md", "old.md", "no.md")})
    with pytest.raises(SystemExit, match=r": old\.md, no\.md$"):
        generate.main(["--check"])
    generate.main([])
    with pytest.raises(SystemExit, match="0"):
        generate.main(["--check"])


def test_a47_the_pages_hold_every_field_and_every_command(sources: list[generate.Source]) -> None:
    api, cli = generate.api_page(sources), generate.cli_page()
    for kind in kinds().values():
        for field in kind.descriptor.fields:
            assert f"| `{field.name}` = {field.number} |" in api
        for method in kind.service.methods:
            assert f"| {method.name} | " in api
        assert f"## kumi {kind.noun} create\n" in cli
    for name in root.commands:
        assert f"## kumi {name}\n" in cli
