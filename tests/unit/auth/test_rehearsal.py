"""The quick look at a client's files passes what is surely good, and nothing else."""

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from jobworker.auth import issue, rehearsal
from jobworker.auth.checks import Purpose

DAY = timedelta(days=1)


def test_good_files_pass(write):
    assert rehearsal.passes(write())


@pytest.mark.parametrize("valid", [(-2 * DAY, -DAY), (DAY, 2 * DAY)])
def test_a_certificate_that_is_not_valid_now_does_not_pass(write, valid):
    assert not rehearsal.passes(write(valid=valid))


@pytest.mark.parametrize("usage", [None, (Purpose.SERVER.oid,)])
def test_a_certificate_that_is_not_for_clients_does_not_pass(write, usage):
    assert not rehearsal.passes(write(usage=usage))


def test_a_certificate_of_another_ca_does_not_pass(write, maker):
    other = issue.authority("test CA", issue.new_key(), maker.ca.certificate.not_valid_before_utc)
    assert not rehearsal.passes(write(ca=issue.certificate_pem(other.certificate)))


def test_the_key_of_another_certificate_does_not_pass(write):
    files = write()
    files.key.write_bytes(issue.key_pem(issue.new_key()))
    assert not rehearsal.passes(files)


@pytest.mark.parametrize("name", ["certificate", "key", "ca"])
def test_a_file_that_is_not_pem_does_not_pass(write, name):
    files = write()
    getattr(files, name).write_bytes(b"nonsense")
    assert not rehearsal.passes(files)


def test_keys_that_only_openssl_takes_do_not_pass(write, p521):
    assert not rehearsal.passes(write(key=p521))
    assert not rehearsal.passes(write(key=ed25519.Ed25519PrivateKey.generate()))


def test_rsa_is_left_to_the_closer_look(write, rsa_2048):
    assert not rehearsal.passes(write(key=rsa_2048))


def test_an_encrypted_key_does_not_pass_and_nobody_is_asked_for_a_passphrase(write):
    key = issue.new_key()
    files = write(key=key)
    encryption = BestAvailableEncryption(b"secret")
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    assert not rehearsal.passes(files)
