"""Virtual machines and the wires between them: qemu without acceleration, in a network namespace that nothing leaves."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deploy.lab import Background, LabError, wait_until
from deploy.lab.place import Namespace
from deploy.lab.process import run

NAMESPACE = "kumi-machines"
BRIDGES = ("underlay", "wire")  # the first and the second interface of every machine
OPERATOR = "192.0.2.1"
BOOT = 600.0  # seconds
COMMAND = 600.0


@dataclass(slots=True)
class Machine:
    """Number n is host `hN` with address 192.0.2.2N. folder: of the image; state: of what it writes; memory in MiB."""

    number: int
    folder: Path
    state: Path
    memory: int = 2048
    _qemu: Background | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return f"h{self.number}"

    @property
    def ip(self) -> str:
        return f"192.0.2.2{self.number}"

    def tap(self, index: int) -> str:
        """The end of an interface's cable."""
        return f"tap{self.number}-{index}"

    def run(self, script: str, timeout: float = COMMAND) -> str:
        """What a shell script prints that root runs; LabError when a command of it fails."""
        shell = ["ssh", "-q", *self._options(), f"root@{self.ip}", f"bash -ec {shlex.quote(script)}"]
        return Namespace(NAMESPACE).run(shell, timeout=timeout)

    def until(self, script: str, what: str, timeout: float = COMMAND) -> None:
        """Wait until a script succeeds."""

        def succeeds() -> bool:
            with contextlib.suppress(LabError):
                self.run(script, 60)
                return True
            return False

        wait_until(succeeds, f"{self.name}: {what}", timeout)

    def start(self) -> None:
        """Switch it on, and return when it answers."""
        disk = self.state / f"{self.name}.qcow2"
        if not disk.exists():
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(self.folder / "disk"), str(disk)])
        boot = f"root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet systemd.hostname={self.name}"
        argv = [
            *(*Namespace(NAMESPACE).enter(), "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-m", str(self.memory), "-display", "none", "-monitor", "none", "-no-reboot"),
            *("-serial", f"file:{self.state / self.name}.console"),
            *("-kernel", str(self.folder / "kernel"), "-initrd", str(self.folder / "initrd")),
            *("-append", f"{boot} ip={self.ip}::{OPERATOR}:255.255.255.0:{self.name}:eth0:off"),
            *("-drive", f"file={disk},if=virtio,cache=unsafe"),
        ]
        for index in range(len(BRIDGES)):
            argv += ["-netdev", f"tap,id=n{index},ifname={self.tap(index)},script=no,downscript=no"]
            argv += ["-device", f"virtio-net-pci,netdev=n{index},mac=52:54:00:00:0{index}:0{self.number}"]
        self._qemu = Background(argv)
        self.until("true", f"it comes up; its console is {self.state / self.name}.console", BOOT)

    def off(self) -> None:
        """Cut its power."""
        if self._qemu is not None:
            self._qemu.stop()
            self._qemu = None

    def put(self, source: Path, target: str) -> None:
        """Copy a file or folder to it."""
        self._copy(str(source), f"root@{self.ip}:{target}")

    def carry(self, name: str, other: Machine) -> None:
        """Copy a file to the folder of another machine's root."""
        with tempfile.NamedTemporaryFile() as kept:
            self._copy(f"root@{self.ip}:{name}", kept.name)
            other.put(Path(kept.name), Path(name).name)

    def _copy(self, source: str, target: str) -> None:
        Namespace(NAMESPACE).run(["scp", "-q", "-r", *self._options(), source, target], timeout=COMMAND)

    def _options(self) -> list[str]:
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=20", "ServerAliveInterval=60")
        return ["-i", str(self.folder / "key"), *(word for option in options for word in ("-o", option))]


@contextlib.contextmanager
def machines(count: int, folder: Path, state: Path) -> Iterator[list[Machine]]:
    """Machines that are switched on; they and what they have written are gone afterwards."""
    found = [Machine(number, folder, state) for number in range(1, count + 1)]
    run(["ip", "netns", "add", NAMESPACE])
    try:
        for index, bridge in enumerate(BRIDGES):
            _inside("link", "add", bridge, "type", "bridge")
            _inside("link", "set", bridge, "up")
            for machine in found:
                _inside("tuntap", "add", machine.tap(index), "mode", "tap")
                _inside("link", "set", machine.tap(index), "master", bridge, "up")
        _inside("address", "add", f"{OPERATOR}/24", "dev", BRIDGES[0])
        for machine in found:
            machine.start()
        yield found
    finally:
        for machine in found:
            machine.off()
        run(["ip", "netns", "delete", NAMESPACE])


def _inside(*words: str) -> None:
    run(["ip", "-n", NAMESPACE, *words])
