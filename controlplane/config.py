"""The API's configuration file (TOML), read once into a frozen value.

listen = ["127.0.0.1:7443"]          # host:port or unix:/path; TLS on all
etcd = ["127.0.0.1:2379"]
etcd_ca = "/etc/kumihimo/ca.crt"     # these three, or none: etcd is then spoken to in the clear
etcd_certificate = "/etc/kumihimo/api.crt"
etcd_key = "/etc/kumihimo/api.key"
tls_certificate = "/etc/kumihimo/api.crt"
tls_key = "/etc/kumihimo/api.key"
tokens = "/etc/kumihimo/tokens.toml"  # read again when it changes
[oidc]                               # JWTs beside the tokens of the file
issuer = "https://id.example.com"    # must be equal to the claim iss
audience = "kumihimo"                # must be in the claim aud
jwks = "https://id.example.com/keys" # or a file; http for loopback only
project_claim = "project_id"
roles_claim = "roles"                # a list, or words with spaces between
subject_prefix = "oidc:"             # identity = this + sub
[store]
history = "1h"                       # how long the past can be read; 1s, 30m, 2h, 1d or seconds
quota_bytes = 2147483648             # what etcd was given with --quota-backend-bytes
[defaults]
underlay_mtu = 1500                  # bytes
    underlay_ip_version = 4              # family of the nodes' tunnel addresses: 4 or 6
[tracing]
file = "/var/log/kumihimo-api/spans.jsonl"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from controlplane.errors import BadConfig
from controlplane.tls import Tls

ETCD_TLS = ("etcd_ca", "etcd_certificate", "etcd_key")

LEAST_MTU, MOST_MTU = 576, 65535
_OIDC_EXAMPLES = {
    "issuer": "https://id.example.com",
    "audience": "kumihimo",
    "jwks": "https://id.example.com/keys",
    "project_claim": "project_id",
    "roles_claim": "roles",
    "subject_prefix": "oidc:",
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the server stores where the user says nothing."""

    network_type: str = "vxlan"
    underlay_mtu: int = 1500
    underlay_ip_version: int = 4
    dns_domain: str = "kumihimo.internal"
    mac_base: str = "fa:16:3e"
    availability_zone: str = "default"


@dataclass(frozen=True, slots=True)
class Oidc:
    """Whose JWTs are accepted, and which of their claims say what."""

    issuer: str
    audience: str
    jwks: str
    project_claim: str = "project_id"
    roles_claim: str = "roles"
    # Without one, a subject of the issuer and an identity of the token file may be the same caller.
    subject_prefix: str = "oidc:"


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How etcd is kept. history: seconds of the past that stay readable. quota: bytes that etcd may use."""

    history: float = 3600.0
    quota: int = 2 << 30


@dataclass(frozen=True, slots=True)
class Config:
    """See the module."""

    listen: tuple[str, ...]
    etcd: tuple[str, ...]
    tls_certificate: Path
    tls_key: Path
    tokens: Path
    oidc: Oidc | None = None
    etcd_tls: Tls | None = None
    defaults: Defaults = field(default_factory=Defaults)
    trace_file: Path | None = None
    store: StoreSettings = field(default_factory=StoreSettings)


def load(path: Path) -> Config:
    """Read and check a file. Raises BadConfig with file, field and what would be accepted."""
    raw = read_toml(path)
    known = {"listen", "etcd", *ETCD_TLS, "tls_certificate", "tls_key", "tokens", "oidc", "defaults", "tracing", "store"}
    refuse_unknown(path, "", raw, known)
    return Config(
        listen=_listen(path, raw),
        etcd=strings(path, raw, "etcd"),
        tls_certificate=_file(path, raw, "tls_certificate"),
        tls_key=_file(path, raw, "tls_key"),
        tokens=_file(path, raw, "tokens"),
        oidc=_oidc(path, raw["oidc"]) if "oidc" in raw else None,
        etcd_tls=etcd_tls(path, raw),
        defaults=_defaults(path, raw.get("defaults", {})),
        trace_file=trace_file(path, raw),
        store=_store(path, raw.get("store", {})),
    )


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: {error}") from None


def refuse_unknown(path: Path, section: str, raw: Mapping[str, Any], known: set[str]) -> None:
    if not isinstance(raw, Mapping):
        raise BadConfig(f"{path}: {section.rstrip('.')} must be a table; accepted in it are {', '.join(sorted(known))}")
    for name in raw:
        if name not in known:
            raise BadConfig(f"{path}: {section}{name} means nothing; accepted are {', '.join(sorted(known))}")


def strings(path: Path, raw: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = raw.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise BadConfig(f'{path}: {name} must be a list of addresses, for example {name} = ["127.0.0.1:2379"]')
    return tuple(value)


def etcd_tls(path: Path, raw: Mapping[str, Any]) -> Tls | None:
    """The files by which etcd and this process know each other; None when the file names none of them."""
    missing = [name for name in ETCD_TLS if name not in raw]
    if len(missing) == len(ETCD_TLS):
        return None
    if missing:
        raise BadConfig(f"{path}: {' and '.join(missing)} must be set too: {', '.join(ETCD_TLS)} go together")
    ca, certificate, key = (_file(path, raw, name) for name in ETCD_TLS)
    return Tls(ca, certificate, key)


def _listen(path: Path, raw: Mapping[str, Any]) -> tuple[str, ...]:
    found = strings(path, raw, "listen")
    for address in found:
        host, _, port = address.rpartition(":")
        # gRPC would take port 99999 for 34463.
        if not re.fullmatch("unix:.+", address) and not (host and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
            raise BadConfig(f"{path}: listen: {address!r} is no address; host:port or unix:/path is accepted")
    return found


def trace_file(path: Path, raw: Mapping[str, Any]) -> Path | None:
    section = raw.get("tracing", {})
    refuse_unknown(path, "tracing.", section, {"file"})
    if not isinstance(section.get("file", ""), str):
        raise BadConfig(f"{path}: tracing.file must name a file")
    return Path(section["file"]) if "file" in section else None


def _file(path: Path, raw: Mapping[str, Any], name: str) -> Path:
    value = raw.get(name)
    if not isinstance(value, str):
        raise BadConfig(f"{path}: {name} must name a file")
    if not Path(value).is_file():
        raise BadConfig(f"{path}: {name} names {value}, which is not a readable file")
    return Path(value)


def _oidc(path: Path, raw: Mapping[str, Any]) -> Oidc:
    refuse_unknown(path, "oidc.", raw, {item.name for item in fields(Oidc)})
    for item in fields(Oidc):
        value = raw.get(item.name, item.default)
        if not isinstance(value, str) or (not value and item.name != "subject_prefix"):
            raise BadConfig(f"{path}: oidc.{item.name} must be a text, for example {_OIDC_EXAMPLES[item.name]!r}")
    found = Oidc(**raw)
    url = urlsplit(found.jwks)
    if url.scheme == "http" and not _is_loopback(url.hostname or ""):
        raise BadConfig(f"{path}: oidc.jwks is {found.jwks}; plain http is accepted for loopback only, use https")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _store(path: Path, raw: Mapping[str, Any]) -> StoreSettings:
    refuse_unknown(path, "store.", raw, {"history", "quota_bytes"})
    given, quota = raw.get("history", "1h"), raw.get("quota_bytes", StoreSettings().quota)
    hit = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(given))
    history = float(hit[1]) * _UNITS[hit[2]] if hit else 0.0
    if isinstance(given, bool) or history < 1:
        raise BadConfig(
            f'{path}: store.history is {given!r}; a time of at least 1 s is accepted, for example "1h", "30m" or 90'
        )
    if not isinstance(quota, int) or isinstance(quota, bool) or quota < 1:
        raise BadConfig(f"{path}: store.quota_bytes is {quota!r}; a number of bytes is accepted, as etcd was started with")
    return StoreSettings(history, quota)


_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
# What each default may be: an object made with it must pass the checks that one with a stated value passes.
_FORMS = {
    "network_type": (re.compile("vlan|vxlan|gre|geneve|flat|local"), "vlan, vxlan, gre, geneve, flat or local"),
    "underlay_mtu": (re.compile(r"\d+"), f"{LEAST_MTU} to {MOST_MTU}"),
    "underlay_ip_version": (re.compile("[46]"), "4 or 6"),
    "dns_domain": (re.compile(rf"(?!.{{256}}){_LABEL}(\.{_LABEL})*"), "a DNS name in lower case, without the final dot,"),
    "mac_base": (re.compile("[0-9a-f][02468ace](:[0-9a-f]{2}){2}"), "three octets such as fa:16:3e, the first of them even,"),
    "availability_zone": (re.compile("[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?"), "a name of a-z, 0-9, '.' and '-'"),
}


def _defaults(path: Path, raw: Mapping[str, Any]) -> Defaults:
    refuse_unknown(path, "defaults.", raw, {item.name for item in fields(Defaults)})
    defaults = Defaults(**raw)
    for item in fields(Defaults):
        expected = type(item.default)
        value = getattr(defaults, item.name)
        # A bool is an int to Python.
        if type(value) is not expected:
            raise BadConfig(f"{path}: defaults.{item.name} must be of type {expected.__name__}")
        form, accepted = _FORMS[item.name]
        if not form.fullmatch(str(value)):
            raise BadConfig(f"{path}: defaults.{item.name} is {value!r}; {accepted} is accepted")
    if not LEAST_MTU <= defaults.underlay_mtu <= MOST_MTU:
        accepted = _FORMS["underlay_mtu"][1]
        raise BadConfig(f"{path}: defaults.underlay_mtu is {defaults.underlay_mtu}; {accepted} is accepted")
    return defaults
