"""Certificates of every kind, good and bad."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from jobworker.auth import issue
from jobworker.auth.checks import Purpose
from jobworker.auth.files import CredentialFiles

NOW = datetime.now(UTC)


class Maker:
    """Makes certificates that `issue` would not make; `valid` is relative to `now`."""

    now = NOW

    def __init__(self) -> None:
        self.ca = issue.authority("test CA", issue.new_key(), NOW)
        self.key = issue.new_key()

    def certificate(
        self,
        *names: str,
        usage: tuple[x509.ObjectIdentifier, ...] | None = (Purpose.CLIENT.oid,),
        key=None,
        issuer: issue.Authority | None = None,
        subject: x509.Name | None = None,
        valid: tuple[timedelta, timedelta] = (timedelta(days=-1), timedelta(days=1)),
    ) -> x509.Certificate:
        issuer = issuer or self.ca
        key = key or self.key
        subject = subject or x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False) for name in names]
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + valid[0])
            .not_valid_after(NOW + valid[1])
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        algorithm = None if isinstance(issuer.key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        return builder.sign(issuer.key, algorithm)

    def pem(self, *names: str, **options) -> bytes:
        return issue.certificate_pem(self.certificate(*names, **options))


@pytest.fixture(scope="session")
def maker() -> Maker:
    return Maker()


@pytest.fixture
def write(tmp_path: Path, maker: Maker) -> Callable[..., CredentialFiles]:
    """Write a set of files; what is not given is good."""

    def write(
        *,
        purpose: Purpose = Purpose.CLIENT,
        key=None,
        certificate: bytes | None = None,
        ca: bytes | None = None,
        **options,
    ) -> CredentialFiles:
        key = key or issue.new_key()
        options.setdefault("usage", (purpose.oid,))
        files = CredentialFiles(tmp_path / "a.crt", tmp_path / "a.key", tmp_path / "ca.crt")
        files.certificate.write_bytes(certificate or maker.pem("user_alpha", key=key, **options))
        files.key.touch(mode=0o600)
        files.key.write_bytes(key if isinstance(key, bytes) else issue.key_pem(key))
        files.ca.write_bytes(ca or issue.certificate_pem(maker.ca.certificate))
        return files

    return write


@pytest.fixture(scope="session")
def p521() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP521R1())


@pytest.fixture(scope="session")
def rsa_2048() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)
