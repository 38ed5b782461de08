"""A certificate authority in a folder, for a lab or a small installation.

The folder holds ca.crt, ca.key and, for each certificate, NAME.crt and NAME.key; no index besides: what a certificate is
for is read from the certificate. Invariants:
- A private key is its owner's alone (mode 0600) from its first byte on.
- A file is there whole or not at all, and `issue` replaces none.
- `renew` keeps the key and replaces the certificate alone, so nobody who re-reads the two finds a pair that does not match.
- Who may be what is said by the certificate alone: etcd takes a client for the user its common name says, and a peer for a
  member by the name `etcd`; so those names are never given to a certificate for another use.
- A node's certificate serves its agent's own calls, by a name that no host can have: with it nobody can play etcd or API.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.files import write_whole
from controlplane.tls import API_USER, ETCD_NAME, NODE_PREFIX, node_name, node_user

CA = "ca"
CA_DAYS = 3650
DAYS = 365
BACKDATED = timedelta(hours=1)  # clocks of hosts differ

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_DNS = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")


class AuthorityError(Exception):
    """One clear line: which file or name, what is wrong, what would be accepted."""


class Use(StrEnum):
    """What a certificate is for."""

    ETCD = "etcd"
    API = "api"
    NODE = "node"
    CLIENT = "client"


COMMON_NAME_LENGTH = 64  # RFC 5280, ub-common-name


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate of the folder. user: its common name, by which etcd knows its holder."""

    name: str
    use: str
    user: str
    names: tuple[str, ...]
    not_after: datetime
    certificate: Path
    key: Path


def common_name(use: Use, name: str) -> str:
    """The common name of a certificate called `name`. Raises AuthorityError when that is another's."""
    match use:
        case Use.ETCD:
            return ETCD_NAME
        case Use.API:
            return API_USER
        case Use.NODE:
            found = node_user(name)
        case Use.CLIENT:
            found = name
            if name in (ETCD_NAME, API_USER) or name.startswith(NODE_PREFIX):
                raise AuthorityError(f"a client cannot be called {name}: by that name etcd would take it for something else")
    if len(found) > COMMON_NAME_LENGTH:
        raise AuthorityError(f"{name} is too long: {found} would be {len(found)} characters, {COMMON_NAME_LENGTH} fit")
    return found


class Authority:
    """The authority in `folder`. Every method raises AuthorityError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def certificate(self, name: str = CA) -> Path:
        return self._folder / f"{name}.crt"

    def key(self, name: str = CA) -> Path:
        return self._folder / f"{name}.key"

    def init(self) -> Issued:
        """Make the authority's own key and certificate; the folder is made when it is not there."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _failed(self._folder, error) from None
        self._must_be_free(CA)
        key = ec.generate_private_key(ec.SECP256R1())
        self._write_pair(CA, key, _self_signed(key, _subject("Kumihimo CA"), timedelta(days=CA_DAYS)))
        return self._read(CA)

    def issue(self, name: str, use: Use, sans: Sequence[str] = (), days: int = DAYS) -> Issued:
        """A new key and certificate. sans: DNS names and addresses besides those that the use brings."""
        if name == CA or not _NAME.fullmatch(name):
            raise AuthorityError(f"{name!r} is no name for a certificate: 1-63 of A-Z a-z 0-9 . _ -, and not {CA!r}")
        subject = _subject(common_name(use, name))
        general = [_general_name(item) for item in dict.fromkeys([*_own_names(use, name), *sans])]
        self._must_be_free(name)
        key = ec.generate_private_key(ec.SECP256R1())
        self._write_pair(name, key, self._signed(subject, key.public_key(), general, _purposes(use), timedelta(days=days)))
        return self._read(name)

    def renew(self, name: str, days: int | None = None) -> Issued:
        """The same certificate with new dates, for as long as the last one or `days`; the key stays.

        What its use brings by now (names, purposes) it has from then on, whatever release made it.
        """
        old = self._load(name)
        span = timedelta(days=days) if days else old.not_valid_after_utc - old.not_valid_before_utc - BACKDATED
        if name == CA:
            new = _self_signed(self._signing_key(), old.subject, span)
        else:
            key = old.public_key()
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise AuthorityError(f"{self.certificate(name)} was not made by `kumi pki issue`, and is not renewed by it")
            user = _common_name(old)
            use = _use(user)
            own = [_general_name(item) for item in _own_names(use, user.removeprefix(NODE_PREFIX))]
            names = list(dict.fromkeys([*own, *_names(old)]))
            new = self._signed(old.subject, key, names, _purposes(use), span)
        _put(self.certificate(name), new.public_bytes(Encoding.PEM), 0o644, replace=True)
        return self._read(name)

    def find(self, name: str) -> Issued | None:
        """The certificate of that name; None when there is none."""
        return self._read(name) if self.certificate(name).exists() else None

    def list(self) -> list[Issued]:
        """All certificates, the authority's own first."""
        self._load(CA)
        names = {path.stem for path in self._folder.glob("*.crt")} - {CA}
        return [self._read(name) for name in (CA, *sorted(names))]

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        usage: Sequence[x509.ObjectIdentifier],
        span: timedelta,
    ) -> x509.Certificate:
        ca, signing = self._load(CA), self._signing_key()
        now = _now()
        if ca.not_valid_after_utc <= now:
            raise AuthorityError(
                f"{self.certificate()} has expired on {ca.not_valid_after_utc:%Y-%m-%d}; "
                f"`kumi pki renew {self._folder} {CA}` gives it new dates"
            )
        # A certificate that outlives its authority would be valid on paper only.
        builder = _builder(subject, ca.subject, key, now, min(now + span, ca.not_valid_after_utc))
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(usage)), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
        builder = builder.add_extension(issuer, critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
        return builder.sign(signing, hashes.SHA256())

    def _signing_key(self) -> ec.EllipticCurvePrivateKey:
        path = self.key()
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise _failed(path, error) from None
        except (ValueError, TypeError):
            raise AuthorityError(f"{path} holds no private key that could be read") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError(f"{path} is no elliptic-curve key; `kumi pki init` makes one")
        certified = self._load(CA).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != certified:
            raise AuthorityError(f"{path} is not the key of {self.certificate()}")
        return key

    def _load(self, name: str) -> x509.Certificate:
        path = self.certificate(name)
        try:
            return x509.load_pem_x509_certificate(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            if name != CA and self.certificate().is_file():
                raise AuthorityError(f"{path} does not exist; `kumi pki list {self._folder}` shows what does") from None
            raise AuthorityError(
                f"{self._folder} is no authority: it has no {CA}.crt; `kumi pki init {self._folder}` makes one"
            ) from None
        except OSError as error:
            raise _failed(path, error) from None
        except ValueError:
            raise AuthorityError(f"{path} holds no certificate that could be read") from None

    def _read(self, name: str) -> Issued:
        found = self._load(name)
        user = _common_name(found)
        names = tuple(str(item.value) for item in _names(found))
        use = CA if name == CA else _use(user)
        return Issued(name, use, user, names, found.not_valid_after_utc, self.certificate(name), self.key(name))

    def _must_be_free(self, name: str) -> None:
        for path in (self.certificate(name), self.key(name)):
            if path.exists():
                raise AuthorityError(f"{path} exists and is not overwritten; `kumi pki renew` gives a certificate new dates")

    def _write_pair(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _put(self.key(name), private, 0o600, replace=False)
        try:
            _put(self.certificate(name), certificate.public_bytes(Encoding.PEM), 0o644, replace=False)
        except AuthorityError:
            self.key(name).unlink(missing_ok=True)
            raise


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - BACKDATED).not_valid_after(end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _self_signed(key: ec.EllipticCurvePrivateKey, subject: x509.Name, span: timedelta) -> x509.Certificate:
    now = _now()
    builder = _builder(subject, subject, key.public_key(), now, now + span)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return builder.sign(key, hashes.SHA256())


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _use(user: str) -> Use:
    if user.startswith(NODE_PREFIX):
        return Use.NODE
    return {ETCD_NAME: Use.ETCD, API_USER: Use.API}.get(user, Use.CLIENT)


def _common_name(certificate: x509.Certificate) -> str:
    return "".join(str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))


def _own_names(use: Use, name: str) -> list[str]:
    """The names that a use brings, for a certificate called `name`."""
    match use:
        case Use.ETCD:
            return [ETCD_NAME, "localhost"]
        case Use.API:
            return [API_USER, "localhost"]
        case Use.NODE:
            return [node_name(name)]
    return []


def _purposes(use: Use) -> list[x509.ObjectIdentifier]:
    if use is Use.CLIENT:
        return [ExtendedKeyUsageOID.CLIENT_AUTH]
    return [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]


def _names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        if _DNS.fullmatch(text):
            return x509.DNSName(text)
        raise AuthorityError(f"{text!r} is neither an address nor a DNS name such as api1.example.org") from None


def _put(path: Path, content: bytes, mode: int, *, replace: bool) -> None:
    """`write_whole`, with what is wrong as one line."""
    try:
        write_whole(path, content, mode, replace=replace)
    except FileExistsError:
        raise AuthorityError(f"{path} exists and is not overwritten") from None
    except OSError as error:
        raise _failed(path, error) from None


def _failed(path: Path, error: OSError) -> AuthorityError:
    return AuthorityError(f"{path}: {error.strerror or error}")
