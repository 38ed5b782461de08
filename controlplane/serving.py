"""Certificates of a gRPC server of ours, which are taken up anew when their files change."""

from __future__ import annotations

import time
from typing import Any

import grpc

from controlplane.tls import Watched

QUIET = 0.25  # seconds


def credentials(files: Watched, *, clients: bool = False) -> grpc.ServerCredentials:
    """Our certificate towards clients; with `clients` they must show one of the files' authority.

    gRPC asks at each handshake whether there is another.
    """

    def current() -> grpc.ServerCertificateConfiguration:
        held = files.loaded
        return grpc.ssl_server_certificate_configuration([(held.key, held.certificate)], held.ca if clients else None)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # None, nearly always: gRPC drops the certificate that is in place though another handshake may just be taking it, which
        # ends the process. Those that have asked get past that meanwhile, and who comes waits until we have answered.
        if not files.changed():
            return None
        time.sleep(QUIET)
        return current()

    fetcher: Any = changed  # its stub knows no None
    return grpc.dynamic_ssl_server_credentials(current(), fetcher, require_client_authentication=clients)
