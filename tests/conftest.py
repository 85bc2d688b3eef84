"""What holds for every test: gRPC is restricted to TLS 1.3 before anything imports it.

And what tests of clients share: certificates, and a stand-in for the service that listens.
"""

import jobworker.auth  # noqa: F401, I001  # isort: split

import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import hypothesis
import pytest
import trustme

from jobworker.rpc.v1.jobworker_pb2_grpc import (
    JobWorkerServiceServicer,
    add_JobWorkerServiceServicer_to_server,
)

# How long an example takes says nothing on a machine that is busy with something else.
hypothesis.settings.register_profile("jobworker", deadline=None)
hypothesis.settings.load_profile("jobworker")


def pytest_collection_finish() -> None:
    """Let no collection of garbage look again at what lives until the end: modules and tests.

    That is hundreds of thousands of objects, and the garbage of a test a few.
    """
    gc.collect()
    gc.freeze()


YESTERDAY = datetime.now(UTC) - timedelta(days=1)


class Pki:
    """A directory with an authority's certificate, and those that it has signed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.ca = directory / "ca.crt"
        self._ca.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *hosts: str, expired: bool = False) -> tuple[Path, Path]:
        """Write ``name.crt`` and ``name.key``: a user's, or a server's for `hosts`."""
        issued = self._ca.issue_cert(
            *(hosts or (f"{name}@example.org",)),
            common_name=name,
            not_after=YESTERDAY if expired else None,
            key_type=trustme.KeyType.ECDSA,
        )
        certificate, key = (self.directory / f"{name}.{kind}" for kind in ("crt", "key"))
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.touch(mode=0o600)
        key.write_bytes(issued.private_key_pem.bytes())
        return certificate, key


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority, a server for localhost and the user user_alpha."""
    pki = Pki(tmp_path_factory.mktemp("pki"))
    pki.issue("jobworker", "localhost")
    pki.issue("user_alpha")
    return pki


class Listener:
    """A server that is listening; `stop` cuts off what is under way."""

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self._server = server
        self.port = port
        self.url = f"localhost:{port}"

    async def stop(self) -> None:
        """Stop as a server does that has no time to lose."""
        await self._server.stop(None)


Serve = Callable[..., Awaitable[Listener]]


@pytest.fixture
async def serve(pki: Pki) -> AsyncIterator[Serve]:
    """Return a function that lets a service listen; it stops when the test is over."""
    servers: list[grpc.aio.Server] = []

    async def start(
        service: JobWorkerServiceServicer,
        *,
        port: int = 0,
        certificate: str = "jobworker",
        tls: bool = True,
    ) -> Listener:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_JobWorkerServiceServicer_to_server(service, server)
        address = f"localhost:{port}"
        if tls:
            key, chain = (
                (pki.directory / f"{certificate}.{kind}").read_bytes() for kind in ("key", "crt")
            )
            credentials = grpc.ssl_server_credentials(
                [(key, chain)], pki.ca.read_bytes(), require_client_auth=True
            )
            bound = server.add_secure_port(address, credentials)
        else:
            bound = server.add_insecure_port(address)
        await server.start()
        servers.append(server)
        return Listener(server, bound)

    yield start
    for server in servers:
        await server.stop(None)
