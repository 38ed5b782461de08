"""Certificates for processes in tests, by the functions of `kumi pki`."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from cryptography import x509

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


async def presented(target: str, authority: Authority, name: str = "kumi-api") -> int:
    """Serial number of the certificate that the server there, unix:path or host:port, shows to a new connection."""
    context = ssl.create_default_context(cafile=str(authority.certificate()))
    if target.startswith("unix:"):
        _, writer = await asyncio.open_unix_connection(target.removeprefix("unix:"), ssl=context, server_hostname=name)
    else:
        host, _, port = target.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name)
    try:
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.transport.abort()
    return x509.load_der_x509_certificate(found).serial_number


def serial(path: Path) -> int:
    """Serial number of the certificate in a file."""
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number
