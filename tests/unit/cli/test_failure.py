from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from jobworker.cli.context import Connection
from jobworker.cli.failure import explain
from jobworker.rpc.v1.jobworker_pb2 import StartRequest

CONNECTION = Connection("there:1", Path("/me.crt"), Path("/me.key"), Path("/ca.crt"))


def explained(code: grpc.StatusCode, details: str | None) -> str:
    return explain(AioRpcError(code, Metadata(), Metadata(), details), CONNECTION)


def unreachable(reason: str) -> str:
    details = f"failed to connect to all addresses; last error: {reason}"
    return explained(grpc.StatusCode.UNAVAILABLE, details)


# The words are those of grpcio 1.85; tests/e2e makes some of them happen.
HANDSHAKE = (
    "UNKNOWN: ipv4:127.0.0.1:1: Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: "
)
VERIFY = "error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: "
VERSION = "error:100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid certificate"
NAME = "Custom verification check failed with error: UNAUTHENTICATED: Hostname Verification Check"


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        (
            "UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: Connection refused",
            "connection refused; check the URL, and that the server runs",
        ),
        (
            f"{HANDSHAKE}{VERIFY}unable to get local issuer certificate: OK",
            "not signed by the authority in /ca.crt",
        ),
        (f"{HANDSHAKE}{VERIFY}certificate has expired: OK", "has expired"),
        (f"{HANDSHAKE}{VERIFY}certificate is not yet valid: OK", "not valid yet"),
        (f"UNKNOWN: ipv4:127.0.0.1:1: {NAME} failed.", "not for the name in the URL"),
        (f"{HANDSHAKE}{VERSION} verification context: OK", "does not speak TLS"),
        ("UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed", "does not accept the client certificate"),
        (
            "UNAVAILABLE: ipv4:127.0.0.1:1: recvmsg:Connection reset by peer",
            "check that /me.crt is signed",
        ),
        (
            "UNAVAILABLE: ipv4:127.0.0.1:1: Handshake read failed (Endpoint closing)",
            "does not answer",
        ),
        (
            "UNAVAILABLE: ipv4:127.0.0.1:1: Handshake read failed (Socket closed)",
            "check the port, and that it speaks TLS 1.3",
        ),
        (
            "UNKNOWN: ipv4:127.0.0.1:1: Cannot check peer: missing selected ALPN property.",
            "speaks TLS, but not gRPC",
        ),
        ("UNKNOWN: ipv4:192.0.2.1:1: connection attempt timed out", "a firewall"),
        ("something new", "something new"),
    ],
)
def test_an_unreachable_server_is_explained_with_what_to_check(reason, hint):
    text = unreachable(reason)
    assert text.startswith("cannot reach the server at there:1: ")
    assert hint in text


def test_a_host_without_an_address_is_explained():
    text = explained(
        grpc.StatusCode.UNAVAILABLE,
        "errors resolving x.invalid:1: [field:hostname lookup error:address lookup failed for "
        "x.invalid:1: Domain name not found]",
    )
    assert text == "cannot reach the server at there:1: no such host; check the URL"


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
    ],
)
def test_the_servers_own_sentence_is_passed_on(code):
    assert explained(code, "no job has the id x") == "no job has the id x"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.UNAVAILABLE, "the connection to the server was lost: why"),
        (grpc.StatusCode.UNIMPLEMENTED, "the server does not know this call; is it older? (why)"),
        (grpc.StatusCode.INTERNAL, "the server failed: why"),
        (grpc.StatusCode.UNKNOWN, "the server failed: why"),
        (grpc.StatusCode.CANCELLED, "the server cancelled the call: why"),
    ],
)
def test_other_statuses_become_sentences(code, text):
    assert explained(code, "why") == text


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
@pytest.mark.parametrize("details", [None, ""])
def test_no_status_is_without_a_word(code, details):
    assert code.name in explained(code, details)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("limits.memory_max: 1 is not enough", "--memory-max: 1 is not enough"),
        ("limits.io_max_rbps: x: is no disk", "--io-max-rbps: x: is no disk"),
        ("job_id: 'x' is not a job id", "JOB_ID: 'x' is not a job id"),
        ("command.args[1]: contains a NUL byte", "COMMAND[1]: contains a NUL byte"),
        ("env[A]: contains a NUL byte", "--env[A]: contains a NUL byte"),
        ("working_directory: is not absolute", "--working-directory: is not absolute"),
        ("stop.grace: is too long", "--stop-grace: is too long"),
        ("limits.cpus: is 1, but limits.cpu_max, …", "limits.cpus: is 1, but --cpu-max, …"),
        ("something.new: is wrong", "something.new: is wrong"),
    ],
)
def test_a_field_is_called_what_the_user_has_written(said, shown):
    assert explained(grpc.StatusCode.INVALID_ARGUMENT, said) == shown


def test_every_field_of_a_start_has_a_part_of_the_command_line():
    for field in StartRequest.DESCRIPTOR.fields_by_name:
        if field not in ("limits", "stop"):
            assert explained(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: x") != f"{field}: x"


def test_a_servers_words_cannot_move_the_cursor():
    assert explained(grpc.StatusCode.NOT_FOUND, "\x1b[2J{x}") == r"\x1b[2J{x}"
