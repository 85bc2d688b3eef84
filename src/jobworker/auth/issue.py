"""Makes keys and certificates for a development CA. Pure: nothing is read or written.

The certificates follow RFC 5280 as strict verifiers read it: critical basic constraints and key
usage, and key identifiers on both ends of the chain.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobworker.auth.checks import PrivateKey, Purpose

AUTHORITY_LIFETIME: Final = timedelta(days=3650)
LIFETIME: Final = timedelta(days=397)
BACKDATED: Final = timedelta(hours=1)
"""Clocks differ; nobody should refuse a certificate for that in its first minutes."""


class Authority(NamedTuple):
    """A CA that signs."""

    certificate: x509.Certificate
    key: PrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """Generate a private key on the curve P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def authority(common_name: str, key: PrivateKey, now: datetime) -> Authority:
    """Make a CA that signs certificates of ends and no other CAs (path length 0)."""
    name = _name(common_name)
    builder = _builder(name, name, key, now, now + AUTHORITY_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(ca=True), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def certificate(
    issuer: Authority,
    common_name: str,
    key: PrivateKey,
    *,
    purpose: Purpose,
    subjects: Sequence[x509.GeneralName],
    now: datetime,
) -> x509.Certificate:
    """Make a certificate for one end of a connection, which does not outlive its issuer's.

    `subjects` are its Subject Alternative Names: what a client must connect to (RFC 9110, 4.3.4).
    """
    until = min(now + LIFETIME, issuer.certificate.not_valid_after_utc)
    builder = _builder(_name(common_name), issuer.certificate.subject, key, now, until)
    builder = builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    builder = builder.add_extension(_usage(ca=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose.oid]), critical=False)
    builder = builder.add_extension(_issuer_identifier(issuer), critical=False)
    if subjects:
        builder = builder.add_extension(x509.SubjectAlternativeName(subjects), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Encode a certificate for a file."""
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key: PrivateKey) -> bytes:
    """Encode a private key for a file, unencrypted (PKCS #8)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer_identifier(issuer: Authority) -> x509.AuthorityKeyIdentifier:
    extensions = issuer.certificate.extensions
    try:
        identifier = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
