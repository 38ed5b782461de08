"""Services: a program of a host that is started as its systemd unit says, killed and started again alone."""

from __future__ import annotations

import configparser
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.lab.process import LabError, detach, kill, last_lines, wait_until

if TYPE_CHECKING:
    from deploy.lab.host import Host

UNITS = Path(__file__).resolve().parent.parent / "systemd"
INSTALLED = "/opt/kumihimo/bin/"
"""Where unit files expect the programs; the lab takes them from the environment it runs in."""

SETTLED = 0.3
"""Seconds a service without a sign of readiness must have run to count as started: a wrong option ends it sooner."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What the lab does of a unit file: the command line, folders made before it, the working directory, the umask, and
    what the program may do: its capabilities, None: all, and whether it can get more."""

    argv: tuple[str, ...]
    folders: tuple[str, ...] = ()
    directory: str = "/"
    umask: str = "0022"
    capabilities: tuple[str, ...] | None = None
    no_new_privileges: bool = False

    @classmethod
    def read(cls, name: str, programs: Path = Path(sys.prefix) / "bin") -> Unit:
        """Read deploy/systemd/NAME.service, with the programs of an environment.

        LabError when it is not there or starts nothing.
        """
        path = UNITS / f"{name}.service"
        # Unit files may repeat a key, and their % signs are their own.
        parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        try:
            parser.read_string(path.read_text().replace("\\\n", " "))
            service = parser["Service"]
            line = service["ExecStart"]
        except (OSError, configparser.Error, KeyError) as error:
            raise LabError(f"{path}: no ExecStart could be read: {error}") from error
        argv = tuple(word.replace(INSTALLED, f"{programs}/", 1) for word in shlex.split(line))
        run = [f"/run/{word}" for word in service.get("RuntimeDirectory", "").split()]
        state = [f"/var/lib/{word}" for word in service.get("StateDirectory", "").split()]
        bounds = service.get("CapabilityBoundingSet")
        return cls(
            argv,
            tuple(run + state),
            umask=service.get("UMask", "0022"),
            capabilities=None if bounds is None else tuple(word.removeprefix("CAP_").lower() for word in bounds.split()),
            no_new_privileges=service.get("NoNewPrivileges") == "yes",
        )

    @property
    def bounded(self) -> list[str]:
        """The beginning of a command line that gives a program no more than the unit does; empty: all."""
        argv = ["--no-new-privs"] if self.no_new_privileges else []
        if self.capabilities is not None:
            argv += ["--inh-caps=-all", "--bounding-set=" + ",".join(["-all", *(f"+{name}" for name in self.capabilities)])]
        return ["setpriv", *argv] if argv else []


class Service:
    """A service of `host`; `ready` says whether it serves, without it a service is ready when it keeps running."""

    def __init__(self, host: Host, name: str, unit: Unit, log: Path, ready: Callable[[], bool] | None = None) -> None:
        self.host = host
        self.name = name
        self.unit = unit
        self.log = log
        self.env: dict[str, str] = {}
        self._ready = ready

    @property
    def pids(self) -> list[int]:
        """Numbers, as the machine counts, of its processes with this command line; the first started is first."""
        return self.host.find(list(self.unit.argv))

    @property
    def pid(self) -> int | None:
        """Number of its main process, None when it is not running."""
        return next(iter(self.pids), None)

    def start(self, timeout: float = 20.0) -> None:
        """Start it and wait until it is ready; nothing when it runs.

        LabError, with the last lines of its log, when it ends or is not ready after `timeout` seconds.
        """
        if self.pid is not None:
            return
        program = self.unit.argv[0]
        if shutil.which(program) is None:
            raise LabError(f"{self.name}: there is no {program}; ./deploy/setup installs it")
        written = self.log.stat().st_size if self.log.exists() else 0
        if self.unit.folders:
            self.host.run(["mkdir", "-p", *self.unit.folders])
        masked = ["sh", "-c", f'umask {self.unit.umask}; exec "$@"', "sh"]
        into = [*masked, "setsid", "--fork", *self.unit.bounded, "env", f"--chdir={self.unit.directory}"]
        detach([*self.host.enter(), *into, *self.unit.argv], self.log, self.env)
        started = time.monotonic()

        def ready() -> bool:
            running = self.pid is not None
            age = time.monotonic() - started
            if not running and age > SETTLED:
                raise LabError("it ended")
            return running and (self._ready() if self._ready else age > SETTLED)

        try:
            wait_until(ready, f"{self.name} on {self.host.name} is ready", timeout)
        except LabError as error:
            said = last_lines(self.log, written)
            raise LabError(
                f"{self.name} on {self.host.name} did not start: {error}; its log is {self.log}\n{said}".rstrip()
            ) from error

    def require(self) -> None:
        """LabError, with the last lines of its log, when it is not running."""
        if self.pid is None:
            said = last_lines(self.log)
            raise LabError(f"{self.name} on {self.host.name} is not running; its log is {self.log}\n{said}".rstrip())

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal that ends it to its processes and wait until they are gone; nothing when it does not run."""
        kill(self.pids, number)

    def replace(self, unit: Unit, number: int = signal.SIGTERM) -> None:
        """What `systemctl restart` does when the program has become another one. number: the signal that ends the old one."""
        self.kill(number)
        self.unit = unit
        self.start()
