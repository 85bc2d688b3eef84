"""Which certificates make an identity, and which are refused."""

from ssl import DER_cert_to_PEM_cert, PEM_cert_to_DER_cert

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobworker.auth.identity import COMMON_NAME, Identity
from jobworker.errors import PermissionDenied


def test_identity_is_what_the_certificate_says(maker):
    certificate = maker.certificate("user_alpha")
    identity = Identity.from_pem(certificate.public_bytes(Encoding.PEM))
    assert identity == Identity(
        common_name="user_alpha",
        serial=f"{certificate.serial_number:X}",
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_after=certificate.not_valid_after_utc,
    )


def test_a_certificate_is_parsed_once(maker):
    pem = maker.pem("user_alpha")
    assert Identity.from_pem(pem) is Identity.from_pem(bytes(bytearray(pem)))


@pytest.mark.parametrize("name", ["a", "7", "user_alpha", "Ann.Lee-2@example.org", "x" * 64])
def test_names_of_users_are_accepted(maker, name):
    assert Identity.from_pem(maker.pem(name)).common_name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "user_alpha\0",
        "user_alpha\0.example.org",
        "\0user_alpha",
        "user_alpha\n",
        "user alpha",
        "user_älpha",
        "user_аlpha",
        "٣",
        ".hidden",
        "-option",
        "_x",
        "../etc/passwd",
        "a/b",
        'a"b',
        "x" * 65,
    ],
)
@pytest.mark.filterwarnings("ignore:Attribute's length:UserWarning")
def test_other_names_are_refused_with_the_name(maker, name):
    with pytest.raises(PermissionDenied, match=r"Common Name .* is not a user's name") as refusal:
        Identity.from_pem(maker.pem(name))
    assert ascii(name) in str(refusal.value)


def test_a_certificate_without_a_common_name_is_refused(maker):
    organization = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "user_alpha")])
    with pytest.raises(PermissionDenied, match="has 0 Common Names"):
        Identity.from_pem(maker.pem(subject=organization))


def test_a_certificate_with_two_common_names_is_refused(maker):
    with pytest.raises(PermissionDenied, match="has 2 Common Names"):
        Identity.from_pem(maker.pem("user_bravo", "user_alpha"))


def test_two_common_names_in_one_part_of_the_subject_are_refused(maker):
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in ("user_a", "user_b")]
    subject = x509.Name([x509.RelativeDistinguishedName(attributes)])
    with pytest.raises(PermissionDenied, match="has 2 Common Names"):
        Identity.from_pem(maker.pem(subject=subject))


@pytest.mark.parametrize(
    "usage",
    [
        None,
        (ExtendedKeyUsageOID.SERVER_AUTH,),
        (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,),
    ],
)
def test_a_certificate_that_is_not_for_clients_is_refused(maker, usage):
    with pytest.raises(PermissionDenied, match="lacks clientAuth"):
        Identity.from_pem(maker.pem("user_alpha", usage=usage))


def test_a_certificate_for_clients_and_servers_is_accepted(maker):
    usage = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
    assert Identity.from_pem(maker.pem("user_alpha", usage=usage)).common_name == "user_alpha"


@pytest.mark.parametrize("pem", [b"", b"user_alpha", b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_not_a_certificate_is_refused(pem):
    with pytest.raises(PermissionDenied, match="cannot read the client certificate"):
        Identity.from_pem(pem)


def test_two_certificates_are_refused(maker):
    with pytest.raises(PermissionDenied, match="cannot read the client certificate"):
        Identity.from_pem(maker.pem("user_bravo") + maker.pem("user_alpha"))


# Fixed, so that an example that was found once is found again.
CERTIFICATE = PEM_cert_to_DER_cert("""\
-----BEGIN CERTIFICATE-----
MIIBrzCCAVWgAwIBAgIUFdMs0gT2aS4uaq4Xwi4x6BsDPeUwCgYIKoZIzj0EAwIw
IzEhMB8GA1UEAwwYam9id29ya2VyIGRldmVsb3BtZW50IENBMB4XDTI2MTEyNDA0
NDk0NloXDTI3MTIyNjA1NDk0NlowFTETMBEGA1UEAwwKdXNlcl9hbHBoYTBZMBMG
ByqGSM49AgEGCCqGSM49AwEHA0IABOhK0MO4boNghUgPpV91vURgC9Ky/tPhvNz2
q1U7U/JzhtxeaqujG+mBNnGEr2Q8ZOZQOsuGg6vMCQqcRVN4RTWjdTBzMB0GA1Ud
DgQWBBRmqMC7dV8DChSaNJi6nA2hCCMq4jAMBgNVHRMBAf8EAjAAMA4GA1UdDwEB
/wQEAwIHgDATBgNVHSUEDDAKBggrBgEFBQcDAjAfBgNVHSMEGDAWgBTRHglTI789
LK3s2pH17V1AuVbB1TAKBggqhkjOPQQDAgNIADBFAiA7DJ1pgI9iVASjxfZzHFfB
l25cA8u0o6qPMRwOlnTxrgIhAOLAsrV30iiSFCQ6eEmiPU9bq7pEb5LmvGzHsI7q
6cAq
-----END CERTIFICATE-----
""")


@settings(max_examples=300, deadline=None)
@example([(127, 3)])  # makes a name a bit string, which cryptography answers with a TypeError
@given(
    damage=st.lists(
        st.tuples(st.integers(0, len(CERTIFICATE) - 1), st.integers(0, 255)),
        min_size=1,
        max_size=3,
    )
)
@pytest.mark.filterwarnings("ignore")  # cryptography warns about oddities that it lets pass
def test_a_damaged_certificate_is_refused_or_names_a_user(damage):
    der = bytearray(CERTIFICATE)
    for position, byte in damage:
        der[position] = byte
    try:
        identity = Identity.from_pem(DER_cert_to_PEM_cert(bytes(der)).encode())
    except PermissionDenied:
        return
    assert COMMON_NAME.fullmatch(identity.common_name)
