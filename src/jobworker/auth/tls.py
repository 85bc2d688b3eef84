"""Turns files into gRPC credentials for mutual TLS 1.3, and checks what was negotiated.

The checks that need `cryptography` are imported where they are used: loading it takes a client half
as long as loading gRPC, and a client whose files are in order does without.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import grpc

from jobworker.auth import rehearsal, tls13
from jobworker.auth.files import CredentialFiles
from jobworker.errors import ConfigError, PermissionDenied, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from jobworker.auth.files import Pems

    AuthContext = Mapping[str, Sequence[bytes]]
    """What ``context.auth_context()`` of a gRPC call returns."""

TLS13: Final = "TLSv1.3"

_log = logging.getLogger(__name__)

_HANDSHAKE = b"\x16"  # the first byte of a record that holds one: RFC 5246, 6.2.1, ContentType


def server_credentials(certificate: Path, key: Path, ca: Path) -> grpc.ServerCredentials:
    """Make credentials that demand a client certificate issued by `ca`, over TLS 1.3 only.

    The files are looked at when a connection is made, and read again when one has changed. New
    files that cannot be used leave the old ones in place, and the log says why; connections that
    exist keep what they were made with.

    Raises ConfigError, naming the file and the problem, if they cannot be used now.
    """
    tls13.check()
    reloader = Reloader(CredentialFiles(certificate, key, ca))
    return grpc.dynamic_ssl_server_credentials(
        reloader.configuration,
        reloader,  # type: ignore[arg-type]  # gRPC documents that it may return None: no change
        require_client_authentication=True,
    )


def client_credentials(certificate: Path, key: Path, ca: Path) -> grpc.ChannelCredentials:
    """Make credentials that show `certificate` and trust only `ca`, over TLS 1.3 only.

    Raises ConfigError, naming the file and the problem, if they cannot be used.
    """
    tls13.check()
    files = CredentialFiles(certificate, key, ca)
    pems = files.read()
    warnings = pems.warnings
    if not (files.regular() and rehearsal.passes(files)):
        from jobworker.auth import checks  # noqa: PLC0415 - see the module's docstring

        warnings = checks.check(pems, checks.Purpose.CLIENT)
    _warn(warnings)
    return grpc.ssl_channel_credentials(
        root_certificates=pems.ca.data,
        private_key=pems.key.data,
        certificate_chain=pems.certificate.data,
    )


class Reloader:
    """The source of the server's certificates; gRPC calls it in its own threads, once a connection.

    A set of files that was refused is tried again with every connection, because time alone can
    make it good (a certificate that is not valid yet), but each refusal is logged once.
    """

    def __init__(
        self, files: CredentialFiles, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._files = files
        self._now = now
        self._lock = threading.Lock()
        self._refused = ""
        # Before the files are read: a change that comes in between is then seen the next time.
        self._version = files.version()
        self.configuration = self._load()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what is to be used from now on, or None if it is what was used before."""
        with self._lock:
            version = self._files.version()
            if version == self._version:
                return None
            try:
                self.configuration = self._load()
            except ConfigError as error:
                self._refuse(str(error))
                return None
            self._version = version
            self._refused = ""
            _log.info("TLS: now using the new contents of %s", self._files.certificate)
            return self.configuration

    def _load(self) -> grpc.ServerCertificateConfiguration:
        from jobworker.auth import checks  # noqa: PLC0415 - see the module's docstring

        pems = self._files.read()
        _warn(checks.check(pems, checks.Purpose.SERVER, now=self._now()))
        return _configuration(pems)

    def _refuse(self, problem: str) -> None:
        if problem != self._refused:
            self._refused = problem
            _log.error("TLS: new certificate files refused, the old ones stay in use: %s", problem)


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pems.key.data, pems.certificate.data)], root_certificates=pems.ca.data
    )


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        _log.warning("TLS: %s", warning)


def negotiated_version(context: AuthContext) -> str | None:
    """Return the TLS version of a call's connection, for example ``TLSv1.3``; None without TLS."""
    values = context.get("ssl_tls_version", ())
    return values[0].decode("ascii", "replace") if len(values) == 1 else None


def require_tls13(context: AuthContext) -> None:
    """Raise PermissionDenied unless the call's connection speaks TLS 1.3."""
    version = negotiated_version(context)
    if version != TLS13:
        raise PermissionDenied(
            f"this server speaks TLS 1.3 only, and the connection {_speaks(version)}"
        )


def _speaks(version: str | None) -> str:
    return f"speaks {version}" if version else "is not secured by TLS"


def peer_certificate(context: AuthContext) -> bytes:
    """Return the client certificate (PEM) of a call's connection, as gRPC has verified it.

    Raises PermissionDenied if the client has shown none.
    """
    values = context.get("x509_pem_cert", ())
    if len(values) != 1:
        raise PermissionDenied("the client has shown no certificate")
    return values[0]


async def probe_tls12(host: str, port: int, *, timeout: float = 5.0) -> bool:  # noqa: ASYNC109
    """Tell whether a server would speak TLS 1.2.

    It is offered 1.2 and nothing else, and what it answers first decides: a handshake message means
    that it goes along. So neither a client certificate nor trust in the server is needed, and the
    lack of either cannot pass for a refusal of the version.

    Raises Unavailable if there was no connection or no answer within `timeout` seconds.
    """
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_hello_tls12())
                first = await _first_byte(reader)
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise Unavailable(
            f"cannot ask {host} port {port} whether it speaks TLS 1.2: {str(error) or 'no answer'}"
        ) from error
    return first == _HANDSHAKE


async def _first_byte(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(1)
    except ConnectionResetError:
        return b""


def _hello_tls12() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()
