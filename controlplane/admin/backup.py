"""`kumi backup`: a snapshot of etcd in a file, complete and checked, or no file at all.

The file is what `etcdctl snapshot save` writes: the database and its SHA-256. It holds every secret that the store holds.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import BinaryIO

import click

from controlplane.admin.common import Failure, Place, act, config_option, place
from controlplane.errors import StoreUnavailable

DIGEST = 32  # bytes of SHA-256 at the end
PAGE = 512  # the database is a whole number of these


@click.command(epilog="\b\nExample:\n  kumi backup /var/backups/kumihimo-$(date +%F).db")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@config_option
def backup(file: Path, config: Path) -> None:
    """Write a snapshot of all state to FILE, which must not exist. Nothing is stopped for it."""
    if file.exists():
        raise Failure(f"{file} exists; name another file, so that no backup is overwritten")
    part = file.with_name(file.name + ".part")
    try:
        try:
            with open(part, "xb", opener=_private) as out:
                revision, size = act(_save(place(config), out))
                out.flush()
                os.fsync(out.fileno())
            part.rename(file)
            _sync_folder(file.parent)
        except BaseException as error:
            if not isinstance(error, FileExistsError):
                part.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise Failure(f"{part} exists: another backup to this file is under way, or was cut off; remove it then") from None
    except OSError as error:
        raise Failure(f"{file} could not be written: {error.strerror}; nothing was left") from None
    click.echo(f"{file}: {size} bytes, everything up to revision {revision}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


async def _save(etcd: Place, out: BinaryIO) -> tuple[int, int]:
    """Of the first member that answers; (revision that is in it, bytes)."""
    failed: list[str] = []
    for address in etcd.addresses:
        store = etcd.store(address)
        try:
            # A linearizable read of this very member: when it has answered, what was acknowledged before is in its database.
            revision = await store.revision()
            return revision, await _stream(store, out)
        except StoreUnavailable as error:
            failed.append(str(error))
            out.seek(0)
            out.truncate()
        finally:
            await store.close()
    raise StoreUnavailable("; ".join(failed))


async def _stream(store: object, out: BinaryIO) -> int:
    from controlplane.store.maintenance import snapshot

    digest, held, written = hashlib.sha256(), b"", 0
    async for piece, remaining in snapshot(store):  # type: ignore[arg-type]
        out.write(piece)
        written += len(piece)
        held += piece
        digest.update(held[:-DIGEST])
        held = held[-DIGEST:]
        _show(written, written + remaining)
    if written % PAGE != DIGEST or held != digest.digest():
        raise StoreUnavailable("etcd sent a snapshot whose checksum is wrong; try again")
    return written


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done >= total else ""
        click.echo(f"\r{done / 2**20:.1f} of {total / 2**20:.1f} MiB{end}", nl=False, err=True)


def checked(file: Path) -> None:
    """Failure unless the file is a whole snapshot."""
    try:
        with file.open("rb") as data:
            size = data.seek(0, os.SEEK_END)
            data.seek(0)
            digest, left = hashlib.sha256(), max(0, size - DIGEST)
            while left and (piece := data.read(min(left, 1 << 20))):
                digest.update(piece)
                left -= len(piece)
            whole = size % PAGE == DIGEST and data.read() == digest.digest()
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from None
    if not whole:
        raise Failure(f"{file} is no whole snapshot: its checksum is wrong; take one that `kumi backup` has finished")
