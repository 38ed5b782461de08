"""What DNS says of ports: hosts files that a network's dnsmasq watches (drivers/dnsmasq.py).

A network's names are spread over 256 files {state_dir}/{network_id}/names/{digits}, by the last two digits of the port's id:
dnsmasq reads a file that changed as a whole, and looks for each line through all that it knows; a file for each port would
cost a page of disk and cache for each line. A line ends with `# ID`, so that a fresh process knows whose it is. dnsmasq takes
up a file that is renamed into the folder at once, forgets what the former one said, and needs no signal.

What one file says already is not taken up from another, nor who has an address: so an address leaves its file before it
comes to another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agent.drivers.folder import NAMES, make_folder, mark_of, other_marks, remove_if_empty, write
from agent.faults import point
from agent.model.host import PortName
from agent.model.item import Failure, Item, Key

OWNER = " # "
UUID_LENGTH = 36
DIGITS = 2

# Lines by port.
_Names = dict[str, tuple[str, ...]]


class NamesDriver:
    """Makes PortName items real, a file at a time."""

    kinds = frozenset({"name"})

    def __init__(self, state_dir: str = "/var/lib/kumihimo/dhcp") -> None:
        self._state = Path(state_dir)
        # As last read. None: we have written since, and what others take away at once would look like what was before.
        self._seen: dict[str, object] | None = None

    async def changed(self) -> None:
        """Return when the files are not what they were when they were last read."""
        await other_marks(self._marks, lambda: self._seen)

    def _marks(self) -> dict[str, object]:
        return {str(file): mark_of(file.stat()) for file in self._state.glob(f"*/{NAMES}/*")}

    async def read_foreign(self) -> Sequence[Item]:
        """Nothing: all in these files is ours."""
        return ()

    async def read_owned(self) -> Mapping[Key, Item]:
        """All names that are in files."""
        return await asyncio.to_thread(self._read_owned)

    def _read_owned(self) -> dict[Key, Item]:
        self._seen = self._marks()
        items: dict[Key, Item] = {}
        for file in self._state.glob(f"*/{NAMES}/*"):
            for port, lines in _read(file).items():
                item = PortName(file.parent.parent.name, port, lines)
                items[item.key] = item
        return items

    async def apply(self, put: Sequence[Item], delete: Sequence[Item]) -> Mapping[Key, Failure]:
        """Each file that is concerned is written once."""
        self._seen = None
        files: dict[Path, dict[str, PortName | None]] = defaultdict(dict)
        for items, deleting in ((delete, True), (put, False)):
            for item in items:
                if isinstance(item, PortName):
                    file = self._state / item.network_id / NAMES / _file_of(item.port_id)
                    files[file][item.port_id] = None if deleting else item
        return await asyncio.to_thread(_write_all, files)


def _write_all(files: Mapping[Path, Mapping[str, PortName | None]]) -> dict[Key, Failure]:
    failures: dict[Key, Failure] = {}

    @contextlib.contextmanager
    def telling(file: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            network = file.parent.parent.name
            failures.update((("name", network, port), Failure("DNS_NAMES", str(error))) for port in files[file])

    before: dict[Path, _Names] = {}
    for file in files:
        with telling(file):
            before[file] = _read(file)
    after = {file: _changed(names, files[file]) for file, names in before.items()}
    for file, names in [*_without_moved(before, after), *after.items()]:
        if names != before[file]:
            with telling(file):
                _replace(file, names)
                before[file] = names
    return failures


def _changed(names: _Names, changes: Mapping[str, PortName | None]) -> _Names:
    kept = {port: lines for port, lines in names.items() if port not in changes}
    return kept | {port: item.lines for port, item in changes.items() if item is not None}


def _without_moved(before: Mapping[Path, _Names], after: Mapping[Path, _Names]) -> Iterator[tuple[Path, _Names]]:
    """What is said, while addresses leave files, by these: of all that shall be said what is about other addresses."""
    gone = {file: _addresses(before[file]) - _addresses(names) for file, names in after.items()}
    moving = {(file.parent, address) for file, addresses in gone.items() for address in addresses}
    for file, names in after.items():
        if gone[file]:
            stays = {
                port: tuple(line for line in lines if (file.parent, _address(line)) not in moving)
                for port, lines in names.items()
            }
            yield file, {port: lines for port, lines in stays.items() if lines}


def _addresses(names: _Names) -> set[str]:
    return {_address(line) for lines in names.values() for line in lines}


def _address(line: str) -> str:
    return line.partition(" ")[0]


def _replace(file: Path, names: _Names) -> None:
    """Have a file say that, in one step."""
    folder = file.parent.parent
    if not names:
        file.unlink(missing_ok=True)
        point("names: file removed")
        remove_if_empty(folder)
        return
    for readable in (folder.parent, folder, file.parent):
        make_folder(readable)
    text = "".join(f"{line}{OWNER}{port}\n" for port, lines in sorted(names.items()) for line in lines)
    write(folder, f"{NAMES}/{file.name}", text)
    point("names: file written")


def _file_of(port_id: str) -> str:
    return port_id[-DIGITS:] if len(port_id) == UUID_LENGTH else port_id


def _read(file: Path) -> _Names:
    names: _Names = {}
    try:
        text = file.read_text(errors="replace")
    except FileNotFoundError:
        return names
    for line in text.splitlines():
        said, _, port = line.partition(OWNER)
        if _file_of(port) != file.name:
            port = file.name  # a stranger's line goes by the file that it stands in
        names[port] = (*names.get(port, ()), said)
    return names
