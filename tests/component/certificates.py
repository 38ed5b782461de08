"""Certificates for processes in tests, by the functions of `kumi pki`."""

from __future__ import annotations

from controlplane.admin.authority import Authority, Use
from controlplane.tls import Tls


def issue(authority: Authority, name: str, use: Use, days: int = 2) -> Tls:
    """A new certificate, as a process towards etcd uses it."""
    held = authority.issue(name, use, days=days)
    return Tls(authority.certificate(), held.certificate, held.key)


def etcd_flags(authority: Authority) -> dict[str, str]:
    """Flags of an etcd that speaks TLS with a new certificate and knows its clients by theirs."""
    held = issue(authority, "etcd", Use.ETCD)
    return {
        "cert-file": str(held.certificate),
        "key-file": str(held.key),
        "trusted-ca-file": str(held.ca),
        "client-cert-auth": "true",
        "enable-grpc-gateway": "false",
    }
