"""Credentials from files, their reload, and what is read from a connection."""

import asyncio
import logging
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from jobworker.auth import issue, tls, tls13
from jobworker.auth.checks import Purpose
from jobworker.errors import ConfigError, PermissionDenied, Unavailable

DAY = timedelta(days=1)


def make(side: str, files):
    function = tls.server_credentials if side == "server" else tls.client_credentials
    return function(files.certificate, files.key, files.ca)


def purpose(side: str) -> Purpose:
    return Purpose.SERVER if side == "server" else Purpose.CLIENT


@pytest.mark.parametrize("side", ["server", "client"])
def test_good_files_make_credentials(write, side, caplog):
    credentials = make(side, write(purpose=purpose(side)))
    assert isinstance(credentials, grpc.ServerCredentials | grpc.ChannelCredentials)
    assert caplog.records == []


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_file_that_cannot_be_used_is_named(write, side):
    files = write(purpose=purpose(side), valid=(-2 * DAY, -DAY))
    with pytest.raises(ConfigError, match=f"{files.certificate} expired"):
        make(side, files)


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_missing_file_is_named(write, side):
    files = write(purpose=purpose(side))
    files.ca.unlink()
    with pytest.raises(ConfigError, match=f"{files.ca}: there is no such file"):
        make(side, files)


@pytest.mark.parametrize("side", ["server", "client"])
def test_no_credentials_are_made_without_the_restriction_to_tls13(write, side, monkeypatch):
    monkeypatch.setenv(tls13.VARIABLE, "ECDHE-ECDSA-AES128-GCM-SHA256")
    with pytest.raises(ConfigError, match=r"cannot restrict gRPC to TLS 1\.3"):
        make(side, write(purpose=purpose(side)))


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_key_that_is_open_to_everybody_is_logged(write, side, caplog):
    files = write(purpose=purpose(side))
    files.key.chmod(0o644)
    make(side, files)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "chmod 600" in record.message


def test_a_client_whose_certificate_the_ca_has_not_issued_is_warned(write, maker, caplog):
    other = issue.authority("other", issue.new_key(), maker.ca.certificate.not_valid_before_utc)
    make("client", write(ca=issue.certificate_pem(other.certificate)))
    assert "was not issued by" in caplog.text


def test_a_client_reads_its_files_from_pipes_once(write):
    files = write()
    ends = [_pipe(path.read_bytes()) for path in (files.certificate, files.key, files.ca)]
    try:
        paths = [Path(f"/proc/self/fd/{end}") for end in ends]
        assert isinstance(tls.client_credentials(*paths), grpc.ChannelCredentials)
    finally:
        for end in ends:
            os.close(end)


def _pipe(data: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def test_a_client_whose_files_are_good_does_not_load_cryptography(write):
    files = write()
    program = (
        "import sys; from pathlib import Path; from jobworker.auth import tls\n"
        "tls.client_credentials(*map(Path, sys.argv[1:]))\n"
        "print('cryptography' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, files.certificate, files.key, files.ca],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output == "False\n"


@pytest.fixture
def server_files(write):
    return write(purpose=Purpose.SERVER)


@pytest.fixture
def reloader(server_files, caplog):
    caplog.set_level(logging.INFO)
    return tls.Reloader(server_files)


def renew(maker, files, **options) -> None:
    key = issue.new_key()
    options.setdefault("usage", (Purpose.SERVER.oid,))
    files.certificate.write_bytes(maker.pem("jobworker", key=key, **options))
    files.key.write_bytes(issue.key_pem(key))


def test_unchanged_files_are_not_read_again(reloader):
    assert reloader() is None


def test_changed_files_are_used(reloader, server_files, maker, caplog):
    before = reloader.configuration
    renew(maker, server_files)
    assert reloader() not in (None, before)
    assert reloader() is None
    assert "now using the new contents" in caplog.text


def test_a_broken_file_keeps_the_old_ones_and_is_logged_once(reloader, server_files, caplog):
    before = reloader.configuration
    server_files.certificate.write_bytes(b"-----BEGIN CERT")
    assert [reloader() for _ in range(3)] == [None] * 3
    assert reloader.configuration is before
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"{server_files.certificate} is not a certificate" in record.message


def test_a_key_that_comes_before_its_certificate_is_not_used_alone(reloader, server_files, maker):
    key = issue.new_key()
    server_files.key.write_bytes(issue.key_pem(key))
    assert reloader() is None
    certificate = maker.pem("jobworker", key=key, usage=(Purpose.SERVER.oid,))
    server_files.certificate.write_bytes(certificate)
    assert reloader() is not None


def test_a_file_that_vanishes_keeps_the_old_ones(reloader, server_files, caplog):
    server_files.ca.unlink()
    assert reloader() is None
    assert f"{server_files.ca}: there is no such file" in caplog.text


def test_different_problems_are_logged_each(reloader, server_files, caplog):
    server_files.certificate.write_bytes(b"nonsense")
    assert reloader() is None
    server_files.certificate.unlink()
    assert reloader() is None
    assert len(caplog.records) == 2


def test_files_that_become_usable_by_time_alone_are_used(server_files, maker):
    now = maker.now
    reloader = tls.Reloader(server_files, now=lambda: now)
    renew(maker, server_files, valid=(DAY, 2 * DAY))
    assert reloader() is None
    now += DAY
    assert reloader() is not None


def test_the_version_comes_from_the_connection():
    assert tls.negotiated_version({"ssl_tls_version": [b"TLSv1.2"]}) == "TLSv1.2"


def test_a_connection_with_tls13_is_let_through():
    tls.require_tls13({"ssl_tls_version": [b"TLSv1.3"]})


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ({"ssl_tls_version": [b"TLSv1.2"]}, "speaks TLSv1.2"),
        ({"ssl_tls_version": [b"TLSv1.3", b"TLSv1.2"]}, "is not secured"),
        ({"ssl_tls_version": []}, "is not secured"),
        ({}, "is not secured"),
    ],
)
def test_any_other_connection_is_refused(context, reason):
    with pytest.raises(PermissionDenied, match=reason):
        tls.require_tls13(context)


def test_the_certificate_comes_from_the_connection():
    assert tls.peer_certificate({"x509_pem_cert": [b"pem"]}) == b"pem"


@pytest.mark.parametrize("context", [{}, {"x509_pem_cert": []}, {"x509_pem_cert": [b"a", b"b"]}])
def test_a_connection_without_one_certificate_is_refused(context):
    with pytest.raises(PermissionDenied, match="has shown no certificate"):
        tls.peer_certificate(context)


@asynccontextmanager
async def listening(handler, **options) -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0, **options)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def close(_reader, writer) -> None:
    writer.close()


def context(files, version: ssl.TLSVersion) -> ssl.SSLContext:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = version
    server.load_cert_chain(files.certificate, files.key)
    server.load_verify_locations(files.ca)
    server.verify_mode = ssl.CERT_REQUIRED
    return server


async def test_a_server_that_speaks_tls12_is_found_out_without_a_certificate(server_files):
    older = context(server_files, ssl.TLSVersion.TLSv1_2)
    async with listening(close, ssl=older) as port:
        assert await tls.probe_tls12("127.0.0.1", port)


async def test_a_server_that_speaks_only_tls13_passes(server_files):
    newer = context(server_files, ssl.TLSVersion.TLSv1_3)
    async with listening(close, ssl=newer) as port:
        assert not await tls.probe_tls12("127.0.0.1", port)


async def test_a_connection_that_ends_without_an_answer_is_a_refusal():
    async with listening(close) as port:
        assert not await tls.probe_tls12("127.0.0.1", port)


async def test_a_server_that_is_not_there_cannot_pass():
    async with listening(close) as port:
        pass
    with pytest.raises(Unavailable, match=f"cannot ask 127.0.0.1 port {port} whether"):
        await tls.probe_tls12("127.0.0.1", port)


async def test_a_server_that_does_not_answer_cannot_pass():
    ended = asyncio.Event()

    async def silent(_reader, writer) -> None:
        await ended.wait()
        writer.close()

    async with listening(silent) as port:
        with pytest.raises(Unavailable, match="no answer"):
            await tls.probe_tls12("127.0.0.1", port, timeout=0.05)
        ended.set()
