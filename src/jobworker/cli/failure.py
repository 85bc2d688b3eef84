"""What went wrong, as a sentence for the user: one table for TLS, one for gRPC statuses. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import grpc

from jobworker.cli.limits import LIMITS
from jobworker.rpc.resume import never_connected
from jobworker.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobworker.cli.context import Connection


_UNREACHABLE: Final[tuple[tuple[str, str], ...]] = (
    (
        "CERTIFICATE_VERIFY_FAILED: certificate has expired",
        "its certificate, or the authority's, has expired; renew it on the server",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED: certificate is not yet valid",
        "its certificate is not valid yet; compare the clocks of the two machines",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate was not signed by the authority in {ca}; check --ca and the URL",
    ),
    (
        "Hostname Verification Check failed",
        "its certificate is not for the name in the URL; use one that the certificate lists",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "what listens there does not speak TLS; check the port",
    ),
    (
        "Connection refused",
        "connection refused; check the URL, and that the server runs",
    ),
    ("Domain name not found", "no such host; check the URL"),
    ("errors resolving", "the host's name cannot be resolved; check the URL"),
    ("DNS resolution failed", "the host's name cannot be resolved; check the URL"),
    (
        "Handshake read failed (Endpoint closing)",
        "what listens there does not answer; check the port",
    ),
    (
        "Handshake read failed",
        "it closed the connection before TLS began; check the port, and that it speaks TLS 1.3",
    ),
    (
        "missing selected ALPN property",
        "what listens there speaks TLS, but not gRPC; check the port",
    ),
    ("timed out", "it does not answer; check the URL, and whether a firewall is in between"),
    ("Timeout occurred", "it does not answer; check the URL, and whether a firewall is in between"),
    # With TLS 1.3 the client is through before the server has looked at its certificate, and
    # grpcio does not tell of the alert: all there is to see is a connection that closes.
    (
        "Socket closed",
        (
            "it closed the connection while TLS began, as a server does that does not accept the "
            "client certificate; check that {cert} is signed by the server's authority "
            "and has not expired"
        ),
    ),
)
_UNREACHABLE_ALIASES: Final = ("Connection reset by peer", "Broken pipe")

_SENTENCES: Final[dict[grpc.StatusCode, str]] = {
    grpc.StatusCode.UNAVAILABLE: "the connection to the server was lost: {details}",
    grpc.StatusCode.UNIMPLEMENTED: "the server does not know this call; is it older? ({details})",
    grpc.StatusCode.INTERNAL: "the server failed: {details}",
    grpc.StatusCode.UNKNOWN: "the server failed: {details}",
    grpc.StatusCode.CANCELLED: "the server cancelled the call: {details}",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the server did not answer in time: {details}",
}


_PARTS: Final[Mapping[str, str]] = {
    "command": "COMMAND",
    "command.name": "COMMAND",
    "command.args": "COMMAND",
    "created_after": "--since",
    "created_before": "--until",
    "env": "--env",
    "grace": "--grace",
    "job_id": "JOB_ID",
    "labels": "--label",
    "name": "--name",
    "last_bytes": "--last-bytes",
    "last_lines": "--last",
    "output_max_bytes": "--output-max",
    "offset": "--since-offset",
    "owner": "--owner",
    "request_id": "--request-id",
    "resume_token": "--since-token",
    "signal": "SIGNAL",
    "statuses": "--status",
    "stdin": "--stdin",
    "stop.grace": "--stop-grace",
    "split_stderr": "--split-stderr",
    "stop.signal": "--stop-signal",
    "stream": "--stream",
    "timeout": "--timeout",
    "user": "--user",
    "working_directory": "--working-directory",
    **{f"limits.{limit.field}": limit.flag for limit in LIMITS},
}
"""A field of the wire contract → the part of a command line that fills it."""

_FIELD: Final = re.compile(r"^[a-z_.]+(?=[:\[])|\blimits\.[a-z_]+")


def _as_typed(details: str) -> str:
    """Name what a server's sentence says of fields by what the user has written instead."""
    return _FIELD.sub(lambda field: _PARTS.get(field[0], field[0]), details)


def explain(error: grpc.RpcError, connection: Connection) -> str:
    """Say why a call failed; the statuses that carry the server's own sentence pass it on."""
    details = printable(error.details() or "") or f"no details ({error.code().name})"
    if never_connected(error):
        return f"cannot reach the server at {connection.url}: {_unreachable(details, connection)}"
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        details = _as_typed(details)
    return _SENTENCES.get(error.code(), "{details}").format(details=details)


def _unreachable(details: str, connection: Connection) -> str:
    for alias in _UNREACHABLE_ALIASES:
        details += " Socket closed" if alias in details else ""
    for words, sentence in _UNREACHABLE:
        if words in details:
            return sentence.format(cert=connection.cert, ca=connection.ca)
    return details
