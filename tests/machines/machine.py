"""Virtual machines and the wires between them: qemu without acceleration, in a network namespace that nothing leaves."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

NAMESPACE = "kumi-machines"
BRIDGES = ("underlay", "wire")  # the first and the second interface of every machine
OPERATOR = "192.0.2.1/24"
BOOT = 600.0  # seconds
COMMAND = 600.0


class MachineError(Exception):
    """A machine or a command on it; the text says which and what it printed last."""


@dataclass(slots=True)
class Machine:
    """Number n is host `hN` with address 192.0.2.2N. folder: of the image; memory in MiB."""

    number: int
    folder: Path
    state: Path
    memory: int = 2048
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return f"h{self.number}"

    @property
    def ip(self) -> str:
        return f"192.0.2.2{self.number}"

    def start(self) -> None:
        """Switch it on, and return when it answers."""
        disk = self.state / f"{self.name}.qcow2"
        if not disk.exists():
            _run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(self.folder / "disk"), str(disk))
        boot = f"root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet systemd.hostname={self.name}"
        argv = [
            *("ip", "netns", "exec", NAMESPACE, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-m", str(self.memory), "-display", "none", "-monitor", "none", "-no-reboot"),
            *("-serial", f"file:{self.state / self.name}.console"),
            *("-kernel", str(self.folder / "kernel"), "-initrd", str(self.folder / "initrd")),
            *("-append", f"{boot} ip={self.ip}::{OPERATOR.partition('/')[0]}:255.255.255.0:{self.name}:eth0:off"),
            *("-drive", f"file={disk},if=virtio,cache=unsafe"),
        ]
        for index in range(len(BRIDGES)):
            argv += ["-netdev", f"tap,id=n{index},ifname={self._tap(index)},script=no,downscript=no"]
            argv += ["-device", f"virtio-net-pci,netdev=n{index},mac=52:54:00:00:0{index}:0{self.number}"]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + BOOT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise MachineError(f"{self.name} does not come up: {self.state / self.name}.console")
            time.sleep(0.5)

    def _answers(self) -> bool:
        with contextlib.suppress(MachineError):
            return self._ssh("true", 30).returncode == 0
        return False

    def off(self) -> None:
        """Cut its power."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def run(self, script: str, timeout: float = COMMAND) -> str:
        """What a shell script prints that root runs, as its login shell would; MachineError when a command of it fails."""
        done = self._ssh(f"bash -ec {shlex.quote(script)} 2>&1", timeout)
        if done.returncode:
            raise MachineError(f"{self.name}: {script.strip()}: status {done.returncode}\n{done.stdout[-4000:]}")
        return done.stdout

    def succeeds(self, script: str) -> bool:
        return self._ssh(f"bash -ec {shlex.quote(script)}", COMMAND).returncode == 0

    def until(self, script: str, what: str, timeout: float = COMMAND) -> None:
        """Repeat a script until it succeeds."""
        deadline = time.monotonic() + timeout
        while not self.succeeds(script):
            if time.monotonic() > deadline:
                raise MachineError(f"{self.name}: {what}: not so after {timeout:g} s")
            time.sleep(0.2)

    def put(self, source: Path, target: str) -> None:
        """Copy a file or folder to it."""
        _run("ip", "netns", "exec", NAMESPACE, "scp", "-q", "-r", *self._options(), str(source), f"root@{self.ip}:{target}")

    def carry(self, name: str, other: Machine) -> None:
        """Copy a file to the folder of another machine's root."""
        with tempfile.NamedTemporaryFile() as kept:
            _run("ip", "netns", "exec", NAMESPACE, "scp", "-q", *self._options(), f"root@{self.ip}:{name}", kept.name)
            other.put(Path(kept.name), Path(name).name)

    def _ssh(self, command: str, timeout: float) -> subprocess.CompletedProcess[str]:
        argv = ["ip", "netns", "exec", NAMESPACE, "ssh", "-q", *self._options(), f"root@{self.ip}", command]
        try:
            return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise MachineError(f"{self.name}: {command[:200]}: no end after {timeout:g} s") from error

    def _options(self) -> list[str]:
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=20", "ServerAliveInterval=60")
        return ["-i", str(self.folder / "key"), *(word for option in options for word in ("-o", option))]

    def _tap(self, index: int) -> str:
        return f"tap{self.number}-{index}"


@contextlib.contextmanager
def machines(count: int, folder: Path, state: Path) -> Iterator[list[Machine]]:
    """Machines that are switched on; they and what they have written are gone afterwards."""
    found = [Machine(number, folder, state) for number in range(1, count + 1)]
    _run("ip", "netns", "add", NAMESPACE)
    try:
        for index, bridge in enumerate(BRIDGES):
            _inside("link", "add", bridge, "type", "bridge")
            _inside("link", "set", bridge, "up")
            for machine in found:
                _inside("tuntap", "add", machine._tap(index), "mode", "tap")
                _inside("link", "set", machine._tap(index), "master", bridge, "up")
        _inside("address", "add", OPERATOR, "dev", BRIDGES[0])
        for machine in found:
            machine.start()
        yield found
    finally:
        for machine in found:
            machine.off()
        _run("ip", "netns", "delete", NAMESPACE)


def _inside(*words: str) -> None:
    _run("ip", "-n", NAMESPACE, *words)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND, check=False)
    if done.returncode:
        raise MachineError(f"{shlex.join(argv)}: {done.stderr.strip()}")
