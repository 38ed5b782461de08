"""Programs: running them in a place, waiting for them, finding them again.

Owns: how a program is started (argv, a timeout, output captured), how one that keeps running is watched and ended, and
how a later process finds what an earlier one left running: by its command line in /proc, so that a crash between
starting a program and noting its number can lose nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

Command = str | Sequence[str]
"""An argv list, or a string for `sh -ec`."""


class LabError(Exception):
    """One clear line about what failed; further lines are what the program printed."""


def argv_of(command: Command) -> list[str]:
    """The argv list of `command`."""
    return ["sh", "-ec", command] if isinstance(command, str) else list(command)


def run(
    command: Command,
    *,
    check: bool = True,
    timeout: float = 30.0,
    env: dict[str, str] | None = None,
    input: str | None = None,
) -> str:
    """Run a program to its end and return its standard output, without the last line end.

    `timeout` is in seconds, `env` is added to the environment. LabError when the program cannot be started, runs too
    long, or (with `check`) ends with another status than 0.
    """
    argv = argv_of(command)
    status, output, errors = _complete(argv, timeout, env, input)
    if check and status:
        said = (errors.strip() or output.strip()) or "it printed nothing"
        raise LabError(f"{_shown(argv)}: status {status}: {said}")
    return output.removesuffix("\n")


def succeeds(command: Command, timeout: float = 30.0, env: dict[str, str] | None = None) -> bool:
    """Whether the program ends with status 0; LabError when it cannot be started or runs too long."""
    return _complete(argv_of(command), timeout, env, None)[0] == 0


def _complete(argv: list[str], timeout: float, env: dict[str, str] | None, input: str | None) -> tuple[int, str, str]:
    """Status, output and error output of a program that is ended, with its children, after `timeout` seconds."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=None if env is None else {**os.environ, **env},
            start_new_session=True,  # so that a timeout ends what nsenter started too
        )
    except OSError as error:
        raise LabError(f"{_shown(argv)}: {error.strerror}") from error
    with process:
        try:
            output, errors = process.communicate(input, timeout)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{_shown(argv)}: not done after {timeout:g} s") from error
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output, errors


def _shown(argv: Sequence[str]) -> str:
    """A command line as messages show it: without the way into a host and not too long."""
    words = list(argv)
    if words[:1] == ["nsenter"]:
        words = words[words.index("--wd=/") + 1 :]
    line = " ".join(" ".join([Path(words[0]).name, *words[1:]]).split())
    return line if len(line) <= 160 else line[:157] + "..."


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 30.0, interval: float = 0.02) -> None:
    """Poll `condition` until it holds; LabError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not so after {timeout:g} s")
        time.sleep(interval)


class Background:
    """A program that keeps running until `stop`; what it prints, errors too, can be read at any time.

    Use it as a context manager, or stop it: nothing else ends it. `stop_signal` is what it is stopped by.
    """

    stop_signal = signal.SIGTERM

    def __init__(self, command: Command, shown: str | None = None) -> None:
        """Start the program; LabError when it cannot be started."""
        argv = argv_of(command)
        self.shown = shown or _shown(argv)
        # In append mode, so that reading does not move where the program writes.
        self._output = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - closed by stop()
        self._text: str | None = None
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._output.close()
            raise LabError(f"{self.shown}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the program has not ended."""
        return self._process.poll() is None

    def text(self) -> str:
        """All it has printed so far."""
        if self._text is not None:
            return self._text
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")

    def wait_for(self, text: str, timeout: float = 30.0) -> None:
        """Wait until it has printed `text`; LabError when it ends first, or after `timeout` seconds."""

        def printed() -> bool:
            running = self.running  # asked first: what it printed before it ended counts
            if text in self.text():
                return True
            if not running:
                raise LabError(f"{self.shown}: ended before it printed {text!r}: {self.text().strip()}")
            return False

        wait_until(printed, f"{self.shown} prints {text!r}", timeout)

    def signal(self, number: int) -> None:
        """Send a signal to the program itself, not to the nsenter that started it."""
        for pid in _children(self._process.pid) or [self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, timeout: float) -> int:
        """Wait for the program to end by itself and return its status; LabError after `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.shown}: not done after {timeout:g} s") from error

    def stop(self, timeout: float = 5.0) -> str:
        """Stop the program, kill it when that takes more than `timeout` seconds, return all it printed."""
        if self._text is None:
            if self.running:
                self.signal(self.stop_signal)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._text = self.text()
            self._output.close()
        return self._text


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def detach(command: Command, log: Path, env: dict[str, str] | None = None) -> None:
    """Start a program that outlives this process, its output appended to `log`. LabError when it cannot be started.

    It becomes no child of this process: who ends it, and when, is none of this process's business.
    """
    argv = argv_of(command)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=30,
            check=False,
            env=None if env is None else {**os.environ, **env},
        )
    if done.returncode:
        raise LabError(f"{_shown(argv)}: status {done.returncode}; see {log}")


def processes() -> Iterator[tuple[int, list[str]]]:
    """Number and argv of every process of the machine; kernel threads and zombies, which have no argv, left out."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (argv := argv_at(int(entry))):
            yield int(entry), argv


def argv_at(pid: int) -> list[str]:
    """The argv of a process, empty when there is none."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return line.decode(errors="replace").removesuffix("\0").split("\0") if line else []


def pid_namespace(pid: int) -> str | None:
    """What tells two pid namespaces apart, None when there is no such process."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def kill(pids: Sequence[int], number: int = signal.SIGKILL, timeout: float = 10.0) -> None:
    """Send a signal that ends them to processes of ours and wait until they are gone; gone already is fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    for pid in pids:
        wait_until(lambda pid=pid: not argv_at(pid), f"process {pid} has ended", timeout)  # type: ignore[misc]


def last_lines(path: Path, start: int = 0, count: int = 12) -> str:
    """The last `count` lines a log holds from byte `start`, empty when there is no log."""
    try:
        with path.open("rb") as log:
            log.seek(start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])
    except OSError:
        return ""
