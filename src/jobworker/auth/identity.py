"""Turns a client's certificate into the identity that every decision is about. Pure: no I/O."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jobworker.errors import PermissionDenied

if TYPE_CHECKING:
    from datetime import datetime

COMMON_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
"""What a user's name may look like (to be matched in full): 1 to 64 ASCII characters (64 is
X.520's bound, ub-common-name), none of which means anything in a path, a log line or a shell."""

COMMON_NAME_RULE: Final = (
    "1 to 64 letters, digits and any of . _ @ -, beginning with a letter or a digit"
)
"""The same in words."""

_CACHE_SIZE = 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling, as the certificate authority has confirmed it."""

    common_name: str
    serial: str
    """The certificate's serial number, in hexadecimal as ``openssl x509 -serial`` prints it."""
    fingerprint: str
    """SHA-256 of the certificate (DER), in hexadecimal."""
    not_after: datetime
    """When the certificate expires (UTC). TLS checks it only when a connection is made."""

    @classmethod
    def from_pem(cls, pem: bytes) -> Identity:
        """Read the identity from a client certificate.

        `pem` is what gRPC hands over as ``x509_pem_cert``: the certificate it has verified. The
        name is parsed from it and never taken from gRPC's own ``x509_common_name``, which stops at
        a NUL and hides a second Common Name (seen with grpcio 1.85). What was read from the last
        1024 certificates is remembered: every call of a connection brings the same one.

        Raises PermissionDenied, with the reason, if it is not exactly one certificate for clients
        (extended key usage clientAuth) with exactly one Common Name that fits `COMMON_NAME`.
        """
        return _identity(pem)


@functools.lru_cache(maxsize=_CACHE_SIZE)
def _identity(pem: bytes) -> Identity:
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        _check_usage(certificate.extensions)
    except (
        ValueError,
        TypeError,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise PermissionDenied(f"cannot read the client certificate: {error}") from error
    return Identity(
        common_name=_common_name([name.value for name in names]),
        serial=f"{certificate.serial_number:X}",
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_after=certificate.not_valid_after_utc,
    )


def _check_usage(extensions: x509.Extensions) -> None:
    try:
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is None or ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise PermissionDenied(
            "the client certificate is not one for clients: its extended key usage lacks clientAuth"
        )


def _common_name(names: list[str | bytes]) -> str:
    if len(names) != 1:
        raise PermissionDenied(
            f"the client certificate has {len(names)} Common Names: it must have exactly one"
        )
    name = names[0]
    if not isinstance(name, str) or not COMMON_NAME.fullmatch(name):
        raise PermissionDenied(
            f"the client certificate's Common Name {name!a} is not a user's name: "
            f"{COMMON_NAME_RULE}"
        )
    return name
