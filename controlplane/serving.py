"""The certificate of a gRPC server of ours, which is taken up anew when its files change.

gRPC asks for another at each handshake, and frees the one that is in place though another thread may just be taking it, which
ends the process (grpc/grpc#36693). What a handshake under way uses is not freed. So a replacement is made by us, one at a time,
while a handshake of our own with this very server, begun under the certificate before, stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

import grpc
import structlog

from controlplane.tls import Loaded, Watched

LOOK = 1.0  # seconds between two looks at the files
PATIENCE = 5.0  # seconds in which our own server answers a handshake

_log = structlog.get_logger("kumihimo.tls")


class Certificate:
    """Our certificate towards the clients of one listener; with `clients` they must show one of the files' authority.

    `credentials` are for one listener, which shares its address with nobody (`grpc.so_reuseport` 0): we must reach it there.
    """

    def __init__(self, files: Watched, *, clients: bool = False) -> None:
        self._files = files
        self._clients = clients
        self._placed = files.loaded
        self._offered: Loaded | None = None
        fetcher: Any = self._answer  # its stub knows no None
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._configuration(files.loaded), fetcher, require_client_authentication=clients
        )

    async def renew(self, target: str) -> None:
        """Put the certificate in place whenever its files change, until cancelled.

        target: where the listener is reached, host:port or unix:path.
        """
        told: Loaded | None = None
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(LOOK)
                self._files.changed()
                wanted = self._files.loaded
                if wanted is self._placed:
                    continue
                try:
                    async with asyncio.timeout(PATIENCE):
                        group.create_task(_stand_still(*await _begin(target)))
                        self._offered = wanted
                        _, writer = await _begin(target)
                        writer.transport.abort()
                except OSError as error:  # TimeoutError is one
                    if told is not wanted:
                        _log.warning("the certificate is not in place yet: we cannot reach ourselves", detail=repr(error))
                        told = wanted
                finally:
                    self._offered = None

    def _answer(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked by threads of gRPC, one at a time; None keeps what is in place."""
        offered, self._offered = self._offered, None
        if offered is None:
            return None
        self._placed = offered
        return self._configuration(offered)

    def _configuration(self, held: Loaded) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(held.key, held.certificate)], held.ca if self._clients else None)


async def _begin(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A handshake with ourselves that has been answered. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it never gets so far
    context.set_alpn_protocols(["h2"])
    answers, hello = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(answers, hello).do_handshake()
    if target.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(target.removeprefix("unix:"))
    else:
        host, _, port = target.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        writer.write(hello.read())
        if not await reader.read(1):
            raise ConnectionResetError("the handshake was not answered")
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


async def _stand_still(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Keep it until the server gives it up (`grpc.server_handshake_timeout_ms`), seconds after the last one took it."""
    try:
        with contextlib.suppress(OSError):
            await reader.read()
    finally:
        writer.transport.abort()
