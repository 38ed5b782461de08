"""The systemd units: what they may do, that the lab starts the same, and that systemd itself accepts them."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import pytest

from agent.drivers.dnsmasq import DnsmasqDriver
from agent.main import main as agent_main
from deploy.lab.config import Files
from deploy.lab.init import PERSISTENT
from deploy.lab.service import UNITS, Unit

NAMES = ("kumihimo-agent", "kumihimo-api")
EXPOSURE = {"kumihimo-agent": 78, "kumihimo-api": 15}
"""The most that `systemd-analyze security` may give, times ten: what the agent does needs the host's own mounts."""


def options(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / f"{name}.service")
    return parser["Service"]


def test_children_outlive_the_agent_and_so_do_its_files() -> None:
    agent = options("kumihimo-agent")
    assert agent["KillMode"] == "process"
    assert agent["RuntimeDirectoryPreserve"] == "yes", "pid files of daemons that run on"
    assert agent["Restart"] == "always"


def test_nothing_gives_the_agent_mounts_of_its_own() -> None:
    # Namespaces it makes below /run/netns would be seen by nobody else.
    forbidden = ("PrivateTmp", "PrivateDevices", "PrivateMounts", "ReadOnlyPaths", "InaccessiblePaths", "MountFlags")
    protections = ("ProtectSystem", "ProtectHome", "ProtectKernelModules", "ProtectKernelLogs", "ProtectKernelTunables")
    found = {*forbidden, *protections, "ProtectControlGroups", "ProtectProc", "RootDirectory", "DynamicUser"}
    assert found & set(options("kumihimo-agent")) == set()


def test_the_api_may_do_nothing_of_root() -> None:
    api = options("kumihimo-api")
    assert (api["User"], api["CapabilityBoundingSet"], api["ProtectSystem"]) == ("kumihimo", "", "strict")


def test_api_and_agent_share_no_folder() -> None:
    # systemd gives a folder to the user of whoever starts last.
    keys = ("RuntimeDirectory", "StateDirectory", "LogsDirectory")
    agent, api = ({(key, options(name)[key]) for key in keys if key in options(name)} for name in NAMES)
    assert agent & api == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_73_lab_and_unit_agree(name: str) -> None:
    service, unit = options(name), Unit.read(name)
    command = service["ExecStart"].split()
    assert command[0] == f"/opt/kumihimo/bin/{Path(unit.argv[0]).name}"
    assert list(unit.argv[1:]) == command[1:]
    assert f"CAP_{' CAP_'.join(unit.capabilities or ())}".upper().removesuffix("CAP_") == service["CapabilityBoundingSet"]
    assert unit.no_new_privileges
    wanted = {f"/run/{service['RuntimeDirectory']}"}
    wanted |= {f"/var/lib/{word}" for word in service.get("StateDirectory", "").split()}
    assert set(unit.folders) == wanted
    assert unit.umask == service["UMask"]


def test_the_agent_uses_the_folders_that_its_unit_gives_it(tmp_path: Path) -> None:
    agent, driver = options("kumihimo-agent"), DnsmasqDriver()
    assert driver._run.parent == Path("/run") / agent["RuntimeDirectory"]
    assert driver._state.parent == Path("/var/lib") / agent["StateDirectory"]
    assert {f"/var/lib/{agent['StateDirectory']}", f"/var/log/{agent['LogsDirectory']}"} <= set(PERSISTENT.values())
    files = Files(tmp_path, "192.0.2.1", tracing=True)
    assert any(f"/var/log/{agent['LogsDirectory']}/" in line for line in files._tracing())
    assert agent_main.__module__ == "agent.main"


def test_a_command_line_is_bounded_as_the_unit_says() -> None:
    agent = Unit.read("kumihimo-agent").bounded
    assert agent[:2] == ["setpriv", "--no-new-privs"]
    assert agent[-1].startswith("--bounding-set=-all,+net_admin,")
    assert Unit.read("kumihimo-api").bounded[-1] == "--bounding-set=-all"
    assert Unit(("true",)).bounded == []


@pytest.mark.parametrize("name", NAMES)
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    text = (UNITS / f"{name}.service").read_text()
    file = tmp_path / f"{name}.service"
    file.write_text(text.replace("/opt/kumihimo/bin/", f"{Path(Unit.read(name).argv[0]).parent}/"))
    done = _run("systemd-analyze", "verify", str(file))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # Shown to be able to fail: a misspelt option is told.
    file.write_text(file.read_text().replace("KillMode=", "KilMode=").replace("ProtectHome=", "ProtctHome="))
    assert "Unknown key" in _run("systemd-analyze", "verify", str(file)).stderr
    done = _run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE[name]}", str(UNITS / file.name))
    assert done.returncode == 0, re.findall("Overall.*", done.stdout)


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)
