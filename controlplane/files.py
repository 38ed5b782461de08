"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(path: Path, content: bytes, mode: int, *, replace: bool) -> None:
    """Make a file of this mode, whatever the umask; with `replace` in the place of what was there, else only where nothing was.

    Raises FileExistsError, OSError; then nothing is left.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            part.rename(path)
        else:
            os.link(part, path)
    finally:
        part.unlink(missing_ok=True)
