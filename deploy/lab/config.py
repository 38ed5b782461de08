"""The files of a lab: certificates, tokens, and the configuration of API, agents and clients.

What is secret is made once, mode 0600, and kept over restarts; configuration is written anew at every start of a lab.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.process import run

API_NAME = "kumi-api"
"""Name in the API's certificate, whatever address it is reached at."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Someone who may call the API; the profile and the token's file are called like it."""

    name: str
    project: str
    role: str


IDENTITIES = (
    Identity("admin", "admin", "operator"),
    Identity("alice", "demo", "member"),
    Identity("bob", "other", "member"),
)


@dataclass(frozen=True, slots=True)
class Files:
    """Where the files of the lab in `directory` lie, and how they are made.

    `control` is the address of etcd and the API without a port; `tracing` makes every process write its spans to
    /var/log/kumihimo/trace.jsonl of its host.
    """

    directory: Path
    control: str
    tracing: bool = False

    @property
    def api_socket(self) -> Path:
        return self.directory / "api.sock"

    @property
    def ca(self) -> Path:
        return self.directory / "tls" / "ca.pem"

    @property
    def client(self) -> Path:
        """For $KUMI_CONFIG outside the hosts."""
        return self.directory / "client.toml"

    def token(self, name: str) -> Path:
        """The file that holds the token of an identity."""
        return self.directory / "tokens" / name

    def write(self, control: Path, hosts: dict[str, Path]) -> None:
        """Make what is missing of secrets and write all configuration.

        `control` is /etc/kumihimo of the control host, `hosts` that of each node. LabError when openssl fails.
        """
        with _private():
            self._certificates()
            self._tokens()
        etcd = [f"{self.control}:2379"]
        listen = [f"{self.control}:7443", f"unix:{self.api_socket}"]
        api = [
            _line("listen", listen),
            _line("etcd", etcd),
            _line("tls_certificate", str(self.directory / "tls" / "api.pem")),
            _line("tls_key", str(self.directory / "tls" / "api.key")),
            _line("tokens", str(self.directory / "tokens.toml")),
            "\n[defaults]",
            _line("underlay_mtu", 1600),
            *self._tracing(),
        ]
        _write(control / "api.toml", api)
        _write(self.client, self._profiles(f"unix:{self.api_socket}"))
        for name, etc in hosts.items():
            _write(etc / "agent.toml", [_line("node", name), _line("etcd", etcd), *self._tracing()])
            _write(etc / "client.toml", self._profiles(f"{self.control}:7443"))

    def _tracing(self) -> list[str]:
        return ["\n[tracing]", _line("file", "/var/log/kumihimo/trace.jsonl")] if self.tracing else []

    def _profiles(self, endpoint: str) -> list[str]:
        lines = [_line("current", IDENTITIES[0].name)]
        for identity in IDENTITIES:
            lines += [
                f"\n[profiles.{identity.name}]",
                _line("endpoint", endpoint),
                _line("ca", str(self.ca)),
                _line("token_file", str(self.token(identity.name))),
                _line("server_name", API_NAME),
                _line("project", identity.project),
            ]
            if self.tracing:
                lines.append(_line("trace_file", str(self.directory / "log" / "trace.jsonl")))
        return lines

    def _tokens(self) -> None:
        lines = ["# Tokens are not kept here, only their SHA-256."]
        for identity in IDENTITIES:
            path = self.token(identity.name)
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                path.write_text(secrets.token_urlsafe(32) + "\n")
            lines += [
                "\n[[tokens]]",
                _line("sha256", hashlib.sha256(path.read_text().strip().encode()).hexdigest()),
                _line("identity", identity.name),
                _line("project", identity.project),
                _line("roles", [identity.role]),
            ]
        _write(self.directory / "tokens.toml", lines)

    def _certificates(self) -> None:
        """A CA of the lab's own and the API's certificate, of ten years each."""
        tls = self.ca.parent
        tls.mkdir(exist_ok=True)
        key = tls / "ca.key"
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        new += ["-days", "3650", "-config", "/dev/null"]
        if not self.ca.exists():
            about = ["-subj", "/CN=Kumihimo lab CA", "-addext", "basicConstraints=critical,CA:TRUE"]
            about += ["-addext", "keyUsage=critical,keyCertSign,cRLSign", "-addext", "subjectKeyIdentifier=hash"]
            run([*new, *about, "-keyout", str(key), "-out", str(self.ca)])
        if not (tls / "api.pem").exists():
            names = f"subjectAltName=DNS:{API_NAME},DNS:localhost,IP:{self.control}"
            about = ["-subj", f"/CN={API_NAME}", "-addext", names, "-addext", "basicConstraints=critical,CA:FALSE"]
            about += ["-addext", "extendedKeyUsage=serverAuth", "-CA", str(self.ca), "-CAkey", str(key)]
            run([*new, *about, "-keyout", str(tls / "api.key"), "-out", str(tls / "api.pem")])


def _line(name: str, value: str | int | list[str]) -> str:
    """A line of TOML; strings, lists of strings and numbers are written as in JSON."""
    return f"{name} = {json.dumps(value)}"


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Files made meanwhile are the owner's alone."""
    old = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(old)
