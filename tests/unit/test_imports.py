"""Who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"controlplane", "agent", "cli", "deploy", "kumihimo", "tests", "proto"}


def modules(*packages: str) -> list[Path]:
    """The source files of packages; generated code left out."""
    found: list[Path] = []
    for package in packages:
        place = ROOT / package.replace(".", "/")
        files = [place.with_suffix(".py")] if place.with_suffix(".py").is_file() else sorted(place.rglob("*.py"))
        found += [file for file in files if "_pb2" not in file.name]
    assert found, packages
    return found


def imported(file: Path) -> Iterator[str]:
    """Every name that a file imports, at the top or inside, with what is taken out of a package: "agent.model.flow"."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], node.module or ""]) if node.level else node.module or ""
            yield from (f"{base.rstrip('.')}.{alias.name}" for alias in node.names)


def ours(file: Path) -> set[str]:
    return {name for name in imported(file) if name.split(".")[0] in OURS}


def below(name: str, *places: str) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


# package → what of ours it may import besides itself
RULES = {
    "proto": (),
    "controlplane.errors": (),
    "controlplane.values": ("kumihimo.v1",),
    "controlplane.registry": ("kumihimo.v1",),
    "controlplane.config": ("controlplane.errors", "controlplane.tls"),
    "controlplane.identity": ("controlplane.errors",),
    "controlplane.oidc": ("controlplane.config", "controlplane.errors", "controlplane.identity"),
    "controlplane.tokens": ("controlplane.config", "controlplane.errors", "controlplane.identity", "controlplane.oidc"),
    "controlplane.redaction": ("kumihimo.v1", "controlplane.registry"),
    "controlplane.validate": ("kumihimo.v1", "controlplane.errors", "controlplane.registry", "controlplane.values"),
    "controlplane.masks": (
        "kumihimo.v1",
        "controlplane.errors",
        "controlplane.registry",
        "controlplane.validate",
        "controlplane.values",
    ),
    "controlplane.tls": ("controlplane.errors",),
    "controlplane.store": ("kumihimo.v1", "controlplane.errors", "controlplane.registry", "controlplane.tls"),
    "controlplane.services": (
        "kumihimo.v1",
        "controlplane.config",
        "controlplane.dhcpoptions",
        "controlplane.errors",
        "controlplane.identity",
        "controlplane.masks",
        "controlplane.names",
        "controlplane.redaction",
        "controlplane.validate",
        "controlplane.registry",
        "controlplane.store",
        "controlplane.values",
    ),
    "controlplane.controllers": (
        "kumihimo.v1",
        "controlplane.errors",
        "controlplane.process",
        "controlplane.progress",
        "controlplane.registry",
        "controlplane.services",
        "controlplane.store",
        "controlplane.values",
    ),
    "controlplane.audit": (
        "kumihimo.v1",
        "controlplane.registry",
        "controlplane.services",
        "controlplane.store",
        "controlplane.values",
    ),
    "controlplane.dhcpoptions": ("controlplane.values",),
    "controlplane.files": (),
    "controlplane.process": (),
    "controlplane.names": ("kumihimo.v1",),
    "controlplane.serving": ("controlplane.tls",),
    "controlplane.admin": (
        "kumihimo.v1",
        "controlplane.audit",
        "controlplane.config",
        "controlplane.controllers",
        "controlplane.errors",
        "controlplane.files",
        "controlplane.store",
        "controlplane.tls",
        "controlplane.values",
    ),
    "controlplane.api": ("kumihimo.v1", "controlplane"),
    "agent.model": (),
    "agent.rtnetlink": (),
    "agent.compile": (
        "kumihimo.v1",
        "agent.model",
        "agent.facts.model",
        "agent.mirror.groups",
        "agent.mirror.scope",
        "agent.mirror.state",
        "controlplane.dhcpoptions",
        "controlplane.names",
        "controlplane.values.LINK_LOCAL",
        "controlplane.values.Invalid",
        "controlplane.store.keys",
        "controlplane.values.eui64",
        "controlplane.values.overhead",
        "controlplane.values.service_mac",
    ),
    "agent.drivers": ("agent.model", "agent.facts.ovsdb", "agent.faults", "agent.rtnetlink"),
    "agent.facts": (
        "kumihimo.v1",
        "agent.model",
        "agent.drivers.exec",
        "agent.drivers.unixctl",
        "agent.rtnetlink",
        "controlplane.values.overhead",
    ),
    "agent.reconcile": (
        "kumihimo.v1",
        "controlplane.errors",
        "controlplane.store",
        "agent.compile",
        "agent.drivers",
        "agent.facts",
        "agent.faults",
        "agent.mirror",
        "agent.model",
    ),
    "agent.inspection": (
        "kumihimo.v1",
        "controlplane.errors",
        "controlplane.serving",
        "controlplane.store.access",
        "controlplane.store.keys",
        "controlplane.tls",
        "agent.compile",
        "agent.drivers.exec",
        "agent.drivers.openflow.codec",
        "agent.drivers.unixctl",
        "agent.facts",
        "agent.mirror.groups",
        "agent.mirror.state",
        "agent.model",
    ),
    "agent.enrol": ("kumihimo.v1", "controlplane", "cli", "agent.settings", "agent.drivers", "agent.facts"),
    "agent.settings": ("controlplane.config", "controlplane.errors", "controlplane.tls", "controlplane.values"),
    "agent.mirror": ("kumihimo.v1", "controlplane", "agent.facts.model", "agent.model", "agent.faults"),
    "cli": ("kumihimo.v1",),
}


@pytest.mark.parametrize("package", RULES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    broken = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in modules(package)
        for name in ours(file)
        if not below(name, package, *RULES[package])
    }
    assert broken == set()


def test_compile_is_pure() -> None:
    forbidden = ("asyncio", "grpc", "aetcd", "subprocess", "time", "datetime", "random", "secrets", "socket", "os", "threading")
    broken = {f"{file.name}: {name}" for file in modules("agent.compile", "agent.model") for name in imported(file)}
    assert {line for line in broken if below(line.split(": ")[1], *forbidden)} == set()


def test_only_commands_of_the_agent_import_the_cli() -> None:
    found = {file.relative_to(ROOT).as_posix() for file in modules("agent") if any(below(name, "cli") for name in ours(file))}
    assert found <= {"agent/attach.py", "agent/enrol/invite.py"}
    for file in modules("controlplane", "deploy"):
        assert not [name for name in ours(file) if below(name, "cli")], file


def test_the_control_plane_knows_nothing_of_agent_and_lab() -> None:
    for file in modules("controlplane"):
        assert not [name for name in ours(file) if below(name, "agent", "deploy", "tests")], file
    for file in modules("agent", "cli"):
        assert not [
            name for name in ours(file) if below(name, "deploy", "tests", "controlplane.api", "controlplane.controllers")
        ], file


def test_etcd_messages_are_known_to_the_store_only() -> None:
    found = {
        file.relative_to(ROOT).as_posix()
        for file in modules("controlplane", "agent", "cli")
        if any(below(name, "aetcd", "etcd3") for name in imported(file))
    }
    assert found <= {
        "controlplane/store/access.py",
        "controlplane/store/client.py",
        "controlplane/store/feed.py",
        "controlplane/store/maintenance.py",
    }


def test_programs_are_started_by_one_module_of_the_agent_and_one_command() -> None:
    found = {
        file.name
        for file in modules("agent")
        if any(below(name, "subprocess", "asyncio.subprocess") for name in imported(file))
    }
    assert found <= {"exec.py"}
    found = {
        file.relative_to(ROOT).as_posix()
        for file in modules("controlplane")
        if any(below(name, "subprocess", "asyncio.subprocess") for name in imported(file))
    }
    assert found <= {"controlplane/admin/restore.py"}


def test_the_checks_see_an_import_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.test_imports.ROOT", tmp_path)
    file = tmp_path / "agent" / "compile" / "bad.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from . import view\nfrom ..drivers import exec\ndef f():\n    import time, agent.main\n    from cli import main\n"
    )
    assert set(imported(file)) == {"agent.compile.view", "agent.drivers.exec", "time", "agent.main", "cli.main"}
