"""The agent's local file: where etcd is, by what it is known there, and which node it is. All else is the Node object.

node = "h1"                          # the node's id, as in `kumi node create h1`
etcd = ["192.0.2.10:2379"]
etcd_ca = "/etc/kumihimo/ca.crt"     # these three, or none: etcd is then spoken to in the clear
etcd_certificate = "/etc/kumihimo/h1.crt"
etcd_key = "/etc/kumihimo/h1.key"
[tracing]
file = "/var/log/kumihimo/agent-spans.jsonl"
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controlplane import config
from controlplane.errors import BadConfig
from controlplane.tls import Tls
from controlplane.values import Invalid, slug


@dataclass(frozen=True, slots=True)
class Settings:
    """The local file. Everything else is a setting of the Node."""

    node: str
    etcd: tuple[str, ...]
    etcd_tls: Tls | None
    trace_file: Path | None


def load(path: Path) -> Settings:
    """Read and check the local file. Raises BadConfig with file, field and what would be accepted."""
    raw = config.read_toml(path)
    config.refuse_unknown(path, "", raw, {"node", "etcd", *config.ETCD_TLS, "tracing"})
    node = raw.get("node")
    try:
        if not isinstance(node, str):
            raise Invalid("ID_INVALID", 'it must be the node\'s id, for example node = "h1"')
        slug(node)
    except Invalid as error:
        raise BadConfig(f"{path}: node: {error.message}") from None
    etcd, tls = config.strings(path, raw, "etcd"), config.etcd_tls(path, raw)
    return Settings(node, etcd, tls, config.trace_file(path, raw))
