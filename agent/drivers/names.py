"""What DNS says of ports: hosts files that a network's dnsmasq watches (drivers/dnsmasq.py).

A network's names are spread over sixteen files {state_dir}/{network_id}/names/{digit}, by the last digit of the port's id:
a file for each port would cost a page of disk and cache for each line, one file for all would be written anew for each
change. A line ends with `# ID`, so that a fresh process knows whose it is. dnsmasq takes up a file that is renamed into the
folder at once, forgets what the former one said, and needs no signal.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.drivers.folder import NAMES, make_folder, mark_of, other_marks, remove_if_empty, write
from agent.faults import point
from agent.model.host import PortName
from agent.model.item import Failure, Item, Key

OWNER = " # "
UUID_LENGTH = 36

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
    for file, changes in files.items():
        try:
            _change(file, changes)
        except OSError as error:
            network = file.parent.parent.name
            failures.update((("name", network, port), Failure("DNS_NAMES", str(error))) for port in changes)
    return failures


def _change(file: Path, changes: Mapping[str, PortName | None]) -> None:
    folder = file.parent.parent
    before = _read(file)
    after = {port: lines for port, lines in before.items() if port not in changes}
    after |= {port: item.lines for port, item in changes.items() if item is not None}
    if not after:
        file.unlink(missing_ok=True)
        point("names: file removed")
        remove_if_empty(folder)
    elif after != before:
        for readable in (folder.parent, folder, file.parent):
            make_folder(readable)
        text = "".join(f"{line}{OWNER}{port}\n" for port, lines in sorted(after.items()) for line in lines)
        write(folder, f"{NAMES}/{file.name}", text)
        point("names: file written")


def _file_of(port_id: str) -> str:
    return port_id[-1] if len(port_id) == UUID_LENGTH else port_id


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
