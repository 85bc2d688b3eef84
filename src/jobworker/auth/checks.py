"""Says precisely what is wrong with a certificate, a key or a CA. Pure: no I/O.

gRPC's own answers to such files are of no use: the server "failed to bind", the client is
"unavailable".
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from jobworker.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jobworker.auth.files import PemFile, Pems

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_MIN_RSA_BITS = 2048


class Purpose(enum.Enum):
    """Which side of a connection a certificate speaks for."""

    SERVER = "serverAuth"
    CLIENT = "clientAuth"

    @property
    def oid(self) -> x509.ObjectIdentifier:
        """The extended key usage that stands for it (RFC 5280, 4.2.1.12)."""
        if self is Purpose.SERVER:
            return ExtendedKeyUsageOID.SERVER_AUTH
        return ExtendedKeyUsageOID.CLIENT_AUTH


def certificates(file: PemFile) -> list[x509.Certificate]:
    """Parse all certificates of a file. Raises ConfigError if there is none, or a broken one."""
    try:
        found = x509.load_pem_x509_certificates(file.data)
        for certificate in found:  # extensions and names are parsed on first use
            _ = certificate.extensions, certificate.subject, certificate.public_key()
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise ConfigError(f"{file.path} {_not_a_certificate(file.data)}") from error
    return found


def private_key(file: PemFile) -> PrivateKey:
    """Parse a private key.

    Raises ConfigError if it is none, is encrypted, or is of a kind that gRPC's TLS cannot use:
    of all that `cryptography` reads, grpcio 1.85 signs and verifies with P-256, P-384 and RSA only.
    """
    try:
        key = load_pem_private_key(file.data, password=None)
    except TypeError as error:
        raise ConfigError(
            f"the private key {file.path} is encrypted, and there is nobody to ask for the "
            f"passphrase; decrypt it, for example with `openssl pkey -in {file.path}`"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{file.path} {_not_a_key(file.data)}") from error
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        return key
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        return key
    raise ConfigError(
        f"the private key {file.path} is of a kind that cannot be used: it must be EC (P-256 or "
        f"P-384) or RSA with at least {_MIN_RSA_BITS} bits"
    )


def pair(
    certificate: PemFile, key: PemFile, purpose: Purpose, *, now: datetime | None = None
) -> x509.Certificate:
    """Return the certificate if it can be used for `purpose` with this key at `now`.

    A server's certificate may do without extended key usage, as TLS allows; a client's must have
    it, because the server insists. Raises ConfigError otherwise.
    """
    leaf = certificates(certificate)[0]
    belongs(key, leaf, certificate.path)
    _check_time(leaf, f"the certificate {certificate.path}", now)
    usage = _extended_key_usage(leaf)
    if purpose.oid not in usage and (usage or purpose is Purpose.CLIENT):
        side = purpose.name.lower()
        raise ConfigError(
            f"the certificate {certificate.path} is not one for a {side}: its extended key usage "
            f"lacks {purpose.value}"
        )
    return leaf


def belongs(key: PemFile, certificate: x509.Certificate, path: Path) -> PrivateKey:
    """Return the key if it is that of the certificate at `path`. Raises ConfigError otherwise."""
    parsed = private_key(key)
    if parsed.public_key() != certificate.public_key():
        raise ConfigError(f"the private key {key.path} does not belong to the certificate {path}")
    return parsed


def authorities(ca: PemFile, *, now: datetime | None = None) -> list[x509.Certificate]:
    """Return the certificates of authorities in a file.

    Raises ConfigError if one of them may not sign certificates, or none is valid at `now`.
    """
    found = certificates(ca)
    for authority in found:
        if not _may_sign(authority):
            raise ConfigError(
                f"{ca.path} holds a certificate that is not a certificate authority's "
                f"({authority.subject.rfc4514_string()})"
            )
    errors = []
    for authority in found:
        try:
            _check_time(authority, f"the certificate authority {ca.path}", now)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == len(found):
        raise errors[0]
    return found


def issued_by(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> bool:
    """Tell whether one of the authorities has signed the certificate itself."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return True
    return False


def check(pems: Pems, purpose: Purpose, *, now: datetime | None = None) -> tuple[str, ...]:
    """Check what TLS needs as a whole, and return warnings for people.

    Raises ConfigError, which names the file and the problem.
    """
    pair(pems.certificate, pems.key, purpose, now=now)
    trusted = authorities(pems.ca, now=now)
    if issued_by(certificates(pems.certificate)[-1], trusted):
        return pems.warnings
    warning = (
        f"the certificate {pems.certificate.path} was not issued by {pems.ca.path}: the other side "
        "will refuse it if that is the authority it trusts"
    )
    return (*pems.warnings, warning)


def _check_time(certificate: x509.Certificate, what: str, now: datetime | None) -> None:
    now = now or datetime.now(UTC)
    if now < certificate.not_valid_before_utc:
        raise ConfigError(
            f"{what} is not valid before {certificate.not_valid_before_utc.isoformat()}, and the "
            f"clock says {now.isoformat(timespec='seconds')}"
        )
    if now > certificate.not_valid_after_utc:
        raise ConfigError(f"{what} expired on {certificate.not_valid_after_utc.isoformat()}")


def _extended_key_usage(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return []


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _not_a_certificate(data: bytes) -> str:
    if b"PRIVATE KEY-----" in data and b"CERTIFICATE-----" not in data:
        return "holds a private key, not a certificate"
    return "is not a certificate in PEM form, or is incomplete"


def _not_a_key(data: bytes) -> str:
    if b"CERTIFICATE-----" in data and b"PRIVATE KEY-----" not in data:
        return "holds a certificate, not a private key"
    return "is not a private key in PEM form, or is incomplete"
