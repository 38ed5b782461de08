"""The wheel: what is in it, and that an environment with nothing else has all commands and units."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from deploy.lab.service import UNITS
from tests.component import release

VERSION = "7.8.9"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release.wheel(tmp_path_factory.mktemp("wheel"), VERSION)


@pytest.fixture(scope="module")
def programs(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release.install(made, tmp_path_factory.mktemp("environment") / "kumihimo")


def test_a_75_the_wheel_holds_all_parts_and_nothing_else(made: Path) -> None:
    names = set(zipfile.ZipFile(made).namelist())
    data = f"kumihimo-{VERSION}.data/data/lib/systemd/system"
    assert {f"{data}/{path.name}" for path in UNITS.glob("*.service")} <= names
    wanted = {"agent/main.py", "cli/main.py", "controlplane/api/server.py", "agent/enrol/join.py"}
    for proto in (release.ROOT / "proto").glob("kumihimo/v1/*.proto"):
        wanted |= {f"kumihimo/v1/{proto.name}", *(f"kumihimo/v1/{proto.stem}_pb2{end}" for end in (".py", "_grpc.py"))}
    assert wanted <= names
    assert {name.partition("/")[0] for name in names} == {
        *("agent", "cli", "controlplane", "kumihimo"),
        *(f"kumihimo-{VERSION}.{end}" for end in ("data", "dist-info")),
    }


def test_c_07_an_empty_environment_runs_the_three_commands(programs: Path) -> None:
    said = run(programs / "kumi", "--version")
    assert said == f"kumi {VERSION}"
    assert "--config" in run(programs / "kumi-api", "--help")
    assert "--config" in run(programs / "kumi-agent", "--help")
    where = run(programs / "python", "-c", "import agent, cli, controlplane, kumihimo.v1.node_pb2 as p; print(agent, p)")
    assert where.count(str(programs.parent)) == 2, "none of it is of the tree"
    # The plug-ins, with all that they load.
    assert "BUNDLE" in run(programs / "kumi", "node", "join", "--help")
    assert "--pki" in run(programs / "kumi", "node", "invite", "--help")


def test_the_units_lie_where_the_documented_command_has_them(programs: Path) -> None:
    folder = programs.parent / "lib" / "systemd" / "system"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        path.name: path.read_text() for path in UNITS.glob("*.service")
    }
    where = "import agent.enrol.unit as unit; print(unit.source())"
    assert run(programs / "python", "-c", where) == str(folder / "kumihimo-agent.service")


def run(*argv: object) -> str:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()
