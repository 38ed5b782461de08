"""One dnsmasq per network and node, for DHCP, DNS and router advertisements.

A server's folder {state_dir}/{network_id} holds dnsmasq.conf, hosts/ (a file for each port and family, which dnsmasq
watches), names/ (drivers/names.py) and leases, which survive a power-off; its pid file lies in run_dir. The daemon detaches
itself and outlives the agent; a later agent adopts it when /proc says that the process was started with this folder's file.

The file is our own lines, the mark, then DhcpServer.config as it is. Ours: pid-file, dhcp-leasefile, dhcp-hostsdir,
hostsdir and the quiet-* lines. All the rest is the item's: `no-hosts`, `no-resolv`, `bind-dynamic`, `interface`,
`dhcp-authoritative`, `dhcp-range`, `dhcp-option` and so on. A host is the value of a dhcp-host line, for example
`fa:16:3e:00:00:01,set:TAG,10.0.0.5` or `fa:16:3e:00:00:01,[fd00::5]`. dnsmasq logs to syslog, which limits the rate:
a guest could fill the disk through a file of its own. It gives root up, so the folders must be readable by all.

A new host is renamed into the folder and served at once, without a signal. When a host is changed or removed, dnsmasq
is stopped, the addresses that the host had are dropped from the lease file, and dnsmasq is started again (8 to 35 ms,
in which clients retry). SIGHUP would not do: after it the address stays leased to the old MAC until the lease ends,
and the next port with that address gets none. Stopping first also means that a process that runs was always started
with what the folder holds, whenever the agent died.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from agent.drivers.exec import ExecError, run
from agent.drivers.folder import NAMES, has_server, make_folder, mark_of, other_marks, remove_if_empty, write
from agent.faults import point
from agent.model.host import NOT_RUNNING, DhcpServer
from agent.model.item import Failure, Item, Key

MARK = "# configuration\n"
NAMESPACE = "# namespace "
SERVER_FILES = ("leases", "dnsmasq.conf")  # in this order: the last one says that there is a server
STOP_SECONDS = 5.0
NETNS = Path("/run/netns")
Address = IPv4Address | IPv6Address


class DnsmasqDriver:
    """Makes DhcpServer items real. Servers are independent: one that hangs does not delay the others."""

    kinds = frozenset({"dhcp"})

    def __init__(self, state_dir: str = "/var/lib/kumihimo/dhcp", run_dir: str = "/run/kumihimo/dhcp") -> None:
        self._state = Path(state_dir)
        self._run = Path(run_dir)
        self._namespaces: dict[str, str] = {}  # of each server, as last read
        self._seen: object = None  # marks when all was read last; None: something was written since

    async def changed(self) -> None:
        """Return when files or processes are not what they were when they were last read."""
        await other_marks(self._marks, lambda: self._seen)

    def _marks(self) -> dict[str, object]:
        """Of each server what changes when anything of it does; cheaper than to read it."""
        return {folder.name: (_marks_of(folder), self._runs(folder)) for folder in self._folders()}

    def _folders(self) -> list[Path]:
        return sorted(folder for folder in self._state.glob("*") if has_server(folder))

    def _runs(self, folder: Path) -> bool:
        namespace = self._namespaces.get(folder.name) or _configuration(folder)[0]
        return _running(folder, self._pid(folder), namespace)

    async def read_owned(self) -> Mapping[Key, Item]:
        """All servers that have a folder; of one that does not run it is said."""
        items = await asyncio.to_thread(self._read_all)
        return {item.key: item for item in items}

    def _read_all(self) -> list[DhcpServer]:
        self._seen = self._marks()
        items = [self._read(folder) for folder in self._folders()]
        self._namespaces = {item.network_id: item.namespace for item in items}
        return items

    async def read_foreign(self) -> Sequence[Item]:
        """Nothing: all in our folder is ours."""
        return ()

    def _read(self, folder: Path) -> DhcpServer:
        namespace, config = _configuration(folder)
        head = _head(folder)
        runs = _running(folder, self._pid(folder), namespace)
        wrong = "" if runs else NOT_RUNNING
        if runs and head != self._lines(folder, namespace):
            wrong = "the driver's own lines of dnsmasq.conf were changed"
        return DhcpServer(folder.name, namespace, config, tuple(sorted(_hosts(folder).items())), wrong)

    async def apply(self, put: Sequence[Item], delete: Sequence[Item]) -> Mapping[Key, Failure]:
        """Every server at the same time; what is to be removed first."""
        failures: dict[Key, Failure] = {}
        for work, items in ((self._delete, delete), (self._put, put)):
            servers = [item for item in items if isinstance(item, DhcpServer)]
            results = await asyncio.gather(*map(work, servers), return_exceptions=True)
            for item, result in zip(servers, results, strict=True):
                if isinstance(result, ExecError | OSError):
                    failures[item.key] = Failure("DNSMASQ", str(result))
                elif result is not None:
                    raise result
        self._seen = None
        return failures

    async def _put(self, item: DhcpServer) -> None:
        folder = self._state / item.network_id
        for readable in (self._state, folder, folder / "hosts", folder / NAMES, self._run):
            make_folder(readable)
            point("dhcp: folder made")
        wanted, present = dict(item.hosts), _hosts(folder)
        gone = {port: line for port, line in present.items() if wanted.get(port) != line}
        running = _running(folder, self._pid(folder), item.namespace)
        written = _head(folder), _configuration(folder)
        if gone or not running or written != (self._lines(folder, item.namespace), (item.namespace, item.config)):
            await self._stop(folder)
            point("dhcp: stopped")
            _free(folder, [address for line in gone.values() for address in _addresses(line)])
            point("dhcp: leases dropped")
            for port in gone:
                (folder / "hosts" / port).unlink()
                point("dhcp: host removed")
            write(folder, "dnsmasq.conf", self._lines(folder, item.namespace) + item.config)
            point("dhcp: configured")
            running = False
        for port, line in wanted.items():
            if present.get(port) != line:
                write(folder, f"hosts/{port}", line + "\n")
                point("dhcp: host written")
        if not running:
            # dnsmasq detaches only when it has its sockets and has written its pid file, else it says why not.
            await run(["ip", "netns", "exec", item.namespace, "dnsmasq", f"--conf-file={folder / 'dnsmasq.conf'}"])
            point("dhcp: started")

    async def _delete(self, item: DhcpServer) -> None:
        folder = self._state / item.network_id
        await self._stop(folder)
        point("dhcp: stopped for good")
        self._pid_file(folder).unlink(missing_ok=True)
        point("dhcp: pid file removed")
        shutil.rmtree(folder / "hosts", ignore_errors=True)
        for file in SERVER_FILES:
            (folder / file).unlink(missing_ok=True)
            point("dhcp: server file removed")
        remove_if_empty(folder)

    def _lines(self, folder: Path, namespace: str) -> str:
        lines = (
            f"{NAMESPACE}{namespace}",
            f"pid-file={self._pid_file(folder)}",
            f"dhcp-leasefile={folder / 'leases'}",
            f"dhcp-hostsdir={folder / 'hosts'}",
            f"hostsdir={folder / NAMES}",
            "quiet-dhcp",
            "quiet-dhcp6",
            "quiet-ra",
        )
        return "\n".join(lines) + "\n" + MARK

    def _pid_file(self, folder: Path) -> Path:
        return self._run / f"{folder.name}.pid"

    def _pid(self, folder: Path) -> int | None:
        try:
            return int(self._pid_file(folder).read_text())
        except (FileNotFoundError, ValueError):
            return None

    async def _stop(self, folder: Path) -> None:
        """End the folder's process, if there is one, and return when it is gone."""
        pid = self._pid(folder)
        if pid is None:
            return
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # Only now, with a handle that the number's next owner cannot take over, is it safe to look and to signal.
            if not _is_ours(folder, pid):
                return
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            if not await _ended(handle, STOP_SECONDS):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                await _ended(handle, STOP_SECONDS)
        except ProcessLookupError:
            return
        finally:
            os.close(handle)


async def _ended(handle: int, seconds: float) -> bool:
    """Wait until the process of a pidfd has ended."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), seconds)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(handle)
    return True


def _is_ours(folder: Path, pid: int) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return f"--conf-file={folder / 'dnsmasq.conf'}".encode() in arguments


def _running(folder: Path, pid: int | None, namespace: str) -> bool:
    """Whether it is our process, and in the namespace that has that name now (it may have been made anew)."""
    if pid is None or not _is_ours(folder, pid):
        return False
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat(NETNS / namespace))
    except (FileNotFoundError, ProcessLookupError):
        return False


def _marks_of(folder: Path) -> object:
    """Inode, time and size of each of a server's files that are not dnsmasq's own."""
    found = []
    for place in (folder, folder / "hosts"):
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(place):
                if entry.name != "leases":
                    found.append((entry.name, *mark_of(entry.stat())))
    return sorted(found)


def _head(folder: Path) -> str:
    """Our own lines of the file."""
    with contextlib.suppress(FileNotFoundError):
        head, mark, _ = (folder / "dnsmasq.conf").read_text(errors="replace").partition(MARK)
        return head + mark
    return ""


def _configuration(folder: Path) -> tuple[str, str]:
    """(namespace, the item's configuration) of the file; empty when there is none."""
    try:
        head, _, config = (folder / "dnsmasq.conf").read_text(errors="replace").partition(MARK)
    except FileNotFoundError:
        return "", ""
    return head.partition("\n")[0].removeprefix(NAMESPACE), config


def _hosts(folder: Path) -> dict[str, str]:
    files = [file for file in (folder / "hosts").glob("*") if file.is_file()]
    return {file.name: file.read_text(errors="replace").removesuffix("\n") for file in files}


def _addresses(line: str) -> Iterable[Address]:
    """The addresses in a dhcp-host line."""
    for word in line.split(","):
        try:
            yield ip_address(word.strip("[]"))
        except ValueError:
            continue


def _free(folder: Path, addresses: Sequence[Address]) -> None:
    """Drop the leases of these addresses, of both families; the server's own DUID stays."""
    leases = folder / "leases"
    if not addresses or not leases.exists():
        return
    lines = leases.read_text().splitlines(keepends=True)
    kept = [line for line in lines if _leased(line) not in addresses]
    if kept != lines:
        write(folder, "leases", "".join(kept))


def _leased(line: str) -> Address | None:
    """The address of a lease: end, MAC (IPv6: IAID), address, name, client id (DUID). `duid …` is the server's own."""
    words = line.split()
    try:
        return ip_address(words[2]) if len(words) > 2 else None
    except ValueError:
        return None
