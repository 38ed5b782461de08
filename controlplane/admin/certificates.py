"""When the certificates that a configuration names run out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

MARK = b"-----BEGIN CERTIFICATE-----"


def named(settings: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Path]]:
    """(field, file) of every text of a configuration that names a file with a certificate in it."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from named(value, f"{at}{name}.")
        elif isinstance(value, str) and value.startswith("/") and MARK in _content(Path(value)):
            yield f"{at}{name}", Path(value)


def ends(file: Path) -> datetime:
    """When the first of the file's certificates to run out does. ValueError when one cannot be read."""
    return min(certificate.not_valid_after_utc for certificate in x509.load_pem_x509_certificates(_content(file)))


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
