"""Certificates that strict verifiers take."""

import contextlib
import ipaddress
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store

from jobworker.auth import issue
from jobworker.auth.checks import Purpose

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def ca() -> issue.Authority:
    return issue.authority("test CA", issue.new_key(), NOW)


@pytest.fixture(scope="module")
def server(ca) -> x509.Certificate:
    subjects = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return issue.certificate(
        ca, "jobworker", issue.new_key(), purpose=Purpose.SERVER, subjects=subjects, now=NOW
    )


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def test_keys_are_on_p256():
    assert isinstance(issue.new_key().curve, ec.SECP256R1)


def test_a_server_certificate_passes_a_strict_verifier(ca, server):
    verifier = PolicyBuilder().store(Store([ca.certificate])).time(NOW)
    verifier.build_server_verifier(x509.DNSName("localhost")).verify(server, [])


def test_a_client_certificate_passes_openssl_with_strict_checks(ca, tmp_path):
    key = issue.new_key()
    client = issue.certificate(ca, "ann", key, purpose=Purpose.CLIENT, subjects=(), now=NOW)
    path = tmp_path / "both.pem"
    path.write_bytes(issue.key_pem(key) + issue.certificate_pem(client))
    server_side = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cadata=issue.certificate_pem(ca.certificate).decode()
    )
    server_side.verify_mode = ssl.CERT_REQUIRED
    server_side.verify_flags |= ssl.VERIFY_X509_STRICT
    server_side.load_cert_chain(path)
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname = False
    client_side.verify_mode = ssl.CERT_NONE
    client_side.load_cert_chain(path)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    verifying = server_side.wrap_bio(to_server, to_client, server_side=True)
    proving = client_side.wrap_bio(to_client, to_server)
    for side in (proving, verifying, proving):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    verifying.do_handshake()
    assert verifying.getpeercert()["subject"] == ((("commonName", "ann"),),)


@pytest.mark.parametrize("purpose", list(Purpose))
def test_a_certificate_is_for_its_purpose_alone(ca, purpose):
    made = issue.certificate(ca, "x", issue.new_key(), purpose=purpose, subjects=(), now=NOW)
    assert list(extension(made, x509.ExtendedKeyUsage).value) == [purpose.oid]


def test_a_ca_signs_ends_and_no_further_cas(ca):
    constraints = extension(ca.certificate, x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_an_end_is_no_ca(server):
    constraints = extension(server, x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca


def test_an_end_may_sign_handshakes_only(server):
    usage = extension(server, x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign


def test_key_identifiers_connect_the_chain(ca, server):
    identifier = extension(ca.certificate, x509.SubjectKeyIdentifier).value.digest
    assert extension(server, x509.AuthorityKeyIdentifier).value.key_identifier == identifier


def test_certificates_are_backdated_by_an_hour(ca, server):
    for made in (ca.certificate, server):
        assert made.not_valid_before_utc == NOW - timedelta(hours=1)


def test_a_ca_lasts_ten_years_and_an_end_397_days(ca, server):
    assert ca.certificate.not_valid_after_utc == NOW + timedelta(days=3650)
    assert server.not_valid_after_utc == NOW + timedelta(days=397)


def test_an_end_does_not_outlive_its_ca(ca):
    late = NOW + timedelta(days=3600)
    made = issue.certificate(
        ca, "x", issue.new_key(), purpose=Purpose.CLIENT, subjects=(), now=late
    )
    assert made.not_valid_after_utc == ca.certificate.not_valid_after_utc
