"""What every client's channel has in common: the target and the options. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import jobworker
from jobworker.rpc.defaults import DEFAULT_PORT, MAX_MESSAGE
from jobworker.rpc.v1.jobworker_pb2 import StatsRequest, StopRequest, WaitRequest

if TYPE_CHECKING:
    from uuid import UUID

_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    # A silent follower must notice that the server is gone: nothing else would tell it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # gRPC's own guess of what a stream may send ahead of its reader (BDP probing) may raise it for
    # all streams: a thousand that nobody read took 24 GB.
    ("grpc.http2.bdp_probe", 0),
    # A proxy would end the TLS connection that proves who the client is.
    ("grpc.enable_http_proxy", 0),
    # A follower paces its own attempts (see rpc.resume); the channel must not be slower.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

WIDE: Final = 4 * 1024 * 1024
"""Bytes that each of a few streams may send ahead of its reader, who holds what it does not read.

Measured: a follower alone is a quarter faster with this than with `NARROW`.
"""
WIDE_STREAMS: Final = 4
"""How many streams of a client at a time may send so much ahead."""
NARROW: Final = 512 * 1024
"""Bytes that each of the others may: a thousand that are not read hold 0.75 GB."""

_FRAME: Final = 1024 * 1024
"""Bytes; more than the largest message of output has."""

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_ADDRESS = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[^\[\]:/?#@]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)


def parse_target(url: str) -> str:
    """Return the ``host:port`` that `url` means; raises ValueError if it means none.

    Accepted are ``host``, ``host:port``, ``[::1]:port`` and any of them after ``https://``.
    """
    address = _ADDRESS.fullmatch(url.removeprefix("https://").removesuffix("/"))
    if address is None:
        raise ValueError(f"{url!r} is none of host, host:port, [IPv6]:port, https://host:port")
    host, port = address["host"], int(address["port"] or DEFAULT_PORT)
    if host is not None and not _HOST.fullmatch(host):
        raise ValueError(f"{url!r}: {host!r} is not a host name")
    if not 0 < port < 65_536:
        raise ValueError(f"{url!r}: the port must be between 1 and 65535")
    return f"{host or '[' + address['v6'] + ']'}:{port}"


def options(program: str, *, ahead: int = WIDE) -> list[tuple[str, int | str]]:
    """Return the channel's options; the server sees `program` and its version as the user agent.

    `ahead` is how many bytes each stream may send ahead of its reader.
    """
    return [
        *_OPTIONS,
        ("grpc.http2.lookahead_bytes", ahead),
        # A message is one frame then, instead of one for each 16 KiB: a tenth of the server's CPU.
        ("grpc.http2.max_frame_size", _FRAME),
        ("grpc.primary_user_agent", f"{program}/{jobworker.__version__}"),
    ]


def stop_request(job_id: UUID | str, grace: float | None, signal: int | None = None) -> StopRequest:
    """Return the request to stop a job; `grace` is seconds, None (of either) the job's own."""
    request = StopRequest(job_id=str(job_id), signal=signal or 0)
    if grace is not None:
        request.grace.FromNanoseconds(round(grace * 1e9))
    return request


def wait_request(job_id: UUID | str, timeout: float | None) -> WaitRequest:
    """Return the request to wait for a job; `timeout` is seconds, None as long as it takes."""
    request = WaitRequest(job_id=str(job_id))
    if timeout is not None:
        request.timeout.FromNanoseconds(round(timeout * 1e9))
    return request


def stats_request(job_id: UUID | str, *, follow: bool, interval: float | None) -> StatsRequest:
    """Return the request for samples; `interval` is seconds, None the server's own."""
    request = StatsRequest(job_id=str(job_id), follow=follow)
    if interval is not None:
        request.interval.FromNanoseconds(round(interval * 1e9))
    return request
