"""The bundle: all that a host needs to become a node, in one file of JSON that its owner alone may read.

It holds the private key of the node's certificate, so who has it is that node. It is made from what the authority's folder
holds and nothing else: made again it is the same to the byte.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from controlplane.files import write_whole
from controlplane.values import Invalid, slug

FORMAT = 1
SUFFIX = ".bundle"


class BundleError(Exception):
    """What is wrong with a bundle, in one line."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """node: its id. etcd: where its members are, host:port. The rest is PEM: the authority, the node's certificate and key."""

    node: str
    etcd: tuple[str, ...]
    ca: str
    certificate: str
    key: str

    def text(self) -> str:
        return json.dumps({"kumihimo_bundle": FORMAT, **asdict(self)}, indent=2) + "\n"


def read(text: str) -> Bundle:
    """The bundle that a file holds. Raises BundleError."""
    try:
        data: Any = json.loads(text)
    except ValueError:
        data = None
    if not isinstance(data, dict) or "kumihimo_bundle" not in data:
        raise BundleError("this is no bundle; `kumi node invite` makes one")
    if data.pop("kumihimo_bundle") != FORMAT:
        raise BundleError(f"the bundle is of another release; format {FORMAT} is accepted")
    known = {item.name for item in fields(Bundle)}
    if set(data) != known or not isinstance(data["etcd"], list):
        raise BundleError(f"the bundle is not whole; {', '.join(sorted(known))} must be in it")
    if not all(isinstance(value, str) for name in known for value in (data["etcd"] if name == "etcd" else [data[name]])):
        raise BundleError("the bundle is not whole; it must hold texts only")
    try:
        slug(data["node"])
    except Invalid as error:
        raise BundleError(f"the bundle's node: {error.message}") from None
    return Bundle(**{**data, "etcd": tuple(data["etcd"])})


def put(path: Path, content: str, mode: int) -> bool:
    """Make a file so, in one step, or leave it when it is so already. Whether anything was changed. Raises OSError."""
    try:
        if path.read_text() == content and path.stat().st_mode & 0o777 == mode:
            return False
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    write_whole(path, content.encode(), mode, replace=True)
    return True
