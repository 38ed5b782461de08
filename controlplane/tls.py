"""Certificate files of this process: read, checked, taken up again when they change, and what is wrong when TLS fails.

Invariants: what is in use is always a whole, valid pair of key and certificate; files that are changed to something else are
told once in the log and not taken up. A look at the files costs one `stat` each and happens at most once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from controlplane.errors import BadConfig

ETCD_NAME = "etcd"
"""DNS name in the certificate of every etcd member, whatever address it is reached at."""
API_USER = "kumi-api"
"""Common name of the API's certificate, and so its user in etcd."""
NODE_PREFIX = "node-"
LOOK = 1.0  # seconds between two looks at the files
PROBE = 3.0  # seconds for a handshake
REFUSAL = 1.0  # seconds in which a refusal of our certificate is heard of

_log = structlog.get_logger("kumihimo.tls")


def node_user(node_id: str) -> str:
    """The common name of a node's certificate, and so its user in etcd."""
    return NODE_PREFIX + node_id


def node_name(node_id: str) -> str:
    """The DNS name in a node's certificate, by which others ask its agent. It is no host's: no name ends so (RFC 2606)."""
    return f"{node_user(node_id)}.invalid"


@dataclass(frozen=True, slots=True)
class Tls:
    """Files by which this process knows others (ca) and is known. Each is called `{prefix}_ca` and so on in messages."""

    ca: Path | None
    certificate: Path
    key: Path
    prefix: str = "etcd"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files held, and `user`, the common name of the certificate."""

    ca: bytes | None
    certificate: bytes
    key: bytes
    user: str


def load(tls: Tls) -> Loaded:
    """Read and check the files. Raises BadConfig with the one that cannot be used and why."""
    ca = _read(tls, "ca", tls.ca) if tls.ca else None
    certificate, key = _read(tls, "certificate", tls.certificate), _read(tls, "key", tls.key)
    try:
        if ca is not None:
            x509.load_pem_x509_certificates(ca)
    except ValueError:
        raise BadConfig(f"{tls.prefix}_ca: {tls.ca} holds no certificate in PEM form") from None
    try:
        leaf = x509.load_pem_x509_certificates(certificate)[0]
    except ValueError:
        raise BadConfig(f"{tls.prefix}_certificate: {tls.certificate} holds no certificate in PEM form") from None
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError):
        raise BadConfig(f"{tls.prefix}_key: {tls.key} holds no private key in PEM form without a password") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise BadConfig(f"{tls.prefix}_key: {tls.key} is not the key of {tls.certificate}")
    now = datetime.now(UTC)
    if leaf.not_valid_after_utc <= now:
        raise BadConfig(
            f"{tls.prefix}_certificate: {tls.certificate} has expired on {_day(leaf.not_valid_after_utc)}; renew it"
        )
    if leaf.not_valid_before_utc > now:
        raise BadConfig(
            f"{tls.prefix}_certificate: {tls.certificate} is not valid before {_day(leaf.not_valid_before_utc)};"
            " is this host's clock right?"
        )
    user = "".join(str(item.value) for item in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    return Loaded(ca, certificate, key, user)


class Watched:
    """Files that are taken up when they change. Raises BadConfig when they cannot be used at first."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen = _stamp(tls)
        self._next = time.monotonic() + LOOK
        self.loaded = load(tls)

    def changed(self) -> bool:
        """Whether `loaded` is new since the last call."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + LOOK
        seen = _stamp(self._tls)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            found = load(self._tls)
        except BadConfig as error:
            # Often one file of a pair that is being replaced; the next look finds the other.
            _log.warning("changed certificate files are not taken up", detail=str(error))
            return False
        if found == self.loaded:
            return False
        self.loaded = found
        _log.info("certificate files are taken up", certificate=str(self._tls.certificate))
        return True


async def fault(endpoint: str, tls: Tls | None) -> str:
    """What is wrong with TLS between this process and etcd, as a sentence; empty when that is not what is wrong.

    gRPC says only that it cannot connect; this tries the handshake alone and so knows which side refused what.
    """
    context = ssl.create_default_context(cafile=tls.ca if tls else None)
    if tls:
        context.load_cert_chain(tls.certificate, tls.key)
    else:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(PROBE):
            reader, writer = await _open(endpoint, context)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _HOSTNAME_MISMATCH:
            return f"the certificate of etcd at {endpoint} does not carry the name {ETCD_NAME!r}"
        assert tls is not None
        return f"the certificate of etcd at {endpoint} is not accepted by etcd_ca {tls.ca}: {error.verify_message}"
    except (ssl.SSLError, ConnectionResetError, ConnectionAbortedError):
        return _NO_TLS.format(endpoint) if tls else ""
    except (OSError, TimeoutError):
        return ""
    if tls is None:
        writer.transport.abort()
        return _NEEDS_TLS.format(endpoint)
    try:
        # A client that is refused hears of it after its own handshake. Nothing is sent meanwhile: to write to a connection
        # that is closed would lose the reason. One that is accepted hears nothing, since it is its turn.
        async with asyncio.timeout(REFUSAL):
            await reader.read(1)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        return f"etcd at {endpoint} does not accept etcd_certificate {tls.certificate}: {reason}"
    except (OSError, TimeoutError):
        return ""
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):  # it tells again what `read` has told
            await writer.wait_closed()
    return ""


_NEEDS_TLS = "etcd at {} speaks TLS; name etcd_ca, etcd_certificate and etcd_key in the configuration"
_NO_TLS = "etcd at {} does not speak TLS; start it with --cert-file, --key-file, --trusted-ca-file and --client-cert-auth"
_HOSTNAME_MISMATCH = 62


async def _open(endpoint: str, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if endpoint.startswith("unix:"):
        path = endpoint.removeprefix("unix:")
        return await asyncio.open_unix_connection(path, ssl=context, server_hostname=ETCD_NAME)
    host, _, port = endpoint.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port), ssl=context, server_hostname=ETCD_NAME)


def _read(tls: Tls, what: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadConfig(f"{tls.prefix}_{what}: {path}: {error.strerror}") from None


def _stamp(tls: Tls) -> tuple[tuple[int, int, int] | None, ...]:
    return tuple(_stamp_of(path) for path in (tls.ca, tls.certificate, tls.key) if path)


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _day(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
