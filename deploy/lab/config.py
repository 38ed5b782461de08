"""The files of a lab: certificates, tokens, and the configuration of API, agents and clients.

What is secret is made once, mode 0600, and kept over restarts; configuration is written anew at every start of a lab.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.process import LabError

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
        return self.tls("ca.crt")

    def tls(self, name: str) -> Path:
        """A file of the lab's certificate authority: ca, etcd, api, root (for etcdctl) and the hosts' names, .crt or .key."""
        return self.directory / "tls" / name

    @property
    def client(self) -> Path:
        """For $KUMI_CONFIG outside the hosts."""
        return self.directory / "client.toml"

    def token(self, name: str) -> Path:
        """The file that holds the token of an identity."""
        return self.directory / "tokens" / name

    def write(self, control: Path, hosts: dict[str, Path]) -> None:
        """Make what is missing of secrets and write all configuration.

        `control` is /etc/kumihimo of the control host, `hosts` that of each node. LabError when a file cannot be made.
        """
        with _private():
            self._certificates(hosts)
            self._tokens()
        etcd = [f"{self.control}:2379"]
        listen = [f"{self.control}:7443", f"unix:{self.api_socket}"]
        api = [
            _line("listen", listen),
            _line("etcd", etcd),
            _line("etcd_ca", str(self.ca)),
            _line("etcd_certificate", str(self.tls("api.crt"))),
            _line("etcd_key", str(self.tls("api.key"))),
            _line("tls_certificate", str(self.tls("api.crt"))),
            _line("tls_key", str(self.tls("api.key"))),
            _line("tokens", str(self.directory / "tokens.toml")),
            "\n[defaults]",
            _line("underlay_mtu", 1600),
            *self._tracing(),
        ]
        _write(control / "api.toml", api)
        _write(self.client, self._profiles(f"unix:{self.api_socket}"))
        for name, etc in hosts.items():
            agent = [
                _line("node", name),
                _line("etcd", etcd),
                # As the host sees its own folder.
                _line("etcd_ca", "/etc/kumihimo/ca.crt"),
                _line("etcd_certificate", f"/etc/kumihimo/{name}.crt"),
                _line("etcd_key", f"/etc/kumihimo/{name}.key"),
                *self._tracing(),
            ]
            _write(etc / "agent.toml", agent)
            for file in (self.ca, self.tls(f"{name}.crt"), self.tls(f"{name}.key")):
                shutil.copy(file, etc / file.name)
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

    def _certificates(self, hosts: Iterable[str]) -> None:
        """What `kumi pki` would make: an authority, a certificate for each process, one for etcdctl."""
        # Not at the top: a lab is ended with the standard library alone.
        from controlplane.admin.authority import Authority, AuthorityError, Use

        authority = Authority(self.ca.parent)
        uses = {"etcd": Use.ETCD, "api": Use.API, "root": Use.CLIENT, **dict.fromkeys(hosts, Use.NODE)}
        try:
            if not self.ca.exists():
                authority.init()
            for name, use in uses.items():
                if not authority.certificate(name).exists():
                    authority.issue(name, use, [self.control] if use in (Use.ETCD, Use.API) else ())
        except AuthorityError as error:
            raise LabError(str(error)) from error


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
