"""Every file that cannot be used is named, with the problem."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from jobworker.auth import checks, issue
from jobworker.auth.checks import Purpose
from jobworker.errors import ConfigError

DAY = timedelta(days=1)
SERVER_USAGE = (ExtendedKeyUsageOID.SERVER_AUTH,)
CLIENT_USAGE = (ExtendedKeyUsageOID.CLIENT_AUTH,)


def check(files, purpose=Purpose.CLIENT):
    return checks.check(files.read(), purpose)


@pytest.fixture(params=["P-256", "P-384", "RSA"])
def key(request):
    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}
    if request.param in curves:
        return ec.generate_private_key(curves[request.param])
    return request.getfixturevalue("rsa_2048")


@pytest.mark.parametrize("purpose", list(Purpose))
def test_usable_files_pass_without_a_warning(write, purpose, key):
    assert check(write(purpose=purpose, key=key), purpose) == ()


@pytest.mark.parametrize("name", ["certificate", "ca"])
@pytest.mark.parametrize("content", [b"\n", b"nonsense", b"-----BEGIN CERTIFICATE-----\nMIIB"])
def test_a_certificate_that_is_not_pem_is_named(write, name, content):
    files = write(**{name: content})
    with pytest.raises(ConfigError, match=f"{getattr(files, name)} is not a certificate in PEM"):
        check(files)


def test_a_half_written_certificate_is_named(write):
    files = write()
    files.certificate.write_bytes(files.certificate.read_bytes()[:200])
    with pytest.raises(ConfigError, match=f"{files.certificate} is not a certificate in PEM"):
        check(files)


@pytest.mark.parametrize("content", [b"\n", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nMIIB"])
def test_a_key_that_is_not_pem_is_named(write, content):
    files = write()
    files.key.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{files.key} is not a private key in PEM form"):
        check(files)


def test_files_that_were_mixed_up_are_named(write):
    files = write()
    key, certificate = files.key.read_bytes(), files.certificate.read_bytes()
    files.key.write_bytes(certificate)
    with pytest.raises(ConfigError, match=f"{files.key} holds a certificate, not a private key"):
        check(files)
    files.certificate.write_bytes(key)
    with pytest.raises(ConfigError, match=f"{files.certificate} holds a private key, not a cert"):
        check(files)


def test_an_encrypted_key_is_named(write):
    files = write()
    encryption = BestAvailableEncryption(b"secret")
    key = issue.new_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    files.key.write_bytes(key)
    with pytest.raises(ConfigError, match=f"{files.key} is encrypted"):
        check(files)


@pytest.mark.parametrize("kind", ["P-521", "Ed25519", "RSA with 1024 bits"])
def test_a_key_that_grpc_cannot_use_is_named(write, p521, kind):
    key = {
        "P-521": lambda: p521,
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "RSA with 1024 bits": lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505
    }[kind]()
    files = write(key=key)
    with pytest.raises(ConfigError, match=f"{files.key} is of a kind that cannot be used"):
        check(files)


def test_a_key_of_another_certificate_is_named(write):
    files = write()
    files.key.write_bytes(issue.key_pem(issue.new_key()))
    with pytest.raises(
        ConfigError, match=f"{files.key} does not belong to the certificate {files.certificate}"
    ):
        check(files)


def test_an_expired_certificate_is_named(write):
    files = write(valid=(-2 * DAY, -DAY))
    with pytest.raises(ConfigError, match=f"{files.certificate} expired on 2"):
        check(files)


def test_a_certificate_of_the_future_is_named(write):
    files = write(valid=(DAY, 2 * DAY))
    with pytest.raises(ConfigError, match=f"{files.certificate} is not valid before 2"):
        check(files)


@pytest.mark.parametrize(
    ("purpose", "usage", "missing"),
    [
        (Purpose.CLIENT, SERVER_USAGE, "clientAuth"),
        (Purpose.CLIENT, None, "clientAuth"),
        (Purpose.SERVER, CLIENT_USAGE, "serverAuth"),
    ],
)
def test_a_certificate_for_another_purpose_is_named(write, purpose, usage, missing):
    files = write(usage=usage)
    with pytest.raises(ConfigError, match=f"{files.certificate} is not one for .*lacks {missing}"):
        check(files, purpose)


def test_a_server_may_do_without_extended_key_usage(write):
    assert check(write(usage=None), Purpose.SERVER) == ()


def test_a_ca_file_without_a_ca_is_named(write, maker):
    files = write(ca=maker.pem("user_alpha"))
    with pytest.raises(ConfigError, match=f"{files.ca} holds a certificate that is not .*alpha"):
        check(files)


def test_an_expired_ca_is_named(write, maker):
    old = issue.authority(
        "old", issue.new_key(), maker.ca.certificate.not_valid_before_utc - 9999 * DAY
    )
    files = write(ca=issue.certificate_pem(old.certificate))
    with pytest.raises(ConfigError, match=f"authority {files.ca} expired on"):
        check(files)


def test_an_expired_ca_beside_a_valid_one_does_no_harm(write, maker):
    old = issue.authority(
        "old", issue.new_key(), maker.ca.certificate.not_valid_before_utc - 9999 * DAY
    )
    pems = [issue.certificate_pem(ca.certificate) for ca in (old, maker.ca)]
    assert check(write(ca=b"".join(pems))) == ()


def test_a_certificate_of_another_ca_is_warned_about(write):
    other = issue.authority("other", issue.new_key(), datetime.now(UTC))
    files = write(ca=issue.certificate_pem(other.certificate))
    (warning,) = check(files)
    assert f"{files.certificate} was not issued by {files.ca}" in warning


def test_a_chain_up_to_the_ca_passes_without_a_warning(write, maker):
    key = issue.new_key()
    between = intermediate(maker)
    chain = maker.pem("user_alpha", key=key, issuer=between)
    chain += issue.certificate_pem(between.certificate)
    assert check(write(key=key, certificate=chain)) == ()


def intermediate(maker) -> issue.Authority:
    key = issue.new_key()
    return issue.Authority(maker.certificate("intermediate", key=key, usage=None), key)
