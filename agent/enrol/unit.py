"""The agent's systemd unit: found, enabled, started. Where there is no systemd, what to start by hand."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from agent.drivers.exec import ExecError, run
from agent.enrol.bundle import put

NAME = "kumihimo-agent.service"
INSTALLED = Path("/opt/kumihimo/bin")
"""Where unit files expect the programs."""
UNITS = Path("/etc/systemd/system")
COMMAND = ["kumi-agent", "--config", "/etc/kumihimo/agent.toml"]


def is_managed() -> bool:
    """Whether systemd runs this host (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def source() -> Path:
    """The unit that came with this release: of the wheel, or of the source tree. Raises FileNotFoundError."""
    tree = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
    for folder in (Path(sys.prefix) / "lib" / "systemd" / "system", tree):
        if (folder / NAME).is_file():
            return folder / NAME
    raise FileNotFoundError(2, "the unit file did not come with this installation", NAME)


async def start(changed: bool) -> str:
    """Have the agent run from now on; what was done, in a line. changed: its files are new, so one that runs starts anew.

    Raises ExecError with what systemctl said, and OSError.
    """
    programs = Path(sys.prefix) / "bin"
    if not is_managed():
        return f"there is no systemd here; start the agent: {shlex.join([str(programs / COMMAND[0]), *COMMAND[1:]])}"
    unit = source()
    if not INSTALLED.is_dir() or not INSTALLED.samefile(programs):
        text = unit.read_text().replace(f"{INSTALLED}/", f"{programs}/")
        unit = UNITS / NAME
        changed |= put(unit, text, 0o644)
    ran = await _is("is-active")
    if ran and not changed and await _is("is-enabled"):
        return f"{NAME} runs already"
    await run(["systemctl", "daemon-reload"], timeout=60)
    await run(["systemctl", "enable", "--quiet", str(unit)], timeout=60)
    await run(["systemctl", "restart", NAME], timeout=60)
    return f"{NAME} {'started anew' if ran else 'started'}, and is at each boot"


async def _is(question: str) -> bool:
    try:
        await run(["systemctl", question, "--quiet", NAME], timeout=60)
    except ExecError as error:
        if error.code is None:
            raise
        return False
    return True
