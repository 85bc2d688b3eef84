"""Mutual TLS 1.3 as gRPC really does it: a server on loopback, with the real credentials."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jobworker.auth import certs, issue, tls
from jobworker.auth.checks import Purpose
from jobworker.auth.identity import Identity
from jobworker.errors import PermissionDenied
from tests.support.waiting import PATIENCE

METHOD = "/test.Service/WhoAmI"
NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


class Certificates:
    """The files of `certs init`, and whatever else their CA is made to sign."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        certs.init(directory)

    @property
    def ca(self) -> issue.Authority:
        certificate = x509.load_pem_x509_certificate((self.directory / "ca.crt").read_bytes())
        key = load_pem_private_key((self.directory / "ca.key").read_bytes(), password=None)
        return issue.Authority(certificate, key)

    def paths(self, name: str) -> tuple[Path, Path, Path]:
        return tuple(self.directory / file for file in (f"{name}.crt", f"{name}.key", "ca.crt"))

    def server_credentials(self) -> grpc.ServerCredentials:
        return tls.server_credentials(*self.paths("jobworker"))

    def client_credentials(self, name: str = "user_alpha") -> grpc.ChannelCredentials:
        return tls.client_credentials(*self.paths(name))

    def unusual(
        self,
        *names: str,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        valid: tuple[timedelta, timedelta] = (-HOUR, HOUR),
    ) -> grpc.ChannelCredentials:
        """Credentials that `client_credentials` would not make."""
        key = issue.new_key()
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, n, _validate=False) for n in names]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(attributes))
            .issuer_name(self.ca.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + valid[0])
            .not_valid_after(NOW + valid[1])
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self.ca.key, hashes.SHA256())
        )
        return grpc.ssl_channel_credentials(
            issue.certificate_pem(self.ca.certificate),
            issue.key_pem(key),
            issue.certificate_pem(certificate),
        )

    def use_rsa(self) -> None:
        """Give the server an RSA key."""
        key = rsa.generate_private_key(65537, 2048)
        certificate = issue.certificate(
            self.ca,
            "jobworker",
            key,
            purpose=Purpose.SERVER,
            subjects=[x509.DNSName("localhost")],
            now=NOW,
        )
        path, key_path, _ = self.paths("jobworker")
        path.write_bytes(issue.certificate_pem(certificate))
        key_path.write_bytes(issue.key_pem(key))

    def become(self, other: "Certificates") -> None:
        """Replace the files that a server reads, one after the other, by those of another CA."""
        for path, new in zip(self.paths("jobworker"), other.paths("jobworker"), strict=True):
            path.write_bytes(new.read_bytes())


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "certs")


@pytest.fixture(params=["EC", "RSA"])
def any_key(request, certificates: Certificates) -> Certificates:
    if request.param == "RSA":
        certificates.use_rsa()
    return certificates


class Server:
    """Answers with the caller's name, and remembers every call."""

    def __init__(self) -> None:
        self.port = 0
        self.calls = 0

    async def who_am_i(self, _request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.calls += 1
        connection = context.auth_context()
        try:
            tls.require_tls13(connection)
            identity = Identity.from_pem(tls.peer_certificate(connection))
        except PermissionDenied as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return identity.common_name.encode()


@asynccontextmanager
async def running(credentials: grpc.ServerCredentials) -> AsyncIterator[Server]:
    server = Server()
    method = grpc.unary_unary_rpc_method_handler(server.who_am_i)
    process = grpc.aio.server()
    process.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", {"WhoAmI": method}),)
    )
    server.port = process.add_secure_port("127.0.0.1:0", credentials)
    await process.start()
    try:
        yield server
    finally:
        await process.stop(None)


@asynccontextmanager
async def connected(
    server: Server, credentials: grpc.ChannelCredentials
) -> AsyncIterator[Callable]:
    options = [("grpc.use_local_subchannel_pool", 1)]  # or a connection might be another test's
    async with grpc.aio.secure_channel(f"localhost:{server.port}", credentials, options) as channel:
        method = channel.unary_unary(METHOD)

        async def who_am_i() -> str:
            return (await method(b"", timeout=PATIENCE)).decode()

        yield who_am_i


async def call(server: Server, credentials: grpc.ChannelCredentials) -> str:
    async with connected(server, credentials) as who_am_i:
        return await who_am_i()


async def assert_no_connection(server: Server, credentials: grpc.ChannelCredentials) -> None:
    calls = server.calls
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call(server, credentials)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.calls == calls


async def handshake(
    server: Server, certificates: Certificates, version: ssl.TLSVersion
) -> ssl.SSLObject:
    """Shake hands as a client that has everything it needs, and speaks one version of TLS."""
    path, key, ca = certificates.paths("user_alpha")
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(path, key)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("localhost", server.port, ssl=context)
    writer.transport.abort()
    return writer.get_extra_info("ssl_object")


async def server_certificate(server: Server, certificates: Certificates) -> x509.Certificate:
    connection = await handshake(server, certificates, ssl.TLSVersion.TLSv1_3)
    return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))


def on_disk(certificates: Certificates) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificates.paths("jobworker")[0].read_bytes())


async def test_a_client_is_known_by_its_certificate(any_key):
    async with running(any_key.server_credentials()) as server:
        assert await call(server, any_key.client_credentials("user_alpha")) == "user_alpha"
        assert await call(server, any_key.client_credentials("user_bravo")) == "user_bravo"


async def test_tls13_is_accepted(any_key):
    async with running(any_key.server_credentials()) as server:
        connection = await handshake(server, any_key, ssl.TLSVersion.TLSv1_3)
        assert connection.version() == "TLSv1.3"


async def test_tls12_is_refused(any_key):
    async with running(any_key.server_credentials()) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await handshake(server, any_key, ssl.TLSVersion.TLSv1_2)


async def test_the_servers_own_probe_finds_no_tls12(any_key):
    async with running(any_key.server_credentials()) as server:
        assert not await tls.probe_tls12("127.0.0.1", server.port)


@pytest.mark.parametrize(
    ("version", "reached"), [(ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)]
)
async def test_a_client_shakes_hands_with_tls13_servers_only(certificates, version, reached):
    path, key, _ = certificates.paths("jobworker")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(path, key)
    context.set_alpn_protocols(["h2"])
    handshakes = []

    async def count(_reader, writer) -> None:
        handshakes.append(writer.get_extra_info("ssl_object").version())
        writer.transport.abort()

    listener = await asyncio.start_server(count, "127.0.0.1", 0, ssl=context)
    async with listener:
        server = Server()
        server.port = listener.sockets[0].getsockname()[1]
        await assert_no_connection(server, certificates.client_credentials())
    assert bool(handshakes) is reached


async def test_a_client_does_not_trust_a_server_of_another_ca(certificates, tmp_path):
    other = Certificates(tmp_path / "other")
    credentials = tls.client_credentials(
        *certificates.paths("user_alpha")[:2], other.paths("user_alpha")[2]
    )
    async with running(certificates.server_credentials()) as server:
        await assert_no_connection(server, credentials)


async def test_a_client_without_a_certificate_is_refused(certificates):
    credentials = grpc.ssl_channel_credentials(certificates.paths("ca")[0].read_bytes())
    async with running(certificates.server_credentials()) as server:
        await assert_no_connection(server, credentials)


async def test_a_client_certificate_of_another_ca_is_refused(certificates, tmp_path):
    other = Certificates(tmp_path / "other")
    credentials = tls.client_credentials(
        *other.paths("user_alpha")[:2], certificates.paths("ca")[0]
    )
    async with running(certificates.server_credentials()) as server:
        await assert_no_connection(server, credentials)


@pytest.mark.parametrize("valid", [(-2 * HOUR, -HOUR), (HOUR, 2 * HOUR)])
async def test_a_client_certificate_that_is_not_valid_now_is_refused(certificates, valid):
    async with running(certificates.server_credentials()) as server:
        await assert_no_connection(server, certificates.unusual("user_alpha", valid=valid))


async def test_a_certificate_for_servers_is_refused(certificates):
    credentials = certificates.unusual("user_alpha", usage=ExtendedKeyUsageOID.SERVER_AUTH)
    async with running(certificates.server_credentials()) as server:
        await assert_no_connection(server, credentials)


@pytest.mark.filterwarnings("ignore:Attribute's length:UserWarning")
@pytest.mark.parametrize(
    "names",
    [("user_alpha\0",), ("user_alpha\0mallory",), ("user_alpha", "mallory"), ("",), ("älpha",), ()],
)
async def test_a_certificate_that_names_no_user_is_denied(certificates, names):
    async with running(certificates.server_credentials()) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call(server, certificates.unusual(*names))
    assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "Common Name" in failure.value.details()


async def test_new_certificates_are_used_for_new_connections(certificates):
    async with running(certificates.server_credentials()) as server:
        before = on_disk(certificates)
        assert await server_certificate(server, certificates) == before
        async with connected(server, certificates.client_credentials()) as who_am_i:
            assert await who_am_i() == "user_alpha"
            certs.init(certificates.directory, force=True)
            assert await server_certificate(server, certificates) == on_disk(certificates) != before
            assert await who_am_i() == "user_alpha"
        assert await call(server, certificates.client_credentials()) == "user_alpha"


@pytest.mark.parametrize("broken", [0, 1, 2], ids=["certificate", "key", "ca"])
async def test_a_broken_file_leaves_the_old_certificates_in_use(certificates, broken):
    async with running(certificates.server_credentials()) as server:
        before = on_disk(certificates)
        credentials = certificates.client_credentials()
        path = certificates.paths("jobworker")[broken]
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert await call(server, credentials) == "user_alpha"
        path.write_bytes(content)
        assert await server_certificate(server, certificates) == before


async def test_a_new_ca_locks_out_the_clients_of_the_old_one(certificates, tmp_path):
    async with running(certificates.server_credentials()) as server:
        old = certificates.client_credentials()
        assert await call(server, old) == "user_alpha"
        other = Certificates(tmp_path / "other")
        certificates.become(other)
        assert await call(server, other.client_credentials()) == "user_alpha"
        await assert_no_connection(server, old)


async def test_a_session_of_the_old_ca_is_not_resumed_under_a_new_one(certificates, tmp_path):
    path, key, _ = certificates.paths("user_alpha")
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE  # the client would rather be let in than be careful
    client.load_cert_chain(path, key)
    client.set_alpn_protocols(["h2"])
    async with running(certificates.server_credentials()) as server:
        session, _ = await asyncio.to_thread(connect, server.port, client)
        _, reused = await asyncio.to_thread(connect, server.port, client, session)
        assert reused
        certificates.become(Certificates(tmp_path / "other"))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(connect, server.port, client, session)


def connect(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLSession | None, bool | None]:
    """Connect and read what the server says first: its tickets come with it, or its refusal."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain,
        context.wrap_socket(plain, session=session) as connection,
    ):
        if not connection.recv(1):
            raise ConnectionResetError
        return connection.session, connection.session_reused
